#include <vector>

#include "heads.h"
#include "narrow_tile.h"
#include "parallel.h"
#include "row_chunks.h"

namespace case_wtal {
namespace {

template <typename T>
struct Backward {
  HeadSizes sizes;
  HeadOutputs<T> outputs;
  HeadCotangents<T> given;
  HeadGradients<T> gradients;
  T scale;
  RowChunks chunks;
  int64_t directions, weights_size, sums_size;
  std::vector<T> weights;  // (groups, panels (directions, kPanel)), the last one filled up with zeros
  // (groups, chunks): panels (directions + 1, kPanel), gradients of the directions and of the bias; then that of the
  // attention's bias.
  std::vector<T> sums;

  Backward(const HeadSizes& sizes, const HeadWeights<T>& from, T scale, const HeadOutputs<T>& outputs,
           const HeadCotangents<T>& given, const HeadGradients<T>& gradients)
      : sizes(sizes), outputs(outputs), given(given), gradients(gradients), scale(scale), chunks(sizes.rows),
        directions(sizes.clusters + 1), weights_size(directions * padded_width()),
        sums_size((directions + 1) * padded_width() + 1), weights(size_t(sizes.groups * weights_size)),
        sums(size_t(sizes.groups * std::max<int64_t>(chunks.count, 1) * sums_size)) {
    for (int64_t g = 0; g < sizes.groups; ++g) {
      pack_rows(from.directions + g * directions * sizes.hidden, directions, sizes.hidden,
                weights.data() + g * weights_size);
    }
  }

