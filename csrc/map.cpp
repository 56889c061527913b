#include "map.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "radix_sort.h"
#include "segment.h"

namespace case_wtal {
namespace {

// Below this many predictions one thread is done before the others have woken up.
constexpr int64_t kParallelPredictions = 1 << 12;

// Indices of `segments` by class, each class in the order of appearance: those of class c are order[begin[c]] to
// order[begin[c + 1]].
struct ByClass {
  std::vector<int64_t> begin;
  std::vector<int64_t> order;

  ByClass(const Segments& segments, int64_t classes) : begin(classes + 1, 0) {
    const auto known = [&](int64_t i) { return segments.label[i] >= 0 && segments.label[i] < classes; };
    for (int64_t i = 0; i < segments.count; ++i) {
      if (known(i)) ++begin[segments.label[i] + 1];
    }
    for (int64_t c = 0; c < classes; ++c) begin[c + 1] += begin[c];
    order.resize(begin[classes]);
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t i = 0; i < segments.count; ++i) {
      if (known(i)) order[next[segments.label[i]]++] = i;
    }
  }
};

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

// Settles classes one after another; what it allocates is kept from class to class.
class Matcher {
 public:
  Matcher(const MapProblem& problem, const ByClass& truth, const ByClass& found, double* ap, int64_t* claim)
      : problem_(problem), truth_(truth), found_(found), ap_(ap), claim_(claim), of_video_(problem.videos) {
    least_ = std::numeric_limits<double>::infinity();
    for (int64_t t = 0; t < problem.thresholds; ++t) least_ = std::min(least_, problem.tiou[t]);
  }

  void settle(int64_t label) {
    group_instances(label);
    rank_predictions(label);
    const int64_t thresholds = problem_.thresholds;
    claimed_.assign(instances_.size() * thresholds, 0);
    hits_.assign(thresholds, {});
    forgiven_hits_.assign(thresholds, 0);
    int64_t counted = 0;
    for (const Entry<uint64_t>& prediction : predictions_) {
      const bool forgive = problem_.forgive != nullptr && problem_.forgive[prediction.row] != 0;
      if (!forgive) ++counted;
      match(prediction.row, counted, forgive);
    }
    const double empty = instances_.empty() ? std::numeric_limits<double>::quiet_NaN() : 0.0;
    for (int64_t t = 0; t < thresholds; ++t) {
      ap_[t * problem_.classes + label] = instances_.empty() ? empty : area(hits_[t]);
    }
    for (const int64_t i : instances_) of_video_[problem_.truth.video[i]] = Range{};
  }

 private:
  // Instances of a class, those of one video side by side in the order of appearance.
  void group_instances(int64_t label) {
    const int64_t* video = problem_.truth.video;
    instances_.assign(truth_.order.begin() + truth_.begin[label], truth_.order.begin() + truth_.begin[label + 1]);
    std::stable_sort(instances_.begin(), instances_.end(), [&](int64_t a, int64_t b) { return video[a] < video[b]; });
    const int64_t count = static_cast<int64_t>(instances_.size());
    for (int64_t i = 0; i < count;) {
      const int64_t v = video[instances_[i]];
      int64_t end = i + 1;
      while (end < count && video[instances_[end]] == v) ++end;
      of_video_[v] = Range{i, end};
      i = end;
    }
  }

  void rank_predictions(int64_t label) {
    predictions_.clear();
    for (int64_t i = found_.begin[label]; i < found_.begin[label + 1]; ++i) {
      predictions_.push_back({descending_key(problem_.score[found_.order[i]]), uint32_t(found_.order[i])});
    }
    stable_sort(predictions_, scratch_);
  }

