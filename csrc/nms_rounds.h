// Hard NMS of groups too large for one block: rounds over all segments, by any number of blocks (block.h).
//
// A segment is kept once every better one that it meets has been settled, and settled once one of them is kept. A round
// asks each open segment; what it finds out stays true, so it does no harm which threads see it already. Random scores
// take some ten rounds (nine for a million segments of which ten start a second, counted). A chain of segments, each
// better than the next, takes as many as it has links: one block does what a given number of rounds leaves, stretch
// after stretch of the order by score.
#pragma once

#include "nms_neighbours.h"

namespace case_wtal {

enum : unsigned char { kOpen = 0, kKept = 1, kSettled = 2 };  // and others: of groups that rounds leave alone

template <typename T>
struct NmsRounds {
  NmsNeighbours<T> near;
  unsigned char* state;  // (n,), by position

  // What can be said of the open segment at position p; all that it writes.
  CASE_BODY bool decide(int64_t p) const {
    if (near.least_iou <= 0) {  // the best segment settles all others, also those that it does not touch
      state[p] = near.index.slot[p] == near.index.head[p] ? kKept : kSettled;
      return true;
    }
    const auto mine = near.span(p);
    const int32_t slot = near.index.slot[p];
    bool open = false, settled = false;
    near.visit(p, mine, [&](int64_t q) {
      if (near.index.slot[q] >= slot || state[q] == kSettled || !near.meets(near.span(q), mine)) return false;
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
    if (near.least_iou <= 0) return near.index.head[p];
    const auto mine = near.span(p);
    int32_t best = near.index.slot[p];
    near.visit(p, mine, [&](int64_t q) {
      if (near.index.slot[q] < best && state[q] == kKept && near.meets(near.span(q), mine)) best = near.index.slot[q];
      return false;
    });
    return best;
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
      for (int64_t p = block.index() * block.threads() + t; p < rounds.near.index.n; p += step) {
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
    for (int64_t first = 0; first < rounds.near.index.n; first += stretch) {
      const int64_t end = first + stretch < rounds.near.index.n ? first + stretch : rounds.near.index.n;
      int32_t open = 1;
      while (open > 0) {
        block.each([&](int t) {
          shared.counts[t] = 0;
          for (int64_t slot = first + t; slot < end; slot += block.threads()) {
            const int64_t p = rounds.near.index.position[slot];
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
      for (int64_t p = block.index() * block.threads() + t; p < rounds.near.index.n; p += step) {
        const int32_t slot = rounds.near.index.slot[p];
        if (rounds.state[p] == kKept) by[slot] = -1;
        if (rounds.state[p] == kSettled) by[slot] = rounds.suppressor(p) - rounds.near.index.head[p];
      }
    });
  }
};

template <typename T>
NmsRounds<T> nms_rounds(const NmsIndex<T>& index, T threshold, T offset, unsigned char* state) {
  // An IoU of at least the threshold, as computed, is exactly at least this.
  const double least_iou = double(threshold) * (1 - 0x1p-8);
  return {{index, Overlap<T>(threshold, offset), least_iou}, state};
}

}  // namespace case_wtal
