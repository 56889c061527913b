#include <vector>

#include "heads_tile.h"
#include "parallel.h"

namespace case_wtal {
namespace {

// Columns of a hidden layer that are gone through at once: two vectors, and up to 6 rows of sums of them.
template <typename T>
constexpr int kPanel = 2 * kLanes<T>;
constexpr int kMostRows = kTileVectors / 2;

// One of the two hidden layers: how many narrow products read it, and where its parts start.
struct Layer {
  int64_t products;
  int64_t weights;  // in the weights of a group: panels (products, kPanel), the last one filled up with zeros
  int64_t sums;     // in the sums of a chunk: panels (products + 1, kPanel), gradients of the weights and of the bias
  int64_t totals;   // in the sums of a chunk: (products), sums of the products' cotangents
};

template <typename T>
struct Backward {
  HeadSizes sizes;
  HeadOutputs<T> outputs;
  HeadCotangents<T> given;
  HeadGradients<T> gradients;
  T scale;
  HeadChunks chunks;
  int64_t panels;    // of a hidden layer
  Layer layers[2];   // under the class logits; the embedding
  int64_t weights_size, sums_size;
  std::vector<T> weights;  // (groups, weights_size)
  std::vector<T> sums;     // (groups, chunks, sums_size)

  Backward(const HeadSizes& sizes, const HeadWeights<T>& from, T scale, const HeadOutputs<T>& outputs,
           const HeadCotangents<T>& given, const HeadGradients<T>& gradients)
      : sizes(sizes), outputs(outputs), given(given), gradients(gradients), scale(scale), chunks(sizes.rows),
        panels(ceil_div(sizes.hidden, kPanel<T>)) {
    const int64_t classes = sizes.classes, directions = sizes.clusters + 1, width = panels * kPanel<T>;
    const int64_t both = (classes + directions + 2) * width;
    layers[0] = {classes, 0, 0, both};
    layers[1] = {directions, classes * width, (classes + 1) * width, both + classes};
    weights_size = (classes + directions) * width;
    sums_size = both + classes + directions;
    weights.resize(size_t(sizes.groups * weights_size));
    sums.resize(size_t(sizes.groups * std::max<int64_t>(chunks.count, 1) * sums_size));
    for (int64_t g = 0; g < sizes.groups; ++g) {
      pack(from.cas + g * classes * sizes.hidden, layers[0], g);
      pack(from.directions + g * directions * sizes.hidden, layers[1], g);
    }
  }

  int64_t columns(int64_t panel) const { return std::min<int64_t>(kPanel<T>, sizes.hidden - panel * kPanel<T>); }
  T* sums_of(int64_t group, int64_t chunk) { return sums.data() + (group * chunks.count + chunk) * sums_size; }

 private:
  void pack(const T* from, const Layer& layer, int64_t group) {
    T* to = weights.data() + group * weights_size + layer.weights;
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t r = 0; r < layer.products; ++r, to += kPanel<T>) {
        std::copy_n(from + r * sizes.hidden + p * kPanel<T>, columns(p), to);
      }
    }
  }
};

// A hidden layer at the rows of a block. Strides of rows: of the hidden layer and its gradient 2 hidden, of the
// embedding's cotangent hidden, of the products' cotangents their number.
template <typename T>
struct Part {
  int64_t rows, hidden, products;
  const T* x;
  const T* of_products;
  const T* of_embedding;  // null: 0
  const T* coefficient;   // of each row: how much of the embedding is taken from its gradient; null: 0
  const T* weights;
  T* sums;
  T* gradient;
  T* panels;  // of x, (rows, kPanel) each: written with the gradient, read for the sums
};

// The gradient at M rows and a panel, and its sum. Of the last panel only `columns` may be there: `full` is whether all.
template <typename T, int M, bool full>
CASE_INLINE void gradient_tile(const Part<T>& it, int64_t row, int64_t panel, int64_t columns) {
  constexpr int N = kPanel<T>;
  const int64_t width = full ? N : columns, column = panel * N, stride = 2 * it.hidden, place = row * stride + column;
  T* x = it.panels + panel * it.rows * N + row * N;
  T sum[M][N];
  for (int m = 0; m < M; ++m) {
    const T* from = it.x + place + m * stride;
    const T* of_embedding = it.of_embedding ? it.of_embedding + (row + m) * it.hidden + column : nullptr;
    if (!full) {
#pragma omp simd
      for (int n = 0; n < N; ++n) x[m * N + n] = sum[m][n] = 0;
    }
#pragma omp simd
    for (int64_t n = 0; n < width; ++n) x[m * N + n] = from[n];
    if (it.coefficient) {
      const T coefficient = it.coefficient[row + m];
#pragma omp simd
      for (int64_t n = 0; n < width; ++n) sum[m][n] = -coefficient * from[n];
    } else {
#pragma omp simd
      for (int n = 0; n < N; ++n) sum[m][n] = 0;
    }
    if (of_embedding) {
#pragma omp simd
      for (int64_t n = 0; n < width; ++n) sum[m][n] += of_embedding[n];
    }
  }
  const T* weights = it.weights + column * it.products;
  multiply<T, M, N>(it.of_products + row * it.products, it.products, 1, weights, N, it.products, sum);
  T* bias = it.sums + column * (it.products + 1) + it.products * N;
  T total[N];
#pragma omp simd
  for (int n = 0; n < N; ++n) total[n] = bias[n];
  for (int m = 0; m < M; ++m) {
#pragma omp simd
    for (int n = 0; n < N; ++n) {
      sum[m][n] = x[m * N + n] <= 0 ? T(0) : sum[m][n];
      total[n] += sum[m][n];
    }
    T* to = it.gradient + place + m * stride;
#pragma omp simd
    for (int64_t n = 0; n < width; ++n) to[n] = sum[m][n];
  }
#pragma omp simd
  for (int n = 0; n < N; ++n) bias[n] = total[n];
}

