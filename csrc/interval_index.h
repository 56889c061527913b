// Segments laid out so that those of some range of lengths and starts lie side by side.
//
// Levels are ranges of lengths (a factor of four each, or a part of it), and within a level segments are in the order of
// their starts: whatever can overlap a given segment is one stretch of each level, and a stretch is read in order by
// loops that vectorise. Starts are compared as 32-bit positions within their range, which only widens a stretch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "radix_sort.h"
#include "simd.h"

namespace case_wtal {

inline void prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#else
  (void)address;
#endif
}

template <typename T>
class IntervalIndex {
 public:
  // Below this many segments they stay in the order they came in, as a single stretch.
  static constexpr int64_t kFew = 256;

  // Of n segments (start, end). Lengths mean end - start + offset; those that are not positive and finite overlap
  // nothing and are left out. level_bits: a level spans a factor of about 4^(2^-level_bits). least_iou: windows are to
  // find what overlaps with at least this IoU.
  void build(const T* segments, int64_t n, T offset, int level_bits = 0, double least_iou = 1) {
    // Lengths below this share a level: there the offset has cancelled most of the digits. From here on they are known
    // to 2^-12 of the least intersection that counts.
    fine_ = 0x1p12 * std::numeric_limits<T>::epsilon() * std::abs(double(offset)) / least_iou;
    position_.assign(n, -1);
    entries_.clear();
    ids_.resize(n);
    double low = std::numeric_limits<double>::infinity(), high = -low;
    int64_t least = std::numeric_limits<int64_t>::max(), most = -1;
    for (int64_t i = 0; i < n; ++i) {
      const T length = segments[2 * i + 1] - segments[2 * i] + offset;
      if (!(length > 0) || length > std::numeric_limits<T>::max()) continue;
      // The bits of a positive double rise with it: its upper ones name the level, of level_bits 0 all but the last of
      // the exponent. (Levels of a factor of two are smaller and more; looking one up costs more than it spares.)
      ids_[i] = length < fine_ ? 0 : bit_cast<uint64_t>(double(length)) >> (53 - level_bits);
      least = std::min(least, ids_[i]);
      most = std::max(most, ids_[i]);
      low = std::min(low, double(segments[2 * i]));
      high = std::max(high, double(segments[2 * i]));
      entries_.push_back({0, uint32_t(i)});
    }
    // In halves: the whole range of finite starts has a width then. 4294967040 is the largest float below 2^32.
    low_ = low / 2;
    scale_ = high > low ? 4294967040.0 / (high / 2 - low_) : 0.0;
    few_ = int64_t(entries_.size()) < kFew;
    if (few_) {
      least = most = 0;
    } else {
      for (Entry<uint32_t>& entry : entries_) entry.key = place(segments[2 * int64_t(entry.row)]);
      stable_sort(entries_, spare_);
    }
    lay_out(segments, offset, least, most);
  }

  int64_t size() const { return int64_t(slot_.size()); }
  const T* segments() const { return segments_.data(); }  // (size, 2), by position
  // Where segment i lies, -1 for those left out; and back.
  int64_t position(int64_t i) const { return position_[i]; }
  const int32_t* slots() const { return slot_.data(); }
  bool in_order() const { return few_; }

  // What a segment asks for: those of a length in [shortest, longest] that start between start - share * (their length)
  // and start + reach.
  struct Window {
    double start, reach, share, shortest, longest;
  };

  // Whatever a segment of this start and length overlaps at all.
  static Window overlapping(T start, T length) {
    return {start, std::max(0.0, double(length)), 1.0, 0.0, std::numeric_limits<double>::infinity()};
  }

  double fine() const { return fine_; }

  // stretch(begin, end) for positions that hold all of the window, and others.
  template <typename F>
  void visit(const Window& window, const F& stretch) const {
    if (few_) {
      if (size() > 0) stretch(0, size());
      return;
    }
    each_level(window, [&](const Level& level, uint32_t first, uint32_t last) {
      const int64_t begin = bound(level, first, 0), end = last < level.last ? bound(level, last + 1, 1) : level.end;
      if (begin < end) stretch(begin, end);
    });
  }

  // A large index lies beyond the caches and each visit is somewhere else: ask early for what it will read, first (far)
  // for the cells, then (near) for what they point to. `also` is an array by position.
  void fetch_far(const Window& window) const {
    each_level(window, [&](const Level& level, uint32_t first, uint32_t) { prefetch(cell_of(level, first)); });
  }
  template <typename A>
  void fetch_near(const Window& window, const A* also) const {
    each_level(window, [&](const Level& level, uint32_t first, uint32_t) {
      const int64_t begin = *cell_of(level, first);
      prefetch(segments_.data() + 2 * begin);
      prefetch(also + begin);
    });
  }
  bool is_large() const { return size() > 1 << 15; }

