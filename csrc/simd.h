// Vector clones, and exp, log and pow written so that a compiler vectorises the loops that call them.
//
// All are branch-free, in the type they are given, and within 2 units in the last place wherever argument and result
// are normal numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "block.h"

// Wheels are built for the baseline processor; the loader picks the widest of these clones that the machine has. The
// levels, unlike plain avx2, include fused multiply-add, which a file may have contracted (CMakeLists.txt).
#if !defined(CASE_NO_SIMD_CLONES) && defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && \
    __GNUC__ >= 12 && !defined(__clang__)
#define CASE_SIMD_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
// Of loops over exponentials, logarithms and short rows: with vectors of 64 bytes gcc takes up to 1.9 times as long for
// them as with 32, on a Xeon with AVX-512, where wide products, IoU and its gradient gain as much and more.
#define CASE_SIMD_CLONES_32 __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define CASE_SIMD_CLONES
#define CASE_SIMD_CLONES_32
#endif
// What a clone calls is compiled for its processor only if it is inlined into it.
#if defined(__GNUC__)
#define CASE_INLINE inline __attribute__((always_inline))
#define CASE_INLINE_LAMBDA __attribute__((always_inline))
#else
#define CASE_INLINE inline
#define CASE_INLINE_LAMBDA
#endif

namespace case_wtal {

template <typename T>
struct Format;

template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr int exp_terms = 7, log_terms = 5;           // of the series, for a truncation below 1/8 ulp
  static constexpr float ln2_high = 0x1.63p-1f;                // 9 bits: its products with an exponent are exact
  static constexpr float ln2_low = -0x1.bd0106p-13f;
  static constexpr float exp_lowest = -0x1.5d589ep+6f;         // log of the smallest normal number
  static constexpr Bits sqrt_half = 0x3f3504f3;
  static constexpr double power_steps = 128;                   // of 1: a multiple's product with e ln2_high is exact
};

template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr int exp_terms = 13, log_terms = 11;
  static constexpr double ln2_high = 0x1.62e42feep-1;          // 32 bits
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double exp_lowest = -0x1.6232bdd7abcd2p+9;
  static constexpr Bits sqrt_half = 0x3fe6a09e667f3bcd;
  static constexpr double power_steps = 1024;
};

template <typename To, typename From>
CASE_HD CASE_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Coefficients as a table, so that they are constants of the loops however far those are unrolled.
template <typename T>
struct Series {
  T exp[Format<T>::exp_terms + 1] = {}, log[Format<T>::log_terms + 1] = {};
  constexpr Series() {
    double factorial = 1;
    for (int i = 0; i <= Format<T>::exp_terms; ++i) {
      if (i > 1) factorial *= i;
      exp[i] = T(1 / factorial);
    }
    for (int i = 0; i <= Format<T>::log_terms; ++i) log[i] = T(2.0 / (2 * i + 1));
  }
};
template <typename T>
inline constexpr Series<T> kSeries{};

// e^(high + low) for a sum of at most 88 (float) or 709 (double). Exactly 0 where the result would not be a normal
// number; NaN for NaN. The sum is not rounded if high is a multiple of a few bits of 1, as Power makes it.
template <typename T>
CASE_INLINE T simd_exp(T high, T low) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  // Adding 1.5 * 2^mantissa leaves the nearest integer in the low bits.
  constexpr T magic = T(3) * T(Bits(1) << (F::mantissa - 1));
  const T x = high + low;
  const T shifted = x * T(1.44269504088896340736) + magic;
  const T n = shifted - magic;
  const T r = ((high - n * F::ln2_high) - n * F::ln2_low) + low;
  T sum = kSeries<T>.exp[F::exp_terms];
  for (int i = F::exp_terms - 1; i >= 0; --i) sum = sum * r + kSeries<T>.exp[i];
  const T power = bit_cast<T>((bit_cast<Bits>(shifted) + Bits(F::bias)) << F::mantissa);
  return x < F::exp_lowest ? T(0) : sum * power;
}

template <typename T>
CASE_INLINE T simd_exp(T x) {
  return simd_exp(x, T(-0.0));  // which adds nothing to anything
}

// The two parts of a logarithm: a multiple of ln2_high, and what is left, of less than 1.
template <typename T>
struct LogParts {
  T high, low;
};

// log x for finite x > 0, denormal ones included.
template <typename T>
CASE_INLINE LogParts<T> log_parts(T x) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  constexpr T lift = T(Bits(1) << (F::mantissa + 1));
  const bool denormal = x < std::numeric_limits<T>::min();
  const Bits bits = bit_cast<Bits>(denormal ? x * lift : x);
  // x = m 2^e with m in [sqrt(1/2), sqrt(2)). The biased e becomes a number through the bits of 2^mantissa + e: there
  // is no vector instruction for a conversion from 64-bit integers.
  const Bits biased = (bits - F::sqrt_half + (Bits(F::bias) << F::mantissa)) >> F::mantissa;
  constexpr T whole = T(Bits(1) << F::mantissa);
  const T raised = denormal ? T(F::mantissa + 1) : T(0);
  const T e = bit_cast<T>(biased | bit_cast<Bits>(whole)) - (whole + T(F::bias)) - raised;
  const T m = bit_cast<T>(bits - ((biased - Bits(F::bias)) << F::mantissa));
  // log m = 2 artanh s = 2 s + 2 s^3 / 3 + 2 s^5 / 5 + ...
  const T s = (m - T(1)) / (m + T(1));
  const T square = s * s;
  T sum = kSeries<T>.log[F::log_terms];
  for (int i = F::log_terms - 1; i >= 1; --i) sum = sum * square + kSeries<T>.log[i];
  const T log_m = T(2) * s + (s * square * sum + e * F::ln2_low);
  return {e * F::ln2_high, log_m};
}

// log x for finite x >= 0; -infinity for 0, NaN for NaN.
template <typename T>
CASE_INLINE T simd_log(T x) {
  const LogParts<T> parts = log_parts(x);
  const T found = x == T(0) ? -std::numeric_limits<T>::infinity() : parts.high + parts.low;
  return x == x ? found : x;
}

// x^q for one q in [-1, 1] other than 0, of x that is normal, 0 or infinite, where simd_exp reaches; NaN for negative x
// and NaN.
//
// q log x would lose as many digits as it has before the point. So q is split: its product with the logarithm's upper
// part is exact, and the exponential takes both parts.
template <typename T>
class Power {
 public:
  explicit Power(double q)
      : high_(T(std::nearbyint(q * Format<T>::power_steps) / Format<T>::power_steps)),
        low_(T(q - double(high_))),
        q_(T(q)) {}

  CASE_INLINE T operator()(T x) const {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    const LogParts<T> log = log_parts(x);
    const T found = simd_exp(high_ * log.high, low_ * log.high + q_ * log.low);
    const T ends = (x == T(0)) == (q_ > T(0)) ? T(0) : infinity;
    const T known = x == T(0) || x == infinity ? ends : found;
    return x >= T(0) ? known : std::numeric_limits<T>::quiet_NaN();
  }

 private:
  T high_, low_, q_;
};

}  // namespace case_wtal
