// The functions of csrc/common/device.cuh for the host, of the same names and signatures. Included by that
// header where SPARC_EMULATED is defined; the kernels run by emulate() of emulator.h.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "numbers.h"
#include "runtime.h"
#include "watched.h"

#define SPARC_DEVICE inline
#define SPARC_UNROLL

namespace sparc {
namespace device {

// A number that a warpgroup's matrix instruction under way has yet to deliver is not to be used.
SPARC_DEVICE float arrived(float x) {
  if ((emulation::bits_of_float(x) & 0x7FFFFFFFu) == emulation::kUnderWay) emulation::fail_as_under_way();
  return x;
}

// Indices.

SPARC_DEVICE int thread_index() { return emulation::thread_index(); }
SPARC_DEVICE int64_t block_index() { return emulation::block_index(); }
SPARC_DEVICE int64_t block_count() { return emulation::block_count(); }
SPARC_DEVICE int lane_index() { return emulation::thread_index() & 31; }
SPARC_DEVICE int warp_index() { return emulation::thread_index() >> 5; }

// Memory that threads of a block share. One type, since the two are one on the device.

template <class T>
using Shared = emulation::Watched<T>;
template <class T>
using Scratch = emulation::Watched<T>;

template <class T>
SPARC_DEVICE Shared<T> shared_at(size_t offset) {
  if (offset % 16 != 0) throw emulation::EmulationError("shared_at: the offset is no multiple of 16");
  return Shared<T>(reinterpret_cast<T*>(static_cast<unsigned char*>(emulation::shared_base()) + offset));
}

template <class T>
SPARC_DEVICE Scratch<T> scratch_at(void* base, size_t offset) {
  return Scratch<T>(reinterpret_cast<T*>(static_cast<unsigned char*>(base) + offset));
}

template <class T>
SPARC_DEVICE T* address_of(emulation::Watched<T> pointer) {
  return pointer.address();
}
template <class T>
SPARC_DEVICE T* address_of(T* pointer) {
  return pointer;
}

template <class T>
SPARC_DEVICE const T* further(const T* base, int count, uint32_t bytes) {
  const uint64_t apart = static_cast<uint64_t>(static_cast<uint32_t>(count)) * bytes;
  return reinterpret_cast<const T*>(reinterpret_cast<uint64_t>(base) + apart);
}

// Barriers and exchanges.

SPARC_DEVICE void block_barrier() { emulation::block_barrier(); }
SPARC_DEVICE void warp_barrier() {
  emulation::LaneArguments lane;
  emulation::warp_collective(emulation::Collective::kWarpBarrier, lane);
}
SPARC_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) {
  emulation::LaneArguments lane;
  lane.value = value;
  lane.selector = mask;
  emulation::warp_collective(emulation::Collective::kShuffleXor, lane);
  return lane.value;
}
SPARC_DEVICE float shuffle_xor(float value, int mask) {
  return emulation::float_of_bits(shuffle_xor(emulation::bits_of_float(arrived(value)), mask));
}
SPARC_DEVICE int same_in_warp(int value) {  // no exchange: how often there is one, the compiler decides
  warp_barrier();
  return value;
}
SPARC_DEVICE float shuffle(float value, int source) {
  emulation::LaneArguments lane;
  lane.value = emulation::bits_of_float(arrived(value));
  lane.selector = source;
  emulation::warp_collective(emulation::Collective::kShuffle, lane);
  return emulation::float_of_bits(lane.value);
}
SPARC_DEVICE uint32_t ballot(bool predicate) {
  emulation::LaneArguments lane;
  lane.value = predicate ? 1 : 0;
  emulation::warp_collective(emulation::Collective::kBallot, lane);
  return lane.value;
}
SPARC_DEVICE int count_bits(uint32_t bits) { return __builtin_popcount(bits); }

SPARC_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  emulation::LaneArguments lane;
  lane.row = row;
  lane.r = r;
  emulation::warp_collective(emulation::Collective::kLoadMatrices, lane);
}
SPARC_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  emulation::LaneArguments lane;
  lane.row = row;
  lane.r = r;
  emulation::warp_collective(emulation::Collective::kLoadMatricesTransposed, lane);
}

