#include <algorithm>
#include <vector>

#include "fresh_pages.h"
#include "parallel.h"
#include "simd.h"
#include "sinkhorn.h"

namespace case_wtal {
namespace {

constexpr int64_t kRows = 512;  // of a block: sums are added up block by block, the same for any number of threads

template <typename T>
CASE_INLINE T smallest_square(const T* positions, const T* centers, int64_t rows, int64_t k) {
  T least = std::numeric_limits<T>::infinity();
  for (int64_t n = 0; n < rows; ++n) {
#pragma omp simd reduction(min : least)
    for (int64_t j = 0; j < k; ++j) {
      const T gap = positions[n] - centers[j], square = gap * gap;
      least = square < least ? square : least;
    }
  }
  return least;
}

// out = exp((least - gap^2) inverse); returns the sum.
template <typename T>
CASE_INLINE double weights(const T* positions, const T* centers, T inverse, T least, int64_t rows, int64_t k, T* out) {
  double total = 0;
  for (int64_t n = 0; n < rows; ++n) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < k; ++j) {
      const T gap = positions[n] - centers[j];
      const T value = simd_exp((least - gap * gap) * inverse);
      out[n * k + j] = value;
      sum += value;
    }
    total += sum;
  }
  return total;
}

template <typename T>
CASE_INLINE void scale_by(T factor, int64_t count, T* out) {
  for (int64_t i = 0; i < count; ++i) out[i] *= factor;
}

#define CASE_RANK_CLONES(T)                                                                                      \
  CASE_SIMD_CLONES_32 T least_of(const T* p, const T* c, int64_t rows, int64_t k) {                              \
    return smallest_square(p, c, rows, k);                                                                       \
  }                                                                                                              \
  CASE_SIMD_CLONES_32 double fill(const T* p, const T* c, T inverse, T least, int64_t rows, int64_t k, T* out) { \
    return weights(p, c, inverse, least, rows, k, out);                                                          \
  }                                                                                                              \
  CASE_SIMD_CLONES_32 void scale_all(T factor, int64_t count, T* out) { scale_by(factor, count, out); }
CASE_RANK_CLONES(float)
CASE_RANK_CLONES(double)

}  // namespace

template <typename T>
void rank_prior_cpu(const T* positions, const T* centers, double sigma, T* out, int64_t batch, int64_t n, int64_t k,
                    int num_threads) {
  const int64_t blocks = (n + kRows - 1) / kRows;
  if (batch * blocks == 0 || k == 0) return;
  expect_to_fill(out, batch * n * k);
  const int threads = threads_worth(batch * n * k, num_threads);
  const T inverse = T(1 / (2 * sigma * sigma));
  std::vector<T> least(batch * blocks);
  std::vector<double> sums(batch * blocks);
  const auto each = [&](auto f) {
    parallel_for(batch * blocks, threads, [&](int64_t i) {
      const int64_t b = i / blocks, first = i % blocks * kRows;
      f(i, b, b * n + first, std::min(kRows, n - first));
    });
  };
  each([&](int64_t i, int64_t b, int64_t row, int64_t rows) {
    least[i] = least_of(positions + row, centers + b * k, rows, k);
  });
  // The exponents of a problem are taken from its largest: however narrow the prior, something is left of it.
  std::vector<T> origin(batch);
  for (int64_t b = 0; b < batch; ++b) origin[b] = *std::min_element(&least[b * blocks], &least[b * blocks] + blocks);
  each([&](int64_t i, int64_t b, int64_t row, int64_t rows) {
    sums[i] = fill(positions + row, centers + b * k, inverse, origin[b], rows, k, out + row * k);
  });
  std::vector<T> factor(batch);
  for (int64_t b = 0; b < batch; ++b) {
    double total = 0;
    for (int64_t i = b * blocks; i < (b + 1) * blocks; ++i) total += sums[i];
    factor[b] = T(1 / total);
  }
  each([&](int64_t, int64_t b, int64_t row, int64_t rows) { scale_all(factor[b], rows * k, out + row * k); });
}

template void rank_prior_cpu(const float*, const float*, double, float*, int64_t, int64_t, int64_t, int);
template void rank_prior_cpu(const double*, const double*, double, double*, int64_t, int64_t, int64_t, int);

}  // namespace case_wtal