  // `counted`: predictions so far, this one included, that count whether they claim or not.
  void match(int64_t prediction, int64_t counted, bool forgive) {
    const int64_t video = problem_.found.video[prediction];
    if (video < 0 || video >= problem_.videos) return;
    const Range range = of_video_[video];
    if (!rank_instances(prediction, range)) return;
    for (int64_t t = 0; t < problem_.thresholds; ++t) {
      for (const int64_t i : candidates_) {
        if (overlaps_[i] < problem_.tiou[t]) break;
        unsigned char& claimed = claimed_[(range.begin + i) * problem_.thresholds + t];
        if (claimed == 0) {
          claimed = 1;
          if (claim_ != nullptr) claim_[prediction * problem_.thresholds + t] = instances_[range.begin + i];
          if (forgive) ++forgiven_hits_[t];
          hits_[t].push_back(counted + forgiven_hits_[t]);
          break;
        }
        if (problem_.best_only) break;
      }
    }
  }

  // Instances of the range that reach the least threshold, in the order in which they are claimed; false: none do.
  bool rank_instances(int64_t prediction, Range range) {
    const double* segment = problem_.found.segment + 2 * prediction;
    const double start = segment[0], end = segment[1], length = end - start;
    overlaps_.resize(range.end - range.begin);
    candidates_.clear();
    for (int64_t i = range.begin; i < range.end; ++i) {
      const double* instance = problem_.truth.segment + 2 * instances_[i];
      double& iou = overlaps_[i - range.begin];
      iou = segment_iou(start, end, length, instance[0], instance[1], 0.0);
      if (!(iou > 0)) iou = 0.0;  // NaN, where lengths overflow, has no place in an order
      if (iou >= least_) candidates_.push_back(i - range.begin);
    }
    if (candidates_.size() > 1) {
      const auto higher = [&](int64_t a, int64_t b) { return overlaps_[a] > overlaps_[b]; };
      std::sort(candidates_.begin(), candidates_.end(), higher);
      bool equal = false;
      for (size_t i = 1; i < candidates_.size(); ++i) {
        equal |= overlaps_[candidates_[i]] == overlaps_[candidates_[i - 1]];
      }
      if (equal) order_by_network();
    }
    return !candidates_.empty();
  }

  void order_by_network() {
    rising_.resize(overlaps_.size());
    network_order(overlaps_.data(), rising_.data(), static_cast<int64_t>(rising_.size()));
    // What reaches the threshold is at the end.
    for (size_t i = 0; i < candidates_.size(); ++i) candidates_[i] = rising_[rising_.size() - 1 - i];
  }

  // `ranks`: how many predictions count up to each hit. Between hits precision only falls, so hits alone decide.
  double area(const std::vector<int64_t>& ranks) const {
    double highest = 0.0, sum = 0.0;
    for (int64_t k = static_cast<int64_t>(ranks.size()); k > 0; --k) {
      const double precision = static_cast<double>(k) / static_cast<double>(ranks[k - 1]);
      highest = std::max(highest, precision);
      sum += problem_.envelope ? highest : precision;
    }
    return sum / static_cast<double>(instances_.size());
  }

  const MapProblem& problem_;
  const ByClass& truth_;
  const ByClass& found_;
  double* ap_;
  int64_t* claim_;
  double least_;
  std::vector<Range> of_video_;  // places in instances_
  std::vector<int64_t> instances_, candidates_, rising_, forgiven_hits_;
  std::vector<Entry<uint64_t>> predictions_, scratch_;
  std::vector<double> overlaps_;
  std::vector<unsigned char> claimed_;  // (instances, thresholds)
  std::vector<std::vector<int64_t>> hits_;
};

}  // namespace

void map_cpu(const MapProblem& problem, double* ap, int64_t* claim, int num_threads) {
  if (problem.found.count > UINT32_MAX) {
    throw std::length_error("predictions must number less than 2^32, got " + std::to_string(problem.found.count));
  }
  const ByClass truth(problem.truth, problem.classes), found(problem.found, problem.classes);
  if (claim != nullptr) std::fill(claim, claim + problem.found.count * problem.thresholds, int64_t{-1});
  const int threads = threads_worth(problem.found.count, num_threads, kParallelPredictions);
  const auto make = [&] { return Matcher(problem, truth, found, ap, claim); };
  parallel_with(problem.classes, threads, make, [](Matcher& matcher, int64_t label) { matcher.settle(label); });
}

}  // namespace case_wtal
