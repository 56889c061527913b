// One class of one video: its upsampled activations, where they cross a threshold, and their sums, from the rows alone.
//
// Between two rows the upsampled signal is x_n + (x_{n+1} - x_n) * (i / f - n), and each operation in it is monotone in
// i, rounding included. So in the samples from one row to the next a threshold is crossed at most once, it is crossed
// only if the ends lie on different sides, and where is found by evaluating a few samples exactly. Sums over samples
// follow from sums over rows. No sample is ever stored.
//
// Sums over rows are integers: rows are rounded to multiples of a unit that is 2^-50 of the largest one (larger for more
// than 2^12 rows), so a difference of two prefix sums has no rounding error, however long the video, and is the same
// for any number of threads and for any order of addition.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

namespace case_wtal {

// Which samples reach a threshold decides what a proposal is: these are never contracted to a fused multiply-add,
// whatever the compiler was told, and round as plain torch does.
CASE_HD inline double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

CASE_HD inline double sum(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

CASE_HD inline uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

CASE_HD inline double from_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

CASE_HD inline uint64_t magnitude_bits(double x) { return bits_of(x) & ~(uint64_t(1) << 63); }

CASE_HD inline bool above(double value, double threshold) { return value >= threshold && value > 0; }

// x to whole multiples of `unit`. |x| * scale is at most 2^50, so adding 1.5 * 2^52 rounds it to an integer, which then
// is the low bits of the sum. Unsigned, since sums of what is not finite may wrap.
struct Quantizer {
  double scale, unit;

  // largest: bits of the largest |x| of `rows` values; their sum stays below 2^62.
  CASE_HD static Quantizer of(uint64_t largest, int64_t rows) {
    int bits = 50;
    while (bits > 0 && rows > (int64_t(1) << (62 - bits))) --bits;
    int64_t shift = bits - (int64_t(largest >> 52) - 1022);  // all |x| < 2^(exponent field - 1022)
    shift = shift > 1022 ? 1022 : shift;                     // below 2^-972 bits are lost
    return {from_bits(uint64_t(1023 + shift) << 52), from_bits(uint64_t(1023 - shift) << 52)};
  }

  CASE_HD uint64_t operator()(double x) const {
    const double magic = 6755399441055744.0;
    return bits_of(sum(product(x, scale), magic)) - bits_of(magic);
  }
};

// Rows where the caller has them; `Signal` takes these as it takes a pointer.
template <typename T>
struct StridedRows {
  const T* first;
  int64_t stride;
  CASE_HD double operator[](int64_t n) const { return double(first[n * stride]); }
};

template <typename Rows>
struct Signal {
  Rows x;
  int64_t rows, factor;

  CASE_HD Signal(Rows x, int64_t rows, int64_t factor) : x(x), rows(rows), factor(factor) {}

  CASE_HD int64_t samples() const { return rows * factor; }

  // Interval n holds the samples from row n up to row n + 1, the last one those past the last row too.
  CASE_HD int64_t intervals() const { return rows > 1 ? rows - 1 : 1; }
  CASE_HD double right(int64_t n) const { return x[rows > 1 ? n + 1 : 0]; }

  // Number of steps from the interval's first sample to where the next one begins, or to the last sample of all.
  CASE_HD int64_t steps(int64_t n) const { return n + 1 < intervals() ? factor : samples() - 1 - n * factor; }

  // Sample n * factor + m, as plain torch computes it; m < factor except in the last interval.
  CASE_HD double sample(int64_t n, int64_t m) const {
    const double at = double(n * factor + m) / double(factor);
    return rows > 1 ? sum(x[n], product(x[n + 1] - x[n], at - double(n))) : x[0];
  }

  // The sample `steps(n)` steps on from the first one of interval n.
  CASE_HD double end(int64_t n) const { return n + 1 < intervals() ? x[n + 1] : sample(n, steps(n)); }

  // The first sample of interval n past its first that is above the threshold (rising), or is not; there is one.
  CASE_HD int64_t crossing(int64_t n, double threshold, bool rising) const {
    const double left = x[n], rise = right(n) - left, level = threshold > 0 ? threshold : 0;
    const double at = (level - left) / rise * double(factor);
    const int64_t last = steps(n);
    // Written so that NaN, which only unchecked input can bring, stays inside too.
    const int64_t guess = at >= 1 ? (at < double(last) ? int64_t(at) + 1 : last) : 1;
    // With u = 2^-53: a sample's position i / f is off by u i / f rows, its product and sum by u (4 |rise| + |left|),
    // `at` by 8 u f; in steps all that is u (i + 12 f + f |left| / |rise|), under 2^-20 for i < 2^31, f <= 2^10 and
    // |left| <= 2^20 |rise|. Further than that from a whole number, the guess is the answer. (2^-1000: where numbers get
    // so small that they lose digits, errors are no longer relative.)
    const double into = at - double(int64_t(at >= 1 && at < double(last) ? at : 0));
    const bool steep = (rise < 0 ? -rise : rise) > (left < 0 ? -left : left) * 0x1p-20 + 0x1p-1000;
    if (steep && factor <= 1024 && into > 0x1p-20 && into < 1 - 0x1p-20) return n * factor + guess;
    return n * factor + search(n, threshold, rising, guess, last);
  }

 private:
  // The same by exact samples, from a guess in [1, last]: two samples prove one that is right.
  CASE_HD int64_t search(int64_t n, double threshold, bool rising, int64_t guess, int64_t last) const {
    int64_t low = 0, high = last;  // not crossed at low, crossed at high
    for (int tried = 0; low + 1 < high; ++tried) {
      if (guess >= high) guess = high - 1;
      const bool crossed = above(sample(n, guess), threshold) == rising;
      (crossed ? high : low) = guess;
      // Where many samples round alike the guess is far off, and halving is sure to end.
      guess = tried < 2 ? guess + (crossed ? -1 : 1) : low + (high - low) / 2;
    }
    return high;
  }
};

// Sums of a signal's samples and the scores of its runs.
struct Contrast {
  Signal<const double*> signal;
  const uint64_t* before;  // (rows): before[n] is the sum of rows [0, n), in units
  double unit, per_factor;

  CASE_HD Contrast(const Signal<const double*>& signal, const uint64_t* before, double unit)
      : signal(signal), before(before), unit(unit), per_factor(1.0 / double(signal.factor)) {}

  CASE_HD int64_t interval_of(int64_t i) const {
    int64_t n = int64_t(double(i) * per_factor);  // off by one at most
    if (n * signal.factor > i) --n;
    if ((n + 1) * signal.factor <= i) ++n;
    const int64_t last = signal.intervals() - 1;
    return n < last ? n : last;
  }

  // Of steps [from, to) of interval n: their number times their mean.
  CASE_HD double part(int64_t n, int64_t from, int64_t to) const {
    const double middle = 0.5 * double(from + to - 1) * per_factor;
    return double(to - from) * (signal.x[n] + (signal.right(n) - signal.x[n]) * middle);
  }

  // Of samples [i, j), i <= j: the rest of i's interval, whole ones, and the beginning of j's. Nothing cancels.
  CASE_HD double between(int64_t i, int64_t j) const {
    const int64_t n = interval_of(i), last = interval_of(j), f = signal.factor;
    if (n == last) return part(n, i - n * f, j - n * f);
    const double rows = double(int64_t(before[last] - before[n + 1])) * unit;
    const double whole = double(f) * rows + 0.5 * double(f - 1) * (signal.x[last] - signal.x[n + 1]);
    return part(n, i - n * f, f) + whole + part(last, 0, j - last * f);
  }

  // Mean of run [first, end) - mean of the margins, of outer_ratio times its length each.
  CASE_HD double operator()(int64_t first, int64_t end, double outer_ratio) const {
    const int64_t length = end - first;
    const double margin = product(outer_ratio, double(length));
    const double left = double(first) - margin, right = sum(double(end - 1), margin);
    const double most = double(signal.samples() - 1);
    const int64_t from = left > 0 ? int64_t(left) : 0, to = right < most ? int64_t(right) : int64_t(most);
    const double inner = between(first, end) / double(length);
    const int64_t outside = (first - from) + (to + 1 - end);
    if (outside <= 0) return inner;
    return inner - (between(from, first) + between(end, to + 1)) / double(outside);
  }
};

}  // namespace case_wtal
