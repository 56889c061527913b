// Weighted sums of rows, s_k = sum_n w_nk e_n, normalised; e is read once each way.
//
//     sum    z_k = s_k
//     mean   z_k = s_k / m_k with m_k = sum_n w_nk; 0 where that is 0
//     l2     z_k = s_k / |s_k|; a length below the least counts as that, a constant
//
//     de_n = sum_k w_nk ds_k,    dw_nk = e_n . ds_k + dm_k
#pragma once

#include <cstdint>

#include "row_matrix.h"

namespace case_wtal {

enum class PrototypeNorm { kSum, kMean, kL2 };

template <typename T>
struct PrototypeProblem {
  int64_t groups, rows, columns, width;
  RowMatrix<T> e;  // (groups, rows, width)
  RowMatrix<T> w;  // (groups, rows, columns); a batch stride of 0: the same for all
  PrototypeNorm norm;
};

// What forward makes; backward reads all but z.
template <typename T>
struct PrototypeOutputs {
  T* z;      // (groups, columns, width)
  T* sums;   // the same, not normalised; null: not kept
  T* sizes;  // (groups, columns): m, or |s|; null: not kept
};

// num_threads <= 0: OpenMP's default; results do not depend on it. T: float, double.
template <typename T>
void prototypes_cpu(const PrototypeProblem<T>& problem, const PrototypeOutputs<T>& outputs, int num_threads);

// e, w: gradients (groups, rows, ...), contiguous; null where not wanted.
template <typename T>
struct PrototypeGradients {
  const T* cotangent;  // (groups, columns, width)
  T *e, *w;
};

template <typename T>
void prototypes_backward_cpu(const PrototypeProblem<T>& problem, const PrototypeOutputs<T>& outputs,
                             const PrototypeGradients<T>& gradients, int num_threads);

}  // namespace case_wtal
