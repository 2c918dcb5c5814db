// 16-bit and tf32 numbers in integer arithmetic. For BFloat16 and Float16 of csrc/common/device.cuh, which
// includes this file after it has defined them.
#pragma once

#include <cstdint>
#include <cstring>

namespace sparc {
namespace emulation {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline bool is_nan_bits(uint32_t bits) { return (bits & 0x7FFFFFFFu) > 0x7F800000u; }

inline float float_of_bf16(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

inline uint16_t bf16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  if (is_nan_bits(bits)) return 0x7FFF;  // the NaN that the device makes
  const uint32_t lowest_kept = bits >> 16 & 1u;
  return static_cast<uint16_t>((bits + 0x7FFFu + lowest_kept) >> 16);
}

inline float float_of_f16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1Fu;
  const uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0x1F) return float_of_bits(sign | 0x7F800000u | mantissa << 13);
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal in float16, normal here
  return float_of_bits(sign | bits_of_float(magnitude));
}

inline uint16_t f16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (is_nan_bits(bits)) return 0x7FFF;
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and more: infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24. Of floats at 0.5 the last place is 2^-24, so that the
    // sum is rounded (to nearest even) where float16 rounds.
    const uint32_t rounded = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  const uint32_t lowest_kept = magnitude >> 13 & 1u;
  const uint32_t rounded = (magnitude + 0xFFFu + lowest_kept) >> 13;
  return static_cast<uint16_t>(sign | (rounded - (112u << 10)));
}

// To nearest, ties away from zero, as cvt.rna.tf32.f32 does.
inline uint32_t tf32_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  if (is_nan_bits(bits)) return 0x7FFFFFFFu;
  if ((bits & 0x7FFFFFFFu) == 0x7F800000u) return bits;
  return (bits + 0x1000u) & ~0x1FFFu;
}

// What a tf32 matrix instruction sees of a register.
inline float float_of_tf32(uint32_t bits) { return float_of_bits(bits & ~0x1FFFu); }

}  // namespace emulation
}  // namespace sparc
