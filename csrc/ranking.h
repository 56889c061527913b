// Sorting by falling score, equal scores in the order of appearance.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace case_wtal {

struct Ranked {
  double score;  // no NaN
  int64_t index;
};

// Rises as the score falls; 0.0 and -0.0 are one.
inline uint64_t falling_key(double score) {
  const double zero_is_positive = score + 0.0;
  uint64_t bits;
  std::memcpy(&bits, &zero_is_positive, sizeof bits);
  const uint64_t sign = uint64_t{1} << 63;
  return (bits & sign) != 0 ? bits : ~(bits | sign);
}

// Below this many entries a comparison sort is faster than counting digits.
constexpr size_t kRadixEntries = 512;

// `other` is memory to work in.
inline void sort_by_falling_score(std::vector<Ranked>& entries, std::vector<Ranked>& other) {
  if (entries.size() < kRadixEntries) {
    std::stable_sort(entries.begin(), entries.end(),
                     [](const Ranked& a, const Ranked& b) { return a.score > b.score; });
    return;
  }
  constexpr int kDigits = 8;
  std::array<std::array<uint32_t, 256>, kDigits> counts{};
  for (const Ranked& entry : entries) {
    const uint64_t key = falling_key(entry.score);
    for (int digit = 0; digit < kDigits; ++digit) ++counts[digit][(key >> (8 * digit)) & 255];
  }
  other.resize(entries.size());
  for (int digit = 0; digit < kDigits; ++digit) {
    auto& places = counts[digit];
    const auto digit_of = [&](const Ranked& entry) { return (falling_key(entry.score) >> (8 * digit)) & 255; };
    if (places[digit_of(entries[0])] == entries.size()) continue;  // all alike
    uint32_t next = 0;
    for (uint32_t& place : places) next += std::exchange(place, next);
    for (const Ranked& entry : entries) other[places[digit_of(entry)]++] = entry;
    entries.swap(other);
  }
}

}  // namespace case_wtal
