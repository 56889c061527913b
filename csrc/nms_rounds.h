// Hard NMS of groups too large for one block: rounds over all segments, by any number of blocks (block.h).
//
// A segment is kept once every better one that it meets has been settled, and settled once one of them is kept. A round
// asks each open segment; what it finds out stays true, so it does no harm which threads see it already. Random scores
// take some ten rounds (nine for a million segments of which ten start a second, counted). A chain of segments, each
// better than the next, takes as many as it has links: one block does what a given number of rounds leaves, stretch after
// stretch of the order by score.
//
// Whom a segment can meet lies in a few stretches of an index like that of interval_index.h: by group, by level (a factor
// of four in length), by start.
#pragma once

#include <cmath>

#include "nms_blocks.h"

namespace case_wtal {

enum : unsigned char { kOpen = 0, kKept = 1, kSettled = 2 };  // and others: of groups that rounds leave alone

template <typename T>
struct NmsRounds {
  using Span = typename Overlap<T>::Span;

  NmsIndex<T> index;
  Overlap<T> meets;
  double exact;  // an IoU of at least the threshold, as computed, is exactly at least this
  unsigned char* state;  // (n,), by position

  // What can be said of the open segment at position p; all that it writes.
  CASE_BODY bool decide(int64_t p) const {
    if (exact <= 0) {  // the best segment settles all others, also those that it does not touch
      state[p] = index.slot[p] == index.head[p] ? kKept : kSettled;
      return true;
    }
    const Span mine = span(p);
    const int32_t slot = index.slot[p];
    bool open = false, settled = false;
    visit(p, mine, [&](int64_t q) {
      if (index.slot[q] >= slot || state[q] == kSettled || !meets(span(q), mine)) return false;
      settled = state[q] == kKept;
      open = true;
      return settled;
    });
    if (settled) {
      state[p] = kSettled;
    } else if (!open) {
      state[p] = kKept;
    }
    return settled || !open;
  }

  // The slot of the best kept segment that the one at p meets.
  CASE_BODY int32_t suppressor(int64_t p) const {
    if (exact <= 0) return index.head[p];
    const Span mine = span(p);
    int32_t best = index.slot[p];
    visit(p, mine, [&](int64_t q) {
      if (index.slot[q] < best && state[q] == kKept && meets(span(q), mine)) best = index.slot[q];
      return false;
    });
    return best;
  }

 private:
  CASE_BODY Span span(int64_t p) const { return meets.span(index.segments[2 * p], index.segments[2 * p + 1]); }

  // f(q) for all of p's group that it can meet, and others, until f returns true.
  template <typename F>
  CASE_BODY void visit(int64_t p, const Span& mine, const F& f) const {
    constexpr double kEps = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
    if (index.key[p] % kNmsLevels == kNmsLevels - 1) return;  // its length is not positive: it meets nothing
    const double start = mine.start, length = mine.length, fine = index.fine;
    const double reach = (1 - exact) * length, slack = 4 * kEps * (fabs(start) + reach);
    const double last = start + larger(reach, 2 * fine) + slack;
    const int64_t group = index.key[p] - index.key[p] % kNmsLevels;
    const int64_t longest = group + level_of(larger(length, fine) / exact, fine);
    int64_t at = first_key(group + level_of(length * exact, fine), 0);
    while (at < index.n && index.key[at] <= longest) {
      const int64_t end = first_key(index.key[at] + 1, at);
      const double before = (1 - exact) * longest_of(index.key[at] % kNmsLevels, fine) * (1 + 4 * kEps);
      const double first = start - larger(before, 2 * fine) - slack;
      for (int64_t q = first_start(first, at, end); q < end && double(index.segments[2 * q]) <= last; ++q) {
        if (f(q)) return;
      }
      at = end;
    }
  }

  CASE_BODY static double larger(double a, double b) { return a < b ? b : a; }

  // As the index has them; see interval_index.h.
  CASE_BODY static int64_t level_of(double length, double fine) {
    const int64_t level = length < fine ? 0 : int64_t(bit_cast<uint64_t>(length) >> 53);
    return level < kNmsLevels - 2 ? level : kNmsLevels - 2;
  }
  CASE_BODY static double longest_of(int64_t level, double fine) {
    return level == 0 ? larger(fine, 0x1p-1021) : bit_cast<double>(uint64_t(level + 1) << 53);
  }

  CASE_BODY int64_t first_key(int64_t wanted, int64_t low) const {
    return first_of(low, index.n, [&](int64_t i) { return index.key[i] < wanted; });
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

// One round. left[0]: how many were open before it; left[1]: adds up how many are after it.
template <typename T>
struct SettleRound {
  struct Shared {};
  NmsRounds<T> rounds;
  int32_t* left;

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared&) const {
    if (left[0] == 0) return;
    block.each([&](int t) {
      int32_t open = 0;
      const int64_t step = block.blocks() * block.threads();
      for (int64_t p = block.index() * block.threads() + t; p < rounds.index.n; p += step) {
        if (rounds.state[p] == kOpen && !rounds.decide(p)) ++open;
      }
      if (open > 0) block.atomic_add(left + 1, open);
    });
  }
};

// One block: what is still open, if there is any. Of the best kStretch segments a thread at a time, until none is open.
template <typename T>
struct SettleLast {
  static constexpr int kStretch = 32;
  struct Shared {
    int32_t counts[kNmsThreads];
  };
  NmsRounds<T> rounds;
  const int32_t* left;

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared& shared) const {
    if (*left == 0 || block.index() > 0) return;
    const int64_t stretch = int64_t(kStretch) * block.threads();
    for (int64_t first = 0; first < rounds.index.n; first += stretch) {
      const int64_t end = first + stretch < rounds.index.n ? first + stretch : rounds.index.n;
      int32_t open = 1;
      while (open > 0) {
        block.each([&](int t) {
          shared.counts[t] = 0;
          for (int64_t slot = first + t; slot < end; slot += block.threads()) {
            const int64_t p = rounds.index.position[slot];
            if (rounds.state[p] == kOpen && !rounds.decide(p)) ++shared.counts[t];
          }
        });
        open = block.exclusive_scan(shared.counts);
      }
    }
  }
};

// Who settled whom first.
template <typename T>
struct NameSuppressors {
  struct Shared {};
  NmsRounds<T> rounds;
  int32_t* by;  // (n,), by slot

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared&) const {
    block.each([&](int t) {
      const int64_t step = block.blocks() * block.threads();
      for (int64_t p = block.index() * block.threads() + t; p < rounds.index.n; p += step) {
        const int32_t slot = rounds.index.slot[p];
        if (rounds.state[p] == kKept) by[slot] = -1;
        if (rounds.state[p] == kSettled) by[slot] = rounds.suppressor(p) - rounds.index.head[p];
      }
    });
  }
};

template <typename T>
NmsRounds<T> nms_rounds(const NmsIndex<T>& index, T threshold, T offset, unsigned char* state) {
  return {index, Overlap<T>(threshold, offset), double(threshold) * (1 - 0x1p-8), state};
}

}  // namespace case_wtal
