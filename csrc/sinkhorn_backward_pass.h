// Passes of the gradient (sinkhorn_backward.cpp); as in sinkhorn_pass.h, each runs over one chunk of rows.
#pragma once

#include "sinkhorn_pass.h"

namespace case_wtal {

// The plan of one iteration: v in the log domain, else null; factor as in RowStep; factor_h = factor_k h_k, where h_k
// is the cotangent of the next iteration's v_k over the column sum that made it.
template <typename T>
struct Iteration {
  const T *v, *factor, *factor_h;
};

// Cotangents of the last plan and row potentials; at most one is not null.
template <typename T>
struct Cotangent {
  const T *q, *u;
};

// sums_k (without the factor) = the cotangent of the last v_k.
template <typename T>
struct LastCotangent {
  Iteration<T> last;
  Cotangent<T> given;
  double* sums;
};

// sums_k (without the factor) = the cotangent of an earlier v_k, sum_n r_n H_n P_nk with H_n = sum_k h_k P_nk.
template <typename T>
struct EarlierCotangent {
  Iteration<T> iteration;
  double weight;  // 1 / sum(r)
  double* sums;
};

// Gradients, from the cotangents of all iterations at once: each entry is written once.
template <typename T>
struct GradientStep {
  const Iteration<T>* iterations;
  int ran;
  Cotangent<T> given;
  const T *first_cotangent, *first_column;  // of the first v; log of the sums that it was divided by, or infinity
  double weight;
  T* logits;  // (n, k), may be the matrix of the tiles
  T *prior, *row_marginal;  // (n, k), (n); null: not wanted
  double* center_sums;      // (chunks, 2 k): sums over n of dL_nk position_n and of dL_nk; null: not wanted
};

template <typename T>
void run_chunk(const Tiles<T>& tiles, const LastCotangent<T>& step, int64_t chunk);
template <typename T>
void run_chunk(const Tiles<T>& tiles, const EarlierCotangent<T>& step, int64_t chunk);
template <typename T>
void run_chunk(const Tiles<T>& tiles, const GradientStep<T>& step, int64_t chunk);

}  // namespace case_wtal
