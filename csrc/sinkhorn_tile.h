// The steps of Sinkhorn on a tile, some rows that fit the first-level cache. Each is a plain loop along contiguous
// memory that the compiler vectorises; K is the number of columns where known when compiled, 0 where not.
//
// A tile holds W with P_nk = W_nk factor_k / (sum_k W_nk factor_k), P the plan after the row step. In the linear domain
// W = exp(L - shift), stored once, and factor = exp(v); in the log domain W = exp(L + v - row's peak), factor = 1.
#pragma once

#include <cstdint>
#include <limits>

#include "simd.h"

namespace case_wtal {

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// An entry of a prior or a marginal; NaN if it is none, so that it shows in the result.
template <typename T>
CASE_INLINE T weight_of(T x) {
  return x >= 0 ? x : std::numeric_limits<T>::quiet_NaN();
}

// One problem of a SinkhornProblem.
template <typename T>
struct View {
  int64_t n, k;
  const T* logits;
  int64_t logits_stride;
  const T* prior;
  int64_t prior_stride;
  const unsigned char* mask;
  int64_t mask_stride, mask_column_stride;
  const T *positions, *centers;
  T inverse;  // 1 / (2 sigma^2)
  const T *row_marginal, *column_marginal;
  T scale;
};

// Smallest and largest finite exponent and positive prior seen.
template <typename T>
struct Extent {
  T low = kInfinity<T>, high = -kInfinity<T>, prior_low = kInfinity<T>, prior_high = 0;
};

template <int K>
CASE_INLINE int64_t width(int64_t k) {
  return K ? K : k;
}

// out = L without a matrix prior.
template <typename T, int K>
CASE_INLINE void exponents(const View<T>& view, int64_t first, int64_t rows, T* out) {
  const int64_t k = width<K>(view.k);
  const T* logits = view.logits + first * view.logits_stride;
  if (view.logits_stride == k && !view.positions && !view.mask) {
#pragma omp simd
    for (int64_t i = 0; i < rows * k; ++i) out[i] = view.scale * logits[i];
    return;
  }
  for (int64_t n = 0; n < rows; ++n) {
    const T* x = logits + n * view.logits_stride;
    T* row = out + n * k;
    if (view.positions) {
      const T position = view.positions[first + n];
#pragma omp simd
      for (int64_t j = 0; j < k; ++j) {
        const T gap = position - view.centers[j];
        row[j] = view.scale * x[j] - gap * gap * view.inverse;
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < k; ++j) row[j] = view.scale * x[j];
    }
    if (!view.mask) continue;
    const unsigned char* mask = view.mask + (first + n) * view.mask_stride;
    if (view.mask_column_stride == 0) {
      if (!mask[0]) {
#pragma omp simd
        for (int64_t j = 0; j < k; ++j) row[j] = -kInfinity<T>;
      }
    } else {
#pragma omp simd
      for (int64_t j = 0; j < k; ++j) row[j] = mask[j] ? row[j] : -kInfinity<T>;
    }
  }
}

// out = L.
template <typename T, int K>
CASE_INLINE void log_tile(const View<T>& view, int64_t first, int64_t rows, T* out) {
  const int64_t k = width<K>(view.k);
  exponents<T, K>(view, first, rows, out);
  if (!view.prior) return;
  for (int64_t n = 0; n < rows; ++n) {
    const T* prior = view.prior + (first + n) * view.prior_stride;
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) out[n * k + j] += simd_log(weight_of(prior[j]));
  }
}

// out = exp(L - shift); returns shift, -infinity for a tile without entries. A matrix prior is multiplied on, so its
// logarithm is not needed.
template <typename T, int K>
CASE_INLINE T linear_tile(const View<T>& view, int64_t first, int64_t rows, T* out, Extent<T>& extent) {
  const int64_t k = width<K>(view.k);
  exponents<T, K>(view, first, rows, out);
  T low = kInfinity<T>, high = -kInfinity<T>;
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < rows * k; ++i) {
    const T finite = out[i] > -kInfinity<T> ? out[i] : kInfinity<T>;
    low = finite < low ? finite : low;
    high = out[i] > high ? out[i] : high;
  }
  extent.low = low < extent.low ? low : extent.low;
  extent.high = high > extent.high ? high : extent.high;
  const T shift = high > -kInfinity<T> ? high : T(0);