SPARC_DEVICE void multiply_add_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::LaneArguments lane;
  lane.c = c;
  lane.a = a;
  lane.b = b;
  emulation::warp_collective(emulation::Collective::kMultiplyAddBf16, lane);
}
SPARC_DEVICE void multiply_add_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::LaneArguments lane;
  lane.c = c;
  lane.a = a;
  lane.b = b;
  emulation::warp_collective(emulation::Collective::kMultiplyAddF16, lane);
}
SPARC_DEVICE void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::LaneArguments lane;
  lane.c = c;
  lane.a = a;
  lane.b = b;
  emulation::warp_collective(emulation::Collective::kMultiplyAddTf32, lane);
}
SPARC_DEVICE uint32_t round_to_tf32(float value) { return emulation::tf32_of_float(arrived(value)); }

SPARC_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  emulation::copy_async(shared, global, bytes);
}
SPARC_DEVICE void copy_async(void* shared, const void* global) { copy_async(shared, global, 16); }
SPARC_DEVICE void copy_async_if(bool wanted, void* shared, const void* global) {
  emulation::copy_async(shared, global, wanted ? 16 : 0);
}
SPARC_DEVICE void copy_async_commit() { emulation::copy_async_commit(); }
template <int kPending>
SPARC_DEVICE void copy_async_wait() {
  static_assert(kPending >= 0, "a number of groups");
  emulation::copy_async_wait(kPending);
}

// Numbers.

SPARC_DEVICE float to_float(float x) { return x; }
SPARC_DEVICE float to_float(BFloat16 x) { return emulation::float_of_bf16(x.bits); }
SPARC_DEVICE float to_float(Float16 x) { return emulation::float_of_f16(x.bits); }

template <class T>
SPARC_DEVICE T from_float(float x);
template <>
SPARC_DEVICE float from_float<float>(float x) {
  return arrived(x);
}
template <>
SPARC_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {emulation::bf16_of_float(arrived(x))};
}
template <>
SPARC_DEVICE Float16 from_float<Float16>(float x) {
  return {emulation::f16_of_float(arrived(x))};
}

template <class T>
SPARC_DEVICE uint32_t pack(float first, float second) {
  return static_cast<uint32_t>(from_float<T>(first).bits) | static_cast<uint32_t>(from_float<T>(second).bits)
                                                                << 16;
}

SPARC_DEVICE int made_here(int x) { return x; }
SPARC_DEVICE uint64_t made_here(uint64_t x) { return x; }
SPARC_DEVICE float bits_to_float(uint32_t bits) { return emulation::float_of_bits(bits); }
SPARC_DEVICE uint32_t float_to_bits(float x) { return emulation::bits_of_float(arrived(x)); }
SPARC_DEVICE float exp(float x) { return ::expf(arrived(x)); }
SPARC_DEVICE float product(float a, float b) {
  return arrived(a) * arrived(b);
}  // compiled with -ffp-contract=off
SPARC_DEVICE float log(float x) { return ::logf(arrived(x)); }
SPARC_DEVICE float normal(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x; }
SPARC_DEVICE float fast_exp2(float x) { return normal(::exp2f(arrived(x))); }
SPARC_DEVICE float fast_log2(float x) { return ::log2f(normal(arrived(x))); }
SPARC_DEVICE float fast_reciprocal(float x) { return normal(1.0f / normal(arrived(x))); }
SPARC_DEVICE float sqrt(float x) { return ::sqrtf(arrived(x)); }
SPARC_DEVICE float abs(float x) { return ::fabsf(arrived(x)); }
SPARC_DEVICE float min(float a, float b) { return ::fminf(arrived(a), arrived(b)); }
SPARC_DEVICE float max(float a, float b) { return ::fmaxf(arrived(a), arrived(b)); }
SPARC_DEVICE uint32_t max(uint32_t a, uint32_t b) { return a < b ? b : a; }
SPARC_DEVICE uint32_t max(uint32_t a, uint32_t b, uint32_t c) { return max(max(a, b), c); }
SPARC_DEVICE float fused_multiply_add(float a, float b, float c) {
  return ::fmaf(arrived(a), arrived(b), arrived(c));
}
SPARC_DEVICE float infinity() { return emulation::float_of_bits(0x7F800000u); }
SPARC_DEVICE float nan() { return emulation::float_of_bits(0x7FFFFFFFu); }

}  // namespace device
}  // namespace sparc
