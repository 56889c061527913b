// Hard and decay-once NMS by blocks of threads (block.h): the body of the kernel in nms.cu and of its emulation on a
// CPU.
//
// Rows lie by group. A block settles one group at a time: it sorts the group by falling score, then takes the best 64
// segments that nobody has settled yet: which of them settle which later ones among them (a bit each), one thread goes
// through the 64 in order, and all threads test what else is open against those that were kept. What remains open moves
// together, so a group costs some seven barriers for each 64 segments that come to be tested, and most never do: of
// 1,000 segments of which 185 are kept, 5 times 64 (counted).
#pragma once

#include "block_groups.h"
#include "block_sort.h"
#include "nms.h"
#include "segment.h"

namespace case_wtal {

// Whether two segments overlap with IoU >= threshold, mostly without a division. Exactly what segment_iou says.
template <typename T>
class Overlap {
 public:
  struct Span {
    T start, end, length;
    T least;  // an intersection below the sum of two of these is certainly too small
  };

  CASE_HD Overlap(T threshold, T offset) : threshold_(threshold), offset_(offset) {
    // inter / (total - inter) < t where inter < t / (1 + t) * total. A share of 2^-8 less outweighs all roundings, as
    // long as nothing is so small that its rounding is absolute.
    const T safe = threshold * (T(1) - T(0x1p-8));
    share_ = threshold > T(0x1p-20) ? safe / (T(1) + safe) : T(-1);
  }

  CASE_HD Span span(T start, T end) const {
    const T length = end - start + offset_;
    const bool certain = share_ > 0 && (length == 0 || length > T(0x1p-90));
    return {start, end, length, certain ? length * share_ : -largest()};
  }

  CASE_HD CASE_INLINE bool operator()(const Span& a, const Span& b) const {
    const T overlap = (a.end < b.end ? a.end : b.end) - (a.start > b.start ? a.start : b.start) + offset_;
    if (overlap < a.least + b.least) return false;
    return segment_iou(a.start, a.end, a.length, b.start, b.end, offset_) >= threshold_;
  }

 private:
  CASE_HD static constexpr T largest() { return sizeof(T) == 4 ? T(0x1p126) : T(0x1p1022); }

  T threshold_, offset_, share_;
};

template <typename T>
struct SettleGroups {
  using Key = typename Format<T>::Bits;
  using Span = typename Overlap<T>::Span;
  static constexpr int kTile = 64, kPieces = 4, kPiece = kTile / kPieces;  // a tile's bits are made in pieces of 16
  // Of a group that is sorted and settled in shared memory; a larger one takes the same steps in `spare`.
  static constexpr int kShared = 16 * 1024 / int(sizeof(Entry<Key>));
  struct Shared {
    Entry<Key> first[kShared], second[kShared];
    Span tile[kTile], kept[kTile];
    uint64_t settles[kTile];  // bit j of row i: whether segment i settles the later segment j
    uint64_t kept_bits;
    int32_t places[kTile], kept_places[kTile];
    GroupHeads groups;
    int32_t kept_count;
  };

  NmsRows<T> rows;
  Overlap<T> meets;
  Entry<Key>* spare;  // (2, n)
  int64_t most;       // rows of a group; larger ones are left alone
  NmsOutcome to;

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared& shared) const {
    const auto number = [&](int64_t row) { return rows.groups[row]; };
    each_group(block, shared.groups, rows.n, number, [&](int32_t begin, int32_t count) {
      // Twice, so that the compiler knows which memory it is.
      if (count > most) {
        leave(block, begin, count);
      } else if (count <= kShared) {
        settle(block, shared, begin, count, shared.first, shared.second);
      } else {
        settle(block, shared, begin, count, spare + begin, spare + rows.n + begin);
      }
    });
  }

 private:
  CASE_BODY int64_t segment_of(int64_t row) const { return rows.segment ? rows.segment[row] : row; }

  template <typename Block>
  CASE_BODY void leave(Block& block, int32_t begin, int32_t count) const {
    block.each([&](int t) {
      for (int32_t place = t; place < count; place += block.threads()) {
        to.sorted[begin + place] = int32_t(segment_of(begin + place));
        to.head[begin + place] = begin;
        to.by[begin + place] = kNmsLeft;
      }
    });
  }

  template <typename Block>
  CASE_BODY void settle(Block& block, Shared& shared, int32_t begin, int32_t count, Entry<Key>* first,
                        Entry<Key>* second) const {
    const auto key_of = [&](uint32_t i) { return descending_key(rows.scores[segment_of(begin + i)]); };
    Entry<Key>* sorted = BlockSort<Key>::run(block, uint32_t(count), key_of, first, second);
    T* spans = reinterpret_cast<T*>(sorted == first ? second : first);  // (count, 2), by place
    static_assert(sizeof(Entry<Key>) == 2 * sizeof(T), "segments fit where entries were");
    block.each([&](int t) {
      for (int32_t place = t; place < count; place += block.threads()) {
        const int64_t segment = segment_of(begin + sorted[place].row);
        to.sorted[begin + place] = int32_t(segment);
        to.head[begin + place] = begin;
        to.by[begin + place] = -1;
        spans[2 * place] = rows.segments[2 * segment];
        spans[2 * place + 1] = rows.segments[2 * segment + 1];
      }
    });
    // Places of what is open, and behind them room to move in.
    int32_t* open = reinterpret_cast<int32_t*>(sorted);
    block.each([&](int t) {
      for (int32_t place = t; place < count; place += block.threads()) open[place] = place;
    });
    for (int32_t left = count; left > 0;) {
      const int size = left < kTile ? left : kTile;
      settle_tile(block, shared, begin, size, open, spans);
      left = settle_rest(block, shared, begin, open, size, left, count, spans);
    }
  }

