// Rows in the order of their groups, and loops over ragged groups.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "radix_sort.h"

namespace case_wtal {

struct Groups {
  std::vector<uint32_t> rows;   // by rising group; those of a group in the order they came in
  std::vector<int64_t> begins;  // of each group within rows, and the end of the last
  int64_t count() const { return int64_t(begins.size()) - 1; }
};

inline Groups group_rows(const int64_t* groups, int64_t n) {
  if (n > INT32_MAX) throw std::length_error("segments must number less than 2^31, got " + std::to_string(n));
  std::vector<Entry<uint64_t>> entries(n), spare;
  bool rising = true;
  for (int64_t i = 0; i < n; ++i) {
    entries[i] = {ascending_key(groups[i]), uint32_t(i)};
    rising = rising && (i == 0 || groups[i] >= groups[i - 1]);
  }
  if (!rising) stable_sort(entries, spare);
  Groups found;
  found.rows.resize(n);
  for (int64_t i = 0; i < n; ++i) {
    found.rows[i] = entries[i].row;
    if (i == 0 || entries[i].key != entries[i - 1].key) found.begins.push_back(i);
  }
  found.begins.push_back(n);
  return found;
}

// work(first, last) for runs of groups that together hold every group, about equal in rows and several to a thread;
// what a thread needs again and again is made once a run.
template <typename F>
void for_groups(const std::vector<int64_t>& begins, int num_threads, const F& work) {
  const int64_t count = int64_t(begins.size()) - 1, rows = begins.back();
  const int threads = rows < 1024 ? 1 : thread_count(num_threads);
  const int64_t share = std::max<int64_t>(1, rows / (8 * threads));
  std::vector<int64_t> cuts{0};
  for (int64_t group = 0; group < count; ++group) {
    if (begins[group + 1] - begins[cuts.back()] >= share || group + 1 == count) cuts.push_back(group + 1);
  }
  parallel_for(int64_t(cuts.size()) - 1, threads, [&](int64_t i) { work(cuts[i], cuts[i + 1]); });
}

}  // namespace case_wtal
