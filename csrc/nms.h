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

constexpr double kMaxInverseSigma = 1e290;  // keys stay finite numbers

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

// Rows on the device, or in the host's memory for an emulation.
template <typename T>
struct NmsRows {
  const T* segments;       // (n, 2)
  const T* scores;         // (n,)
  const int64_t* groups;   // (n,): of each row; rows come by rising group
  const int64_t* segment;  // (n,): which segment each row is; absent: the one of its number
  int64_t n;               // below 2^31
};

// By place (n,): groups in the order of their rows, within a group by falling score, equal ones by row.
struct NmsOutcome {
  int32_t* sorted;  // the segment
  int32_t* head;    // the first place of its group
  int32_t* by;      // -1 for what hard NMS keeps, else the place within the group of the kept one that settled it first
};

constexpr int32_t kNmsLeft = -2;  // by, of groups that are left to nms_rounds

// See nms_blocks.h. spare: to work in, (2, n) of 8 bytes (float) or 16 (double); absent if n is at most 2048 or 1024.
// Groups of more than `most` rows, which have to come by falling score, are left alone.
template <typename T>
void nms_settle_emulated(const NmsRows<T>& rows, T threshold, T offset, void* spare, int64_t most, const NmsOutcome& to,
                         Emulation with);

constexpr int64_t kNmsLevels = 1024;  // of length; the last holds lengths that are not positive

// Segments by position (n,): by group, level and start.
template <typename T>
struct NmsIndex {
  const T* segments;        // (n, 2)
  const int64_t* key;       // first place of the group * kNmsLevels + level
  const int32_t* slot;      // place by group and falling score
  const int32_t* head;      // first place of the group
  const int32_t* position;  // by slot
  int64_t n;
  double fine;  // lengths below share level 0; see interval_index.h
};

// See nms_rounds.h. state (n,) by position: 0 for what is to be settled, above 2 for what is not asked about. left
// (rounds + 1,), zero but for the first. by (n,) by slot.
template <typename T>
void nms_rounds_emulated(const NmsIndex<T>& index, T threshold, T offset, unsigned char* state, int32_t* left,
                         int64_t rounds, int32_t* by, Emulation with);

constexpr int32_t kNmsBelowZero = -2;

// What linear and gaussian NMS make of the segments of an index, by position (n,).
template <typename T>
struct NmsDecay {
  const T* score;
  const double* first_key;  // linear: the score; gaussian: the logarithm of its size, below 0 negated
  double* key;              // the same, decayed
  // 0: open; kNmsBelowZero: open, but all others of its group come first; -1: takes no part, or not any more; else in
  // which round it was picked. Those below 0 are picked one a round.
  int32_t* turn;
  T threshold, least;       // of the IoU; of the score of a pick
  bool gaussian;
  double inverse_sigma;
  int32_t* rival;  // -1, or an overlapping one that had the larger key when last looked at
};

// See nms_soft_rounds.h. Rounds first + 1, ..., first + rounds over all segments at or above 0; left as above:
// left[rounds] says how many are still open.
template <typename T>
void nms_soft_emulated(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int32_t* left, int64_t first,
                       int64_t rounds, Emulation with);
// All that is open in groups of at most `most` segments, after `first` rounds.
template <typename T>
void nms_soft_groups_emulated(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int64_t first, int64_t most,
                              Emulation with);

// Score voting for segments of an index.
template <typename T>
struct NmsBallot {
  const T* score;           // by position (n,)
  const int32_t* position;  // (kept,)
  int64_t kept;
  T threshold;
  T* out;  // (kept, 2); as score_vote_cpu, but for the order of sums
};

// See nms_vote_blocks.h.
template <typename T>
void nms_vote_emulated(const NmsIndex<T>& index, const NmsBallot<T>& ballot, T offset, Emulation with);

#ifdef CASE_WITH_CUDA
// Enqueues on `stream` (a cudaStream_t) of the current device and returns without waiting.
template <typename T>
void nms_settle_cuda(const NmsRows<T>& rows, T threshold, T offset, void* spare, int64_t most, const NmsOutcome& to,
                     uintptr_t stream);
template <typename T>
void nms_rounds_cuda(const NmsIndex<T>& index, T threshold, T offset, unsigned char* state, int32_t* left,
                     int64_t rounds, int32_t* by, uintptr_t stream);
template <typename T>
void nms_soft_cuda(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int32_t* left, int64_t first,
                   int64_t rounds, uintptr_t stream);
template <typename T>
void nms_soft_groups_cuda(const NmsIndex<T>& index, const NmsDecay<T>& decay, T offset, int64_t first, int64_t most,
                          uintptr_t stream);
template <typename T>
void nms_vote_cuda(const NmsIndex<T>& index, const NmsBallot<T>& ballot, T offset, uintptr_t stream);
#endif

}  // namespace case_wtal
