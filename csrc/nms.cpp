#include "nms.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "interval_index.h"
#include "nms_groups.h"
#include "nms_soft.h"
#include "segment.h"

namespace case_wtal {
namespace {

// As wide as T, so that one vector instruction compares IoUs and another stores marks.
template <typename T>
using Mark = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Marks with `turn` what is unmarked and overlaps (s, e) with IoU >= threshold.
template <typename T>
CASE_INLINE void mark_stretch(const T* segments, Mark<T>* marks, int64_t count, T s, T e, T offset,
                              T threshold, Mark<T> turn) {
  const T length = e - s + offset;
  for (int64_t i = 0; i < count; ++i) {
    const bool settles = segment_iou(s, e, length, segments[2 * i], segments[2 * i + 1], offset) >= threshold;
    const Mark<T> before = marks[i];
    marks[i] = settles & (before < 0) ? turn : before;
  }
}

CASE_SIMD_CLONES void mark(const float* segments, int32_t* marks, int64_t count, float s, float e,
                           float offset, float threshold, int32_t turn) {
  mark_stretch(segments, marks, count, s, e, offset, threshold, turn);
}
CASE_SIMD_CLONES void mark(const double* segments, int64_t* marks, int64_t count, double s, double e,
                           double offset, double threshold, int64_t turn) {
  mark_stretch(segments, marks, count, s, e, offset, threshold, turn);
}

// The segments of one group by falling score, and what a method makes of them.
template <typename T>
struct Group {
  std::vector<Entry<typename Format<T>::Bits>> order, spare;
  std::vector<T> segments, scores;  // (n, 2), (n,)
  std::vector<Pick<T>> picks;       // slots and final scores, in the order of the method

  void gather(const T* all_segments, const T* all_scores, const uint32_t* rows, int64_t count) {
    order.resize(count);
    for (int64_t i = 0; i < count; ++i) order[i] = {descending_key(all_scores[rows[i]]), rows[i]};
    stable_sort(order, spare);
    segments.resize(2 * count);
    scores.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = order[i].row;
      std::copy_n(all_segments + 2 * row, 2, segments.data() + 2 * i);
      scores[i] = all_scores[row];
    }
    picks.clear();
  }
};

template <typename T>
class Settler {
 public:
  explicit Settler(const NmsSettings& settings)
      : settings_(settings), threshold_(T(settings.iou_threshold)), offset_(T(settings.length_offset)) {
    // An IoU of at least the threshold, as computed, is exactly at least this.
    exact_ = double(threshold_) * (1 - 0x1p-8);
    if (exact_ <= 0) return;
    const double halvings = std::log(2.0) / -std::log(std::min(exact_, 0.99));
    level_bits_ = std::min(6, std::max(0, int(std::floor(std::log2(2 * halvings)))));
  }

  // Turns of the kept are 0, 1, ...; marks_ of the others say which of them settled them first.
  void run(Group<T>& group) {
    const int64_t n = int64_t(group.scores.size());
    if (exact_ <= 0) {  // the best segment settles all others, also those that it does not touch
      kept_.assign(1, 0);
      by_.assign(n, 0);
      by_[0] = -1;
    } else {
      settle(group.segments.data(), n);
    }
    for (const int32_t slot : kept_) group.picks.push_back({slot, group.scores[slot]});
    if (settings_.method == NmsMethod::kDecayOnce) append_decayed(group);
  }

 private:
  // Whatever segment `slot` can settle, or be settled by.
  typename IntervalIndex<T>::Window window(const T* segments, int64_t slot) const {
    const double length = segments[2 * slot + 1] - segments[2 * slot] + offset_;
    const double shortest = length * exact_ < index_.fine() ? 0.0 : length * exact_;
    return {segments[2 * slot], (1 - exact_) * length, 1 - exact_, shortest, std::max(length, index_.fine()) / exact_};
  }

  void fetch_ahead(const T* segments, int64_t slot, int64_t n) const {
    constexpr int64_t kMark = 48, kFar = 32, kNear = 16;
    if (slot + kMark < n && index_.position(slot + kMark) >= 0) prefetch(&marks_[index_.position(slot + kMark)]);
    const auto open = [&](int64_t s) { return s < n && index_.position(s) >= 0 && marks_[index_.position(s)] < 0; };
    if (open(slot + kFar)) index_.fetch_far(window(segments, slot + kFar));
    if (open(slot + kNear)) index_.fetch_near(window(segments, slot + kNear), marks_.data());
  }

  void settle(const T* segments, int64_t n) {
    index_.build(segments, n, offset_, level_bits_, exact_);
    marks_.assign(index_.size(), -1);
    kept_.clear();
    for (int64_t slot = 0; slot < n; ++slot) {
      if (index_.is_large()) fetch_ahead(segments, slot, n);
      const int64_t at = index_.position(slot);
      if (at >= 0 && marks_[at] >= 0) continue;
      const Mark<T> turn = Mark<T>(kept_.size());
      kept_.push_back(int32_t(slot));
      if (at < 0) continue;
      const T s = segments[2 * slot], e = segments[2 * slot + 1];
      index_.visit(window(segments, slot), [&](int64_t begin, int64_t end) {
        if (index_.in_order()) begin = at + 1;
        mark(index_.segments() + 2 * begin, marks_.data() + begin, end - begin, s, e, offset_,
             threshold_, turn);
      });
      marks_[at] = -1;  // it has marked itself
    }
    by_.assign(n, -1);
    for (int64_t at = 0; at < index_.size(); ++at) by_[index_.slots()[at]] = int32_t(marks_[at]);
    for (const int32_t slot : kept_) by_[slot] = -1;  // whatever rounding says: a kept one has been settled by nobody
  }

