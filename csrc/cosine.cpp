#include "cosine.h"

#include <cmath>
#include <limits>
#include <vector>

#include "fresh_pages.h"
#include "narrow_tile.h"
#include "parallel.h"
#include "row_chunks.h"

namespace case_wtal {
namespace {

template <typename T>
CASE_INLINE T guarded(T length) {
  return length < T(kCosineEps) ? T(kCosineEps) : length;  // NaN stays
}

// y at unit length, and its lengths.
template <typename T>
struct Units {
  std::vector<T> rows, lengths;

  explicit Units(const CosineProblem<T>& problem)
      : rows(problem.y, problem.y + problem.groups * problem.columns * problem.width) {
    if (problem.unit_y) return;
    for (int64_t k = 0; k < problem.groups * problem.columns; ++k) {
      T* row = rows.data() + k * problem.width;
      lengths.push_back(std::sqrt(square_of(row, problem.width)));
      const T length = guarded(lengths.back());
      for (int64_t i = 0; i < problem.width; ++i) row[i] /= length;
    }
  }
};

template <typename T>
struct Forward {
  CosineProblem<T> problem;
  CosineOutputs<T> outputs;
  RowChunks chunks;
  std::vector<Panels<T>> units;
};

template <typename T>
CASE_INLINE void softmax(int64_t count, T* x) {
  T peak = -std::numeric_limits<T>::infinity(), total = 0;
#pragma omp simd reduction(max : peak)
  for (int64_t k = 0; k < count; ++k) peak = x[k] > peak ? x[k] : peak;
#pragma omp simd reduction(+ : total)
  for (int64_t k = 0; k < count; ++k) total += x[k] = simd_exp(x[k] - peak);
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) x[k] /= total;
}

template <typename T>
CASE_INLINE void forward_chunk(const Forward<T>& pass, int64_t group, int64_t chunk, T* products) {
  const CosineProblem<T>& problem = pass.problem;
  const Panels<T>& units = pass.units[size_t(group)];
  const int64_t columns = problem.columns;
  pass.chunks.each_block(chunk, [&](int64_t start, int64_t rows) CASE_INLINE_LAMBDA {
    const int64_t first = group * problem.rows + start;
    T lengths[kBlockRows];
    for (int64_t r = 0; r < rows; ++r) {
      lengths[r] = std::sqrt(square_of(problem.x.row(group, start + r), problem.width));
      if (pass.outputs.lengths) pass.outputs.lengths[first + r] = lengths[r];
    }
    narrow_product(problem.x.row(group, start), problem.x.row_stride, rows, units, products);
    for (int64_t r = 0; r < rows; ++r) {
      const T factor = problem.scale / guarded(lengths[r]), *from = products + r * units.width();
      T* to = pass.outputs.out + (first + r) * columns;
#pragma omp simd
      for (int64_t k = 0; k < columns; ++k) to[k] = from[k] * factor;
      if (problem.softmax) softmax(columns, to);
    }
  });
}

template <typename T>
struct Backward {
  CosineProblem<T> problem;
  CosineOutputs<T> outputs;
  CosineGradients<T> gradients;
  RowChunks chunks;
  std::vector<T> units;  // (groups, panels (columns, kPanel))
  ChunkSums<T> sums;
};

// Cotangents of the products with the units, and each row's coefficient.
template <typename T>
CASE_INLINE void of_products(const Backward<T>& pass, int64_t row, T* to, T* coefficient) {
  const int64_t columns = pass.problem.columns;
  const T *given = pass.gradients.cotangent + row * columns, *out = pass.outputs.out + row * columns;
  const T length = pass.outputs.lengths[row], factor = pass.problem.scale / guarded(length);
  T along = 0;
  if (pass.problem.softmax) {
    T mean = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t k = 0; k < columns; ++k) mean += given[k] * out[k];
    // log s is the logit but for a constant, and the cotangents of a row's logits add up to 0.
#pragma omp simd reduction(+ : along)
    for (int64_t k = 0; k < columns; ++k) {
      const T least = std::numeric_limits<T>::min(), of_logit = out[k] * (given[k] - mean);
      along += of_logit * simd_log(out[k] < least ? least : out[k]);
      to[k] = of_logit * factor;
    }
  } else {
#pragma omp simd reduction(+ : along)
    for (int64_t k = 0; k < columns; ++k) {
      along += given[k] * out[k];
      to[k] = given[k] * factor;
    }
  }
  *coefficient = length < T(kCosineEps) ? T(0) : along / (length * length);
}

