#include "nms_soft.h"

#include <algorithm>
#include <cmath>

#include "segment.h"

namespace case_wtal {
namespace {

constexpr int64_t kBlock = 64;
constexpr double kPicked = -std::numeric_limits<double>::infinity();

template <typename T>
CASE_INLINE void decay_stretch(const T* segments, double* keys, int64_t count, T s, T e, T offset,
                               bool gaussian, double inverse_sigma, T threshold) {
  const T length = e - s + offset;
  if (gaussian) {
    for (int64_t i = 0; i < count; ++i) {
      const double iou = segment_iou(s, e, length, segments[2 * i], segments[2 * i + 1], offset);
      keys[i] -= iou * iou * inverse_sigma;
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const T iou = segment_iou(s, e, length, segments[2 * i], segments[2 * i + 1], offset);
      // A picked one of the same segment becomes -infinity * 0: NaN, which no comparison prefers either.
      keys[i] *= iou >= threshold ? double(T(1) - iou) : 1.0;
    }
  }
}

CASE_SIMD_CLONES_32 void decay(const float* segments, double* keys, int64_t count, float s, float e,
                               float offset, bool gaussian, double inverse_sigma, float threshold) {
  decay_stretch(segments, keys, count, s, e, offset, gaussian, inverse_sigma, threshold);
}
CASE_SIMD_CLONES_32 void decay(const double* segments, double* keys, int64_t count, double s, double e,
                               double offset, bool gaussian, double inverse_sigma, double threshold) {
  decay_stretch(segments, keys, count, s, e, offset, gaussian, inverse_sigma, threshold);
}

CASE_SIMD_CLONES_32 double largest(const double* keys, int64_t count) {
  double lanes[8];
  for (double& lane : lanes) lane = kPicked;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] = keys[i + lane] > lanes[lane] ? keys[i + lane] : lanes[lane];
  }
  for (; i < count; ++i) lanes[0] = keys[i] > lanes[0] ? keys[i] : lanes[0];
  for (int lane = 1; lane < 8; ++lane) lanes[0] = lanes[lane] > lanes[0] ? lanes[lane] : lanes[0];
  return lanes[0];
}

CASE_SIMD_CLONES_32 int32_t lowest_slot(const double* keys, const int32_t* slots, int64_t count, double key) {
  int32_t lowest = INT32_MAX;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t slot = keys[i] == key ? slots[i] : INT32_MAX;
    lowest = slot < lowest ? slot : lowest;
  }
  return lowest;
}

}  // namespace

template <typename T>
SoftNms<T>::SoftNms(const NmsSettings& settings)
    : settings_(settings),
      gaussian_(settings.method == NmsMethod::kGaussian),
      offset_(T(settings.length_offset)),
      inverse_sigma_(std::min(1 / settings.sigma, kMaxInverseSigma)) {}

template <typename T>
bool SoftNms<T>::enough(const std::vector<Pick<T>>& picks) const {
  return settings_.max_num > 0 && int64_t(picks.size()) >= settings_.max_num;
}

template <typename T>
typename SoftNms<T>::Best SoftNms<T>::best_of(const double* keys, const int32_t* slots, int64_t count) const {
  const double key = largest(keys, count);
  return {key, key == kPicked ? INT32_MAX : lowest_slot(keys, slots, count, key)};
}

// Brings the blocks that hold positions [begin, end) up to date.
template <typename T>
void SoftNms<T>::summarise(int64_t begin, int64_t end) {
  const double* keys = keys_.data();
  const int32_t* slots = index_.slots();
  int64_t count = index_.size();
  for (size_t level = 0; level < tops_.size(); ++level) {
    begin /= kBlock;
    end = (end + kBlock - 1) / kBlock;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock;
      const Best best = best_of(keys + first, slots + first, std::min(kBlock, count - first));
      tops_[level][block] = best.key;
      top_slots_[level][block] = best.slot;
    }
    keys = tops_[level].data();
    slots = top_slots_[level].data();
    count = int64_t(tops_[level].size());
  }
}

