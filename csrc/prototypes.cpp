#include "prototypes.h"

#include <cmath>
#include <vector>

#include "fresh_pages.h"
#include "narrow_tile.h"
#include "parallel.h"
#include "row_chunks.h"

namespace case_wtal {
namespace {

constexpr double kEps = 1e-12;  // what torch's normalize guards a length with

// A block is added up weight by weight where no more than one in so many is not 0.
constexpr int64_t kSparse = 4;

template <typename T>
struct Forward {
  PrototypeProblem<T> problem;
  RowChunks chunks;
  ChunkSums<T> sums;
  std::vector<double> masses;  // (groups, chunks, columns); empty: not wanted
};

// Whether few factors are not 0 and all rows are finite: 0 times infinity is NaN, so all factors count there.
template <typename T>
CASE_INLINE bool is_sparse(const WideRows<T>& it) {
  int64_t some = 0;
  for (int64_t r = 0; r < it.rows; ++r) {
    int mine = 0;
#pragma omp simd reduction(+ : mine)
    for (int64_t k = 0; k < it.products; ++k) mine += it.factors[r * it.factor_stride + k] != T(0);
    some += mine;
  }
  if (some * kSparse > it.rows * it.products) return false;
  constexpr int N = 4 * kLanes<T>;
  T nothing[N] = {};
  for (int64_t r = 0; r < it.rows; ++r) {
    const T* x = it.x + r * it.x_stride;
    int64_t i = 0;
    for (; i + N <= it.width; i += N) {
#pragma omp simd
      for (int n = 0; n < N; ++n) nothing[n] += x[i + n] * T(0);
    }
    for (; i < it.width; ++i) nothing[0] += x[i] * T(0);
  }
  return total_of(nothing) == T(0);
}

// add_products where most factors are 0.
template <typename T>
CASE_INLINE void add_sparse(const WideRows<T>& it, int64_t* places) {
  constexpr int N = kPanel<T>;
  const int64_t whole = it.width / N, rest = it.width % N, step = it.sum_rows * N;
  for (int64_t r = 0; r < it.rows; ++r) {
    const T *x = it.x + r * it.x_stride, *factors = it.factors + r * it.factor_stride;
    int64_t some = 0;
    for (int64_t k = 0; k < it.products; ++k) {
      places[some] = k;
      some += factors[k] != T(0);
    }
    for (int64_t i = 0; i < some; ++i) {
      const T factor = factors[places[i]];
      T* to = it.sums + places[i] * N;
      for (int64_t p = 0; p < whole; ++p) {
#pragma omp simd
        for (int n = 0; n < N; ++n) to[p * step + n] += factor * x[p * N + n];
      }
      for (int64_t n = 0; n < rest; ++n) to[whole * step + n] += factor * x[whole * N + n];
    }
  }
}

template <typename T>
CASE_INLINE void forward_chunk(Forward<T>& pass, int64_t group, int64_t chunk, int64_t* places) {
  const PrototypeProblem<T>& problem = pass.problem;
  WideRows<T> it{};
  it.width = problem.width;
  it.products = it.sum_rows = problem.columns;
  it.x_stride = problem.e.row_stride;
  it.ahead = true;
  it.factor_stride = problem.w.row_stride;
  it.sums = pass.sums.start(group, chunk);
  double* masses = pass.masses.data() + (group * pass.chunks.count + chunk) * problem.columns;
  pass.chunks.each_block(chunk, [&](int64_t start, int64_t rows) CASE_INLINE_LAMBDA {
    it.rows = rows;
    it.x = problem.e.row(group, start);
    it.factors = problem.w.row(group, start);
    if (is_sparse(it)) {
      add_sparse(it, places);
    } else {
      add_products(it);
    }
    if (pass.masses.empty()) return;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < it.products; ++k) masses[k] += it.factors[r * it.factor_stride + k];
    }
  });
}

template <typename T>
struct Backward {
  PrototypeProblem<T> problem;
  PrototypeGradients<T> gradients;
  RowChunks chunks;
  std::vector<T> of_sums, of_masses;  // (groups, columns, width), (groups, columns)
  std::vector<T> packed;              // the former, (groups, panels (columns, kPanel))
  std::vector<Panels<T>> panels;
};

template <typename T>
CASE_INLINE void backward_chunk(Backward<T>& pass, int64_t group, int64_t chunk, T* memory) {
  const PrototypeProblem<T>& problem = pass.problem;
  const int64_t width = problem.width, columns = problem.columns;
  WideRows<T> it{};
  it.width = it.gradient_stride = width;
  it.products = columns;
  it.factor_stride = problem.w.row_stride;
  it.weights = pass.packed.data() + group * columns * panel_count<T>(width) * kPanel<T>;
  pass.chunks.each_block(chunk, [&](int64_t start, int64_t rows) CASE_INLINE_LAMBDA {
    const int64_t first = group * problem.rows + start;
    if (pass.gradients.w) {
      const Panels<T>& panels = pass.panels[size_t(group)];
      const T* of_masses = pass.of_masses.data() + group * columns;
      narrow_product(problem.e.row(group, start), problem.e.row_stride, rows, panels, memory);
      for (int64_t r = 0; r < rows; ++r) {
        T* to = pass.gradients.w + (first + r) * columns;
        for (int64_t k = 0; k < columns; ++k) to[k] = memory[r * panels.width() + k] + of_masses[k];
      }
    }
    if (pass.gradients.e) {
      it.rows = rows;
      it.factors = problem.w.row(group, start);
      it.gradient = pass.gradients.e + first * width;
      expand(it);
    }
  });
}