template <typename T>
CASE_INLINE void backward_chunk(Backward<T>& pass, int64_t group, int64_t chunk, T* memory) {
  const CosineProblem<T>& problem = pass.problem;
  const CosineGradients<T>& to = pass.gradients;
  T* coefficient = memory + kBlockRows * problem.columns;
  WideRows<T> it{};
  it.width = problem.width;
  it.products = it.factor_stride = it.sum_rows = problem.columns;
  it.x_stride = problem.x.row_stride;
  it.ahead = true;
  it.gradient_stride = problem.width;
  it.factors = memory;
  it.coefficient = coefficient;
  it.weights = pass.units.data() + group * problem.columns * panel_count<T>(problem.width) * kPanel<T>;
  it.sums = to.y ? pass.sums.start(group, chunk) : nullptr;
  pass.chunks.each_block(chunk, [&](int64_t start, int64_t rows) CASE_INLINE_LAMBDA {
    const int64_t first = group * problem.rows + start;
    it.rows = rows;
    it.x = problem.x.row(group, start);
    for (int64_t r = 0; r < rows; ++r) of_products(pass, first + r, memory + r * problem.columns, coefficient + r);
    if (to.x) {
      it.gradient = to.x + first * problem.width;
      expand(it);
    }
    if (to.y) add_products(it);
  });
}

// From the gradient of a unit row to that of the row.
template <typename T>
void through_length(const T* unit, T length, int64_t width, T* gradient) {
  T along = 0;
  for (int64_t i = 0; i < width; ++i) along += unit[i] * gradient[i];
  if (length < T(kCosineEps)) along = 0;
  length = guarded(length);
  for (int64_t i = 0; i < width; ++i) gradient[i] = (gradient[i] - along * unit[i]) / length;
}

#define CASE_COSINE_CLONES(T)                                                                   \
  CASE_SIMD_CLONES void clone(const Forward<T>& pass, int64_t group, int64_t chunk, T* memory) { \
    forward_chunk(pass, group, chunk, memory);                                                  \
  }                                                                                             \
  CASE_SIMD_CLONES void clone(Backward<T>& pass, int64_t group, int64_t chunk, T* memory) {      \
    backward_chunk(pass, group, chunk, memory);                                                 \
  }
CASE_COSINE_CLONES(float)
CASE_COSINE_CLONES(double)

}  // namespace

template <typename T>
void cosine_cpu(const CosineProblem<T>& problem, const CosineOutputs<T>& outputs, int num_threads) {
  const int threads = threads_worth(problem.groups * problem.rows * problem.width, num_threads);
  const Units<T> units(problem);
  expect_to_fill(outputs.out, problem.groups * problem.rows * problem.columns);
  Forward<T> pass{problem, outputs, RowChunks(problem.rows), std::vector<Panels<T>>(size_t(problem.groups))};
  const int64_t size = problem.columns * problem.width;
  parallel_for(problem.groups, threads, [&](int64_t g) {
    pass.units[size_t(g)] = Panels<T>(units.rows.data() + g * size, problem.columns, problem.width);
  });
  each_chunk<T>(problem.groups, pass.chunks, threads, kBlockRows * ceil_div(problem.columns, kLanes<T>) * kLanes<T>,
                [&](T* memory, int64_t group, int64_t chunk) { clone(pass, group, chunk, memory); });
}

template <typename T>
void cosine_backward_cpu(const CosineProblem<T>& problem, const CosineOutputs<T>& outputs,
                         const CosineGradients<T>& gradients, int num_threads) {
  const int threads = threads_worth(problem.groups * problem.rows * problem.width, num_threads);
  const Units<T> units(problem);
  const int64_t width = problem.width, columns = problem.columns, size = columns * width;
  const int64_t packed = columns * panel_count<T>(width) * kPanel<T>;
  const RowChunks chunks = chunks_of_sums(problem.groups, problem.rows);
  Backward<T> pass{problem, outputs, gradients, chunks, std::vector<T>(size_t(problem.groups * packed)),
                   ChunkSums<T>(problem.groups, chunks.count, gradients.y ? columns : 0, width)};
  for (int64_t g = 0; g < problem.groups; ++g) {
    pack_rows(units.rows.data() + g * size, columns, width, pass.units.data() + g * packed);
  }
  expect_to_fill(gradients.x, problem.groups * problem.rows * width);
  each_chunk<T>(problem.groups, chunks, threads, kBlockRows * (columns + 1),
                [&](T* memory, int64_t group, int64_t chunk) { clone(pass, group, chunk, memory); });
  if (!gradients.y) return;
  pass.sums.add_up(gradients.y, threads);
  if (problem.unit_y) return;
  for (int64_t k = 0; k < problem.groups * columns; ++k) {
    through_length(units.rows.data() + k * width, units.lengths[size_t(k)], width, gradients.y + k * width);
  }
}

#define CASE_COSINE(T)                                                                \
  template void cosine_cpu(const CosineProblem<T>&, const CosineOutputs<T>&, int);    \
  template void cosine_backward_cpu(const CosineProblem<T>&, const CosineOutputs<T>&, \
                                    const CosineGradients<T>&, int);
CASE_COSINE(float)
CASE_COSINE(double)

}  // namespace case_wtal
