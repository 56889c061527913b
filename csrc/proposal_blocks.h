// Proposals by blocks of threads (block.h): the bodies of the kernels in proposals.cu and of their emulation on a CPU.
//
// Launch 1, CountProposals: the number of proposals of each (video, threshold, class). A running sum over those, made by
// whoever launches, gives each group its place in the output. Launch 2, WriteProposals. A column is one class of one
// video; a block works at one column at a time, blocks take columns in turns, and a class that is not kept costs next
// to nothing. Threads share a column's row intervals in contiguous pieces.
#pragma once

#include "block.h"
#include "proposal_signal.h"
#include "proposals.h"

namespace case_wtal {

constexpr int kProposalThreads = 256;

// Thread t's share [begin, end) of `count` things.
struct Share {
  int64_t begin, end;

  CASE_HD static Share of(int t, int threads, int64_t count) {
    const int64_t each = (count + threads - 1) / threads, begin = each * t < count ? each * t : count;
    return {begin, begin + each < count ? begin + each : count};
  }
};

// Calls start() for every run that begins in the intervals of `share` and stop(n) for every one that ends there.
// The arguments are the interval and whether it is inside it (the first or last sample of all, otherwise).
template <typename Rows, typename Start, typename Stop>
CASE_HD void over_runs(const Signal<Rows>& signal, Share share, double threshold, const Start& start, const Stop& stop) {
  if (share.begin >= share.end) return;
  const int64_t last = signal.intervals() - 1;
  bool is = above(signal.x[share.begin], threshold);
  if (share.begin == 0 && is) start(int64_t(0), false);
  for (int64_t n = share.begin; n < share.end; ++n) {
    const bool was = is;
    is = above(signal.end(n), threshold);
    if (is != was) is ? start(n, true) : stop(n, true);
    if (n == last && is) stop(n, false);
  }
}

template <typename T>
struct CountProposals {
  static constexpr int kGroup = 32;  // thresholds that shared memory holds the counts of
  struct Shared {
    int32_t counts[kGroup];
  };

  const T* cas;
  ProposalProblem problem;
  int32_t* counts;  // (videos, thresholds, classes)

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared& shared) const {
    const int64_t columns = problem.videos * problem.classes;
    for (int64_t column = block.index(); column < columns; column += block.blocks()) {
      for (int64_t begin = 0; begin < problem.thresholds; begin += kGroup) count(block, shared, column, begin);
    }
  }

 private:
  template <typename Block>
  CASE_BODY void count(Block& block, Shared& shared, int64_t column, int64_t begin) const {
    const int64_t video = column / problem.classes, label = column % problem.classes;
    const int threads = block.threads();
    const int number = int(problem.thresholds - begin < kGroup ? problem.thresholds - begin : kGroup);
    const double* threshold = problem.threshold + begin;
    const StridedRows<T> x{cas + video * problem.stride_video + label * problem.stride_class, problem.stride_row};
    const Signal<StridedRows<T>> signal(x, problem.rows, problem.factor);
    block.each([&](int t) {
      for (int k = t; k < number; k += threads) shared.counts[k] = 0;
    });
    if (problem.mask[column]) {
      block.each([&](int t) {
        const Share share = Share::of(t, threads, signal.intervals());
        for (int k = 0; k < number; ++k) {
          int32_t found = 0;
          over_runs(signal, share, threshold[k], [&](int64_t, bool) { ++found; }, [](int64_t, bool) {});
          if (found) Block::atomic_add(&shared.counts[k], found);
        }
      });
    }
    block.each([&](int t) {
      for (int k = t; k < number; k += threads) {
        // The released code asks `any(indices)`, false where index 0 stands alone.
        const bool drop = !problem.keep_first_sample && shared.counts[k] == 1 && first_alone(signal, threshold[k]);
        counts[(video * problem.thresholds + begin + k) * problem.classes + label] = drop ? 0 : shared.counts[k];
      }
    });
  }

  // Whether a run holds sample 0 and no other.
  CASE_HD static bool first_alone(const Signal<StridedRows<T>>& signal, double threshold) {
    if (!above(signal.x[0], threshold)) return false;
    const int64_t steps = signal.steps(0);
    return steps == 0 || !above(steps > 1 ? signal.sample(0, 1) : signal.end(0), threshold);
  }
};

template <typename T>
struct WriteProposals {
  struct Shared {
    uint64_t values[kProposalThreads];
  };

