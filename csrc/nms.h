// Temporal non-maximum suppression of any number of ragged groups, and score voting (METHOD.md, Inference 4).
//
// hard and decay_once keep the best-scored segment that no kept one overlaps with IoU >= iou_threshold, and so on.
// Going through the segments by falling score, each kept one marks those that it settles. Their lengths lie within a
// factor of iou_threshold of its own, and their starts within (1 - iou_threshold) of the longer length; a segment is
// within reach of a bounded number of kept ones, so with the index of interval_index.h the marks are O(n) in all, and
// O(n log n) with the searches. linear and gaussian: nms_soft.h.
#pragma once

#include <cstdint>

#include "emulation.h"

namespace case_wtal {

enum class NmsMethod { kHard, kDecayOnce, kLinear, kGaussian };

struct NmsSettings {
  double iou_threshold;  // in [0, 1]
  NmsMethod method;
  double sigma;      // of the decay exp(-IoU^2 / sigma)
  double min_score;  // what ends below is not returned
  int64_t max_num;   // of a group, the best-scored; 0: all
  double length_offset;
};

// Segments (n, 2), scores (n,) and group numbers (n,) -> keep and kept_scores, by rising group and within a group in
// the order of the method; returns their number, at most n. Equal scores: first in, first out. Everything is finite.
// T: float, double; the IoU is computed in it, decayed scores in double. num_threads <= 0: OpenMP's default; results
// do not depend on it.
template <typename T>
int64_t nms_cpu(const T* segments, const T* scores, const int64_t* groups, int64_t n, const NmsSettings& settings,
                int64_t* keep, T* kept_scores, int num_threads);

// out (kept, 2): of the segments in keep (kept,), the mean of the segments of their group with IoU >= threshold,
// weighted by score * IoU; themselves where the weights do not sum to more than 0.
template <typename T>
void score_vote_cpu(const int64_t* keep, int64_t kept, const T* segments, const T* scores, const int64_t* groups,
                    int64_t n, double threshold, double length_offset, T* out, int num_threads);


// Groups on the device, or in the host's memory for an emulation: those of group g are at [begins[g], begins[g + 1]),
// g < *count.
struct NmsGroups {
  const int64_t* begins;
  const int64_t* count;
};

// Segments (n, 2) by group, and within a group by falling score -> by (n,): -1 for what hard NMS keeps, else the place
// within its group of the kept segment that settled it. Any number of blocks will do. See nms_blocks.h.
template <typename T>
void nms_settle_emulated(const T* segments, const NmsGroups& groups, T threshold, T offset, int32_t* by, Emulation with);

#ifdef CASE_WITH_CUDA
// Enqueues on `stream` (a cudaStream_t) of the current device and returns without waiting.
template <typename T>
void nms_settle_cuda(const T* segments, const NmsGroups& groups, T threshold, T offset, int32_t* by, int64_t blocks,
                     uintptr_t stream);
#endif

}  // namespace case_wtal
