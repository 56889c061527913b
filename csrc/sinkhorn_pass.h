// Passes over the rows of one problem, chunk by chunk. Chunks depend on the problem's size alone and their sums are
// added in order, so results are the same for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "parallel.h"
#include "sinkhorn_tile.h"

namespace case_wtal {

struct Grid {
  int64_t n, k;
  int64_t tile, chunk;  // rows; a chunk is a whole number of tiles
  int64_t chunks;

  Grid(int64_t n, int64_t k, int64_t tile_entries) : n(n), k(k) {
    constexpr int64_t chunk_entries = 1 << 13, most_chunks = 256;
    tile = std::clamp<int64_t>(tile_entries / k & ~int64_t(3), 4, 1024);
    const int64_t tiles = (n + tile - 1) / tile;
    const int64_t by_entries = (chunk_entries / k + tile - 1) / tile;
    const int64_t by_count = (tiles + most_chunks - 1) / most_chunks;
    chunk = tile * std::max({by_entries, by_count, int64_t(1)});
    chunks = (n + chunk - 1) / chunk;
  }

  int64_t tiles() const { return (n + tile - 1) / tile; }

  // f(first row, rows, index) for each tile of chunk c.
  template <typename F>
  CASE_INLINE void each_tile(int64_t c, F f) const {
    const int64_t end = std::min(n, (c + 1) * chunk);
    for (int64_t first = c * chunk; first < end; first += tile) f(first, std::min(tile, end - first), first / tile);
  }
};

template <typename T>
Grid grid_of(const View<T>& view) {
  return Grid(view.n, view.k, (int64_t(1) << 14) / int64_t(sizeof(T)));
}

enum class Domain { linear, log };

// The matrix of a problem, tile by tile: exp(L - shift) in the linear domain, L in the log domain.
template <typename T>
struct Tiles {
  const View<T>* view;
  Grid grid;
  Domain domain;
  T* matrix;    // (n, k) that holds them from one pass to the next; null: made again in every pass
  bool stored;  // whether matrix holds them already
  T* shift;     // of each tile, in the linear domain
  const T* ones;  // max(k, rows of a tile)
};

// Scratch memory of a pass over one chunk.
template <typename T>
struct Scratch {
  Scratch(const Grid& grid, int tiles, int rows, int columns)
      : memory(new T[tiles * grid.tile * grid.k + rows * grid.tile + columns * grid.k]),
        next(memory.get()),
        grid(grid) {}
  T* tile() { return take(grid.tile * grid.k); }
  T* row() { return take(grid.tile); }
  T* column() { return take(grid.k); }

 private:
  T* take(int64_t count) { return (next += count) - count; }
  std::unique_ptr<T[]> memory;
  T* next;
  const Grid& grid;
};

// The tile at rows first to first + rows, made and stored as `tiles` says.
template <typename T, int K>
CASE_INLINE const T* fetch(const Tiles<T>& tiles, int64_t first, int64_t rows, int64_t index, T* local,
                           Extent<T>& extent) {
  T* out = tiles.matrix ? tiles.matrix + first * width<K>(tiles.grid.k) : local;
  if (tiles.stored) return out;
  if (tiles.domain == Domain::log) {
    log_tile<T, K>(*tiles.view, first, rows, out);
  } else {
    tiles.shift[index] = linear_tile<T, K>(*tiles.view, first, rows, out, extent);
  }
  return out;
}

template <typename T, int K>
CASE_INLINE const T* fetch(const Tiles<T>& tiles, int64_t first, int64_t rows, int64_t index, T* local) {
  Extent<T> unused;
  return fetch<T, K>(tiles, first, rows, index, local, unused);
}

// W of the plan of potentials v from a tile of L, into local; negative_peak gets -(row's peak). W is the tile itself in
// the linear domain, where v is in the factor.
template <typename T, int K>
CASE_INLINE const T* weigh(const Tiles<T>& tiles, const T* tile, const T* v, int64_t rows, T* negative_peak, T* local) {
  if (tiles.domain == Domain::linear) return tile;
  row_peaks<T, K>(tile, v, rows, tiles.grid.k, negative_peak);
  for (int64_t n = 0; n < rows; ++n) negative_peak[n] = -negative_peak[n];
  exp_sum<T, K>(tile, v, negative_peak, rows, tiles.grid.k, local);
  return local;
}

// First column step in the linear domain: of each chunk, sums_k = sum_n exp(L_nk - peak), not weighted.
template <typename T>
struct LinearStart {
  double* sums;        // (chunks, k)
  double* peaks;       // (chunks, k), all k alike
  Extent<T>* extents;  // (chunks)
};

// A column step in the log domain: of each chunk, peaks_k = max_n L_nk + weights_n, sums_k = sum_n exp(that - peaks_k).
template <typename T>
struct ColumnStep {
  const T* weights;  // (n), in logs; null: 0
  double *sums, *peaks;
};

// The row step for column potentials v, then any of: column sums of P_nk r_n / sum(r), the plan, the row potentials.
template <typename T>
struct RowStep {
  const T* v;       // in the log domain, else null
  const T* factor;  // exp(v - top) in the linear domain, else ones
  T top;            // 0 in the log domain
  double weight;    // 1 / sum(r)
  double* sums;     // (chunks, k), without the factor
  T* q;             // (n, k), may be the matrix of the tiles
  T* u;             // (n)
};

template <typename T>
void run_chunk(const Tiles<T>& tiles, const LinearStart<T>& step, int64_t chunk);
template <typename T>
void run_chunk(const Tiles<T>& tiles, const ColumnStep<T>& step, int64_t chunk);
template <typename T>
void run_chunk(const Tiles<T>& tiles, const RowStep<T>& step, int64_t chunk);

// Vector clones are plain functions: one for each step and type, which chooses the number of columns.
#define CASE_SINKHORN_CLONES(Step, T, body)                                                   \
  CASE_SIMD_CLONES_32 void clone(const Tiles<T>& tiles, const Step<T>& step, int64_t chunk) { \
    switch (tiles.grid.k) {                                                                   \
      case 16: return body<T, 16>(tiles, step, chunk);                                        \
      case 128: return body<T, 128>(tiles, step, chunk);                                      \
      default: return body<T, 0>(tiles, step, chunk);                                         \
    }                                                                                         \
  }
#define CASE_SINKHORN_STEP(Step, body)                                                         \
  namespace {                                                                                  \
  CASE_SINKHORN_CLONES(Step, float, body)                                                      \
  CASE_SINKHORN_CLONES(Step, double, body)                                                     \
  }                                                                                            \
  template <typename T>                                                                        \
  void run_chunk(const Tiles<T>& tiles, const Step<T>& step, int64_t chunk) {                  \
    clone(tiles, step, chunk);                                                                 \
  }                                                                                            \
  template void run_chunk(const Tiles<float>&, const Step<float>&, int64_t);                   \
  template void run_chunk(const Tiles<double>&, const Step<double>&, int64_t);

template <typename T, typename Step>
void run(const Tiles<T>& tiles, const Step& step, int threads) {
  const Grid& grid = tiles.grid;
  parallel_for(grid.chunks, threads_worth(grid.n * grid.k, threads), [&](int64_t chunk) { run_chunk(tiles, step, chunk); });
}

}  // namespace case_wtal