#pragma omp simd
  for (int64_t i = 0; i < rows * k; ++i) out[i] = simd_exp(out[i] - shift);
  if (!view.prior) return high;
  T prior_low = extent.prior_low, prior_high = extent.prior_high;
  const bool dense = view.prior_stride == k;
  const int64_t runs = dense ? 1 : rows, length = dense ? rows * k : k;
  for (int64_t n = 0; n < runs; ++n) {
    const T* prior = view.prior + (first + n) * view.prior_stride;
    T* row = out + n * length;
#pragma omp simd reduction(min : prior_low) reduction(max : prior_high)
    for (int64_t j = 0; j < length; ++j) {
      const T positive = prior[j] > 0 ? prior[j] : kInfinity<T>;
      prior_low = positive < prior_low ? positive : prior_low;
      prior_high = prior[j] > prior_high ? prior[j] : prior_high;
      row[j] *= weight_of(prior[j]);
    }
  }
  extent.prior_low = prior_low;
  extent.prior_high = prior_high;
  return high;
}

// peak_n = max_k L_nk + v_k, 0 for a row without mass.
template <typename T, int K>
CASE_INLINE void row_peaks(const T* l, const T* v, int64_t rows, int64_t columns, T* peak) {
  const int64_t k = width<K>(columns);
  for (int64_t n = 0; n < rows; ++n) {
    T high = -kInfinity<T>;
#pragma omp simd reduction(max : high)
    for (int64_t j = 0; j < k; ++j) {
      const T value = l[n * k + j] + v[j];
      high = value > high ? value : high;
    }
    peak[n] = high > -kInfinity<T> ? high : T(0);
  }
}

// peak_k = max_n L_nk + w_n, -infinity for a column without mass.
template <typename T, int K>
CASE_INLINE void column_peaks(const T* l, const T* w, int64_t rows, int64_t columns, T* peak) {
  const int64_t k = width<K>(columns);
#pragma omp simd
  for (int64_t j = 0; j < k; ++j) peak[j] = -kInfinity<T>;
  for (int64_t n = 0; n < rows; ++n) {
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) {
      const T value = l[n * k + j] + w[n];
      peak[j] = value > peak[j] ? value : peak[j];
    }
  }
}

// out = exp(L_nk + v_k + w_n).
template <typename T, int K>
CASE_INLINE void exp_sum(const T* l, const T* v, const T* w, int64_t rows, int64_t columns, T* out) {
  const int64_t k = width<K>(columns);
  for (int64_t n = 0; n < rows; ++n) {
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) out[n * k + j] = simd_exp((l[n * k + j] + v[j]) + w[n]);
  }
}

// sum_n = sum_k W_nk f_k.
template <typename T, int K>
CASE_INLINE void row_sums(const T* w, const T* f, int64_t rows, int64_t columns, T* sum) {
  const int64_t k = width<K>(columns);
  for (int64_t n = 0; n < rows; ++n) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < k; ++j) total += w[n * k + j] * f[j];
    sum[n] = total;
  }
}

// sum_n = sum_k W_nk f_k G_nk.
template <typename T, int K>
CASE_INLINE void row_dots(const T* w, const T* f, const T* g, int64_t rows, int64_t columns, T* sum) {
  const int64_t k = width<K>(columns);
  for (int64_t n = 0; n < rows; ++n) {
    T total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < k; ++j) total += w[n * k + j] * f[j] * g[n * k + j];
    sum[n] = total;
  }
}

// sum_k = sum_n W_nk w_n, four rows at a time.
template <typename T, int K>
CASE_INLINE void column_sums(const T* w, const T* weight, int64_t rows, int64_t columns, T* sum) {
  const int64_t k = width<K>(columns);
#pragma omp simd
  for (int64_t j = 0; j < k; ++j) sum[j] = 0;
  int64_t n = 0;
  for (; n + 4 <= rows; n += 4) {
    const T *row = w + n * k, *f = weight + n;
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) {
      sum[j] += (row[j] * f[0] + row[k + j] * f[1]) + (row[2 * k + j] * f[2] + row[3 * k + j] * f[3]);
    }
  }
  for (; n < rows; ++n) {
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) sum[j] += w[n * k + j] * weight[n];
  }
}

// out = W_nk f_k w_n; out may be W.
template <typename T, int K>
CASE_INLINE void scale_both(const T* w, const T* f, const T* weight, int64_t rows, int64_t columns, T* out) {
  const int64_t k = width<K>(columns);
  for (int64_t n = 0; n < rows; ++n) {
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) out[n * k + j] = w[n * k + j] * f[j] * weight[n];
  }
}

}  // namespace case_wtal
