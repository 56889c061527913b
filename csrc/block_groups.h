// Groups of rows that lie side by side, each the work of one block (block.h). Blocks look for the first rows of groups
// themselves, so a launch need not know how many groups there are.
#pragma once

#include "block.h"

namespace case_wtal {

constexpr int kNmsThreads = 256;

// Shared memory of each_group; `counts` is free while a group is worked on.
struct GroupHeads {
  static constexpr int kRows = 1024;  // in which a block looks at a time
  int32_t counts[kNmsThreads];
  int32_t heads[kRows + 1];
  int32_t count;
};

// The first row after `head` of another group, none of the rows before `from`.
template <typename Number>
CASE_BODY int64_t group_end(int64_t head, int64_t from, int64_t n, const Number& number) {
  const int64_t own = number(head);
  int64_t low = from, step = 64;
  while (low + step < n && number(low + step) == own) {
    low += step;
    step *= 2;
  }
  int64_t high = low + step < n ? low + step : n;
  while (low < high) {
    const int64_t half = (low + high) / 2;
    if (number(half) == own) {
      low = half + 1;
    } else {
      high = half;
    }
  }
  return low;
}

// heads: the rows from `first` on, kRows at most, that begin a group, and the end of the last one's.
template <typename Block, typename Number>
CASE_BODY void find_heads(Block& block, GroupHeads& shared, int64_t first, int64_t n, const Number& number) {
  const int threads = block.threads(), share = (GroupHeads::kRows + threads - 1) / threads;
  const int64_t end = first + GroupHeads::kRows < n ? first + GroupHeads::kRows : n;
  const auto begins = [&](int64_t i) { return i == 0 || number(i) != number(i - 1); };
  const auto each_head = [&](int t, auto&& f) {
    for (int k = 0; k < share; ++k) {
      const int64_t i = first + int64_t(t) * share + k;
      if (i < end && int64_t(t) * share + k < GroupHeads::kRows && begins(i)) f(i);
    }
  };
  block.each([&](int t) {
    int32_t count = 0;
    each_head(t, [&](int64_t) { ++count; });
    shared.counts[t] = count;
  });
  const int32_t total = block.exclusive_scan(shared.counts);
  block.each([&](int t) {
    int32_t at = shared.counts[t];
    each_head(t, [&](int64_t i) { shared.heads[at++] = int32_t(i); });
    if (t == 0) shared.count = total;
  });
  block.each([&](int t) {
    if (t == 0 && total > 0) shared.heads[total] = int32_t(group_end(shared.heads[total - 1], end, n, number));
  });
}

// f(first row, rows) of every group that is this block's; number(row): of its group.
template <typename Block, typename Number, typename F>
CASE_BODY void each_group(Block& block, GroupHeads& shared, int64_t n, const Number& number, const F& f) {
  const int64_t chunks = (n + GroupHeads::kRows - 1) / GroupHeads::kRows;
  for (int64_t chunk = block.index(); chunk < chunks; chunk += block.blocks()) {
    find_heads(block, shared, chunk * GroupHeads::kRows, n, number);
    for (int head = 0; head < shared.count; ++head) {
      f(shared.heads[head], shared.heads[head + 1] - shared.heads[head]);
    }
  }
}

}  // namespace case_wtal