  // After the kept ones, in the order of their suppressors, and those of one suppressor by falling score.
  void append_decayed(Group<T>& group) {
    const int64_t n = int64_t(group.scores.size());
    next_.assign(kept_.size() + 1, 0);
    for (const int32_t turn : by_) {
      if (turn >= 0) ++next_[turn + 1];
    }
    next_[0] = int64_t(group.picks.size());
    for (size_t turn = 1; turn < next_.size(); ++turn) next_[turn] += next_[turn - 1];
    group.picks.resize(n);
    for (int64_t slot = 0; slot < n; ++slot) {
      if (by_[slot] < 0) continue;
      const T* mine = group.segments.data() + 2 * slot;
      const T* other = group.segments.data() + 2 * int64_t(kept_[by_[slot]]);
      const T length = other[1] - other[0] + offset_;
      const double iou = segment_iou(other[0], other[1], length, mine[0], mine[1], offset_);
      const T decayed = T(double(group.scores[slot]) * std::exp(-(iou * iou) / settings_.sigma));
      group.picks[next_[by_[slot]]++] = {int32_t(slot), decayed};
    }
  }

  const NmsSettings& settings_;
  T threshold_, offset_;
  double exact_ = 0;
  int level_bits_ = 0;
  IntervalIndex<T> index_;
  std::vector<Mark<T>> marks_;  // by position in the index
  std::vector<int32_t> by_;     // by slot
  std::vector<int32_t> kept_;
  std::vector<int64_t> next_;
};

// Without what ended below min_score, and of the rest the best max_num; of equals those of the lower slot.
template <typename T>
void trim(std::vector<Pick<T>>& picks, const NmsSettings& settings) {
  const T least = T(settings.min_score);
  picks.erase(std::remove_if(picks.begin(), picks.end(), [&](const Pick<T>& p) { return !(p.score >= least); }),
              picks.end());
  if (settings.max_num == 0 || int64_t(picks.size()) <= settings.max_num) return;
  const auto better = [](const Pick<T>& a, const Pick<T>& b) {
    return a.score > b.score || (a.score == b.score && a.slot < b.slot);
  };
  std::vector<Pick<T>> ordered = picks;
  std::nth_element(ordered.begin(), ordered.begin() + (settings.max_num - 1), ordered.end(), better);
  const Pick<T> last = ordered[settings.max_num - 1];
  picks.erase(std::remove_if(picks.begin(), picks.end(), [&](const Pick<T>& p) { return better(last, p); }),
              picks.end());
}

}  // namespace

template <typename T>
int64_t nms_cpu(const T* segments, const T* scores, const int64_t* groups, int64_t n, const NmsSettings& settings,
                int64_t* keep, T* kept_scores, int num_threads) {
  if (n == 0) return 0;
  const Groups sorted = group_rows(groups, n);
  std::vector<int64_t> counts(sorted.count());
  const bool settles = settings.method == NmsMethod::kHard || settings.method == NmsMethod::kDecayOnce;
  const auto make = [&] { return std::make_tuple(Group<T>{}, Settler<T>(settings), SoftNms<T>(settings)); };
  // Each group writes where its rows lie in the order of groups; the gaps are closed at the end.
  parallel_with(sorted.count(), threads_for(n, num_threads), make, [&](auto& state, int64_t g) {
    auto& [group, settler, soft] = state;
    const int64_t begin = sorted.begins[g], count = sorted.begins[g + 1] - begin;
    group.gather(segments, scores, sorted.rows.data() + begin, count);
    if (settles) {
      settler.run(group);
    } else {
      soft.run(group.segments.data(), group.scores.data(), count, group.picks);
    }
    trim(group.picks, settings);
    counts[g] = int64_t(group.picks.size());
    for (int64_t i = 0; i < counts[g]; ++i) {
      keep[begin + i] = group.order[group.picks[i].slot].row;
      kept_scores[begin + i] = group.picks[i].score;
    }
  });
  int64_t total = 0;
  for (int64_t g = 0; g < sorted.count(); ++g) {
    const int64_t begin = sorted.begins[g];
    std::copy(keep + begin, keep + begin + counts[g], keep + total);
    std::copy(kept_scores + begin, kept_scores + begin + counts[g], kept_scores + total);
    total += counts[g];
  }
  return total;
}

template int64_t nms_cpu(const float*, const float*, const int64_t*, int64_t, const NmsSettings&, int64_t*, float*,
                         int);
template int64_t nms_cpu(const double*, const double*, const int64_t*, int64_t, const NmsSettings&, int64_t*, double*,
                         int);

}  // namespace case_wtal