  const T* cas;
  ProposalProblem problem;
  const int32_t* counts;  // (videos, thresholds, classes)
  const int64_t* ends;    // their running sum: where the next group begins in the output
  int64_t capacity;       // what lies past it is not written
  ProposalArrays to;
  double* x;         // (blocks, rows), the column a block works at
  uint64_t* before;  // (blocks, rows), sums of its rows in units

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared& shared) const {
    const int64_t columns = problem.videos * problem.classes;
    for (int64_t column = block.index(); column < columns; column += block.blocks()) {
      if (!problem.mask[column]) continue;
      const Groups groups{counts, ends, problem.thresholds, problem.classes, column};
      int64_t runs = 0;
      for (int64_t k = 0; k < problem.thresholds; ++k) runs += groups.count(k);
      if (runs > 0) write(block, shared, column, groups, runs);
    }
  }

 private:
  // The groups of one column, one a threshold.
  struct Groups {
    const int32_t* counts;
    const int64_t* ends;
    int64_t thresholds, classes, column;

    CASE_HD int64_t at(int64_t k) const { return (column / classes * thresholds + k) * classes + column % classes; }
    CASE_HD int64_t count(int64_t k) const { return counts[at(k)]; }
    CASE_HD int64_t begin(int64_t k) const { return ends[at(k)] - counts[at(k)]; }
  };

  template <typename Block>
  CASE_BODY void write(Block& block, Shared& shared, int64_t column, const Groups& groups, int64_t runs) const {
    const int threads = block.threads();
    const Signal<const double*> signal(x + block.index() * problem.rows, problem.rows, problem.factor);
    uint64_t* sums = before + block.index() * problem.rows;
    const double unit = sum_rows(block, shared, column, sums);
    for (int64_t k = 0; k < problem.thresholds; ++k) {
      if (groups.count(k) > 0) find_ends(block, shared, signal, problem.threshold[k], groups.begin(k));
    }
    const Contrast contrast(signal, sums, unit);
    block.each([&](int t) {
      for (int64_t run = t; run < runs; run += threads) score(contrast, column, groups, run);
    });
  }

  // Copies the column's rows and sums them up; returns the unit of the sums.
  template <typename Block>
  CASE_BODY double sum_rows(Block& block, Shared& shared, int64_t column, uint64_t* sums) const {
    const int64_t video = column / problem.classes, label = column % problem.classes, rows = problem.rows;
    const int threads = block.threads();
    const StridedRows<T> from{cas + video * problem.stride_video + label * problem.stride_class, problem.stride_row};
    double* to_x = x + block.index() * rows;
    block.each([&](int t) {
      uint64_t largest = 0;
      for (int64_t n = t; n < rows; n += threads) {
        const uint64_t magnitude = magnitude_bits(to_x[n] = from[n]);
        largest = magnitude > largest ? magnitude : largest;
      }
      shared.values[t] = largest;
    });
    const Quantizer quantize = Quantizer::of(block.maximum(shared.values), rows);
    block.each([&](int t) {
      const Share share = Share::of(t, threads, rows);
      uint64_t total = 0;
      for (int64_t n = share.begin; n < share.end; ++n) total += quantize(to_x[n]);
      shared.values[t] = total;
    });
    block.exclusive_scan(shared.values);
    block.each([&](int t) {
      const Share share = Share::of(t, threads, rows);
      uint64_t total = shared.values[t];
      for (int64_t n = share.begin; n < share.end; ++n) {
        sums[n] = total;
        total += quantize(to_x[n]);
      }
    });
    return quantize.unit;
  }

  // First sample and end of each run of one threshold, for now in place of its seconds. The j-th run to begin is the
  // j-th to end, so both are placed by how many came before, counted in the two halves of a word.
  template <typename Block>
  CASE_BODY void find_ends(Block& block, Shared& shared, const Signal<const double*>& signal, double threshold,
                           int64_t begin) const {
    const int threads = block.threads();
    block.each([&](int t) {
      uint64_t found = 0;
      over_runs(
          signal, Share::of(t, threads, signal.intervals()), threshold, [&](int64_t, bool) { found += 1; },
          [&](int64_t, bool) { found += uint64_t(1) << 32; });
      shared.values[t] = found;
    });
    block.exclusive_scan(shared.values);
    block.each([&](int t) {
      int64_t start = begin + int64_t(shared.values[t] & 0xffffffffu), stop = begin + int64_t(shared.values[t] >> 32);
      over_runs(
          signal, Share::of(t, threads, signal.intervals()), threshold,
          [&](int64_t n, bool inside) {
            if (start < capacity) to.segments[2 * start] = inside ? double(signal.crossing(n, threshold, true)) : 0.0;
            ++start;
          },
          [&](int64_t n, bool inside) {
            const int64_t end = inside ? signal.crossing(n, threshold, false) : signal.samples();
            if (stop < capacity) to.segments[2 * stop + 1] = double(end);
            ++stop;
          });
    });
  }

  CASE_HD void score(const Contrast& contrast, int64_t column, const Groups& groups, int64_t run) const {
    int64_t k = 0;
    for (; run >= groups.count(k); ++k) run -= groups.count(k);
    const int64_t i = groups.begin(k) + run;
    if (i >= capacity) return;
    double* segment = to.segments + 2 * i;
    const double bonus = product(problem.score_weight, problem.video_scores[column]);
    to.scores[i] = sum(contrast(int64_t(segment[0]), int64_t(segment[1]), problem.outer_ratio), bonus);
    const double step = problem.seconds_per_row[column / problem.classes] / double(problem.factor);
    segment[0] *= step;
    segment[1] *= step;
    to.classes[i] = column % problem.classes;
    to.video[i] = column / problem.classes;
    to.threshold[i] = k;
  }
};

}  // namespace case_wtal
