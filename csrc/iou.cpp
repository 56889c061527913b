#include "iou.h"

#include "fresh_pages.h"
#include "segment.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace case_wtal {
namespace {

// Below this many results one thread is done before the others have woken up.
constexpr int64_t kParallelResults = 1 << 15;

template <typename T>
CASE_INLINE void iou_row(T s1, T e1, const T* b, T* out, int64_t p, T offset) {
  const T length1 = e1 - s1 + offset;
  for (int64_t j = 0; j < p; ++j) out[j] = segment_iou(s1, e1, length1, b[2 * j], b[2 * j + 1], offset);
}

// target_clones wants plain functions, not templates.
CASE_SIMD_CLONES void row(float s1, float e1, const float* b, float* out, int64_t p, float offset) {
  iou_row(s1, e1, b, out, p, offset);
}
CASE_SIMD_CLONES void row(double s1, double e1, const double* b, double* out, int64_t p, double offset) {
  iou_row(s1, e1, b, out, p, offset);
}

}  // namespace

template <typename T>
void iou_cpu(const T* a, const T* b, T* out, IouSizes sizes, T length_offset, int num_threads) {
  const int64_t rows = sizes.batch * sizes.m;
  if (rows == 0 || sizes.p == 0) return;
  expect_to_fill(out, rows * sizes.p);
#ifdef _OPENMP
  const int threads = num_threads > 0 ? num_threads : omp_get_max_threads();
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1 && rows >= kParallelResults / sizes.p)
#else
  (void)num_threads;
#endif
  for (int64_t i = 0; i < rows; ++i) {
    const T* b_of_row = b + (i / sizes.m) * sizes.p * 2;
    row(a[2 * i], a[2 * i + 1], b_of_row, out + i * sizes.p, sizes.p, length_offset);
  }
}

template void iou_cpu(const float*, const float*, float*, IouSizes, float, int);
template void iou_cpu(const double*, const double*, double*, IouSizes, double, int);

}  // namespace case_wtal