  int64_t padded_width() const { return panel_count<T>(sizes.hidden) * kPanel<T>; }
  T* sums_of(int64_t group, int64_t chunk) { return sums.data() + (group * chunks.count + chunk) * sums_size; }
};

// Gradients of the embedding at the rows of a block, before its relu, and their sum, which is the bias's.
template <typename T>
CASE_INLINE void backward_part(const WideRows<T>& it) {
  constexpr int N = kPanel<T>;
  expand(it, [&](int64_t row, int64_t column, int64_t width, auto& sum) CASE_INLINE_LAMBDA {
    constexpr int M = int(std::extent_v<std::remove_reference_t<decltype(sum)>>);
    T* bias = it.sums + column * it.sum_rows + it.products * N;
    T total[N];
#pragma omp simd
    for (int n = 0; n < N; ++n) total[n] = bias[n];
    for (int m = 0; m < M; ++m) {
      const T* x = it.x + (row + m) * it.x_stride + column;
#pragma omp simd
      for (int64_t n = 0; n < width; ++n) {
        sum[m][n] = x[n] <= 0 ? T(0) : sum[m][n];
        total[n] += sum[m][n];
      }
    }
#pragma omp simd
    for (int n = 0; n < N; ++n) bias[n] = total[n];
  });
  add_products(it);
}

// Cotangents of the products with the directions, and each row's coefficient: a cosine's gradient is that of the product
// over the length, less its share along the embedding.
template <typename T>
CASE_INLINE void of_directions(const Backward<T>& pass, int64_t first, int64_t rows, T* products, T* coefficient) {
  const int64_t clusters = pass.sizes.clusters;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    T* to = products + r * (clusters + 1);
    if (pass.given.logits) {
      const T *given = pass.given.logits + row * clusters, *logits = pass.outputs.logits + row * clusters;
      const T length = pass.outputs.lengths[row], factor = pass.scale / length;
      T along = 0;
      for (int64_t k = 0; k < clusters; ++k) {
        to[k] = given[k] * factor;
        along += given[k] * logits[k];
      }
      coefficient[r] = along / (length * length);
    }
    const T attention = pass.outputs.attention[row];
    to[clusters] = pass.given.attention[row] * attention * (1 - attention);
  }
}

template <typename T>
CASE_INLINE void backward_chunk(Backward<T>& pass, int64_t group, int64_t chunk, T* products) {
  const HeadSizes& sizes = pass.sizes;
  const int64_t width = sizes.hidden, directions = pass.directions;
  T* coefficient = products + kBlockRows * directions;
  T *sums = pass.sums_of(group, chunk), *of_attention_bias = sums + (directions + 1) * pass.padded_width();
  pass.chunks.each_block(chunk, [&](int64_t start, int64_t rows) CASE_INLINE_LAMBDA {
    const int64_t first = group * sizes.rows + start;
    of_directions(pass, first, rows, products, coefficient);
    T of_block = 0;  // Blocks are added up on their own first: fewer roundings meet in one sum.
    for (int64_t r = 0; r < rows; ++r) of_block += products[r * directions + sizes.clusters];
    *of_attention_bias += of_block;
    WideRows<T> it{};
    it.rows = rows;
    it.width = it.gradient_stride = it.added_stride = width;
    it.products = it.factor_stride = directions;
    it.x = pass.outputs.hidden + first * 2 * width + width;
    it.x_stride = 2 * width;
    it.factors = products;
    it.added = pass.given.embedding ? pass.given.embedding + first * width : nullptr;
    it.coefficient = pass.given.logits ? coefficient : nullptr;
    it.weights = pass.weights.data() + group * pass.weights_size;
    it.sums = sums;
    it.sum_rows = directions + 1;
    it.gradient = pass.gradients.embedding + first * width;
    backward_part(it);
  });
}

CASE_SIMD_CLONES void clone(Backward<float>& pass, int64_t group, int64_t chunk, float* products) {
  backward_chunk(pass, group, chunk, products);
}
CASE_SIMD_CLONES void clone(Backward<double>& pass, int64_t group, int64_t chunk, double* products) {
  backward_chunk(pass, group, chunk, products);
}

// Adds the chunks' sums up in their order, into the first, and takes them out of their panels.
template <typename T>
void gather(Backward<T>& pass, int64_t group) {
  const HeadSizes& sizes = pass.sizes;
  const int64_t width = sizes.hidden;
  T* sums = pass.sums_of(group, 0);
  for (int64_t chunk = 1; chunk < pass.chunks.count; ++chunk) {
    const T* more = pass.sums_of(group, chunk);
    for (int64_t i = 0; i < pass.sums_size; ++i) sums[i] += more[i];
  }
  const int64_t directions = pass.directions;
  T* weights = pass.gradients.directions + group * directions * width;
  const T* from = sums;
  for (int64_t p = 0; p < panel_count<T>(width); ++p) {
    for (int64_t r = 0; r <= directions; ++r, from += kPanel<T>) {
      T* to = r < directions ? weights + r * width : pass.gradients.bias + group * width;
      std::copy_n(from, panel_columns<T>(width, p), to + p * kPanel<T>);
    }
  }
  pass.gradients.attention_bias[group] = *from;
}

}  // namespace

template <typename T>
void heads_backward_cpu(const HeadSizes& sizes, const HeadWeights<T>& weights, T scale, const HeadOutputs<T>& outputs,
                        const HeadCotangents<T>& given, const HeadGradients<T>& gradients, int num_threads) {
  Backward<T> pass(sizes, weights, scale, outputs, given, gradients);
  const int threads = threads_worth(sizes.groups * sizes.rows * sizes.hidden, num_threads);
  each_chunk<T>(sizes.groups, pass.chunks, threads, kBlockRows * (sizes.clusters + 2),
                [&](T* products, int64_t group, int64_t chunk) { clone(pass, group, chunk, products); });
  parallel_for(sizes.groups, threads, [&](int64_t group) { gather(pass, group); });
}

template void heads_backward_cpu(const HeadSizes&, const HeadWeights<float>&, float, const HeadOutputs<float>&,
                                 const HeadCotangents<float>&, const HeadGradients<float>&, int);
template void heads_backward_cpu(const HeadSizes&, const HeadWeights<double>&, double, const HeadOutputs<double>&,
                                 const HeadCotangents<double>&, const HeadGradients<double>&, int);

}  // namespace case_wtal
