#include "pooling.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "fresh_pages.h"
#include "parallel.h"
#include "radix_sort.h"
#include "simd.h"

namespace case_wtal {
namespace {

constexpr int64_t kColumns = 8;  // that are laid out at once: rows of the selector are read as they lie
constexpr int64_t kParallelPicks = 1 << 16;  // below, one thread has added them up before others have woken up

// Ascends with the score, NaN above all; signed, which is what vector instructions compare.
template <typename T>
using Key = std::make_signed_t<typename Format<T>::Bits>;

template <typename T>
CASE_INLINE Key<T> key_of(T score) {
  using Bits = typename Format<T>::Bits;
  constexpr Bits sign = Bits(1) << (8 * sizeof(T) - 1);
  return bit_cast<Key<T>>(Bits(~descending_key(score) ^ sign));
}

template <typename K>
CASE_INLINE int64_t count_from(const K* keys, int64_t t, K least) {
  K count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < t; ++i) count += keys[i] >= least ? K(1) : K(0);
  return count;
}

// The largest key that at least k keys reach, by halving the stretch it lies in. `reached` gets how many do.
template <typename K>
CASE_INLINE K threshold_of(const K* keys, int64_t t, int64_t k, int64_t& reached) {
  K low = keys[0], high = keys[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 0; i < t; ++i) {
    low = keys[i] < low ? keys[i] : low;
    high = keys[i] > high ? keys[i] : high;
  }
  reached = t;
  while (low < high && reached != k) {
    const K middle = (low | high) - ((low ^ high) >> 1);  // rounded up; their sum may not fit
    const int64_t count = count_from(keys, t, middle);
    if (count >= k) {
      low = middle;
      reached = count;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// places (k + 1): of the k largest keys, and one that is written beyond them.
template <typename K>
CASE_INLINE void largest(const K* keys, int64_t t, int64_t k, int32_t* places) {
  int64_t reached;
  const K least = threshold_of(keys, t, k, reached);
  int64_t found = 0;
  if (reached == k) {
    for (int64_t i = 0; i < t; ++i) {
      places[found] = int32_t(i);
      found += keys[i] >= least;
    }
    return;
  }
  int64_t equals = k - (least < std::numeric_limits<K>::max() ? count_from(keys, t, K(least + 1)) : 0);
  for (int64_t i = 0; i < t; ++i) {
    places[found] = int32_t(i);
    const bool equal = keys[i] == least && equals > 0;
    equals -= equal;
    found += equal || keys[i] > least;
  }
}

// target_clones wants plain functions, not templates.
CASE_SIMD_CLONES void run_largest(const int32_t* keys, int64_t t, int64_t k, int32_t* places) {
  largest(keys, t, k, places);
}
CASE_SIMD_CLONES void run_largest(const int64_t* keys, int64_t t, int64_t k, int32_t* places) {
  largest(keys, t, k, places);
}

// Rows come from an index that a caller has made, or may have changed meanwhile.
CASE_INLINE int64_t checked(int64_t row, int64_t t) {
  if (uint64_t(row) >= uint64_t(t)) {
    throw std::out_of_range("topk_pool: index must name rows 0.." + std::to_string(t - 1) + " of values, got " +
                            std::to_string(row));
  }
  return row;
}

template <typename T>
struct Scratch {
  std::vector<Key<T>> keys;
  std::vector<int32_t> places;
};

}  // namespace

template <typename T>
void topk_cpu(const T* selector, const int64_t (&strides)[3], PoolSizes sizes, int64_t* indices, int num_threads) {
  const int64_t t = sizes.t, c = sizes.c, k = sizes.k, tiles = (c + kColumns - 1) / kColumns;
  const auto scratch = [&] {
    return Scratch<T>{std::vector<Key<T>>(size_t(kColumns * t)), std::vector<int32_t>(size_t(k + 1))};
  };
  const int threads = threads_worth(sizes.batch * t * c, num_threads);
  parallel_with(sizes.batch * tiles, threads, scratch, [&](Scratch<T>& own, int64_t i) {
    const int64_t b = i / tiles, first = i % tiles * kColumns, columns = std::min(kColumns, c - first);
    const T* from = selector + b * strides[0] + first * strides[2];
    for (int64_t row = 0; row < t; ++row) {
      for (int64_t j = 0; j < columns; ++j) own.keys[j * t + row] = key_of(from[row * strides[1] + j * strides[2]]);
    }
    for (int64_t j = 0; j < columns; ++j) {
      run_largest(own.keys.data() + j * t, t, k, own.places.data());
      int64_t* out = indices + b * k * c + first + j;
      for (int64_t place = 0; place < k; ++place) out[place * c] = own.places[place];
    }
  });
}

template <typename T>
void pool_cpu(const T* values, const int64_t* rows, PoolValues form, PoolSizes sizes, T* pooled, int num_threads) {
  const int64_t batch = sizes.batch, t = sizes.t, c = sizes.c, k = sizes.k, problems = form.copies * batch;
  const auto totals = [&] { return std::vector<double>(size_t(c)); };
  const int threads = threads_worth(problems * k * c, num_threads, kParallelPicks);
  parallel_with(problems, threads, totals, [&](auto& total, int64_t i) {
    const T* from = values + form.matrix_of(i, sizes) * t * c;
    const int64_t* at = rows + i % batch * k * c;
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t place = 0; place < k; ++place) {
      for (int64_t j = 0; j < c; ++j) total[size_t(j)] += from[checked(at[place * c + j], t) * c + j];
    }
    for (int64_t j = 0; j < c; ++j) pooled[i * c + j] = T(total[size_t(j)] / double(k));
  });
}

namespace {

// Each row is picked once a column at most, so that shares are the gradient.
template <typename T>
void spread(const T* cotangent, const int64_t* rows, int64_t copies, PoolSizes sizes, T* gradient, int num_threads) {
  const int64_t batch = sizes.batch, t = sizes.t, c = sizes.c, k = sizes.k;
  const auto shares = [&] { return std::vector<T>(size_t(c)); };
  const int threads = threads_worth(copies * batch * t * c, num_threads);
  parallel_with(copies * batch, threads, shares, [&](auto& share, int64_t i) {
    T* to = gradient + i * t * c;
    const int64_t* at = rows + i % batch * k * c;
    std::fill_n(to, t * c, T(0));
    for (int64_t j = 0; j < c; ++j) share[size_t(j)] = cotangent[i * c + j] / T(k);
    for (int64_t place = 0; place < k; ++place) {
      for (int64_t j = 0; j < c; ++j) to[checked(at[place * c + j], t) * c + j] = share[size_t(j)];
    }
  });
}

// Rows that many share, a few columns of a matrix at a time: no two threads add to the same.
template <typename T>
void add_up(const T* cotangent, const int64_t* rows, int64_t copies, PoolSizes sizes, T* gradient, int num_threads) {
  const int64_t batch = sizes.batch, t = sizes.t, c = sizes.c, k = sizes.k, tiles = (c + kColumns - 1) / kColumns;
  const auto sums = [&] { return std::vector<double>(size_t(t * kColumns)); };
  const int threads = threads_worth(copies * (t + batch * k) * c, num_threads);
  parallel_with(copies * tiles, threads, sums, [&](auto& sum, int64_t i) {
    const int64_t copy = i / tiles, first = i % tiles * kColumns, columns = std::min(kColumns, c - first);
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t b = 0; b < batch; ++b) {
      double share[kColumns];
      for (int64_t j = 0; j < columns; ++j) share[j] = cotangent[(copy * batch + b) * c + first + j] / double(k);
      for (int64_t place = 0; place < k; ++place) {
        const int64_t* at = rows + (b * k + place) * c + first;
        for (int64_t j = 0; j < columns; ++j) sum[size_t(checked(at[j], t) * kColumns + j)] += share[j];
      }
    }
    for (int64_t row = 0; row < t; ++row) {
      T* to = gradient + (copy * t + row) * c + first;
      for (int64_t j = 0; j < columns; ++j) to[j] = T(sum[size_t(row * kColumns + j)]);
    }
  });
}

}  // namespace

template <typename T>
void pool_backward_cpu(const T* cotangent, const int64_t* rows, PoolValues form, PoolSizes sizes, T* gradient,
                       int num_threads) {
  expect_to_fill(gradient, form.copies * (form.shared ? 1 : sizes.batch) * sizes.t * sizes.c);
  const auto run = form.shared ? add_up<T> : spread<T>;
  run(cotangent, rows, form.copies, sizes, gradient, num_threads);
}

#define CASE_POOLING(T)                                                                                   \
  template void topk_cpu(const T*, const int64_t (&)[3], PoolSizes, int64_t*, int);                       \
  template void pool_cpu(const T*, const int64_t*, PoolValues, PoolSizes, T*, int);                       \
  template void pool_backward_cpu(const T*, const int64_t*, PoolValues, PoolSizes, T*, int);
CASE_POOLING(float)
CASE_POOLING(double)

}  // namespace case_wtal
