#include "narrow_tile.h"

namespace case_wtal {
namespace {

// Asks for the cache line at an address, which need not be anybody's.
CASE_INLINE void fetch(const void* at) {
#if defined(__GNUC__)
  __builtin_prefetch(at, 0, 2);
#else
  (void)at;
#endif
}

// Lines of memory that are asked for one by one, ahead of their use.
template <typename T>
struct Ahead {
  const T* at;
  int64_t step;
};

// multiply, with rows of the right side copied next to each other.
template <typename T, int M, int N>
CASE_INLINE void multiply_copying(const T* left, int64_t row, int64_t step, const T* right, int64_t right_row,
                                  int64_t depth, T* copy, Ahead<T> ahead, T (&sum)[M][N]) {
  for (int64_t k = 0; k < depth; ++k, left += step, right += right_row, copy += N, ahead.at += ahead.step) {
    fetch(ahead.at);
#pragma omp simd
    for (int n = 0; n < N; ++n) copy[n] = right[n];
    for (int m = 0; m < M; ++m) {
      const T factor = left[m * row];
#pragma omp simd
      for (int n = 0; n < N; ++n) sum[m][n] += factor * right[n];
    }
  }
}

template <typename T>
CASE_INLINE void narrow_product_of(const T* x, int64_t stride, int64_t rows, const Panels<T>& panels, T* out) {
  each_tile<kMostVectors>(panels.vectors, [&](int64_t first, auto vectors) CASE_INLINE_LAMBDA {
    constexpr int N = vectors * kLanes<T>;
    const int64_t start = first * kLanes<T>;
    each_tile<std::min(kTileVectors / vectors, 8)>(rows, [&](int64_t row, auto M) CASE_INLINE_LAMBDA {
      T sum[M][N];
      clear(sum);
      const T *from = x + row * stride, *weights = panels.values.data() + start * panels.depth;
      constexpr int64_t step = 64 / int64_t(sizeof(T));
      int64_t k = 0;
      if (first == 0) {
        for (; k + step <= panels.depth; k += step) {
          for (int m = 0; m < M; ++m) fetch(from + (kBlockRows + m) * stride + k);
          multiply<T, M, N>(from + k, stride, 1, weights + k * N, N, step, sum);
        }
      }
      multiply<T, M, N>(from + k, stride, 1, weights + k * N, N, panels.depth - k, sum);
      for (int m = 0; m < M; ++m) {
#pragma omp simd
        for (int n = 0; n < N; ++n) out[(row + m) * panels.width() + start + n] = sum[m][n];
      }
    });
  });
}

template <typename T>
CASE_INLINE void add_products_of(const WideRows<T>& it) {
  constexpr int N = kPanel<T>;
  // A panel is read for each tile. In x its rows may lie a power of two apart, and then put each other out of the
  // first-level cache.
  T copy[kBlockRows * N];
  for (int64_t panel = 0; panel < panel_count<T>(it.width); ++panel) {
    const T* x = it.x + panel * N;
    const int64_t columns = panel_columns<T>(it.width, panel);
    // The next block, in the order of its addresses if it has no gaps.
    const bool whole = it.x_stride == it.width;
    const int64_t next = it.rows * it.x_stride + panel * N * (whole ? it.rows : 1);
    const Ahead<T> ahead = it.ahead ? Ahead<T>{it.x + next, whole ? N : it.x_stride} : Ahead<T>{x, 0};
    for (int64_t r = 0; columns < N && r < it.rows; ++r) {
      std::fill_n(std::copy_n(x + r * it.x_stride, columns, copy + r * N), N - columns, T(0));
    }
    each_tile<kMostRows>(it.products, [&](int64_t first, auto M) CASE_INLINE_LAMBDA {
      T sum[M][N];
      clear(sum);
      const T* factors = it.factors + first;
      if (first == 0 && columns == N) {
        multiply_copying<T, M, N>(factors, 1, it.factor_stride, x, it.x_stride, it.rows, copy, ahead, sum);
      } else {
        multiply<T, M, N>(factors, 1, it.factor_stride, copy, N, it.rows, sum);
      }
      T* to = it.sums + panel * N * it.sum_rows + first * N;
      for (int m = 0; m < M; ++m) {
#pragma omp simd
        for (int n = 0; n < N; ++n) to[m * N + n] += sum[m][n];
      }
    });
  }
}

}  // namespace

#define CASE_NARROW_CLONES(T)                                                                                \
  CASE_SIMD_CLONES void narrow_product(const T* x, int64_t stride, int64_t rows, const Panels<T>& panels, T* out) { \
    narrow_product_of(x, stride, rows, panels, out);                                                         \
  }                                                                                                          \
  CASE_SIMD_CLONES void expand(const WideRows<T>& it) {                                                      \
    expand(it, [](int64_t, int64_t, int64_t, auto&) {});                                                     \
  }                                                                                                          \
  CASE_SIMD_CLONES void add_products(const WideRows<T>& it) { add_products_of(it); }
CASE_NARROW_CLONES(float)
CASE_NARROW_CLONES(double)

}  // namespace case_wtal
