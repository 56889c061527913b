#include "losses.h"

#include <algorithm>
#include <limits>

#include "fresh_pages.h"
#include "row_tiles.h"
#include "simd.h"

namespace case_wtal {
namespace {

constexpr double kEps = 1e-7;  // the reference's guard in the generalized cross entropy

// shift (rows): what is subtracted from logits; total (rows): sum_k exp(x_k - shift), NaN where no logit is finite;
// exps (rows, k) gets the terms, null: nobody wants them.
//
// Step by step over all rows of the tile, as a row's own steps wait for each other.
template <typename T, int K>
CASE_INLINE void softmax_of(const Tile<T>& tile, T* exps, T* shift, T* total) {
  const int64_t k = tile.template columns<K>();
  for (int64_t n = 0; n < tile.rows; ++n) {
    const T* x = tile.x + n * tile.x_stride;
    T high = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : high)
    for (int64_t j = 0; j < k; ++j) high = x[j] > high ? x[j] : high;
    shift[n] = high;
  }
  Sum<T, K> sums[kTileRows];
  for (int64_t n = 0; n < tile.rows; ++n) {
    const bool some = shift[n] > -std::numeric_limits<T>::infinity();
    sums[n] = some ? Sum<T, K>(0) : std::numeric_limits<Sum<T, K>>::quiet_NaN();
    shift[n] = some ? shift[n] : T(0);
  }
  T spare[kTileEntries];
  each_block<K>(k, [&](int64_t first, int64_t count) CASE_INLINE_LAMBDA {
    T* out = exps ? exps + first : spare;
    const int64_t out_stride = exps ? k : count;
    for (int64_t n = 0; n < tile.rows; ++n) {
      const T *x = tile.x + n * tile.x_stride + first, peak = shift[n];
#pragma omp simd
      for (int64_t j = 0; j < count; ++j) out[n * out_stride + j] = simd_exp(x[j] - peak);
    }
    for (int64_t n = 0; n < tile.rows; ++n) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < count; ++j) sum += out[n * out_stride + j];
      sums[n] += sum;
    }
  });
  for (int64_t n = 0; n < tile.rows; ++n) total[n] = T(sums[n]);
}

// -log softmax of a logit, which counts where there is a target.
template <typename T>
CASE_INLINE T surprise(T x, T t, T shift, T log_total) {
  const T found = log_total - (x - shift);
  return t == T(0) ? T(0) : found;
}

template <typename T, int K>
CASE_INLINE void soft_tile(const Tile<T>& tile, T* losses) {
  T shift[kTileRows], total[kTileRows];
  softmax_of<T, K>(tile, static_cast<T*>(nullptr), shift, total);
#pragma omp simd
  for (int64_t n = 0; n < tile.rows; ++n) total[n] = simd_log(total[n]);
  for (int64_t n = 0; n < tile.rows; ++n) {
    Sum<T, K> loss = 0;
    each_block<K>(tile.k, [&](int64_t first, int64_t count) CASE_INLINE_LAMBDA {
      const T *x = tile.x + n * tile.x_stride + first, *t = tile.t + n * tile.t_stride + first;
      const T peak = shift[n], log_total = total[n];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < count; ++j) sum += t[j] * surprise(x[j], t[j], peak, log_total);
      loss += sum;
    });
    losses[n] = T(loss);
  }
}

template <typename T, int K>
CASE_INLINE Sum<T, K> weight_of(const T* t, int64_t k) {
  Sum<T, K> weight = 0;
  each_block<K>(k, [&](int64_t first, int64_t count) CASE_INLINE_LAMBDA {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = first; j < first + count; ++j) sum += t[j];
    weight += sum;
  });
  return weight;
}

template <typename T, int K>
CASE_INLINE void soft_gradient_tile(const Tile<T>& tile, const TileGradients<T>& to) {
  const int64_t k = tile.template columns<K>();
  T shift[kTileRows], total[kTileRows];
  softmax_of<T, K>(tile, to.x, shift, total);
  for (int64_t n = 0; to.x && n < tile.rows; ++n) {
    const T *t = tile.t + n * tile.t_stride, cotangent = to.cotangent[n * to.cotangent_stride];
    const T weight = T(weight_of<T, K>(t, k)), share = weight / total[n];
    T* dx = to.x + n * k;
    if (weight == T(0) && std::all_of(t, t + k, [](T x) { return x == T(0); })) {
      std::fill_n(dx, k, T(0));  // whatever the logits
      continue;
    }
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) dx[j] = (dx[j] * share - t[j]) * cotangent;
  }
  for (int64_t n = 0; to.t && n < tile.rows; ++n) {
    const T *x = tile.x + n * tile.x_stride, *t = tile.t + n * tile.t_stride;
    const T cotangent = to.cotangent[n * to.cotangent_stride], log_total = simd_log(total[n]);
    T* dt = to.t + n * k;
#pragma omp simd
    for (int64_t j = 0; j < k; ++j) dt[j] = surprise(x[j], t[j], shift[n], log_total) * cotangent;
  }
}

// b^e, also for the exponents that Power does not take.
template <typename T>
struct PowerOf {
  explicit PowerOf(double e) : power(e == 0 || e == 1 ? 0.5 : e), exponent(e) {}
  // f(pow), so that loops over pow(b) need not ask which it is.
  template <typename F>
  CASE_INLINE void with(const F& f) const {
    if (exponent == 1) {
      f([](T b) CASE_INLINE_LAMBDA { return b; });
    } else if (exponent == 0) {
      f([](T) CASE_INLINE_LAMBDA { return T(1); });
    } else {
      f(power);
    }
  }
  Power<T> power;
  double exponent;
};

