#include "heads.h"

#include <cmath>
#include <vector>

#include "narrow_tile.h"
#include "parallel.h"
#include "row_chunks.h"

namespace case_wtal {
namespace {

template <typename T>
CASE_INLINE T activated(T x, T bias) {
  const T sum = x + bias;
  return sum < 0 ? T(0) : sum;  // NaN stays
}

template <typename T>
struct RowSums {
  T square, product;
};

// x = relu(x + bias); |x|^2 and x . direction.
template <typename T>
CASE_INLINE RowSums<T> activate(const T* bias, const T* direction, int64_t count, T* x) {
  constexpr int N = 4 * kLanes<T>;  // sums that do not wait for each other
  T square[N] = {}, product[N] = {};
  int64_t i = 0;
  for (; i + N <= count; i += N) {
#pragma omp simd
    for (int n = 0; n < N; ++n) {
      const T value = activated(x[i + n], bias[i + n]);
      x[i + n] = value;
      square[n] += value * value;
      product[n] += value * direction[i + n];
    }
  }
  for (; i < count; ++i) {
    const T value = activated(x[i], bias[i]);
    x[i] = value;
    square[0] += value * value;
    product[0] += value * direction[i];
  }
  RowSums<T> total{};
  for (int n = 0; n < N; ++n) {
    total.square += square[n];
    total.product += product[n];
  }
  return total;
}

template <typename T>
struct GroupWeights {
  const T *bias, *cas_bias, *attention;
  T attention_bias;
  Panels<T> cas, units;
};

template <typename T>
struct Forward {
  HeadSizes sizes;
  HeadOutputs<T> outputs;
  RowChunks chunks;
  T scale;
  std::vector<GroupWeights<T>> weights;
};

template <typename T>
CASE_INLINE void forward_chunk(const Forward<T>& pass, int64_t group, int64_t chunk, T* products) {
  const HeadSizes& sizes = pass.sizes;
  const GroupWeights<T>& weights = pass.weights[size_t(group)];
  const int64_t width = sizes.hidden, stride = 2 * width;
  pass.chunks.each_block(chunk, [&](int64_t start, int64_t rows) CASE_INLINE_LAMBDA {
    const int64_t first = group * sizes.rows + start;
    T* hidden = pass.outputs.hidden + first * stride;
    T *lengths = pass.outputs.lengths + first, *attention = pass.outputs.attention + first;
    for (int64_t r = 0; r < rows; ++r) {
      T* x = hidden + r * stride;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) x[i] = activated(x[i], weights.bias[i]);
      const RowSums<T> sums = activate(weights.bias + width, weights.attention, width, x + width);
      const T length = std::sqrt(sums.square);
      lengths[r] = length < T(1e-12) ? T(1e-12) : length;
      attention[r] = T(1) / (T(1) + std::exp(-(sums.product + weights.attention_bias)));
    }
    narrow_product(hidden, stride, rows, weights.cas, products);
    T* cas = pass.outputs.cas + first * sizes.classes;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < sizes.classes; ++c) {
        cas[r * sizes.classes + c] = products[r * weights.cas.width() + c] + weights.cas_bias[c];
      }
    }
    narrow_product(hidden + width, stride, rows, weights.units, products);
    T* logits = pass.outputs.logits + first * sizes.clusters;
    for (int64_t r = 0; r < rows; ++r) {
      const T factor = pass.scale / lengths[r];
      for (int64_t k = 0; k < sizes.clusters; ++k) {
        logits[r * sizes.clusters + k] = products[r * weights.units.width() + k] * factor;
      }
    }
  });
}

CASE_SIMD_CLONES void clone(const Forward<float>& pass, int64_t group, int64_t chunk, float* products) {
  forward_chunk(pass, group, chunk, products);
}
CASE_SIMD_CLONES void clone(const Forward<double>& pass, int64_t group, int64_t chunk, double* products) {
  forward_chunk(pass, group, chunk, products);
}

}  // namespace

template <typename T>
void heads_cpu(const HeadSizes& sizes, const HeadWeights<T>& weights, T scale, const HeadOutputs<T>& outputs,
               int num_threads) {
  Forward<T> pass{sizes, outputs, RowChunks(sizes.rows), scale, {}};
  const int64_t width = sizes.hidden;
  for (int64_t g = 0; g < sizes.groups; ++g) {
    const T* directions = weights.directions + g * (sizes.clusters + 1) * width;
    pass.weights.push_back({weights.hidden_bias + g * 2 * width, weights.cas_bias + g * sizes.classes,
                            directions + sizes.clusters * width, weights.attention_bias[g],
                            Panels<T>(weights.cas + g * sizes.classes * width, sizes.classes, width),
                            Panels<T>(directions, sizes.clusters, width)});
  }
  const int64_t columns = ceil_div(std::max(sizes.classes, sizes.clusters), kLanes<T>) * kLanes<T>;
  each_chunk<T>(sizes.groups, pass.chunks, threads_worth(sizes.groups * sizes.rows * width, num_threads),
                kBlockRows * columns,
                [&](T* products, int64_t group, int64_t chunk) { clone(pass, group, chunk, products); });
}

template void heads_cpu(const HeadSizes&, const HeadWeights<float>&, float, const HeadOutputs<float>&, int);
template void heads_cpu(const HeadSizes&, const HeadWeights<double>&, double, const HeadOutputs<double>&, int);

}  // namespace case_wtal
