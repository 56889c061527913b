// Hard and decay-once NMS by blocks of threads (block.h): the body of the kernel in nms.cu and of its emulation on a CPU.
//
// Segments lie by group, and within a group by falling score. A block settles one group at a time, 64 segments after 64:
// which of these settle which of the later ones among them (a bit each), then one thread goes through the 64 in order,
// then all threads test what remains of the group against those that were kept. So a group of n segments costs
// 3 n / 64 barriers, and a segment is tested until the first kept one that settles it.
#pragma once

#include "block.h"
#include "nms.h"
#include "segment.h"

namespace case_wtal {

constexpr int kNmsThreads = 256;

template <typename T>
struct SettleGroups {
  static constexpr int kTile = 64, kPieces = 4, kPiece = kTile / kPieces;  // a tile's bits are made in pieces of 16
  struct Shared {
    T segments[kTile][2];
    uint16_t settles[kTile][kPieces];  // bit j of row i: whether segment i settles the later segment j
    int32_t settled_by[kTile];         // within the tile; -1 where nobody has
    unsigned char settled[kTile];      // before the tile's turn
    int32_t kept[kTile];
    int32_t kept_count;
  };

  const T* segments;      // (n, 2)
  const int64_t* begins;  // of each group, and the end of the last
  const int64_t* groups;  // how many there are
  T threshold, offset;
  int32_t* by;  // (n,): the place within its group of the segment that settled it first, -1 for the kept

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared& shared) const {
    for (int64_t group = block.index(); group < *groups; group += block.blocks()) {
      const int64_t begin = begins[group], count = begins[group + 1] - begin;
      block.each([&](int t) {
        for (int64_t i = t; i < count; i += block.threads()) by[begin + i] = -1;
      });
      for (int64_t first = 0; first < count; first += kTile) {
        const int size = int(count - first < kTile ? count - first : kTile);
        settle_tile(block, shared, begin + first, size);
        settle_rest(block, shared, begin, first, count);
      }
    }
  }

 private:
  CASE_BODY bool meets(const T* a, const T* b) const {
    return segment_iou(a[0], a[1], a[1] - a[0] + offset, b[0], b[1], offset) >= threshold;
  }

  template <typename Block>
  CASE_BODY void settle_tile(Block& block, Shared& shared, int64_t begin, int size) const {
    block.each([&](int t) {
      for (int i = t; i < size; i += block.threads()) {
        shared.segments[i][0] = segments[2 * (begin + i)];
        shared.segments[i][1] = segments[2 * (begin + i) + 1];
        shared.settled[i] = by[begin + i] >= 0;
        shared.settled_by[i] = -1;
      }
    });
    block.each([&](int t) {
      for (int c = t; c < size * kPieces; c += block.threads()) {
        const int i = c / kPieces, piece = c % kPieces;
        unsigned bits = 0;
        for (int k = 0; k < kPiece; ++k) {
          const int j = piece * kPiece + k;
          if (j > i && j < size && meets(shared.segments[i], shared.segments[j])) bits |= 1u << k;
        }
        shared.settles[i][piece] = uint16_t(bits);
      }
    });
    block.each([&](int t) {
      if (t == 0) go_through(shared, size);
    });
  }

  CASE_BODY void go_through(Shared& shared, int size) const {
    uint64_t settled = 0;
    for (int i = 0; i < size; ++i) settled |= uint64_t(shared.settled[i]) << i;
    shared.kept_count = 0;
    for (int i = 0; i < size; ++i) {
      if (settled >> i & 1) continue;
      shared.kept[shared.kept_count++] = i;
      uint64_t row = 0;
      for (int piece = 0; piece < kPieces; ++piece) row |= uint64_t(shared.settles[i][piece]) << (piece * kPiece);
      row &= ~settled;
      settled |= row;
      for (int j = i + 1; j < size && row >> j != 0; ++j) {
        if (row >> j & 1) shared.settled_by[j] = i;
      }
    }
  }

  template <typename Block>
  CASE_BODY void settle_rest(Block& block, Shared& shared, int64_t begin, int64_t first, int64_t count) const {
    block.each([&](int t) {
      for (int64_t j = first + t; j < count; j += block.threads()) {
        if (by[begin + j] >= 0) continue;
        if (j < first + kTile) {
          const int32_t i = shared.settled_by[j - first];
          if (i >= 0) by[begin + j] = int32_t(first) + i;
          continue;
        }
        const T* mine = segments + 2 * (begin + j);
        for (int k = 0; k < shared.kept_count; ++k) {
          if (!meets(shared.segments[shared.kept[k]], mine)) continue;
          by[begin + j] = int32_t(first) + shared.kept[k];
          break;
        }
      }
    });
  }
};

}  // namespace case_wtal