// Adds the products' cotangents times x at a panel to the sums.
template <typename T>
CASE_INLINE void add_products(const Part<T>& it, int64_t panel) {
  constexpr int N = kPanel<T>;
  each_tile<kMostRows>(it.products, [&](int64_t first, auto M) CASE_INLINE_LAMBDA {
    T sum[M][N];
    T* to = it.sums + panel * N * (it.products + 1) + first * N;
    for (int m = 0; m < M; ++m) {
#pragma omp simd
      for (int n = 0; n < N; ++n) sum[m][n] = to[m * N + n];
    }
    multiply<T, M, N>(it.of_products + first, 1, it.products, it.panels + panel * it.rows * N, N, it.rows, sum);
    for (int m = 0; m < M; ++m) {
#pragma omp simd
      for (int n = 0; n < N; ++n) to[m * N + n] = sum[m][n];
    }
  });
}

template <typename T>
CASE_INLINE void backward_part(const Part<T>& it) {
  constexpr int N = kPanel<T>;
  const int64_t whole = it.hidden / N, rest = it.hidden % N;
  each_tile<kMostRows>(it.rows, [&](int64_t row, auto M) CASE_INLINE_LAMBDA {
    for (int64_t p = 0; p < whole; ++p) gradient_tile<T, M, true>(it, row, p, N);
    if (rest) gradient_tile<T, M, false>(it, row, whole, rest);
  });
  for (int64_t p = 0; p < whole + (rest > 0); ++p) add_products(it, p);
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
  const int64_t width = sizes.hidden;
  T* coefficient = products + kBlockRows * (sizes.clusters + 1);
  T* panels = coefficient + kBlockRows;
  T* sums = pass.sums_of(group, chunk);
  pass.chunks.each_block(chunk, [&](int64_t start, int64_t rows) CASE_INLINE_LAMBDA {
    const int64_t first = group * sizes.rows + start;
    of_directions(pass, first, rows, products, coefficient);
    for (int l = 0; l < 2; ++l) {
      const Layer& layer = pass.layers[l];
      const int64_t place = first * 2 * width + l * width;
      Part<T> it{};
      it.rows = rows;
      it.hidden = width;
      it.products = layer.products;
      it.x = pass.outputs.hidden + place;
      it.of_products = l == 0 ? pass.given.cas + first * sizes.classes : products;
      it.of_embedding = l == 1 && pass.given.embedding ? pass.given.embedding + first * width : nullptr;
      it.coefficient = l == 1 && pass.given.logits ? coefficient : nullptr;
      it.weights = pass.weights.data() + group * pass.weights_size + layer.weights;
      it.sums = sums + layer.sums;
      it.gradient = pass.gradients.hidden + place;
      it.panels = panels;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t p = 0; p < layer.products; ++p) sums[layer.totals + p] += it.of_products[r * layer.products + p];
      }
      backward_part(it);
    }
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
  for (int l = 0; l < 2; ++l) {
    const Layer& layer = pass.layers[l];
    T* weights = (l == 0 ? pass.gradients.cas : pass.gradients.directions) + group * layer.products * width;
    T* bias = pass.gradients.hidden_bias + (2 * group + l) * width;
    const T* from = sums + layer.sums;
    for (int64_t p = 0; p < pass.panels; ++p) {
      for (int64_t r = 0; r <= layer.products; ++r, from += kPanel<T>) {
        T* to = r < layer.products ? weights + r * width : bias;
        std::copy_n(from, pass.columns(p), to + p * kPanel<T>);
      }
    }
  }
  std::copy_n(sums + pass.layers[0].totals, sizes.classes, pass.gradients.cas_bias + group * sizes.classes);
  pass.gradients.attention_bias[group] = sums[pass.layers[1].totals + sizes.clusters];
}

}  // namespace

template <typename T>
void heads_backward_cpu(const HeadSizes& sizes, const HeadWeights<T>& weights, T scale, const HeadOutputs<T>& outputs,
                        const HeadCotangents<T>& given, const HeadGradients<T>& gradients, int num_threads) {
  Backward<T> pass(sizes, weights, scale, outputs, given, gradients);
  const int threads = threads_worth(sizes.groups * sizes.rows * sizes.hidden, num_threads);
  parallel_with(
      sizes.groups * pass.chunks.count, threads,
      [&] { return std::vector<T>(size_t(kBlockRows * (sizes.clusters + 2 + pass.panels * kPanel<T>))); },
      [&](std::vector<T>& products, int64_t task) {
        clone(pass, task / pass.chunks.count, task % pass.chunks.count, products.data());
      });
  parallel_for(sizes.groups, threads, [&](int64_t group) { gather(pass, group); });
}

template void heads_backward_cpu(const HeadSizes&, const HeadWeights<float>&, float, const HeadOutputs<float>&,
                                 const HeadCotangents<float>&, const HeadGradients<float>&, int);
template void heads_backward_cpu(const HeadSizes&, const HeadWeights<double>&, double, const HeadOutputs<double>&,
                                 const HeadCotangents<double>&, const HeadGradients<double>&, int);

}  // namespace case_wtal
