#include <limits>
#include <numeric>
#include <vector>

#include "parallel.h"
#include "simd.h"
#include "sinkhorn.h"

namespace case_wtal {
namespace {

template <typename T>
using Key = typename Format<T>::Bits;

template <typename T>
struct Entry {
  Key<T> key;
  uint32_t row;
};

// Keys ascend where scores descend; NaN comes first, as torch sorts it.
template <typename T>
Key<T> descending_key(T score) {
  constexpr Key<T> sign = Key<T>(1) << (8 * sizeof(T) - 1);
  if (score != score) return 0;
  const Key<T> bits = bit_cast<Key<T>>(score + T(0));  // -0 becomes 0: they tie
  return bits & sign ? bits : ~bits & ~sign;
}

// Radix sort from the lowest digit, stable; all histograms in one pass, and no pass over a digit that all rows share.
template <typename T>
void sort(std::vector<Entry<T>>& entries) {
  constexpr int kBits = 11, kDigits = (8 * sizeof(T) + kBits - 1) / kBits, kValues = 1 << kBits;
  const auto digit = [](Key<T> key, int d) { return (key >> (d * kBits)) & (kValues - 1); };
  std::vector<int64_t> counts(kDigits * kValues);
  for (const Entry<T>& entry : entries) {
    for (int d = 0; d < kDigits; ++d) ++counts[d * kValues + digit(entry.key, d)];
  }
  std::vector<Entry<T>> sorted(entries.size());
  for (int d = 0; d < kDigits; ++d) {
    int64_t* next = counts.data() + d * kValues;
    if (next[digit(entries[0].key, d)] == int64_t(entries.size())) continue;
    std::exclusive_scan(next, next + kValues, next, int64_t(0));
    for (const Entry<T>& entry : entries) sorted[next[digit(entry.key, d)]++] = entry;
    entries.swap(sorted);
  }
}

template <typename T>
void positions_of_one(const T* scores, const unsigned char* valid, T* positions, int64_t n, bool argsort) {
  std::vector<Entry<T>> entries(n);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool counts = !valid || valid[i];
    entries[i] = {descending_key(counts ? scores[i] : -std::numeric_limits<T>::infinity()), uint32_t(i)};
    count += counts;
  }
  sort(entries);
  const T total = T(count > 0 ? count : 1);
  for (int64_t place = 0; place < n; ++place) {
    const int64_t row = entries[place].row;
    if (argsort) {
      positions[place] = T(row + 1) / total;
    } else {
      positions[row] = T(place + 1) / total;
    }
  }
}

}  // namespace

template <typename T>
void rank_positions_cpu(const T* scores, const unsigned char* valid, T* positions, int64_t batch, int64_t n,
                        bool argsort, int num_threads) {
  if (n == 0) return;
  const int threads = batch * n < kParallelEntries ? 1 : thread_count(num_threads);
  parallel_for(batch, threads, [&](int64_t b) {
    positions_of_one(scores + b * n, valid ? valid + b * n : nullptr, positions + b * n, n, argsort);
  });
}

template void rank_positions_cpu(const float*, const unsigned char*, float*, int64_t, int64_t, bool, int);
template void rank_positions_cpu(const double*, const unsigned char*, double*, int64_t, int64_t, bool, int);

}  // namespace case_wtal