// What all that a picked segment overlaps becomes; their blocks are not brought up to date.
template <typename T>
template <typename F>
void SoftNms<T>::decay_by(const T* picked, const F& changed) {
  const T s = picked[0], e = picked[1], length = e - s + offset_;
  if (!(length > 0)) return;
  index_.visit(index_.overlapping(s, length), [&](int64_t begin, int64_t end) {
    decay(index_.segments() + 2 * begin, keys_.data() + begin, end - begin, s, e, offset_, gaussian_, fall_,
          T(settings_.iou_threshold));
    changed(begin, end);
  });
}

// Slots [first, end) have scores of one sign; picks before are of slots before.
template <typename T>
void SoftNms<T>::pick_of_sign(const T* segments, const T* scores, int64_t first, int64_t end,
                              std::vector<Pick<T>>& picks) {
  const double sign = scores[first] < 0 ? -1 : 1;
  fall_ = sign * inverse_sigma_;
  index_.build(segments + 2 * first, end - first, offset_);
  const int64_t count = index_.size();
  keys_.resize(count);
  const auto key_of = [&](int64_t slot) {
    const double score = scores[slot];
    return gaussian_ ? sign * std::log(std::abs(score)) : score;
  };
  for (int64_t at = 0; at < count; ++at) keys_[at] = key_of(first + index_.slots()[at]);
  for (const Pick<T>& pick : picks) decay_by(segments + 2 * int64_t(pick.slot), [](int64_t, int64_t) {});
  apart_.clear();
  for (int64_t slot = first; slot < end; ++slot) {
    if (index_.position(slot - first) < 0) apart_.push_back(int32_t(slot));
  }
  tops_.clear();
  top_slots_.clear();
  for (int64_t blocks = count; blocks > kBlock || tops_.empty();) {
    blocks = (blocks + kBlock - 1) / kBlock;
    tops_.emplace_back(blocks);
    top_slots_.emplace_back(blocks);
  }
  summarise(0, count);
  const double least = settings_.min_score;
  size_t next_apart = 0;
  // Below 0 a later pick can have the higher score, so that all are needed to say which are the best.
  while (sign < 0 || !enough(picks)) {
    Best best = best_of(tops_.back().data(), top_slots_.back().data(), int64_t(tops_.back().size()));
    const int64_t slot = first + best.slot;
    if (next_apart < apart_.size()) {
      const int32_t other = apart_[next_apart];
      const double key = key_of(other);
      if (key > best.key || (key == best.key && other < slot)) {
        picks.push_back({other, scores[other]});
        ++next_apart;
        continue;
      }
    }
    if (best.key == kPicked) break;
    const double original = key_of(slot);
    double score = scores[slot];
    if (best.key != original) score = gaussian_ ? score * std::exp(sign * (best.key - original)) : best.key;
    if (T(score) < T(least)) break;  // and so is all that remains
    picks.push_back({int32_t(slot), T(score)});
    keys_[index_.position(best.slot)] = kPicked;
    decay_by(segments + 2 * slot, [&](int64_t begin, int64_t end) { summarise(begin, end); });
  }
}

template <typename T>
void SoftNms<T>::run(const T* segments, const T* scores, int64_t n, std::vector<Pick<T>>& picks) {
  // What is below min_score at the start does not take part.
  while (n > 0 && !(scores[n - 1] >= T(settings_.min_score))) --n;
  const auto first_not = [&](int64_t from, auto&& holds) {
    while (from < n && holds(scores[from])) ++from;
    return from;
  };
  const int64_t positive = first_not(0, [](T score) { return score > 0; });
  const int64_t zero = first_not(positive, [](T score) { return score == 0; });
  if (positive > 0) pick_of_sign(segments, scores, 0, positive, picks);
  for (int64_t slot = positive; slot < zero && !enough(picks); ++slot) picks.push_back({int32_t(slot), scores[slot]});
  if (zero < n && !enough(picks)) pick_of_sign(segments, scores, zero, n, picks);
}

template class SoftNms<float>;
template class SoftNms<double>;

}  // namespace case_wtal
