// Top-k pooling over time: which k of t entries of a column are the largest, and the mean of values there.
#pragma once

#include <cstdint>

namespace case_wtal {

// Problems (batch, t, c), of which k entries a column are picked.
struct PoolSizes {
  int64_t batch, t, c, k;
};

// indices (batch, k, c): of the k largest of each column in the order of time; of equals the earlier are taken, and NaN
// before all numbers. selector: any strides, given for batch, t and c. T: float, double.
// num_threads <= 0: OpenMP's default; results do not depend on it.
template <typename T>
void topk_cpu(const T* selector, const int64_t (&strides)[3], PoolSizes sizes, int64_t* indices, int num_threads);

// Values (copies, batch, t, c) of which a problem picks a row once a column; or, shared, (copies, t, c) for the whole
// batch, of which rows may be picked repeatedly, by one problem or several. t is the number of rows in either.
struct PoolValues {
  int64_t copies;
  bool shared;
  int64_t matrix_of(int64_t problem, const PoolSizes& sizes) const { return shared ? problem / sizes.batch : problem; }
};

// pooled (copies, batch, c): means of values at rows (batch, k, c), all contiguous. Both throw std::out_of_range where
// a row is not in 0..t - 1.
template <typename T>
void pool_cpu(const T* values, const int64_t* rows, PoolValues form, PoolSizes sizes, T* pooled, int num_threads);

// Its gradient: cotangent (copies, batch, c) -> gradient, in the shape of values; repeated picks add up in double.
template <typename T>
void pool_backward_cpu(const T* cotangent, const int64_t* rows, PoolValues form, PoolSizes sizes, T* gradient,
                       int num_threads);

}  // namespace case_wtal
