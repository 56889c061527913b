// Rows of RowPairs in tiles, and columns in blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "losses.h"
#include "parallel.h"
#include "simd.h"

namespace case_wtal {

constexpr int64_t kTileEntries = 1 << 11, kTileRows = 128;
constexpr int64_t kBlock = 1 << 10;  // columns whose sums are of type T; those of blocks are added up in double
static_assert(kBlock <= kTileEntries, "a block of one row is the least that a tile has");

template <typename T>
struct Tile {
  int64_t rows, k;
  const T *x, *t;
  int64_t x_stride, t_stride;

  // K: their number where it is known to the compiler, else 0.
  template <int K>
  CASE_INLINE int64_t columns() const {
    return K ? K : k;
  }
};

// What the gradient of a tile is made from, and where it goes; null where not wanted.
template <typename T>
struct TileGradients {
  const T* cotangent;
  int64_t cotangent_stride;
  T *x, *t;
};

// Sums of a row are of type T where it is one block.
template <typename T, int K>
using Sum = std::conditional_t<K == 0, double, T>;

// f(first column, columns) for each block of a row.
template <int K, typename F>
CASE_INLINE void each_block(int64_t k, const F& f) {
  if constexpr (K != 0) {
    static_assert(K <= kBlock, "a known number of columns is one block");
    f(int64_t(0), int64_t(K));
  } else {
    for (int64_t first = 0; first < k; first += kBlock) f(first, std::min(kBlock, k - first));
  }
}

// run(tile, number of its problem, its first row) for all tiles. They depend on sizes alone.
template <typename T, typename Run>
void each_tile(const RowPairs<T>& rows, int num_threads, const Run& run) {
  const int64_t size = std::clamp<int64_t>(kTileEntries / std::max<int64_t>(rows.k, 1), 1, kTileRows);
  const int64_t tiles = (rows.n + size - 1) / size;
  parallel_for(rows.batch * tiles, threads_worth(rows.batch * rows.n * rows.k, num_threads), [&](int64_t i) {
    const int64_t b = i / tiles, first = i % tiles * size;
    const auto at = [&](const RowMatrix<T>& m) { return m.data + b * m.batch_stride + first * m.row_stride; };
    const int64_t count = std::min(size, rows.n - first);
    run(Tile<T>{count, rows.k, at(rows.x), at(rows.t), rows.x.row_stride, rows.t.row_stride}, b, first);
  });
}

template <typename T>
TileGradients<T> gradients_of(const RowPairs<T>& rows, const RowGradients<T>& all, int64_t b, int64_t first) {
  const int64_t at = (b * rows.n + first) * rows.k;
  const RowMatrix<T>& g = all.cotangent;
  return {g.data + b * g.batch_stride + first * g.row_stride, g.row_stride, all.x ? all.x + at : nullptr,
          all.t ? all.t + at : nullptr};
}

}  // namespace case_wtal
