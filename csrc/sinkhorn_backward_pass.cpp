#include "sinkhorn_backward_pass.h"

namespace case_wtal {
namespace {

// 1 / sum_k W_nk factor_k, 0 for a row without mass.
template <typename T, int K>
CASE_INLINE void inverse_sums(const T* w, const T* factor, int64_t rows, int64_t columns, T* inverse) {
  row_sums<T, K>(w, factor, rows, columns, inverse);
  for (int64_t n = 0; n < rows; ++n) inverse[n] = inverse[n] == 0 ? T(0) : T(1) / inverse[n];
}

// out_nk = the last plan's cotangent of L, P_nk (G_nk - sum_j G_nj P_nj), or -P_nk gu_n; with `outer` in place of the
// factor that P_nk has.
template <typename T, int K>
CASE_INLINE void last_terms(const T* w, const T* factor, const Cotangent<T>& given, int64_t first, int64_t rows,
                            int64_t columns, const T* outer, T* inverse, T* dot, T* out) {
  const int64_t k = width<K>(columns);
  inverse_sums<T, K>(w, factor, rows, k, inverse);
  if (given.q) {
    const T* g = given.q + first * k;
    row_dots<T, K>(w, factor, g, rows, k, dot);
    for (int64_t n = 0; n < rows; ++n) {
      const T mean = dot[n] * inverse[n];
#pragma omp simd
      for (int64_t j = 0; j < k; ++j) {
        out[n * k + j] = w[n * k + j] * outer[j] * ((g[n * k + j] - mean) * inverse[n]);
      }
    }
  } else {
    for (int64_t n = 0; n < rows; ++n) dot[n] = given.u ? -given.u[first + n] * inverse[n] : T(0);
    scale_both<T, K>(w, outer, dot, rows, k, out);
  }
}

// For an earlier iteration: mean_n = H_n, share_n = r_n / (sum(r) sum_k W_nk factor_k).
template <typename T, int K>
CASE_INLINE void earlier_rows(const Tiles<T>& tiles, const T* w, const Iteration<T>& it, double weight, int64_t first,
                              int64_t rows, T* mean, T* share) {
  const int64_t k = width<K>(tiles.grid.k);
  inverse_sums<T, K>(w, it.factor, rows, k, share);
  row_sums<T, K>(w, it.factor_h, rows, k, mean);
  const T* r = tiles.view->row_marginal ? tiles.view->row_marginal + first : tiles.ones;
  for (int64_t n = 0; n < rows; ++n) {
    mean[n] *= share[n];
    share[n] *= weight_of(r[n]) * T(weight);
  }
}

template <typename T>
CASE_INLINE void accumulate(const T* from, int64_t count, double* to) {
  for (int64_t j = 0; j < count; ++j) to[j] += from[j];
}

template <typename T, int K>
CASE_INLINE void last_cotangent(const Tiles<T>& tiles, const LastCotangent<T>& step, int64_t chunk) {
  const Grid& grid = tiles.grid;
  const int64_t k = width<K>(grid.k);
  Scratch<T> scratch(grid, 3, 3, 1);
  T *local = scratch.tile(), *weighted = scratch.tile(), *terms = scratch.tile(), *column = scratch.column();
  T *peak = scratch.row(), *inverse = scratch.row(), *dot = scratch.row();
  double* sums = step.sums + chunk * k;
  std::fill_n(sums, k, 0.0);
  grid.each_tile(chunk, [&](int64_t first, int64_t rows, int64_t index) CASE_INLINE_LAMBDA {
    const T* tile = fetch<T, K>(tiles, first, rows, index, local);
    const T* w = weigh<T, K>(tiles, tile, step.last.v, rows, peak, weighted);
    last_terms<T, K>(w, step.last.factor, step.given, first, rows, k, tiles.ones, inverse, dot, terms);
    column_sums<T, K>(terms, tiles.ones, rows, k, column);
    accumulate(column, k, sums);
  });
}

template <typename T, int K>
CASE_INLINE void earlier_cotangent(const Tiles<T>& tiles, const EarlierCotangent<T>& step, int64_t chunk) {
  const Grid& grid = tiles.grid;
  const int64_t k = width<K>(grid.k);
  Scratch<T> scratch(grid, 2, 3, 1);
  T *local = scratch.tile(), *weighted = scratch.tile(), *column = scratch.column();
  T *peak = scratch.row(), *mean = scratch.row(), *share = scratch.row();
  double* sums = step.sums + chunk * k;
  std::fill_n(sums, k, 0.0);
  grid.each_tile(chunk, [&](int64_t first, int64_t rows, int64_t index) CASE_INLINE_LAMBDA {
    const T* tile = fetch<T, K>(tiles, first, rows, index, local);
    const T* w = weigh<T, K>(tiles, tile, step.iteration.v, rows, peak, weighted);
    earlier_rows<T, K>(tiles, w, step.iteration, step.weight, first, rows, mean, share);
    for (int64_t n = 0; n < rows; ++n) mean[n] *= share[n];
    column_sums<T, K>(w, mean, rows, k, column);
    accumulate(column, k, sums);
  });
}

template <typename T, int K>
CASE_INLINE void gradient_step(const Tiles<T>& tiles, const GradientStep<T>& step, int64_t chunk) {
  const Grid& grid = tiles.grid;
  const View<T>& view = *tiles.view;
  const int64_t k = width<K>(grid.k);
  const bool linear = tiles.domain == Domain::linear;
  Scratch<T> scratch(grid, 3, 3, 2);
  T *local = scratch.tile(), *weighted = scratch.tile(), *total = scratch.tile();
  T *peak = scratch.row(), *mean = scratch.row(), *share = scratch.row();
  T *column = scratch.column(), *negative_column = scratch.column();
  double* center_sums = step.center_sums ? step.center_sums + chunk * 2 * k : nullptr;
  if (center_sums) std::fill_n(center_sums, 2 * k, 0.0);
  grid.each_tile(chunk, [&](int64_t first, int64_t rows, int64_t index) CASE_INLINE_LAMBDA {
    const T* tile = fetch<T, K>(tiles, first, rows, index, local);
    const Iteration<T>& last = step.iterations[step.ran - 1];
    const T* w = weigh<T, K>(tiles, tile, last.v, rows, peak, weighted);
    last_terms<T, K>(w, last.factor, step.given, first, rows, k, last.factor, share, mean, total);
    if (step.row_marginal) std::fill_n(step.row_marginal + first, rows, T(0));
    for (int t = step.ran - 2; t >= 0; --t) {
      const Iteration<T>& it = step.iterations[t];
      w = weigh<T, K>(tiles, tile, it.v, rows, peak, weighted);
      earlier_rows<T, K>(tiles, w, it, step.weight, first, rows, mean, share);
      for (int64_t n = 0; n < rows; ++n) {
        const T a = share[n], b = mean[n] * share[n];
#pragma omp simd
        for (int64_t j = 0; j < k; ++j) total[n * k + j] += w[n * k + j] * (it.factor[j] * b - it.factor_h[j] * a);
      }
      for (int64_t n = 0; n < rows && step.row_marginal; ++n) {
        step.row_marginal[first + n] -= view.row_marginal[first + n] == 0 ? T(0) : mean[n] * T(step.weight);
      }
    }
    // The first v: its cotangent times the softmax of L over rows, exp(L - first_column).
    const T shift = linear ? tiles.shift[index] : T(0);
    for (int64_t j = 0; j < k; ++j) {
      negative_column[j] = -step.first_column[j];
      column[j] = step.first_cotangent[j] * (linear ? simd_exp(shift + negative_column[j]) : T(1));
    }
    w = tile;
    if (!linear) {
      std::fill_n(peak, rows, T(0));
      exp_sum<T, K>(tile, negative_column, peak, rows, k, weighted);
      w = weighted;
    }
    for (int64_t n = 0; n < rows; ++n) {
#pragma omp simd
      for (int64_t j = 0; j < k; ++j) total[n * k + j] -= w[n * k + j] * column[j];
    }
    if (step.prior) {
      for (int64_t n = 0; n < rows; ++n) {
        const T* prior = view.prior + (first + n) * view.prior_stride;
        T* out = step.prior + (first + n) * k;
#pragma omp simd
        for (int64_t j = 0; j < k; ++j) out[j] = prior[j] == 0 ? T(0) : total[n * k + j] / prior[j];
      }
    }
    if (center_sums) {
      column_sums<T, K>(total, view.positions + first, rows, k, column);
      accumulate(column, k, center_sums);
      column_sums<T, K>(total, tiles.ones, rows, k, column);
      accumulate(column, k, center_sums + k);
    }
    T* out = step.logits + first * k;
#pragma omp simd
    for (int64_t i = 0; i < rows * k; ++i) out[i] = total[i] * view.scale;
  });
}

}  // namespace

CASE_SINKHORN_STEP(LastCotangent, last_cotangent)
CASE_SINKHORN_STEP(EarlierCotangent, earlier_cotangent)
CASE_SINKHORN_STEP(GradientStep, gradient_step)

}  // namespace case_wtal
