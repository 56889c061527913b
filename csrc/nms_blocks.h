// Hard and decay-once NMS by blocks of threads (block.h): the body of the kernel in nms.cu and of its emulation on a
// CPU.
//
// Rows lie by group. A block settles one group at a time: it sorts the group by falling score, then takes the best 64
// segments that nobody has settled yet: which of them settle which later ones among them (a bit each), one thread goes
// through the 64 in order, and all threads test what else is open against those that were kept. What remains open moves
// together, so a group costs some seven barriers for each 64 segments that come to be tested, and most never do: of
// 1,000 segments of which 185 are kept, 5 times 64 (counted).
#pragma once

#include "block_sort.h"
#include "nms.h"
#include "segment.h"

namespace case_wtal {

constexpr int kNmsThreads = 256;

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
  static constexpr int kHeads = 1024;  // rows in which a block looks for the first ones of groups
  // Of a group that is sorted and settled in shared memory; a larger one takes the same steps in `spare`.
  static constexpr int kShared = 16 * 1024 / int(sizeof(Entry<Key>));
  struct Shared {
    Entry<Key> first[kShared], second[kShared];
    Span tile[kTile], kept[kTile];
    uint64_t settles[kTile];  // bit j of row i: whether segment i settles the later segment j
    uint64_t kept_bits;
    int32_t places[kTile], kept_places[kTile];
    int32_t counts[kNmsThreads];
    int32_t heads[kHeads + 1];
    int32_t head_count, kept_count;
  };

  NmsRows<T> rows;
  Overlap<T> meets;
  Entry<Key>* spare;  // (2, n)
  int64_t most;       // rows of a group; larger ones are left alone
  NmsOutcome to;

  template <typename Block>
  CASE_BODY void operator()(Block& block, Shared& shared) const {
    const int64_t chunks = (rows.n + kHeads - 1) / kHeads;
    for (int64_t chunk = block.index(); chunk < chunks; chunk += block.blocks()) {
      find_heads(block, shared, chunk * kHeads);
      for (int head = 0; head < shared.head_count; ++head) {
        const int32_t begin = shared.heads[head], count = shared.heads[head + 1] - begin;
        if (count > most) {
          leave(block, begin, count);
          continue;
        }
        // Twice, so that the compiler knows which memory it is.
        if (count <= kShared) {
          settle(block, shared, begin, count, shared.first, shared.second);
        } else {
          settle(block, shared, begin, count, spare + begin, spare + rows.n + begin);
        }
      }
    }
  }

 private:
  // heads: the rows from `first` on, kHeads at most, that begin a group, and the end of the last one's.
  template <typename Block>
  CASE_BODY void find_heads(Block& block, Shared& shared, int64_t first) const {
    const int threads = block.threads(), share = (kHeads + threads - 1) / threads;
    const int64_t end = first + kHeads < rows.n ? first + kHeads : rows.n;
    const auto begins = [&](int64_t i) { return i == 0 || rows.groups[i] != rows.groups[i - 1]; };
    const auto each_head = [&](int t, auto&& f) {
      for (int k = 0; k < share; ++k) {
        const int64_t i = first + int64_t(t) * share + k;
        if (i < end && int64_t(t) * share + k < kHeads && begins(i)) f(i);
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
      if (t == 0) shared.head_count = total;
    });
    block.each([&](int t) {
      if (t == 0 && total > 0) shared.heads[total] = int32_t(group_end(shared.heads[total - 1], end));
    });
  }

  // The first row after `head` of another group, none of the rows before `from`.
  CASE_BODY int64_t group_end(int64_t head, int64_t from) const {
    const int64_t number = rows.groups[head], n = rows.n;
    int64_t low = from, step = 64;
    while (low + step < n && rows.groups[low + step] == number) {
      low += step;
      step *= 2;
    }
    int64_t high = low + step < n ? low + step : n;
    while (low < high) {
      const int64_t half = (low + high) / 2;
      if (rows.groups[half] == number) {
        low = half + 1;
      } else {
        high = half;
      }
    }
    return low;
  }

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
      shared.counts[t] = survived;
    });
    const int32_t total = block.exclusive_scan(shared.counts);
    block.each([&](int t) {
      const int32_t at = shared.counts[t], first = size + t * share;
      const int32_t end = t + 1 < block.threads() ? shared.counts[t + 1] : total;
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
