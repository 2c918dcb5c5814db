// From similarities to unnormalised alignment weights and back (eq 2-4), compiled once per instruction set.
//
// Matrices are stored transposed, [patches, tokens], with tokens along the vector lanes: the minimum, the
// maximum and the sums over patches then need no operation across lanes, and each token's constants stay in a
// register.
#pragma once

#include "alignment/flatness.h"
#include "common/gemm.h"

namespace sparc {
namespace SPARC_ISA {

// Per token, [lp] each; padded lanes get constants that make their weights 0.
template <class T>
struct MinMaxRows {
  T *min, *max;
  T* cut;   // kept where s - min >= cut
  T* gain;  // U = gain * (s - min) + bias; gain = 1 / (max - min), 0 for a degenerate row
  T* bias;  // 0, or 1 for a degenerate row

  template <class Arena>
  MinMaxRows(Arena& arena, int64_t lp)
      : min(arena.template take<T>(lp)),
        max(arena.template take<T>(lp)),
        cut(arena.template take<T>(lp)),
        gain(arena.template take<T>(lp)),
        bias(arena.template take<T>(lp)) {}

  // An image without a valid patch makes its tokens' losses NaN, or 0.
  static constexpr bool kNanWithoutPatches = true;
  const T* first_statistic() const { return min; }
  const T* second_statistic() const { return max; }
};

inline float next_above(float x) { return __builtin_nextafterf(x, __builtin_inff()); }
inline double next_above(double x) { return __builtin_nextafter(x, __builtin_inf()); }
inline float next_below(float x) { return __builtin_nextafterf(x, -__builtin_inff()); }
inline double next_below(double x) { return __builtin_nextafter(x, -__builtin_inf()); }

template <class T>
constexpr T kLargest =
    sizeof(T) == 4 ? static_cast<T>(3.4028234663852886e38) : static_cast<T>(1.7976931348623157e308);

// The least x with x / range >= sigma in T's arithmetic: eq 3's decision, to the last bit, without a division
// per patch.
template <class T>
inline T exact_cut(T sigma, T range) {
  T cut = sigma * range;
  for (int i = 0; i < 4 && cut / range < sigma; ++i) cut = next_above(cut);
  for (int i = 0; i < 4 && next_below(cut) / range >= sigma; ++i) cut = next_below(cut);
  return cut;
}

// Minimum and maximum over the patches of st [p, lp], and what follows from them. sigma < 0 means 1 / p.
template <class T>
void measure_rows(const T* st, int64_t p, int64_t n, int64_t lp, double sigma, const MinMaxRows<T>& rows) {
  constexpr int kN = kGranule<T>;
  for (int64_t l = 0; l < lp; l += kN) {
    Vec<T, kN> low = load<kN>(st + l), high = low;
    for (int64_t i = 1; i < p; ++i) {
      const Vec<T, kN> s = load<kN>(st + i * lp + l);
      low = s < low ? s : low;
      high = s > high ? s : high;
    }
    store(rows.min + l, low);
    store(rows.max + l, high);
  }
  const T threshold = sigma < 0 ? T{1} / static_cast<T>(p) : static_cast<T>(sigma);
  for (int64_t l = 0; l < lp; ++l) {
    const T low = rows.min[l], high = rows.max[l], range = high - low;
    const T largest = __builtin_fabs(low) > __builtin_fabs(high) ? __builtin_fabs(low) : __builtin_fabs(high);
    const T inverse = T{1} / range;
    if (l >= n) {
      rows.cut[l] = static_cast<T>(__builtin_inf());
      rows.gain[l] = rows.bias[l] = 0;
    } else if (is_flat(range, largest)) {
      rows.cut[l] = -static_cast<T>(__builtin_inf());
      rows.gain[l] = 0;
      rows.bias[l] = 1;
    } else {
      rows.cut[l] = exact_cut(threshold, range);
      rows.gain[l] = inverse > kLargest<T> ? kLargest<T> : inverse;  // a subnormal range: any factor serves
      rows.bias[l] = 0;
    }
  }
}

// ut [p, lp] = U^T, rounded to bfloat16 where the products will read it in that dtype, so that every use of
// U sees the same numbers. Writes up to a granule beyond column n; a row is written after the one above it.
template <bool kRound, class T>
void weigh(const T* st, int64_t p, int64_t lp, const MinMaxRows<T>& rows, Matrix<T> ut) {
  constexpr int kN = kGranule<T>;
  for (int64_t l = 0; l < lp; l += kN) {
    const Vec<T, kN> low = load<kN>(rows.min + l), cut = load<kN>(rows.cut + l);
    const Vec<T, kN> gain = load<kN>(rows.gain + l), bias = load<kN>(rows.bias + l);
    for (int64_t i = 0; i < p; ++i) {
      const Vec<T, kN> above = load<kN>(st + i * lp + l) - low;
      Vec<T, kN> u = above < cut ? Vec<T, kN>{} : above * gain + bias;  // "not cut", so that a NaN is seen
      if constexpr (kRound) u = round_to_bf16<kN>(u);
      store(ut.data + i * ut.ld + l, u);
    }
  }
}

// du [p, lp], the derivative with respect to U^T, becomes the one with respect to S^T: kept entries times the
// gain, and minus their sum at the minimum, shared evenly by ties. Degenerate rows and padded lanes have gain
// 0.
template <class T>
void weights_to_similarities(const T* st, int64_t p, int64_t lp, const MinMaxRows<T>& rows, T* du) {
  constexpr int kN = kGranule<T>;
  for (int64_t l = 0; l < lp; l += kN) {
    const Vec<T, kN> low = load<kN>(rows.min + l), cut = load<kN>(rows.cut + l),
                     gain = load<kN>(rows.gain + l);
    Vec<T, kN> total = {}, ties = {};
    for (int64_t i = 0; i < p; ++i) {
      const Vec<T, kN> above = load<kN>(st + i * lp + l) - low;
      const Vec<T, kN> ds = above < cut ? Vec<T, kN>{} : load<kN>(du + i * lp + l) * gain;
      total += ds;
      ties += above == T{0} ? splat<kN>(T{1}) : Vec<T, kN>{};
      store(du + i * lp + l, ds);
    }
    const Vec<T, kN> share = total / ties;
    for (int64_t i = 0; i < p; ++i) {
      const Vec<T, kN> s = load<kN>(st + i * lp + l);
      const Vec<T, kN> ds = load<kN>(du + i * lp + l);
      store(du + i * lp + l, s == low ? ds - share : ds);
    }
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
