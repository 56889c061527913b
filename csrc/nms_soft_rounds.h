// Soft-NMS by blocks of threads (block.h), in rounds.
//
// Decays only lower a key of what is above 0, so whoever has the largest key of all open segments that it overlaps is
// the next pick there, whatever happens elsewhere: nobody who comes before it in the sequential order can reach it. Each
// round takes all such picks, then each open segment takes the decays of those among its neighbours. A segment that has
// found one with a larger key looks at that one first in the next round, and mostly that is all. Threads write only what
// is their own segment's, so results are the same on repeat; the decays of a segment are subtracted in another order than
// the C++ on the CPU takes, which moves the last bits of a key. As many rounds as the longest chain of
// overlapping picks: 178 for 10,000 segments of 0.5 to 20.5 s, 7 in the mean, of which ten start a second (counted). A group of ordinary size is one
// block's work from beginning to end; rounds of a large one are launches, and what those leave is one block's.
//
// Scores below 0 come after all others of their group, and decays raise them. So the next pick may be far from whom it
// overlaps with, and a block picks one after another.
#pragma once

#include "block_groups.h"
#include "nms_neighbours.h"

namespace case_wtal {

template <typename T>
struct SoftRounds {
  using Span = typename Overlap<T>::Span;

  NmsNeighbours<T> near;
  NmsDecay<T> decay;
  T offset;
  int32_t round;  // from 1

  // Not picked before this round; what this round picks is seen as open, whether or not it has been written yet. (What
  // falls below `least` is seen either way. Whoever its key stood above is below as well, but for rounding.)
  CASE_BODY bool open(int64_t p) const { return decay.turn[p] == 0 || decay.turn[p] == round; }

  CASE_BODY bool beats(int64_t q, int64_t p) const {
    if (!open(q)) return false;
    const double key = decay.key[p], other = decay.key[q];
    return other > key || (other == key && near.index.slot[q] < near.index.slot[p]);
  }

  CASE_BODY bool is_largest(int64_t p) const {
    const int32_t rival = decay.rival[p];
    if (rival >= 0 && beats(rival, p)) return false;
    const auto mine = near.span(p);
    bool largest = true;
    near.visit(p, mine, [&](int64_t q) {
      if (!beats(q, p) || !(overlap(near.span(q), mine) > 0)) return false;
      decay.rival[p] = int32_t(q);
      largest = false;
      return true;
    });
    return largest;
  }

  CASE_BODY T overlap(const Span& a, const Span& b) const {
    return (a.end < b.end ? a.end : b.end) - (a.start > b.start ? a.start : b.start) + offset;
  }

  // The score of p once it is picked.
  CASE_BODY T score(int64_t p) const {
    const double first = decay.first_key[p], key = decay.key[p];
    if (key == first) return decay.score[p];
    return T(decay.gaussian ? double(decay.score[p]) * exp(decay.score[p] < 0 ? first - key : key - first) : key);
  }

  // Whether p is still open after the picks of this round.
  CASE_BODY bool pick(int64_t p) const {
    if (decay.turn[p] != 0) return false;
    if (!is_largest(p)) return true;
    decay.turn[p] = score(p) < decay.least ? -1 : round;
    return false;
  }

  CASE_BODY bool to_be_picked(int64_t p) const { return decay.turn[p] == 0 || decay.turn[p] == kNmsBelowZero; }

  // Takes the decays of the picks of this round, in the order of their positions, if it is still to be picked.
  CASE_BODY void take_decays(int64_t p) const {
    if (!to_be_picked(p)) return;
    const Span mine = near.span(p);
    double key = decay.key[p];
    near.visit(p, mine, [&](int64_t q) {
      if (decay.turn[q] == round) key = decayed(p, key, near.span(q), mine);
      return false;
    });
    decay.key[p] = key;
  }

  // key of p, which is at `mine`, after the decay by `pick`.
  CASE_BODY double decayed(int64_t p, double key, const Span& pick, const Span& mine) const {
    if (!(overlap(pick, mine) > 0)) return key;
    const T iou = segment_iou(pick.start, pick.end, pick.length, mine.start, mine.end, offset);
    if (!decay.gaussian) return iou >= decay.threshold ? key * double(T(1) - iou) : key;
    const double fall = double(iou) * double(iou) * decay.inverse_sigma;
    return decay.score[p] < 0 ? key + fall : key - fall;
  }
};

// left[0]: how many were open before the round; left[1]: adds up how many are after it.
template <typename T>
struct SoftPick {
  struct Shared {};
  SoftRounds<T> rounds;
  int32_t* left;

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared&) const {
    if (left[0] == 0) return;
    block.each([&](int t) {
      int32_t open = 0;
      const int64_t step = block.blocks() * block.threads();
      for (int64_t p = block.index() * block.threads() + t; p < rounds.near.index.n; p += step) {
        if (rounds.pick(p)) ++open;
      }
      if (open > 0) block.atomic_add(left + 1, open);
    });
  }
};

