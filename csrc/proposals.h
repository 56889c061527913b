// Proposals: maximal runs of the upsampled class activations at or above each threshold (and above 0), with scores.
//
// For each video, threshold (in the order given), kept class: runs by their start. What is computed is defined by
// case/ops/reference/proposals.py; which samples are in a run is the same to the last one. Work is O(rows + runs) a class.
#pragma once

#include <cstdint>
#include <vector>

#include "emulation.h"

namespace case_wtal {

struct ProposalProblem {
  int64_t videos, rows, classes, thresholds;  // rows >= 1, thresholds >= 1
  int64_t stride_video, stride_row, stride_class;  // of the activations, in elements; any, 0 included
  const double* threshold;        // (thresholds), in any order
  const double* video_scores;     // (videos, classes)
  const unsigned char* mask;      // (videos, classes): not 0 where the class is to be localized
  const double* seconds_per_row;  // (videos)
  int64_t factor;                 // samples a row; rows * factor < 2^31
  double outer_ratio, score_weight;
  bool keep_first_sample;
};

// Where proposals are written: segments (n, 2) in seconds, the others (n).
struct ProposalArrays {
  double* segments;
  double* scores;
  int64_t* classes;
  int64_t* video;
  int64_t* threshold;
};

// What proposals_cpu found, before there are arrays to hold it.
class ProposalList {
 public:
  struct Run {
    double score;
    int32_t first, end;  // samples [first, end)
    int32_t group;       // threshold * classes + class
  };
  struct Video {
    std::vector<Run> runs;  // by class, then as they end: within a group by start
    std::vector<int32_t> groups;  // number of runs of each group
    int64_t begin = 0;      // of its proposals among all
    double seconds_per_sample = 0;
  };

  int64_t count() const { return count_; }

  // The first min(count, capacity) proposals, in order. num_threads <= 0: OpenMP's default.
  void copy(ProposalArrays to, int64_t capacity, int num_threads) const;

 private:
  template <typename T>
  friend ProposalList proposals_cpu(const T* cas, const ProposalProblem& problem, int num_threads);

  std::vector<Video> videos_;
  int64_t classes_ = 0, count_ = 0;
};

// T: float, double. The result does not depend on the number of threads.
template <typename T>
ProposalList proposals_cpu(const T* cas, const ProposalProblem& problem, int num_threads);

// What the second launch of proposal_blocks.h takes, in memory of the device (of the host when emulated).
struct ProposalOutput {
  const int32_t* counts;  // (videos, thresholds, classes), of the first launch
  const int64_t* ends;    // their running sum
  int64_t capacity;       // of the arrays
  ProposalArrays to;
  double* x;         // (blocks, rows) to work in
  uint64_t* before;  // (blocks, rows) to work in
};

#ifdef CASE_WITH_CUDA
// Enqueue on `stream` (a cudaStream_t) of the current device and return without waiting; throw std::runtime_error if the
// launch is refused. cas and what problem points to are in memory of the device.
template <typename T>
void proposals_count_cuda(const T* cas, const ProposalProblem& problem, int32_t* counts, int64_t blocks,
                          uintptr_t stream);
template <typename T>
void proposals_write_cuda(const T* cas, const ProposalProblem& problem, const ProposalOutput& output, int64_t blocks,
                          uintptr_t stream);
#endif

// The same kernels on the host.
template <typename T>
void proposals_count_emulated(const T* cas, const ProposalProblem& problem, int32_t* counts, Emulation with);
template <typename T>
void proposals_write_emulated(const T* cas, const ProposalProblem& problem, const ProposalOutput& output,
                              Emulation with);

}  // namespace case_wtal
