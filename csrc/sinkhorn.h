// Sinkhorn-Knopp in plain C++ (METHOD.md, OT; case/ops/reference/sinkhorn.py is the definition), and its gradient.
//
// With L = scale * logits + log prior, -inf where masked, row marginal r and column marginal c:
//     v_k = log c_k - log sum_n exp(L_nk + a_n) r_n     a_n = -log sum_k exp(L_nk + v_k)     Q = exp(L + a + v)
// where the first column step has a_n + log r_n = 0. A row or column without any mass has potential 0.
#pragma once

#include <cstdint>

namespace case_wtal {

// `batch` problems of `n` rows and `k` columns. Strides are in elements; where none is given, it is contiguous. What is
// absent has a null address. T: float, double.
template <typename T>
struct SinkhornProblem {
  struct Matrix {
    const T* data;
    int64_t batch_stride, row_stride;  // columns are contiguous; either stride may be 0
  };
  struct Mask {
    const unsigned char* data;
    int64_t batch_stride, row_stride, column_stride;  // column_stride: 0 or 1
  };
  int64_t batch, n, k;
  Matrix logits, prior;
  Mask mask;
  const T* positions;  // (batch, n) and (batch, k): the rank prior -(position_n - center_k)^2 / (2 sigma^2), in logs
  const T* centers;
  double sigma;
  const T* row_marginal;     // (batch, n); default: 1
  const T* column_marginal;  // (batch, k); default: 1
  double scale;
  int n_iters;
  double tol;  // negative: run all iterations
  // The linear domain is used where every product of a matrix entry and a potential is within e^-range to e^range;
  // 0 or less: never.
  double linear_range;
};

// What a gradient needs of the iterations that ran, of each problem. `columns[t]` is the log of what v[t] was divided
// by: of the sums over rows of exp(L) for t = 0, of P_nk r_n with P the plan of v[t - 1] for the others.
struct SinkhornHistory {
  double* v;        // (batch, n_iters, k)
  double* columns;  // (batch, n_iters, k)
  double* ran;      // (batch): iterations that ran; those after them had no effect
  double* lowest;   // (batch): lower bound of log(entry / largest of its tile); -inf where not in the linear range
};

// Writes q (batch, n, k), or u (batch, n) and v (batch, k), whichever are not null; `history` if its parts are not.
// Returns false if some column's mass was below what P_nk r_n can hold, so that it was found from L + a instead:
// results are right, but sinkhorn_backward_cpu must not be given this history.
template <typename T>
bool sinkhorn_cpu(const SinkhornProblem<T>& problem, T* q, T* u, T* v, const SinkhornHistory& history, int num_threads);

// Cotangents of q, or of u and v; null for zero. Gradients, null where not wanted: of logits (always given), prior
// (batch, n, k), centers, column_marginal (batch, k), row_marginal (batch, n).
template <typename T>
struct SinkhornGradients {
  const T *grad_q, *grad_u, *grad_v;
  T *logits, *prior, *centers, *row_marginal, *column_marginal;
};

template <typename T>
void sinkhorn_backward_cpu(const SinkhornProblem<T>& problem, const SinkhornHistory& history,
                           const SinkhornGradients<T>& gradients, int num_threads);

// p_n = (rank_n + 1) / (number of valid rows), rank 0 the highest score, ties in order of appearance; `argsort`: the
// index of the n-th highest instead of rank_n. Rows that are not valid (null: all are) rank as -inf.
template <typename T>
void rank_positions_cpu(const T* scores, const unsigned char* valid, T* positions, int64_t batch, int64_t n,
                        bool argsort, int num_threads);

// out (batch, n, k) = exp(-(position_n - center_k)^2 / (2 sigma^2)), each problem's sum 1.
template <typename T>
void rank_prior_cpu(const T* positions, const T* centers, double sigma, T* out, int64_t batch, int64_t n, int64_t k,
                    int num_threads);

}  // namespace case_wtal
