// Scaled cosines of many rows x with a few rows y, their softmax, and the gradients; x is read once each way.
//
//     l_nk = scale x_n . u_k / |x_n|,  u_k = y_k / |y_k|, or y_k itself where it has length 1 already
//
//     h_nk = (dl_nk scale) / |x_n|,    dx_n = sum_k h_nk u_k - (sum_k dl_nk l_nk) x_n / |x_n|^2,    du_k = sum_n h_nk x_n
//
// Lengths are at least kCosineEps; one that is less counts as a constant.
#pragma once

#include <cstdint>

#include "row_matrix.h"

namespace case_wtal {

constexpr double kCosineEps = 1e-12;  // the reference's

template <typename T>
struct CosineProblem {
  int64_t groups, rows, columns, width;
  RowMatrix<T> x;  // (groups, rows, width)
  const T* y;      // (groups, columns, width)
  T scale;
  bool unit_y, softmax;
};

// What forward makes; backward reads it.
template <typename T>
struct CosineOutputs {
  T* out;      // (groups, rows, columns), the logits or their softmax
  T* lengths;  // (groups, rows), of x, not yet held to the least one; null: not kept
};

// num_threads <= 0: OpenMP's default; results do not depend on it. T: float, double.
template <typename T>
void cosine_cpu(const CosineProblem<T>& problem, const CosineOutputs<T>& outputs, int num_threads);

// x, y: gradients in the shapes of these, contiguous; null where not wanted.
template <typename T>
struct CosineGradients {
  const T* cotangent;  // (groups, rows, columns)
  T *x, *y;
};

template <typename T>
void cosine_backward_cpu(const CosineProblem<T>& problem, const CosineOutputs<T>& outputs,
                         const CosineGradients<T>& gradients, int num_threads);

}  // namespace case_wtal
