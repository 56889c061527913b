// Products with one narrow side, by tiles of the result that stay in registers while what is summed over goes by.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "heads.h"
#include "simd.h"

namespace case_wtal {

// Columns of a tile are whole vectors of this many numbers, 32 bytes.
template <typename T>
constexpr int kLanes = 32 / int(sizeof(T));
// A processor of x86-64-v3 has 16 vector registers: sums take 12, factors and columns of the right side the rest.
constexpr int kTileVectors = 12;
// Rows that stay in the second-level cache for all that is done with them; whole tiles of 4, 6 and 8 rows.
constexpr int64_t kBlockRows = 48;

inline int64_t ceil_div(int64_t count, int64_t by) { return (count + by - 1) / by; }

// Rows of each group in chunks of whole blocks: 6 of them or more, so that there are at most 64 chunks.
struct HeadChunks {
  int64_t rows, size, count;

  explicit HeadChunks(int64_t rows) : rows(rows) {
    const int64_t blocks = ceil_div(rows, kBlockRows);
    size = kBlockRows * std::max<int64_t>(6, ceil_div(blocks, 64));
    count = ceil_div(rows, size);
  }

  // f(first row, rows) for each block of a chunk.
  template <typename F>
  CASE_INLINE void each_block(int64_t chunk, F f) const {
    const int64_t end = std::min(rows, (chunk + 1) * size);
    for (int64_t first = chunk * size; first < end; first += kBlockRows) f(first, std::min(kBlockRows, end - first));
  }
};

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

}  // namespace case_wtal
