// Short vectors over GCC's vector extension, compiled once per instruction set.
//
// Nothing here or in the headers that build on it uses a template of the standard library: an instantiation
// that the linker shares between translation units could otherwise be the one compiled for AVX-512.
#pragma once

#include "common/isa.h"

#define SPARC_INLINE inline __attribute__((always_inline))
#define SPARC_UNROLL _Pragma("GCC unroll 16")

namespace sparc {

// bfloat16 as it lies in memory; arithmetic is done in float32.
struct Bf16 {
  uint16_t bits;
};

namespace SPARC_ISA {

template <class T, int N>
struct VecOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VecOf<T, N>::type;

// Lanes of a full register, and the granule to which columns are padded: half of a 512-bit register, so that
// 55 columns cost 56 lanes and not 64.
template <class T>
constexpr int kLanes = SPARC_VECTOR_BYTES / static_cast<int>(sizeof(T));
template <class T>
constexpr int kGranule = (SPARC_VECTOR_BYTES < 32 ? SPARC_VECTOR_BYTES : 32) / static_cast<int>(sizeof(T));

template <class T>
constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <int N, class T>
SPARC_INLINE Vec<T, N> load(const T* p) {
  Vec<T, N> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T, class V>
SPARC_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// The first `count` lanes only.
template <int N, class T>
SPARC_INLINE void store_first(T* p, Vec<T, N> v, int64_t count) {
  if (count >= N) {
    store(p, v);
  } else {
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
}

template <int N, class T>
SPARC_INLINE Vec<T, N> splat(T x) {
  return x - Vec<T, N>{};
}

template <class To, class From>
SPARC_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T, class V>
SPARC_INLINE T sum_lanes(V v) {
  T total = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(T); ++i) total += v[i];
  return total;
}

template <class T, class V>
SPARC_INLINE T max_lanes(V v) {
  T best = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(T); ++i) best = v[i] > best ? v[i] : best;
  return best;
}

// e^x for x <= 88, to 2 units in the last place (the polynomial of the Cephes library). Below -87 it stays at
// e^-87 instead of underflowing, which a softmax cannot tell from 0. NaN stays NaN.
template <int N>
SPARC_INLINE Vec<float, N> exp_vec(Vec<float, N> x) {
  using Ints = Vec<int32_t, N>;
  const float round_to_int = 12582912.0f;  // 1.5 * 2^23: the sum's last bits are the rounded integer
  x = x < -87.0f ? splat<N>(-87.0f) : x;
  const Vec<float, N> shifted = x * 1.44269504088896341f + round_to_int;
  const Vec<float, N> n = shifted - round_to_int;
  Vec<float, N> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec<float, N> poly = r * 1.9875691500e-4f + 1.3981999507e-3f;
  poly = poly * r + 8.3334519073e-3f;
  poly = poly * r + 4.1665795894e-2f;
  poly = poly * r + 1.6666665459e-1f;
  poly = poly * r + 5.0000001201e-1f;
  poly = poly * (r * r) + r + 1.0f;
  const Ints exponent = bit_cast<Ints>(shifted) - 0x4B400000 + 127;
  return poly * bit_cast<Vec<float, N>>(exponent << 23);
}

template <int N>
SPARC_INLINE Vec<double, N> exp_vec(Vec<double, N> x) {
  for (int i = 0; i < N; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// Conversions between storage and arithmetic. float32 -> bfloat16 rounds to nearest even.
SPARC_INLINE uint32_t bf16_bits(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return x != x ? 0x7FC0u : rounded;
}
template <int N>
SPARC_INLINE Vec<float, N> round_to_bf16(Vec<float, N> x) {
  using Words = Vec<uint32_t, N>;
  const Words bits = bit_cast<Words>(x);
  const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
  return x == x ? bit_cast<Vec<float, N>>(rounded) : x;
}

SPARC_INLINE float to_acc(float x) { return x; }
SPARC_INLINE double to_acc(double x) { return x; }
SPARC_INLINE float to_acc(Bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

template <class T>
struct Convert {
  static SPARC_INLINE T from(T x) { return x; }
};
template <>
struct Convert<Bf16> {
  static SPARC_INLINE Bf16 from(float x) { return Bf16{static_cast<uint16_t>(bf16_bits(x))}; }
  static SPARC_INLINE Bf16 from(Bf16 x) { return x; }
};
template <>
struct Convert<float> {
  static SPARC_INLINE float from(float x) { return x; }
  static SPARC_INLINE float from(Bf16 x) { return to_acc(x); }
};

}  // namespace SPARC_ISA
}  // namespace sparc
