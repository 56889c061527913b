// Products of a wide matrix with narrow ones, by tiles of the result that stay in registers while what is summed over
// goes by. One pass over blocks of rows of the wide matrix x does
//
//     narrow_product   (rows, products) = x weights^T
//     expand           (rows, width)    = factors weights - coefficient x + added
//     add_products     (products, width) += factors^T x
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace case_wtal {

// Columns of a tile are whole vectors of this many numbers, 32 bytes.
template <typename T>
constexpr int kLanes = 32 / int(sizeof(T));
// A processor of x86-64-v3 has 16 vector registers: sums take 12, factors and columns of the right side the rest.
constexpr int kTileVectors = 12;
constexpr int kMostVectors = 3;  // of a tile's columns, in narrow_product
// Wide columns that are gone through at once in the other two: two vectors, and up to 6 rows of sums of them.
template <typename T>
constexpr int kPanel = 2 * kLanes<T>;
constexpr int kMostRows = kTileVectors / 2;
// Rows that stay in the second-level cache for all that is done with them; whole tiles of 4, 6 and 8 rows.
constexpr int64_t kBlockRows = 48;

inline int64_t ceil_div(int64_t count, int64_t by) { return (count + by - 1) / by; }

// f(the size as a constant); 1 <= size <= Most.
template <int Most, typename F>
CASE_INLINE void with_constant(int64_t size, F f) {
  if constexpr (Most > 1) {
    if (size < Most) return with_constant<Most - 1>(size, f);
  }
  f(std::integral_constant<int, Most>{});
}

// f(first, size as a constant) for tiles that cover [0, count), of at most Most and as even as can be: a small one has
// too few sums to keep the multipliers busy.
template <int Most, typename F>
CASE_INLINE void each_tile(int64_t count, F f) {
  int64_t first = 0;
  for (int64_t left = ceil_div(count, Most); left > 0; --left) {
    const int64_t size = ceil_div(count - first, left);
    with_constant<Most>(size, [&](auto constant) CASE_INLINE_LAMBDA { f(first, constant); });
    first += size;
  }
}

// sum_mn += sum_k left_mk right_kn. Columns of the right side are contiguous, strides of the left one are given.
template <typename T, int M, int N>
CASE_INLINE void multiply(const T* left, int64_t row, int64_t step, const T* right, int64_t right_row, int64_t depth,
                          T (&sum)[M][N]) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int m = 0; m < M; ++m) {
      const T factor = left[m * row + k * step];
#pragma omp simd
      for (int n = 0; n < N; ++n) sum[m][n] += factor * right[k * right_row + n];
    }
  }
}

template <typename T, int M, int N>
CASE_INLINE void clear(T (&sum)[M][N]) {
  for (int m = 0; m < M; ++m) {
#pragma omp simd
    for (int n = 0; n < N; ++n) sum[m][n] = 0;
  }
}

// Narrow weights (columns, depth), transposed: panels of 1 to 3 vectors of columns, each (depth, its columns).
template <typename T>
struct Panels {
  int64_t columns = 0, depth = 0, vectors = 0;
  std::vector<T> values;

  Panels() = default;
  Panels(const T* weights, int64_t columns, int64_t depth)
      : columns(columns), depth(depth), vectors(ceil_div(columns, kLanes<T>)), values(size_t(width() * depth)) {
    each_tile<kMostVectors>(vectors, [&](int64_t first, auto count) {
      const int64_t start = first * kLanes<T>, size = count * kLanes<T>;
      for (int64_t c = start; c < std::min(columns, start + size); ++c) {
        for (int64_t k = 0; k < depth; ++k) {
          values[size_t(start * depth + k * size + c - start)] = weights[c * depth + k];
        }
      }
    });
  }

  int64_t width() const { return vectors * kLanes<T>; }
};

// out (rows, panels.width()) = x (rows, depth) times the panels.
void narrow_product(const float* x, int64_t stride, int64_t rows, const Panels<float>& panels, float* out);
void narrow_product(const double* x, int64_t stride, int64_t rows, const Panels<double>& panels, double* out);

// How many panels a wide row has, and the columns of one that are there.
template <typename T>
inline int64_t panel_count(int64_t width) {
  return ceil_div(width, kPanel<T>);
}
template <typename T>
inline int64_t panel_columns(int64_t width, int64_t panel) {
  return std::min<int64_t>(kPanel<T>, width - panel * kPanel<T>);
}

