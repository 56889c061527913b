// Rows of groups in chunks, and sums over rows that are made of the chunks': these depend on sizes alone, so threads
// change no bit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "narrow_tile.h"
#include "parallel.h"

namespace case_wtal {

// Rows of each group in chunks of whole blocks: 6 of them or more, so that there are at most `most` chunks.
struct RowChunks {
  int64_t rows, size, count;

  explicit RowChunks(int64_t rows, int64_t most = 64) : rows(rows) {
    const int64_t blocks = ceil_div(rows, kBlockRows);
    size = kBlockRows * std::max<int64_t>(6, ceil_div(blocks, most));
    count = ceil_div(rows, size);
  }

  // f(first row, rows) for each block of a chunk.
  template <typename F>
  CASE_INLINE void each_block(int64_t chunk, F f) const {
    const int64_t end = std::min(rows, (chunk + 1) * size);
    for (int64_t first = chunk * size; first < end; first += kBlockRows) f(first, std::min(kBlockRows, end - first));
  }
};

// f(memory, group, chunk) for all chunks of all groups; memory for `size` numbers is a thread's own. Threads begin far
// from each other: where results lie in pages that are not there yet, neighbours would make the same ones.
template <typename M, typename F>
void each_chunk(int64_t groups, const RowChunks& chunks, int threads, int64_t size, const F& f) {
  const int64_t count = groups * chunks.count, stretch = ceil_div(count, threads);
  parallel_with(
      stretch * threads, threads, [&] { return std::vector<M>(size_t(size)); },
      [&](std::vector<M>& memory, int64_t i) {
        const int64_t task = i % threads * stretch + i / threads;
        if (task < count) f(memory.data(), task / chunks.count, task % chunks.count);
      });
}

// Some 64 chunks of all groups together: enough for any number of threads there is use for, and few to add up. Of no
// more than 8192 rows or so, whose sums lose little when they are added one by one.
inline RowChunks chunks_of_sums(int64_t groups, int64_t rows) {
  return RowChunks(rows, std::max(ceil_div(64, std::max<int64_t>(groups, 1)), ceil_div(rows, 8192)));
}

// (groups, chunks) sums (products, width), each by panels (products, kPanel).
template <typename T>
class ChunkSums {
 public:
  ChunkSums(int64_t groups, int64_t chunks, int64_t products, int64_t width)
      : groups_(groups), chunks_(chunks), products_(products), width_(width),
        size_(products * panel_count<T>(width) * kPanel<T>), values_(new T[size_t(groups * chunks * size_)]) {}

  // Where a chunk's sums are; 0 now.
  T* start(int64_t group, int64_t chunk) {
    T* found = values_.get() + (group * chunks_ + chunk) * size_;
    std::fill_n(found, size_, T(0));
    return found;
  }

  // totals (groups, products, width): the chunks' sums, added in their order.
  void add_up(T* totals, int threads) {
    const int64_t panels = panel_count<T>(width_), each = products_ * kPanel<T>;
    parallel_for(groups_ * panels, threads, [&](int64_t task) {
      const int64_t group = task / panels, panel = task % panels;
      T* to = totals + group * products_ * width_ + panel * kPanel<T>;
      if (chunks_ == 0) {
        for (int64_t k = 0; k < products_; ++k) std::fill_n(to + k * width_, panel_columns<T>(width_, panel), T(0));
        return;
      }
      T* sum = values_.get() + group * chunks_ * size_ + panel * each;
      for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
        const T* more = sum + chunk * size_;
        for (int64_t i = 0; i < each; ++i) sum[i] += more[i];
      }
      for (int64_t k = 0; k < products_; ++k, sum += kPanel<T>) {
        std::copy_n(sum, panel_columns<T>(width_, panel), to + k * width_);
      }
    });
  }

 private:
  int64_t groups_, chunks_, products_, width_, size_;
  std::unique_ptr<T[]> values_;
};

}  // namespace case_wtal
