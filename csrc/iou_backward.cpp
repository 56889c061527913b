#include <algorithm>
#include <vector>

#include "iou.h"
#include "parallel.h"
#include "segment.h"

namespace case_wtal {
namespace {

constexpr int64_t kRows = 64;       // of a: the gradient of b is summed over so many in T, over more in double
constexpr int64_t kColumns = 1024;  // of b: likewise for the gradient of a

// Gradients of one row of pairs: adds those of b to db, two of each column, and returns that of the row's segment.
template <typename T>
CASE_INLINE void pair_gradients(T s1, T e1, const T* b, const T* cotangent, int64_t p, T offset, T* db, double& ds1,
                                double& de1) {
  const T length1 = e1 - s1 + offset;
  T to_start = 0, to_end = 0;
#pragma omp simd reduction(+ : to_start, to_end)
  for (int64_t j = 0; j < p; ++j) {
    const T s2 = b[2 * j], e2 = b[2 * j + 1];
    const T overlap = (e1 < e2 ? e1 : e2) - (s1 > s2 ? s1 : s2) + offset;
    const T inter = overlap > 0 ? overlap : 0;
    const T total = length1 + (e2 - s2 + offset) - inter;
    // IoU = I / (L1 + L2 - I): by either length -I / U^2, by I itself (1 + I / U) / U.
    const T weight = cotangent[j] / total;
    const T iou = inter / total;
    const T used = total <= 0 ? T(0) : weight;
    const T kept = total <= 0 ? T(0) : iou;
    const T of_length = -used * kept;
    const T of_overlap = overlap >= 0 ? used * (T(1) + kept) : T(0);
    const T end_share = e1 < e2 ? T(1) : (e1 > e2 ? T(0) : T(0.5));
    const T start_share = s1 > s2 ? T(1) : (s1 < s2 ? T(0) : T(0.5));
    to_start -= of_length + of_overlap * start_share;
    to_end += of_length + of_overlap * end_share;
    db[2 * j] -= of_length + of_overlap * (T(1) - start_share);
    db[2 * j + 1] += of_length + of_overlap * (T(1) - end_share);
  }
  ds1 += to_start;
  de1 += to_end;
}

// target_clones wants plain functions, not templates.
#define CASE_IOU_CLONES(T)                                                                                         \
  CASE_SIMD_CLONES void row(T s1, T e1, const T* b, const T* cotangent, int64_t p, T offset, T* db, double& ds1,   \
                            double& de1) {                                                                         \
    pair_gradients(s1, e1, b, cotangent, p, offset, db, ds1, de1);                                                 \
  }
CASE_IOU_CLONES(float)
CASE_IOU_CLONES(double)

}  // namespace

template <typename T>
void iou_backward_cpu(const T* a, const T* b, const T* cotangent, IouSizes sizes, T length_offset, T* da, T* db,
                      int num_threads) {
  const int64_t batch = sizes.batch, rows = sizes.m, columns = sizes.p;
  if (batch * rows * columns == 0) {
    std::fill_n(da, 2 * batch * rows, T(0));
    std::fill_n(db, 2 * batch * columns, T(0));
    return;
  }
  // Chunks of rows, each with sums for b of its own, which are added up in order: the same for any number of threads.
  const int64_t chunks = (rows + kRows - 1) / kRows;
  std::vector<T> partial(size_t(2 * batch * chunks * columns));
  const int threads = threads_worth(batch * rows * columns, num_threads);
  parallel_for(batch * chunks, threads, [&](int64_t i) {
    const int64_t problem = i / chunks, begin = problem * rows + i % chunks * kRows;
    const int64_t end = std::min(begin + kRows, (problem + 1) * rows);
    const T* b_of_problem = b + 2 * problem * columns;
    T* sums = partial.data() + 2 * i * columns;
    for (int64_t n = begin; n < end; ++n) {
      double ds1 = 0, de1 = 0;
      for (int64_t j = 0; j < columns; j += kColumns) {
        row(a[2 * n], a[2 * n + 1], b_of_problem + 2 * j, cotangent + n * columns + j, std::min(kColumns, columns - j),
            length_offset, sums + 2 * j, ds1, de1);
      }
      da[2 * n] = T(ds1);
      da[2 * n + 1] = T(de1);
    }
  });
  parallel_for(batch, threads_worth(2 * batch * chunks * columns, num_threads), [&](int64_t problem) {
    std::vector<double> sums(size_t(2 * columns));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const T* from = partial.data() + 2 * (problem * chunks + chunk) * columns;
      for (int64_t j = 0; j < 2 * columns; ++j) sums[size_t(j)] += from[j];
    }
    std::copy(sums.begin(), sums.end(), db + 2 * problem * columns);
  });
}

template void iou_backward_cpu(const float*, const float*, const float*, IouSizes, float, float*, float*, int);
template void iou_backward_cpu(const double*, const double*, const double*, IouSizes, double, double*, double*, int);

}  // namespace case_wtal
