// Rows of numbers as they lie in memory, taken as vectors of the accumulation type. Compiled once per
// instruction set.
#pragma once

#include "common/vec.h"

namespace sparc {

// 1 / norm of a vector that counts as 0, as in F.normalize.
constexpr double kInverseOfZero = 1e12;

namespace SPARC_ISA {

template <int N>
SPARC_INLINE Vec<float, N> load_numbers(const float* p) {
  return load<N>(p);
}
template <int N>
SPARC_INLINE Vec<double, N> load_numbers(const double* p) {
  return load<N>(p);
}
template <int N>
SPARC_INLINE Vec<float, N> load_numbers(const Bf16* p) {
  Vec<uint16_t, N> bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return bit_cast<Vec<float, N>>(__builtin_convertvector(bits, Vec<uint32_t, N>) << 16);
}

template <int N>
SPARC_INLINE void store_numbers(float* p, Vec<float, N> v) {
  store(p, v);
}
template <int N>
SPARC_INLINE void store_numbers(double* p, Vec<double, N> v) {
  store(p, v);
}
template <int N>
SPARC_INLINE void store_numbers(Bf16* p, Vec<float, N> v) {
  using Words = Vec<uint32_t, N>;
  const Words words = bit_cast<Words>(round_to_bf16<N>(v)) >> 16;
  store(p, __builtin_convertvector(v == v ? words : Words{} + 0x7FC0u, Vec<uint16_t, N>));
}

template <class Acc>
SPARC_INLINE Acc inverse_of_norm(Acc square) {
  const Acc norm = static_cast<Acc>(__builtin_sqrt(square));
  return norm > Acc(1 / kInverseOfZero) || norm != norm ? 1 / norm : Acc(kInverseOfZero);
}

}  // namespace SPARC_ISA
}  // namespace sparc
