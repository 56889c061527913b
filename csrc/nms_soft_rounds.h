// Soft-NMS by blocks of threads (block.h), in rounds.
//
// Decays only lower a key of what is above 0, so whoever has the largest key of all open segments that it overlaps is
// the next pick there, whatever happens elsewhere: nobody who comes before it in the sequential order can reach it. Each
// round takes all such picks, then each open segment takes the decays of those among its neighbours. Threads write only
// what is their own segment's, so results are the same on repeat; the decays of a segment are subtracted in another
// order than the C++ on the CPU takes, which moves the last bits of a key. As many rounds as the longest chain of
// overlapping picks: 178 for 10,000 segments of which ten start a second (counted). A group of ordinary size is one
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
  NmsNeighbours<T> near;
  NmsDecay<T> decay;
  T offset;
  int32_t round;  // from 1

  // Not picked before this round; what this round picks is seen as open, whether or not it has been written yet.
  CASE_BODY bool open(int64_t p) const { return decay.turn[p] == 0 || decay.turn[p] == round; }

  CASE_BODY bool is_largest(int64_t p) const {
    const auto mine = near.span(p);
    const double key = decay.key[p];
    const int32_t slot = near.index.slot[p];
    bool largest = true;
    near.visit(p, mine, [&](int64_t q) {
      if (!open(q) || decay.key[q] < key || (decay.key[q] == key && near.index.slot[q] >= slot)) return false;
      const auto other = near.span(q);
      const T first = other.start > mine.start ? other.start : mine.start;
      largest = !((other.end < mine.end ? other.end : mine.end) - first + offset > 0);
      return !largest;
    });
    return largest;
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

  // Takes the decays of the picks of this round, if it is still to be picked.
  CASE_BODY void take_decays(int64_t p) const {
    if (decay.turn[p] != 0 && decay.turn[p] != kNmsBelowZero) return;
    const auto mine = near.span(p);
    double key = decay.key[p];
    near.visit(p, mine, [&](int64_t q) {
      if (decay.turn[q] == round) key = decayed(p, key, q, mine);
      return false;
    });
    decay.key[p] = key;
  }

  // key of p, which is at `mine`, after the decay by q.
  CASE_BODY double decayed(int64_t p, double key, int64_t q, const typename Overlap<T>::Span& mine) const {
    const auto pick = near.span(q);
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
  struct Shared {
    GroupHeads groups;
    double keys[kNmsThreads];
    int32_t slots[kNmsThreads];
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
    // A round without a pick is of keys that are not numbers.
    for (int32_t left = count, before = -1; left > 0 && left != before;) {
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
      block.each([&](int t) {
        for (int32_t p = begin + t; p < begin + count; p += block.threads()) now.take_decays(p);
      });
    }
    return now.round;
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
          if (pick >= 0) key = rounds.decayed(p, key, pick, rounds.near.span(p));
          const int32_t slot = -rounds.near.index.slot[p];
          if (key < shared.keys[t] || (key == shared.keys[t] && slot < shared.slots[t])) continue;
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
