// Whom a segment can meet, on a GPU (block.h): an index like that of interval_index.h, but sorted by torch and
// searched.
//
// Segments lie by group, by level (a factor of four in length) and by start, so what one of them can meet is a stretch
// of each of a few levels.
#pragma once

#include <cmath>

#include "nms_blocks.h"

namespace case_wtal {

template <typename T>
struct NmsNeighbours {
  using Span = typename Overlap<T>::Span;

  NmsIndex<T> index;
  Overlap<T> meets;
  double least_iou;  // of what is to be found, exactly; 0: whatever overlaps

  CASE_BODY Span span(int64_t p) const { return meets.span(index.segments[2 * p], index.segments[2 * p + 1]); }

  // f(q) for all of p's group that it can meet, and others, until f returns true.
  template <typename F>
  CASE_BODY void visit(int64_t p, const Span& mine, const F& f) const {
    constexpr double kEps = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
    if (index.key[p] % kNmsLevels == kNmsLevels - 1) return;  // its length is not positive: it meets nothing
    const double start = mine.start, length = mine.length, fine = index.fine;
    const double reach = (1 - least_iou) * length, slack = 4 * kEps * (fabs(start) + reach);
    const double last = start + larger(reach, 2 * fine) + slack;
    // In T, at or above: no conversion for each of those that are looked at.
    const T bound = sizeof(T) == 4 ? T(last + 4 * kEps * fabs(last) + 0x1p-148) : T(last);
    const int64_t group = index.key[p] - index.key[p] % kNmsLevels;
    const int64_t longest = group + level_of(larger(length, fine) / least_iou, fine);
    int64_t at = first_key(group + level_of(length * least_iou, fine), index.head[p]);
    while (at < index.n && index.key[at] <= longest) {
      const int64_t end = first_key(index.key[at] + 1, at);
      const double before = (1 - least_iou) * longest_of(index.key[at] % kNmsLevels, fine) * (1 + 4 * kEps);
      const double first = start - larger(before, 2 * fine) - slack;
      for (int64_t q = first_start(first, at, end); q < end && index.segments[2 * q] <= bound; ++q) {
        if (f(q)) return;
      }
      at = end;
    }
  }

 private:
  CASE_BODY static double larger(double a, double b) { return a < b ? b : a; }

  // As the index has them; see interval_index.h.
  CASE_BODY static int64_t level_of(double length, double fine) {
    const int64_t level = length < fine ? 0 : int64_t(bit_cast<uint64_t>(length) >> 53);
    return level < kNmsLevels - 2 ? level : kNmsLevels - 2;
  }
  CASE_BODY static double longest_of(int64_t level, double fine) {
    return level == 0 ? larger(fine, 0x1p-1021) : bit_cast<double>(uint64_t(level + 1) << 53);
  }

  // From `low` on: it lies near, since groups and levels are small beside all of the index.
  CASE_BODY int64_t first_key(int64_t wanted, int64_t low) const {
    int64_t step = 32;
    for (; low + step < index.n && index.key[low + step] < wanted; step *= 4) low += step;
    const int64_t high = low + step < index.n ? low + step : index.n;
    return first_of(low, high, [&](int64_t i) { return index.key[i] < wanted; });
  }
  CASE_BODY int64_t first_start(double wanted, int64_t low, int64_t high) const {
    return first_of(low, high, [&](int64_t i) { return double(index.segments[2 * i]) < wanted; });
  }

  template <typename F>
  CASE_BODY static int64_t first_of(int64_t low, int64_t high, const F& before) {
    while (low < high) {
      const int64_t half = (low + high) / 2;
      if (before(half)) {
        low = half + 1;
      } else {
        high = half;
      }
    }
    return low;
  }
};

}  // namespace case_wtal
