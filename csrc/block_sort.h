// Stable sorting by a block of threads (block.h): short runs in registers, then merges of two runs at a time.
//
// A thread writes eight places of a merge, having found by binary search where in the two runs they begin. So 1,024
// entries of 8 bytes move through shared memory 8 times, 128 KB in all, where a bitonic network takes 55 exchanges (880
// KB) and a radix sort with 4-bit digits, which needs few enough counters for each thread to have its own, some 380 KB.
#pragma once

#include "block.h"
#include "radix_sort.h"

namespace case_wtal {

template <typename K>
class BlockSort {
 public:
  static constexpr int kRun = 8;

  // Entries key_of(0), ..., key_of(count - 1) with their numbers, by rising key, equal keys by number. Returns which of
  // the two buffers, both of `count` entries, holds them.
  template <typename Block, typename KeyOf>
  CASE_BODY static Entry<K>* run(Block& block, uint32_t count, const KeyOf& key_of, Entry<K>* from, Entry<K>* to) {
    block.each([&](int t) {
      for (uint32_t first = uint32_t(t) * kRun; first < count; first += uint32_t(block.threads()) * kRun) {
        sort_run(first, count, key_of, from);
      }
    });
    for (uint32_t width = kRun; width < count; width *= 2) {
      block.each([&](int t) {
        for (uint32_t first = uint32_t(t) * kRun; first < count; first += uint32_t(block.threads()) * kRun) {
          merge_piece(first, width, count, from, to);
        }
      });
      Entry<K>* merged = to;
      to = from;
      from = merged;
    }
    return from;
  }

 private:
  template <typename KeyOf>
  CASE_BODY static void sort_run(uint32_t first, uint32_t count, const KeyOf& key_of, Entry<K>* to) {
    Entry<K> run[kRun];
    CASE_UNROLL for (int i = 0; i < kRun; ++i) {
      const bool there = first + i < count;
      run[i] = {there ? key_of(first + i) : K(~K(0)), first + i};  // what is not there sorts to the end
    }
    CASE_UNROLL for (int round = 0; round < kRun; ++round) {
      CASE_UNROLL for (int i = round % 2; i + 1 < kRun; i += 2) {
        const Entry<K> low = run[i], high = run[i + 1];
        const bool exchange = high.key < low.key;
        run[i] = exchange ? high : low;
        run[i + 1] = exchange ? low : high;
      }
    }
    CASE_UNROLL for (int i = 0; i < kRun; ++i) {
      if (first + i < count) to[first + i] = run[i];
    }
  }

  // Places [first, first + kRun) of the merge of each two runs of `width`.
  CASE_BODY static void merge_piece(uint32_t first, uint32_t width, uint32_t count, const Entry<K>* from,
                                    Entry<K>* to) {
    const uint32_t begin = first & ~(2 * width - 1);
    const uint32_t middle = begin + width < count ? begin + width : count;
    const uint32_t end = begin + 2 * width < count ? begin + 2 * width : count;
    const uint32_t before = first - begin;
    // How many of the entries before `first` come from the left run: the least for which the next left one is not
    // earlier than the last right one.
    uint32_t low = before > end - middle ? before - (end - middle) : 0;
    uint32_t high = before < middle - begin ? before : middle - begin;
    while (low < high) {
      const uint32_t half = (low + high) / 2;
      if (from[middle + before - 1 - half].key < from[begin + half].key) {
        high = half;
      } else {
        low = half + 1;
      }
    }
    uint32_t left = begin + low, right = middle + before - low;
    for (int i = 0; i < kRun && first + i < end; ++i) {
      const bool take_right = left == middle || (right < end && from[right].key < from[left].key);
      to[first + i] = take_right ? from[right++] : from[left++];
    }
  }
};

}  // namespace case_wtal