 private:
  struct Level {
    int64_t begin, end;        // positions
    double shortest, longest;  // lengths in it
    uint32_t first, last;      // places of its starts
    int shift;
    int64_t table;  // of its cells in table_: where each begins
  };

  // f(level, first, last place wanted).
  template <typename F>
  void each_level(const Window& w, const F& f) const {
    // Lengths and overlaps have been rounded to T.
    const double slack = 4 * std::numeric_limits<T>::epsilon() * (std::abs(w.start) + w.reach);
    const uint32_t last = place(w.start + std::max(w.reach, 2 * fine_) + slack);
    const auto below = [&](const Level& level) { return level.longest < w.shortest; };
    auto level = std::partition_point(levels_.begin(), levels_.end(), below);
    for (; level != levels_.end() && level->shortest <= w.longest; ++level) {
      const double before = w.share * level->longest * (1 + 4 * std::numeric_limits<T>::epsilon());
      f(*level, place(w.start - std::max(before, 2 * fine_) - slack), last);
    }
  }

  // Rises with start; what lies outside is moved to the ends, and NaN (0 times infinity) to the first.
  uint32_t place(double start) const {
    const double at = (start / 2 - low_) * scale_;
    return !(at > 0) ? 0 : uint32_t(std::min(at, 4294967040.0));
  }

  void lay_out(const T* segments, T offset, int64_t least, int64_t most) {
    const int64_t count = int64_t(entries_.size());
    segments_.resize(2 * count);
    slot_.resize(count);
    place_.resize(few_ ? 0 : count);
    levels_.clear();
    table_.clear();
    if (count == 0) return;
    std::vector<int64_t> next(most - least + 2);
    const auto level_of = [&](uint32_t row) { return few_ ? 0 : ids_[row] - least; };
    for (const Entry<uint32_t>& entry : entries_) ++next[level_of(entry.row) + 1];
    for (int64_t id = 0; id + 1 < int64_t(next.size()); ++id) {
      if (next[id + 1] > 0) levels_.push_back({next[id], next[id] + next[id + 1], 1e308, 0.0, 0, 0, 0, 0});
      next[id + 1] += next[id];
    }
    for (const Entry<uint32_t>& entry : entries_) {
      const int64_t at = next[level_of(entry.row)]++;
      segments_[2 * at] = segments[2 * int64_t(entry.row)];
      segments_[2 * at + 1] = segments[2 * int64_t(entry.row) + 1];
      slot_[at] = int32_t(entry.row);
      position_[entry.row] = int32_t(at);
      if (!few_) place_[at] = entry.key;
    }
    if (few_) return;
    for (Level& level : levels_) {
      for (int64_t i = level.begin; i < level.end; ++i) {
        const double length = segments_[2 * i + 1] - segments_[2 * i] + offset;
        level.shortest = std::min(level.shortest, length);
        level.longest = std::max(level.longest, length);
      }
      add_table(level);
    }
  }

  // About a cell for each two segments, so that a place is found without searching where starts are spread evenly.
  void add_table(Level& level) {
    level.first = place_[level.begin];
    level.last = place_[level.end - 1];
    const int64_t wanted = std::max<int64_t>(1, (level.end - level.begin) / 2);
    level.shift = 0;
    while ((int64_t(level.last - level.first) >> level.shift) >= wanted) ++level.shift;
    const int64_t cells = (int64_t(level.last - level.first) >> level.shift) + 1;
    level.table = int64_t(table_.size());
    int64_t at = level.begin;
    for (int64_t cell = 0; cell <= cells; ++cell) {
      while (at < level.end && int64_t(place_[at] - level.first) >> level.shift < cell) ++at;
      table_.push_back(int32_t(at));
    }
  }

  const int32_t* cell_of(const Level& level, uint32_t wanted) const {
    const uint32_t inside = std::min(std::max(wanted, level.first), level.last);
    return table_.data() + level.table + (int64_t(inside - level.first) >> level.shift);
  }

  // The first position in the level that lies at `wanted` or later, or at most a few before it (side 0) or after (1).
  int64_t bound(const Level& level, uint32_t wanted, int side) const {
    if (wanted <= level.first) return level.begin;
    if (wanted > level.last) return level.end;
    const int32_t* cell = cell_of(level, wanted);
    if (cell[1] - cell[0] <= 8) return cell[side];  // looking closer would cost more than a few segments too many
    return std::lower_bound(place_.data() + cell[0], place_.data() + cell[1], wanted) - place_.data();
  }

  double fine_ = 0, low_ = 0, scale_ = 0;
  bool few_ = true;
  std::vector<T> segments_;
  std::vector<int32_t> slot_, position_, table_;
  std::vector<int64_t> ids_;
  std::vector<uint32_t> place_;
  std::vector<Level> levels_;
  std::vector<Entry<uint32_t>> entries_, spare_;
};

}  // namespace case_wtal
