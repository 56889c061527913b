// Matrices as they lie in memory.
#pragma once

#include <cstdint>

namespace case_wtal {

// (batch, n, k) with contiguous columns; strides in elements.
template <typename T>
struct RowMatrix {
  const T* data;
  int64_t batch_stride, row_stride;

  const T* row(int64_t batch, int64_t n) const { return data + batch * batch_stride + n * row_stride; }
};

}  // namespace case_wtal