template <typename T>
struct SoftDecay {
  struct Shared {};
  SoftRounds<T> rounds;
  const int32_t* left;  // how many were open before the round's picks

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared&) const {
    if (*left == 0) return;
    block.each([&](int t) {
      const int64_t step = block.blocks() * block.threads();
      for (int64_t p = block.index() * block.threads() + t; p < rounds.near.index.n; p += step) {
        rounds.take_decays(p);
      }
    });
  }
};

// All that is left of groups of at most `most` segments, a block a group; `rounds` has the last round before.
template <typename T>
struct SoftGroups {
  using Span = typename Overlap<T>::Span;
  static constexpr int kPicks = 64;  // of a round, which all threads can read; random scores take 17 of 1,000 at most
  struct Shared {
    GroupHeads groups;
    double keys[kNmsThreads];
    int32_t slots[kNmsThreads];
    Span picks[kPicks];
  };
  SoftRounds<T> rounds;
  int64_t most;

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared& shared) const {
    const auto number = [&](int64_t p) { return rounds.near.index.head[p]; };
    each_group(block, shared.groups, rounds.near.index.n, number, [&](int32_t begin, int32_t count) {
      if (count > most) return;
      const int32_t last = pick_by_rounds(block, shared, begin, count);
      pick_below_zero(block, shared, begin, count, last);
    });
  }

 private:
  // Returns the last round.
  template <typename Block>
  CASE_BODY int32_t pick_by_rounds(Block& block, Shared& shared, int32_t begin, int32_t count) const {
    SoftRounds<T> now = rounds;
    for (int32_t left = count, before = -1; left > 0 && left != before;) {  // equal: keys that are not numbers
      ++now.round;
      before = left;
      block.each([&](int t) {
        int32_t open = 0;
        for (int32_t p = begin + t; p < begin + count; p += block.threads()) {
          if (now.pick(p)) ++open;
        }
        shared.groups.counts[t] = open;
      });
      left = block.exclusive_scan(shared.groups.counts);
      const int32_t picks = list_picks(block, shared, begin, count, now.round);
      block.each([&](int t) {
        for (int32_t p = begin + t; p < begin + count; p += block.threads()) {
          if (picks > kPicks) now.take_decays(p);
          if (picks > kPicks || !now.to_be_picked(p)) continue;
          const Span mine = now.near.span(p);
          double key = now.decay.key[p];
          for (int i = 0; i < picks; ++i) key = now.decayed(p, key, shared.picks[i], mine);
          now.decay.key[p] = key;
        }
      });
    }
    return now.round;
  }

  // By position, as take_decays meets them; returns how many there are, listed or not.
  template <typename Block>
  CASE_BODY int32_t list_picks(Block& block, Shared& shared, int32_t begin, int32_t count, int32_t round) const {
    const int32_t share = (count + block.threads() - 1) / block.threads();
    const auto each_pick = [&](int t, auto&& f) {
      const int32_t first = t * share, end = first + share < count ? first + share : count;
      for (int32_t i = first; i < end; ++i) {
        if (rounds.decay.turn[begin + i] == round) f(begin + i);
      }
    };
    block.each([&](int t) {
      int32_t picks = 0;
      each_pick(t, [&](int32_t) { ++picks; });
      shared.groups.counts[t] = picks;
    });
    const int32_t picks = block.exclusive_scan(shared.groups.counts);
    if (picks > kPicks) return picks;
    block.each([&](int t) {
      int32_t at = shared.groups.counts[t];
      each_pick(t, [&](int32_t p) { shared.picks[at++] = rounds.near.span(p); });
    });
    return picks;
  }

  // A pass over all of them a pick.
  template <typename Block>
  CASE_BODY void pick_below_zero(Block& block, Shared& shared, int32_t begin, int32_t count, int32_t turn) const {
    const double none = -HUGE_VAL;
    for (int64_t pick = -1;;) {
      block.each([&](int t) {
        shared.keys[t] = none;
        shared.slots[t] = INT32_MIN;  // negated, so that the lowest is the largest
        for (int32_t p = begin + t; p < begin + count; p += block.threads()) {
          if (rounds.decay.turn[p] != kNmsBelowZero) continue;
          double& key = rounds.decay.key[p];
          if (pick >= 0) key = rounds.decayed(p, key, rounds.near.span(pick), rounds.near.span(p));
          const int32_t slot = -rounds.near.index.slot[p];
          // Never a key that is not a number, which has no place among others.
          if (!(key > shared.keys[t] || (key == shared.keys[t] && slot > shared.slots[t]))) continue;
          shared.keys[t] = key;
          shared.slots[t] = slot;
        }
      });
      const double best = block.maximum(shared.keys);
      if (best == none) return;
      block.each([&](int t) {
        if (shared.keys[t] != best) shared.slots[t] = INT32_MIN;
      });
      pick = rounds.near.index.position[-block.maximum(shared.slots)];
      ++turn;
      block.each([&](int t) {
        if (t == 0) rounds.decay.turn[pick] = turn;
      });
    }
  }
};

template <typename T>
SoftRounds<T> soft_rounds(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int32_t round) {
  return {{index, Overlap<T>(T(0), offset), 0.0}, decay, offset, round};
}

}  // namespace case_wtal
