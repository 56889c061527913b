// Cross entropies of rows, and their gradients by a second pass over the same rows: nothing is kept in between.
//
//     soft         l_n = sum_k t_nk (log Z_n - x_nk)         dl_n/dx_nk = s_nk sum_j t_nj - t_nk
//                                                            dl_n/dt_nk = log Z_n - x_nk
//     generalized  l_n = sum_k t_nk f_nk / T_n               dl_n/dp_nk = -t_nk b_nk^(q-1) / T_n
//                                                            dl_n/dt_nk = (f_nk - l_n) / T_n
//
// with Z_n = sum_k exp x_nk, s = softmax(x), b = p + 1e-7, f = (1 - b^q) / q and T_n = sum_k t_nk + 1e-7. An entry with
// t = 0 takes no part in the soft one, whatever its logit, nor does a row of them; a row with targets and no finite
// logit is NaN.
#pragma once

#include <cstdint>

#include "row_matrix.h"

namespace case_wtal {

// Logits or probabilities, and targets.
template <typename T>
struct RowPairs {
  int64_t batch, n, k;
  RowMatrix<T> x, t;
};

// Cotangent (batch, n) of the losses, any strides; gradients (batch, n, k), contiguous, null where not wanted.
template <typename T>
struct RowGradients {
  RowMatrix<T> cotangent;
  T *x, *t;
};

// losses (batch, n). num_threads <= 0: OpenMP's default; results do not depend on it. T: float, double.
template <typename T>
void soft_cross_entropy_cpu(const RowPairs<T>& rows, T* losses, int num_threads);
template <typename T>
void soft_cross_entropy_backward_cpu(const RowPairs<T>& rows, const RowGradients<T>& gradients, int num_threads);

template <typename T>
void generalized_cross_entropy_cpu(const RowPairs<T>& rows, double q, T* losses, int num_threads);
template <typename T>
void generalized_cross_entropy_backward_cpu(const RowPairs<T>& rows, double q, const RowGradients<T>& gradients,
                                            int num_threads);

}  // namespace case_wtal
