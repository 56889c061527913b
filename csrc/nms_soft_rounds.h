// Soft-NMS by any number of blocks (block.h), in rounds, of groups of any size whose scores are above 0.
//
// Decays only lower a key, so whoever has the largest key of all open segments that it overlaps is the next pick there,
// whatever happens elsewhere: nobody who comes before it in the sequential order can reach it. Each round takes all
// such picks, then each open segment takes the decays of those among its neighbours. Threads write only what is their
// own segment's, so results are the same on repeat; the decays of a segment are subtracted in another order than the
// C++ on the CPU takes, which moves the last bits of a key. As many rounds as the longest chain of overlapping picks:
// 178 for 10,000 segments of which ten start a second (counted).
#pragma once

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
    return T(decay.gaussian ? double(decay.score[p]) * exp(key - first) : key);
  }

  CASE_BODY double decayed(int64_t p) const {
    const auto mine = near.span(p);
    double key = decay.key[p];
    near.visit(p, mine, [&](int64_t q) {
      if (decay.turn[q] != round) return false;
      const auto pick = near.span(q);
      const T iou = segment_iou(pick.start, pick.end, pick.length, mine.start, mine.end, offset);
      if (decay.gaussian) {
        key -= double(iou) * double(iou) * decay.inverse_sigma;
      } else if (iou >= decay.threshold) {
        key *= double(T(1) - iou);
      }
      return false;
    });
    return key;
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
        if (rounds.decay.turn[p] != 0) continue;
        if (!rounds.is_largest(p)) {
          ++open;
        } else {
          rounds.decay.turn[p] = rounds.score(p) < rounds.decay.least ? -1 : rounds.round;
        }
      }
      if (open > 0) block.atomic_add(left + 1, open);
    });
  }
};

template <typename T>
struct SoftDecay {
  struct Shared {};
  SoftRounds<T> rounds;
  const int32_t* left;  // how many are open after the round's picks

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared&) const {
    if (*left == 0) return;
    block.each([&](int t) {
      const int64_t step = block.blocks() * block.threads();
      for (int64_t p = block.index() * block.threads() + t; p < rounds.near.index.n; p += step) {
        if (rounds.decay.turn[p] == 0) rounds.decay.key[p] = rounds.decayed(p);
      }
    });
  }
};

template <typename T>
SoftRounds<T> soft_rounds(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int32_t round) {
  return {{index, Overlap<T>(T(0), offset), 0.0}, decay, offset, round};
}

}  // namespace case_wtal