// Narrow weights (products, width) by panels (products, kPanel); the last one's columns that are not there are left alone.
template <typename T>
void pack_rows(const T* from, int64_t products, int64_t width, T* to) {
  for (int64_t p = 0; p < panel_count<T>(width); ++p) {
    for (int64_t r = 0; r < products; ++r, to += kPanel<T>) {
      std::copy_n(from + r * width + p * kPanel<T>, panel_columns<T>(width, p), to);
    }
  }
}

// A block of rows of the wide matrix, and what is wanted of it. Null is absent: 0, or not wanted.
template <typename T>
struct WideRows {
  int64_t rows, width, products;
  const T* x;
  int64_t x_stride;
  bool ahead;        // whether x comes from memory, so that add_products had better ask for the next block
  const T* factors;  // (rows, products)
  int64_t factor_stride;
  const T* weights;      // as pack_rows has them
  const T* coefficient;  // of each row
  const T* added;
  int64_t added_stride;
  T* gradient;
  int64_t gradient_stride;
  T* sums;    // by panels (sum_rows, kPanel), of which the first `products` are the sums
  int64_t sum_rows;
};

// The last panel of a row may not be whole, which `full` tells.
template <typename T, int M, bool full, typename Finish>
CASE_INLINE void expand_tile(const WideRows<T>& it, int64_t row, int64_t column, int64_t columns, const Finish& finish) {
  constexpr int N = kPanel<T>;
  const int64_t width = full ? N : columns;
  T sum[M][N];
  if (!full || !it.coefficient) clear(sum);
  for (int m = 0; m < M; ++m) {
    if (it.coefficient) {
      const T *x = it.x + (row + m) * it.x_stride + column, coefficient = it.coefficient[row + m];
#pragma omp simd
      for (int64_t n = 0; n < width; ++n) sum[m][n] = -coefficient * x[n];
    }
    if (it.added) {
      const T* added = it.added + (row + m) * it.added_stride + column;
#pragma omp simd
      for (int64_t n = 0; n < width; ++n) sum[m][n] += added[n];
    }
  }
  multiply<T, M, N>(it.factors + row * it.factor_stride, it.factor_stride, 1, it.weights + column * it.products, N,
                    it.products, sum);
  finish(row, column, width, sum);
  for (int m = 0; m < M; ++m) {
    T* to = it.gradient + (row + m) * it.gradient_stride + column;
#pragma omp simd
    for (int64_t n = 0; n < width; ++n) to[n] = sum[m][n];
  }
}

// gradient = factors weights - coefficient x + added, after finish(row, column, width, sum) on each tile (M, kPanel) of
// it, of which `width` columns are there.
template <typename T, typename Finish>
CASE_INLINE void expand(const WideRows<T>& it, const Finish& finish) {
  const int64_t whole = it.width / kPanel<T>, rest = it.width % kPanel<T>;
  each_tile<kMostRows>(it.rows, [&](int64_t row, auto M) CASE_INLINE_LAMBDA {
    for (int64_t p = 0; p < whole; ++p) expand_tile<T, M, true>(it, row, p * kPanel<T>, kPanel<T>, finish);
    if (rest) expand_tile<T, M, false>(it, row, whole * kPanel<T>, rest, finish);
  });
}

// The same with nothing to finish.
void expand(const WideRows<float>& it);
void expand(const WideRows<double>& it);

// sums += factors^T x, block by block: the sum of a chunk is not rounded at every row.
void add_products(const WideRows<float>& it);
void add_products(const WideRows<double>& it);

template <typename T, int N>
CASE_INLINE T total_of(T (&sums)[N]) {
  if constexpr (N == 1) {
    return sums[0];
  } else {
    T half[N / 2];
#pragma omp simd
    for (int n = 0; n < N / 2; ++n) half[n] = sums[n] + sums[n + N / 2];
    return total_of(half);
  }
}

// |x|^2, by sums that do not wait for each other.
template <typename T>
CASE_INLINE T square_of(const T* x, int64_t count) {
  constexpr int N = 4 * kLanes<T>;
  T sums[N] = {};
  int64_t i = 0;
  for (; i + N <= count; i += N) {
#pragma omp simd
    for (int n = 0; n < N; ++n) sums[n] += x[i + n] * x[i + n];
  }
  for (; i < count; ++i) sums[0] += x[i] * x[i];
  return total_of(sums);
}

}  // namespace case_wtal
