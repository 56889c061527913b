#include <algorithm>

#include "interval_index.h"
#include "nms.h"
#include "nms_groups.h"
#include "segment.h"

namespace case_wtal {
namespace {

struct Sums {
  double weight = 0, start = 0, end = 0;
};

// In eight lanes, so that the sums vectorise; they are added up in the same order on every processor.
template <typename T>
CASE_INLINE void add_stretch(const T* segments, const T* scores, int64_t count, T s, T e, T offset,
                             T threshold, Sums& sums) {
  constexpr int kLanes = 8;
  const T length = e - s + offset;
  double weights[kLanes] = {}, first[kLanes] = {}, last[kLanes] = {};
  const auto add = [&](int64_t i, int lane) CASE_INLINE_LAMBDA {
    const T iou = segment_iou(s, e, length, segments[2 * i], segments[2 * i + 1], offset);
    const double weight = iou >= threshold ? double(iou) * double(scores[i]) : 0.0;
    weights[lane] += weight;
    first[lane] += weight * double(segments[2 * i]);
    last[lane] += weight * double(segments[2 * i + 1]);
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (; i < count; ++i) add(i, 0);
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.weight += weights[lane];
    sums.start += first[lane];
    sums.end += last[lane];
  }
}

CASE_SIMD_CLONES void add(const float* segments, const float* scores, int64_t count, float s, float e,
                          float offset, float threshold, Sums& sums) {
  add_stretch(segments, scores, count, s, e, offset, threshold, sums);
}
CASE_SIMD_CLONES void add(const double* segments, const double* scores, int64_t count, double s,
                          double e, double offset, double threshold, Sums& sums) {
  add_stretch(segments, scores, count, s, e, offset, threshold, sums);
}

}  // namespace

template <typename T>
void score_vote_cpu(const int64_t* keep, int64_t kept, const T* segments, const T* scores, const int64_t* groups,
                    int64_t n, double threshold, double length_offset, T* out, int num_threads) {
  if (kept == 0) return;
  std::vector<int64_t> wanted(kept);
  for (int64_t i = 0; i < kept; ++i) wanted[i] = groups[keep[i]];
  const Groups all = group_rows(groups, n), mine = group_rows(wanted.data(), kept);
  const T offset = T(length_offset);
  struct Work {
    IntervalIndex<T> index;
    std::vector<T> members, weights;
  };
  const auto make = [] { return Work{}; };
  parallel_with(mine.count(), threads_for(n, num_threads), make, [&](Work& work, int64_t g) {
    const int64_t number = wanted[mine.rows[mine.begins[g]]];
    const auto below = [&](int64_t begin) { return groups[all.rows[begin]] < number; };
    const auto found = std::partition_point(all.begins.begin(), all.begins.end() - 1, below);
    const int64_t begin = found[0], count = found[1] - begin;
    IntervalIndex<T>& index = work.index;
    work.members.resize(2 * count);
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(segments + 2 * int64_t(all.rows[begin + i]), 2, work.members.data() + 2 * i);
    }
    index.build(work.members.data(), count, offset);
    work.weights.resize(index.size());
    for (int64_t at = 0; at < index.size(); ++at) work.weights[at] = scores[all.rows[begin + index.slots()[at]]];
    for (int64_t i = mine.begins[g]; i < mine.begins[g + 1]; ++i) {
      const int64_t place = mine.rows[i];
      const T s = segments[2 * keep[place]], e = segments[2 * keep[place] + 1];
      Sums sums;
      index.visit(index.overlapping(s, e - s + offset), [&](int64_t from, int64_t to) {
        add(index.segments() + 2 * from, work.weights.data() + from, to - from, s, e, offset, T(threshold), sums);
      });
      const bool moved = sums.weight > 0;
      out[2 * place] = moved ? T(sums.start / sums.weight) : s;
      out[2 * place + 1] = moved ? T(sums.end / sums.weight) : e;
    }
  });
}

template void score_vote_cpu(const int64_t*, int64_t, const float*, const float*, const int64_t*, int64_t, double,
                             double, float*, int);
template void score_vote_cpu(const int64_t*, int64_t, const double*, const double*, const int64_t*, int64_t, double,
                             double, double*, int);

}  // namespace case_wtal
