// Stable sorting of rows by an unsigned key, and the keys that floats and signed integers sort by.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "simd.h"

namespace case_wtal {

template <typename K>
struct Entry {
  K key;
  uint32_t row;
};

// Ascends where scores descend; NaN comes first, as torch sorts it.
template <typename T>
CASE_HD typename Format<T>::Bits descending_key(T score) {
  using Bits = typename Format<T>::Bits;
  constexpr Bits sign = Bits(1) << (8 * sizeof(T) - 1);
  if (score != score) return 0;
  const Bits bits = bit_cast<Bits>(score + T(0));  // -0 becomes 0: they tie
  return bits & sign ? bits : ~bits & ~sign;
}

inline uint64_t ascending_key(int64_t number) { return uint64_t(number) ^ (uint64_t(1) << 63); }

// By rising key, rows of equal keys in the order they came in. `spare` is working memory, kept from call to call.
//
// From the lowest digit up; all histograms in one pass, and no pass over a digit that all keys share. Of more than
// three digits that differ, the upper three: of 33 bits few are equal, unless many keys are, and those stretches are
// sorted by comparison.
template <typename K>
void stable_sort(std::vector<Entry<K>>& entries, std::vector<Entry<K>>& spare) {
  constexpr int kBits = 11, kDigits = (8 * sizeof(K) + kBits - 1) / kBits, kValues = 1 << kBits, kPasses = 3;
  const auto before = [](const Entry<K>& a, const Entry<K>& b) { return a.key < b.key; };
  if (entries.size() < 512) {  // fewer than the histograms have entries
    std::stable_sort(entries.begin(), entries.end(), before);
    return;
  }
  const auto digit = [](K key, int d) { return (key >> (d * kBits)) & (kValues - 1); };
  std::vector<int64_t> counts(kDigits * kValues);
  for (const Entry<K>& entry : entries) {
    for (int d = 0; d < kDigits; ++d) ++counts[d * kValues + digit(entry.key, d)];
  }
  std::vector<int> differing;
  for (int d = 0; d < kDigits; ++d) {
    if (counts[d * kValues + digit(entries[0].key, d)] < int64_t(entries.size())) differing.push_back(d);
  }
  const size_t skipped = differing.size() > kPasses ? differing.size() - kPasses : 0;
  spare.resize(entries.size());
  for (size_t pass = skipped; pass < differing.size(); ++pass) {
    const int d = differing[pass];
    int64_t* next = counts.data() + d * kValues;
    std::exclusive_scan(next, next + kValues, next, int64_t(0));
    for (const Entry<K>& entry : entries) spare[next[digit(entry.key, d)]++] = entry;
    entries.swap(spare);
  }
  if (skipped == 0) return;
  const int shift = differing[skipped] * kBits;
  for (auto first = entries.begin(); first != entries.end();) {
    auto last = first + 1;
    while (last != entries.end() && first->key >> shift == last->key >> shift) ++last;
    if (last - first > 1) std::stable_sort(first, last, before);
    first = last;
  }
}

}  // namespace case_wtal
