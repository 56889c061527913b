// Soft-NMS of one group: each pick, the best of what remains, decays all that remain by its IoU with them.
//
// A pick touches only what it overlaps (interval_index.h), by loops that vectorise. What is compared is a key, the
// score itself (linear) or its logarithm minus sum IoU^2 / sigma (gaussian: no exponential a pair, and nothing
// underflows); keys in blocks of 64 carry their largest, blocks of blocks likewise, so the next pick is found in three
// short looks. Scores below 0, which decays raise, come after all others, with the logarithm of their size negated.
#pragma once

#include <vector>

#include "interval_index.h"
#include "nms.h"

namespace case_wtal {

// A segment's place among those of its group by falling score, and its final score.
template <typename T>
struct Pick {
  int32_t slot;
  T score;
};

template <typename T>
class SoftNms {
 public:
  explicit SoftNms(const NmsSettings& settings);
  // segments (n, 2), scores (n,), by falling score -> picks in their order. Those beyond max_num may be left out.
  void run(const T* segments, const T* scores, int64_t n, std::vector<Pick<T>>& picks);

 private:
  struct Best {
    double key;
    int32_t slot;
  };

  void pick_of_sign(const T* segments, const T* scores, int64_t first, int64_t end, std::vector<Pick<T>>& picks);
  template <typename F>
  void decay_by(const T* picked, const F& changed);
  void summarise(int64_t begin, int64_t end);
  Best best_of(const double* keys, const int32_t* slots, int64_t count) const;
  bool enough(const std::vector<Pick<T>>& picks) const;

  const NmsSettings& settings_;
  bool gaussian_;
  T offset_;
  double inverse_sigma_, fall_;  // the second: with the sign of the scores at hand
  IntervalIndex<T> index_;
  std::vector<double> keys_;                     // by position; -infinity once picked
  std::vector<int32_t> apart_;                   // slots that overlap nothing, not even themselves
  std::vector<std::vector<double>> tops_;        // largest keys of blocks, of blocks of blocks, ...
  std::vector<std::vector<int32_t>> top_slots_;  // and their slots, the lowest of equals
};

}  // namespace case_wtal
