#include "sinkhorn_pass.h"

#include <cmath>

namespace case_wtal {
namespace {

template <typename T, int K>
CASE_INLINE void linear_start(const Tiles<T>& tiles, const LinearStart<T>& step, int64_t chunk) {
  const Grid& grid = tiles.grid;
  const int64_t k = width<K>(grid.k);
  Scratch<T> scratch(grid, 1, 0, 1);
  T *local = scratch.tile(), *column = scratch.column();
  double *sums = step.sums + chunk * k, peak = -kInfinity<double>;
  std::fill_n(sums, k, 0.0);
  Extent<T> extent;
  grid.each_tile(chunk, [&](int64_t first, int64_t rows, int64_t index) CASE_INLINE_LAMBDA {
    const T* tile = fetch<T, K>(tiles, first, rows, index, local, extent);
    const double shift = tiles.shift[index];
    column_sums<T, K>(tile, tiles.ones, rows, k, column);
    if (shift == -kInfinity<double>) {
      for (int64_t j = 0; j < k; ++j) sums[j] += column[j];  // 0 or NaN
      return;
    }
    const double next = std::max(peak, shift), kept = std::exp(peak - next), weight = std::exp(shift - next);
    for (int64_t j = 0; j < k; ++j) sums[j] = sums[j] * kept + double(column[j]) * weight;
    peak = next;
  });
  std::fill_n(step.peaks + chunk * k, k, peak);
  step.extents[chunk] = extent;
}

template <typename T, int K>
CASE_INLINE void column_step(const Tiles<T>& tiles, const ColumnStep<T>& step, int64_t chunk) {
  const Grid& grid = tiles.grid;
  const int64_t k = width<K>(grid.k);
  Scratch<T> scratch(grid, 2, 1, 3);
  T *local = scratch.tile(), *terms = scratch.tile(), *zeros = scratch.row();
  T *tile_peak = scratch.column(), *negative_peak = scratch.column(), *column = scratch.column();
  std::fill_n(zeros, grid.tile, T(0));
  double *sums = step.sums + chunk * k, *peaks = step.peaks + chunk * k;
  std::fill_n(sums, k, 0.0);
  std::fill_n(peaks, k, -kInfinity<double>);
  grid.each_tile(chunk, [&](int64_t first, int64_t rows, int64_t index) CASE_INLINE_LAMBDA {
    const T* tile = fetch<T, K>(tiles, first, rows, index, local);
    const T* weights = step.weights ? step.weights + first : zeros;
    column_peaks<T, K>(tile, weights, rows, k, tile_peak);
    for (int64_t j = 0; j < k; ++j) negative_peak[j] = tile_peak[j] > -kInfinity<T> ? -tile_peak[j] : T(0);
    exp_sum<T, K>(tile, negative_peak, weights, rows, k, terms);
    column_sums<T, K>(terms, tiles.ones, rows, k, column);
    for (int64_t j = 0; j < k; ++j) {
      const double peak = -double(negative_peak[j]);
      if (column[j] == T(0)) continue;
      const double next = std::max(peaks[j], peak);
      sums[j] = sums[j] * std::exp(peaks[j] - next) + double(column[j]) * std::exp(peak - next);
      peaks[j] = next;
    }
  });
}

template <typename T, int K>
CASE_INLINE void row_step(const Tiles<T>& tiles, const RowStep<T>& step, int64_t chunk) {
  const Grid& grid = tiles.grid;
  const int64_t k = width<K>(grid.k);
  Scratch<T> scratch(grid, 2, 3, 1);
  T *local = scratch.tile(), *weighted = scratch.tile(), *column = scratch.column();
  T *negative_peak = scratch.row(), *sum = scratch.row(), *weight = scratch.row();
  double* sums = step.sums ? step.sums + chunk * k : nullptr;
  if (sums) std::fill_n(sums, k, 0.0);
  grid.each_tile(chunk, [&](int64_t first, int64_t rows, int64_t index) CASE_INLINE_LAMBDA {
    const T* tile = fetch<T, K>(tiles, first, rows, index, local);
    const T* w = weigh<T, K>(tiles, tile, step.v, rows, negative_peak, weighted);
    row_sums<T, K>(w, step.factor, rows, k, sum);
    if (sums) {
      const T* r = tiles.view->row_marginal ? tiles.view->row_marginal + first : tiles.ones;
      for (int64_t n = 0; n < rows; ++n) {
        const T given = weight_of(r[n]) * T(step.weight);
        weight[n] = sum[n] == 0 ? T(0) : given / sum[n];
      }
      column_sums<T, K>(w, weight, rows, k, column);
      for (int64_t j = 0; j < k; ++j) sums[j] += column[j];
    }
    if (step.u) {
      const bool linear = tiles.domain == Domain::linear;
      const T base = linear ? tiles.shift[index] + step.top : T(0);
      for (int64_t n = 0; n < rows; ++n) {
        const T peak = linear ? base : -negative_peak[n];
        step.u[first + n] = sum[n] == 0 ? T(0) : -(peak + simd_log(sum[n]));
      }
    }
    if (step.q) {
      for (int64_t n = 0; n < rows; ++n) weight[n] = sum[n] == 0 ? T(0) : T(1) / sum[n];
      scale_both<T, K>(w, step.factor, weight, rows, k, step.q + first * k);
    }
  });
}

}  // namespace

CASE_SINKHORN_STEP(LinearStart, linear_start)
CASE_SINKHORN_STEP(ColumnStep, column_step)
CASE_SINKHORN_STEP(RowStep, row_step)

}  // namespace case_wtal
