// Rows in the order of their groups.
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

// How many threads groups of so many rows in all are worth.
inline int threads_for(int64_t rows, int num_threads) { return threads_worth(rows, num_threads, 1024); }

}  // namespace case_wtal