// sum_k t_k (1 - b_k^q).
template <typename T, typename Pow>
CASE_INLINE double terms_of(const T* p, const T* t, int64_t k, const Pow& pow) {
  double terms = 0;
  each_block<0>(k, [&](int64_t first, int64_t count) CASE_INLINE_LAMBDA {
    // gcc vectorises no sum of powers, but the powers, and the sum.
    T found[kBlock], sum = 0;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) found[j] = t[first + j] * (T(1) - pow(p[first + j] + T(kEps)));
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < count; ++j) sum += found[j];
    terms += sum;
  });
  return terms;
}

template <typename T>
CASE_INLINE void generalized_tile(const Tile<T>& tile, double q, T* losses) {
  PowerOf<T>(q).with([&](const auto& pow) CASE_INLINE_LAMBDA {
    for (int64_t n = 0; n < tile.rows; ++n) {
      const T *p = tile.x + n * tile.x_stride, *t = tile.t + n * tile.t_stride;
      losses[n] = T(terms_of(p, t, tile.k, pow) / (q * (weight_of<T, 0>(t, tile.k) + kEps)));
    }
  });
}

template <typename T>
CASE_INLINE void generalized_gradient_tile(const Tile<T>& tile, double q, const TileGradients<T>& to) {
  const int64_t k = tile.k;
  for (int64_t n = 0; n < tile.rows; ++n) {
    const T *p = tile.x + n * tile.x_stride, *t = tile.t + n * tile.t_stride;
    T *dp = to.x ? to.x + n * k : nullptr, *dt = to.t ? to.t + n * k : nullptr;
    const double cotangent = to.cotangent[n * to.cotangent_stride], total = weight_of<T, 0>(t, k) + kEps;
    if (dp) {
      PowerOf<T>(q - 1).with([&](const auto& pow) CASE_INLINE_LAMBDA {
        const T scale = T(-cotangent / total);
#pragma omp simd
        for (int64_t j = 0; j < k; ++j) dp[j] = t[j] * pow(p[j] + T(kEps)) * scale;
      });
    }
    if (dt) {
      PowerOf<T>(q).with([&](const auto& pow) CASE_INLINE_LAMBDA {
        const T scale = T(cotangent / (q * total)), mean = T(terms_of(p, t, k, pow) / total);
#pragma omp simd
        for (int64_t j = 0; j < k; ++j) dt[j] = ((T(1) - pow(p[j] + T(kEps))) - mean) * scale;
      });
    }
  }
}

// target_clones wants plain functions, not templates.
#define CASE_LOSS_CLONES(T)                                                                             \
  CASE_SIMD_CLONES_32 void run_soft(const Tile<T>& tile, T* losses) {                                   \
    tile.k == 16 ? soft_tile<T, 16>(tile, losses) : soft_tile<T, 0>(tile, losses);                      \
  }                                                                                                     \
  CASE_SIMD_CLONES_32 void run_soft(const Tile<T>& tile, const TileGradients<T>& to) {                  \
    tile.k == 16 ? soft_gradient_tile<T, 16>(tile, to) : soft_gradient_tile<T, 0>(tile, to);            \
  }                                                                                                     \
  CASE_SIMD_CLONES_32 void run_generalized(const Tile<T>& tile, double q, T* losses) {                  \
    generalized_tile(tile, q, losses);                                                                  \
  }                                                                                                     \
  CASE_SIMD_CLONES_32 void run_generalized(const Tile<T>& tile, double q, const TileGradients<T>& to) { \
    generalized_gradient_tile(tile, q, to);                                                             \
  }
CASE_LOSS_CLONES(float)
CASE_LOSS_CLONES(double)

template <typename T>
void expect_gradients(const RowPairs<T>& rows, const RowGradients<T>& gradients) {
  for (T* gradient : {gradients.x, gradients.t}) expect_to_fill(gradient, rows.batch * rows.n * rows.k);
}

}  // namespace

template <typename T>
void soft_cross_entropy_cpu(const RowPairs<T>& rows, T* losses, int num_threads) {
  each_tile(rows, num_threads,
            [&](const Tile<T>& tile, int64_t b, int64_t first) { run_soft(tile, losses + b * rows.n + first); });
}

template <typename T>
void soft_cross_entropy_backward_cpu(const RowPairs<T>& rows, const RowGradients<T>& gradients, int num_threads) {
  expect_gradients(rows, gradients);
  each_tile(rows, num_threads, [&](const Tile<T>& tile, int64_t b, int64_t first) {
    run_soft(tile, gradients_of(rows, gradients, b, first));
  });
}

template <typename T>
void generalized_cross_entropy_cpu(const RowPairs<T>& rows, double q, T* losses, int num_threads) {
  each_tile(rows, num_threads, [&](const Tile<T>& tile, int64_t b, int64_t first) {
    run_generalized(tile, q, losses + b * rows.n + first);
  });
}

template <typename T>
void generalized_cross_entropy_backward_cpu(const RowPairs<T>& rows, double q, const RowGradients<T>& gradients,
                                            int num_threads) {
  expect_gradients(rows, gradients);
  each_tile(rows, num_threads, [&](const Tile<T>& tile, int64_t b, int64_t first) {
    run_generalized(tile, q, gradients_of(rows, gradients, b, first));
  });
}

#define CASE_LOSSES(T)                                                                                           \
  template void soft_cross_entropy_cpu(const RowPairs<T>&, T*, int);                                             \
  template void soft_cross_entropy_backward_cpu(const RowPairs<T>&, const RowGradients<T>&, int);                \
  template void generalized_cross_entropy_cpu(const RowPairs<T>&, double, T*, int);                              \
  template void generalized_cross_entropy_backward_cpu(const RowPairs<T>&, double, const RowGradients<T>&, int);
CASE_LOSSES(float)
CASE_LOSSES(double)

}  // namespace case_wtal