#define CASE_PROTOTYPE_CLONES(T)                                                                  \
  CASE_SIMD_CLONES void clone(Forward<T>& pass, int64_t group, int64_t chunk, int64_t* places) {   \
    forward_chunk(pass, group, chunk, places);                                                    \
  }                                                                                         \
  CASE_SIMD_CLONES void clone(Backward<T>& pass, int64_t group, int64_t chunk, T* memory) {  \
    backward_chunk(pass, group, chunk, memory);                                             \
  }
CASE_PROTOTYPE_CLONES(float)
CASE_PROTOTYPE_CLONES(double)

template <typename T>
int threads_of(const PrototypeProblem<T>& problem, int num_threads) {
  return threads_worth(problem.groups * problem.rows * problem.width, num_threads);
}

// z from a sum, given its size.
template <typename T>
void normalise(PrototypeNorm norm, T size, int64_t width, const T* sum, T* z) {
  if (norm == PrototypeNorm::kSum) {
    std::copy_n(sum, width, z);
  } else if (norm == PrototypeNorm::kMean && size == T(0)) {
    std::fill_n(z, width, T(0));
  } else {
    if (norm == PrototypeNorm::kL2 && size < T(kEps)) size = T(kEps);
    for (int64_t i = 0; i < width; ++i) z[i] = sum[i] / size;
  }
}

// The gradient of a sum, and of its mass where there is one.
template <typename T>
T through_norm(PrototypeNorm norm, T size, int64_t width, const T* sum, const T* cotangent, T* of_sum) {
  normalise(norm, size, width, cotangent, of_sum);
  T along = 0;  // cotangent . z / size
  for (int64_t i = 0; norm != PrototypeNorm::kSum && i < width; ++i) along += of_sum[i] * sum[i];
  if (norm == PrototypeNorm::kMean) return size == T(0) ? T(0) : -along / size;
  if (norm == PrototypeNorm::kL2 && !(size < T(kEps))) {
    along /= size;
    for (int64_t i = 0; i < width; ++i) of_sum[i] -= along * (sum[i] / size);
  }
  return 0;
}

}  // namespace

template <typename T>
void prototypes_cpu(const PrototypeProblem<T>& problem, const PrototypeOutputs<T>& outputs, int num_threads) {
  const int64_t groups = problem.groups, columns = problem.columns, width = problem.width;
  const int threads = threads_of(problem, num_threads);
  const RowChunks chunks = chunks_of_sums(groups, problem.rows);
  const bool mean = problem.norm == PrototypeNorm::kMean;
  Forward<T> pass{problem, chunks, ChunkSums<T>(groups, chunks.count, columns, width),
                  std::vector<double>(mean ? size_t(groups * chunks.count * columns) : 0)};
  each_chunk<int64_t>(groups, chunks, threads, columns,
                      [&](int64_t* places, int64_t group, int64_t chunk) { clone(pass, group, chunk, places); });
  T* sums = outputs.sums ? outputs.sums : outputs.z;
  pass.sums.add_up(sums, threads);
  for (int64_t i = 0; i < groups * columns; ++i) {
    T* sum = sums + i * width;
    double mass = 0;
    for (int64_t c = 0; mean && c < chunks.count; ++c) {
      mass += pass.masses[size_t((i / columns * chunks.count + c) * columns + i % columns)];
    }
    const T size = problem.norm == PrototypeNorm::kL2 ? std::sqrt(square_of(sum, width)) : T(mass);
    if (outputs.sizes) outputs.sizes[i] = size;
    normalise(problem.norm, size, width, sum, outputs.z + i * width);
  }
}

template <typename T>
void prototypes_backward_cpu(const PrototypeProblem<T>& problem, const PrototypeOutputs<T>& outputs,
                             const PrototypeGradients<T>& gradients, int num_threads) {
  const int64_t groups = problem.groups, columns = problem.columns, width = problem.width, size = columns * width;
  const int64_t packed = columns * panel_count<T>(width) * kPanel<T>;
  const int threads = threads_of(problem, num_threads);
  Backward<T> pass{problem, gradients, RowChunks(problem.rows), std::vector<T>(size_t(groups * size)),
                   std::vector<T>(size_t(groups * columns)), std::vector<T>(size_t(gradients.e ? groups * packed : 0)),
                   std::vector<Panels<T>>(size_t(groups))};
  for (int64_t i = 0; i < groups * columns; ++i) {
    pass.of_masses[size_t(i)] = through_norm(problem.norm, outputs.sizes[i], width, outputs.sums + i * width,
                                             gradients.cotangent + i * width, pass.of_sums.data() + i * width);
  }
  parallel_for(groups, threads, [&](int64_t g) {
    const T* of_sums = pass.of_sums.data() + g * size;
    if (gradients.e) pack_rows(of_sums, columns, width, pass.packed.data() + g * packed);
    if (gradients.w) pass.panels[size_t(g)] = Panels<T>(of_sums, columns, width);
  });
  expect_to_fill(gradients.e, groups * problem.rows * width);
  expect_to_fill(gradients.w, groups * problem.rows * columns);
  each_chunk<T>(groups, pass.chunks, threads, kBlockRows * ceil_div(columns, kLanes<T>) * kLanes<T>,
                [&](T* memory, int64_t group, int64_t chunk) { clone(pass, group, chunk, memory); });
}

#define CASE_PROTOTYPES(T)                                                                    \
  template void prototypes_cpu(const PrototypeProblem<T>&, const PrototypeOutputs<T>&, int);  \
  template void prototypes_backward_cpu(const PrototypeProblem<T>&, const PrototypeOutputs<T>&, \
                                        const PrototypeGradients<T>&, int);
CASE_PROTOTYPES(float)
CASE_PROTOTYPES(double)

}  // namespace case_wtal
