// Average precision of temporal detections, all classes and IoU thresholds in one pass (METHOD.md, mAP).
//
// Per class, predictions by falling score (equal scores: first in, first out) claim at each threshold the unclaimed
// instance of their video with the highest IoU that reaches it; equal IoUs are claimed in the reversed order of
// network_order (case/metrics/reference.py says why). IoU = I / (instance length + prediction length - I) in float64, 0
// where that sum is not positive. Nothing of the size predictions x instances is made, and only instances of the same
// video and class are looked at.
#pragma once

#include <cstdint>
#include <utility>

namespace case_wtal {

// Segments of many videos. Those whose video is not in [0, videos) meet no instance; those whose label is not in
// [0, classes) are left out.
struct Segments {
  const int64_t* video;
  const int64_t* label;
  const double* segment;  // (count, 2): start and end
  int64_t count;
};

struct MapProblem {
  Segments truth;
  Segments found;
  const double* score;           // (found.count), no NaN
  const unsigned char* forgive;  // (found.count) or null: where not 0, a prediction without a claim does not count
  const double* tiou;            // (thresholds)
  int64_t thresholds;
  int64_t classes;
  int64_t videos;
  bool best_only;  // a prediction whose best instance is claimed does not ask for the next (PASCAL VOC)
  bool envelope;   // precision is made monotone from the right before its area is taken
};

// ap (thresholds, classes): 0 without predictions, NaN without instances. claim, where not null, (found.count,
// thresholds): the index of the claimed instance, or -1. num_threads <= 0: OpenMP's default.
void map_cpu(const MapProblem& problem, double* ap, int64_t* claim, int num_threads);

// The order by rising value into which a bitonic sorting network puts `count` values without NaN, where a pair changes
// places only if its later value is the smaller one: the order of x86-simd-sort, and with it of numpy.argsort of float64
// on CPUs with AVX2, up to 256 values. Comparators that reach past the end are left out, as if +inf stood there.
template <typename Index>
void network_order(const double* values, Index* order, int64_t count) {
  for (int64_t i = 0; i < count; ++i) order[i] = static_cast<Index>(i);
  const auto compare = [&](int64_t low, int64_t high) {
    if (high < count && values[order[high]] < values[order[low]]) std::swap(order[low], order[high]);
  };
  for (int64_t block = 2; block < 2 * count; block *= 2) {
    for (int64_t begin = 0; begin < count; begin += block) {
      for (int64_t i = 0; i < block / 2; ++i) compare(begin + i, begin + block - 1 - i);
    }
    for (int64_t distance = block / 4; distance > 0; distance /= 2) {
      for (int64_t i = 0; i + distance < count; ++i) {
        if ((i & distance) == 0) compare(i, i + distance);
      }
    }
  }
}

}  // namespace case_wtal
