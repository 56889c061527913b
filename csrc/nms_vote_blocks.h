// Score voting by any number of blocks (block.h): a thread for each kept segment.
#pragma once

#include "nms_neighbours.h"

namespace case_wtal {

template <typename T>
struct VoteKept {
  struct Shared {};
  NmsNeighbours<T> near;
  NmsBallot<T> ballot;
  T offset;

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared&) const {
    block.each([&](int t) {
      const int64_t step = block.blocks() * block.threads();
      for (int64_t i = block.index() * block.threads() + t; i < ballot.kept; i += step) vote(i);
    });
  }

 private:
  CASE_BODY void vote(int64_t i) const {
    const int64_t p = ballot.position[i];
    const auto mine = near.span(p);
    double weights = 0, starts = 0, ends = 0;
    near.visit(p, mine, [&](int64_t q) {
      const auto other = near.span(q);
      const T iou = segment_iou(mine.start, mine.end, mine.length, other.start, other.end, offset);
      if (iou >= ballot.threshold) {
        const double weight = double(iou) * double(ballot.score[q]);
        weights += weight;
        starts += weight * double(other.start);
        ends += weight * double(other.end);
      }
      return false;
    });
    ballot.out[2 * i] = weights > 0 ? T(starts / weights) : mine.start;
    ballot.out[2 * i + 1] = weights > 0 ? T(ends / weights) : mine.end;
  }
};

template <typename T>
VoteKept<T> vote_kept(const NmsIndex<T>& index, const NmsBallot<T>& ballot, T offset) {
  return {{index, Overlap<T>(T(0), offset), 0.0}, ballot, offset};
}

}  // namespace case_wtal