  template <typename Block>
  CASE_BODY void settle_tile(Block& block, Shared& shared, int32_t begin, int size, const int32_t* open,
                             const T* spans) const {
    block.each([&](int t) {
      for (int i = t; i < size; i += block.threads()) {
        shared.places[i] = open[i];
        shared.tile[i] = meets.span(spans[2 * open[i]], spans[2 * open[i] + 1]);
      }
    });
    block.each([&](int t) {
      for (int c = t; c < size * kPieces; c += block.threads()) {
        const int i = c / kPieces, piece = c % kPieces;
        unsigned bits = 0;
        for (int k = 0; k < kPiece; ++k) {
          const int j = piece * kPiece + k;
          if (j > i && j < size && meets(shared.tile[i], shared.tile[j])) bits |= 1u << k;
        }
        reinterpret_cast<uint16_t*>(shared.settles + i)[piece] = uint16_t(bits);  // little-endian, here and there
      }
    });
    block.each([&](int t) {
      if (t == 0) go_through(shared, size);
    });
    block.each([&](int t) {
      for (int i = t; i < size; i += block.threads()) {
        const int32_t by = suppressor(shared, i);
        if (by >= 0) {
          to.by[begin + shared.places[i]] = shared.places[by];
          continue;
        }
        const int at = ones(shared.kept_bits & ((uint64_t(1) << i) - 1));
        shared.kept[at] = shared.tile[i];
        shared.kept_places[at] = shared.places[i];
      }
    });
  }

  CASE_BODY static int ones(uint64_t bits) {
#ifdef __CUDACC__
    return __popcll(bits);
#else
    int count = 0;
    for (; bits != 0; bits &= bits - 1) ++count;
    return count;
#endif
  }

  CASE_BODY static int lowest(uint64_t bits) { return ones((bits & (~bits + 1)) - 1); }

  CASE_BODY void go_through(Shared& shared, int size) const {
    uint64_t open = size == kTile ? ~uint64_t(0) : (uint64_t(1) << size) - 1, kept = 0;
    while (open != 0) {
      const uint64_t best = open & (~open + 1);
      kept |= best;
      open &= ~(best | shared.settles[lowest(open)]);
    }
    shared.kept_bits = kept;
    shared.kept_count = ones(kept);
  }

  // Who settled segment i of the tile first; -1 for the kept.
  CASE_BODY int32_t suppressor(const Shared& shared, int i) const {
    if (shared.kept_bits >> i & 1) return -1;
    uint64_t better = shared.kept_bits & ((uint64_t(1) << i) - 1);
    while (!(shared.settles[lowest(better)] >> i & 1)) better &= better - 1;
    return lowest(better);
  }

  // What of open[size .. left) the tile's kept ones leave open moves to the front; returns its number. Each thread has
  // a stretch of its own, so that the order stays.
  template <typename Block>
  CASE_BODY int32_t settle_rest(Block& block, Shared& shared, int32_t begin, int32_t* open, int size, int32_t left,
                                int32_t count, const T* spans) const {
    const int32_t share = (left - size + block.threads() - 1) / block.threads();
    int32_t* survivors = open + count;
    block.each([&](int t) {
      const int32_t first = size + t * share, end = first + share < left ? first + share : left;
      int32_t survived = 0;
      for (int32_t i = first; i < end; ++i) {
        const int32_t place = open[i];
        const Span mine = meets.span(spans[2 * place], spans[2 * place + 1]);
        int k = 0;
        while (k < shared.kept_count && !meets(shared.kept[k], mine)) ++k;
        if (k < shared.kept_count) {
          to.by[begin + place] = shared.kept_places[k];
        } else {
          survivors[first + survived++] = place;
        }
      }
      shared.groups.counts[t] = survived;
    });
    const int32_t total = block.exclusive_scan(shared.groups.counts);
    block.each([&](int t) {
      const int32_t at = shared.groups.counts[t], first = size + t * share;
      const int32_t end = t + 1 < block.threads() ? shared.groups.counts[t + 1] : total;
      for (int32_t k = at; k < end; ++k) open[k] = survivors[first + k - at];
    });
    return total;
  }
};

template <typename T>
SettleGroups<T> settle_groups(const NmsRows<T>& rows, T threshold, T offset, void* spare, int64_t most,
                               const NmsOutcome& to) {
  using Key = typename SettleGroups<T>::Key;
  return {rows, Overlap<T>(threshold, offset), static_cast<Entry<Key>*>(spare), most, to};
}

}  // namespace case_wtal
