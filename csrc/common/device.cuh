// What the kernels ask of the machine: indices, shared memory, barriers, shuffles, matrix instructions,
// asynchronous copies, conversions. The kernels' own headers (*_kernel.cuh) use nothing of CUDA but this, so
// that they can be compiled for the host, where tests/emulation/ implements the same functions with one fiber
// per thread and watches every access to shared memory.
//
// Semantics are those of the PTX ISA 9.0, sections 9.7.13-9.7.16 (ldmatrix, mma.sync, cp.async).
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace sparc {

// 16-bit floating numbers as they lie in memory; arithmetic is done in float32.
struct alignas(2) BFloat16 {
  uint16_t bits;
};
struct alignas(2) Float16 {
  uint16_t bits;
};

}  // namespace sparc

#if defined(SPARC_EMULATED)

#define SPARC_DEVICE_NOINLINE inline
#define SPARC_NO_UNROLL
#define SPARC_INLINE_LAMBDA
#define SPARC_UNROLL_FOUR_TIMES
#include "emulated_device.h"  // tests/emulation/, on the include path of the emulation only

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define SPARC_DEVICE __device__ __forceinline__
#define SPARC_DEVICE_NOINLINE __device__ __noinline__
#define SPARC_UNROLL _Pragma("unroll")
// For lambdas that hold a whole pass: what is not inlined gets the kernel's parameters through memory.
#define SPARC_INLINE_LAMBDA __attribute__((always_inline))
#define SPARC_UNROLL_FOUR_TIMES _Pragma("unroll 4")
// For runtime loops over much code, which the compiler would write out four times: a third of the
// instructions and a fifth of the compile time.
#define SPARC_NO_UNROLL _Pragma("unroll 1")

namespace sparc {
namespace device {

// Indices. Blocks have one dimension, and so has the grid.

SPARC_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SPARC_DEVICE int64_t block_index() { return blockIdx.x; }
SPARC_DEVICE int64_t block_count() { return gridDim.x; }
SPARC_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) & 31; }
SPARC_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) >> 5; }

// Memory that threads of a block share. On the device these are plain pointers; in the emulation they watch
// for races between threads that no barrier orders, for reads of what was never written, and for their
// bounds.

template <class T>
using Shared = T*;  // in shared memory
template <class T>
using Scratch = T*;  // in global memory that belongs to this block

// The block's dynamic shared memory, `offset` bytes (a multiple of 16) from its start, which lies at a
// multiple of 1024: the swizzle of warpgroup.cuh is one of addresses.
template <class T>
SPARC_DEVICE Shared<T> shared_at(size_t offset) {
  extern __shared__ __align__(1024) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes + offset);
}

template <class T>
SPARC_DEVICE Scratch<T> scratch_at(void* base, size_t offset) {
  return reinterpret_cast<T*>(static_cast<unsigned char*>(base) + offset);
}

// The address behind a Shared or Scratch pointer, for ldmatrix and copy_async.
template <class T>
SPARC_DEVICE T* address_of(T* pointer) {
  return pointer;
}

// `base` + count * bytes, in one instruction; left to itself the compiler takes the base apart.
template <class T>
SPARC_DEVICE const T* further(const T* base, int count, uint32_t bytes) {
  uint64_t result;
  asm("mad.wide.u32 %0, %1, %2, %3;\n"
      : "=l"(result)
      : "r"(count), "r"(bytes), "l"(reinterpret_cast<uint64_t>(base)));
  return reinterpret_cast<const T*>(result);
}

// Barriers and exchanges. All threads of the block (the warp) must reach them.

SPARC_DEVICE void block_barrier() { __syncthreads(); }
SPARC_DEVICE void warp_barrier() { __syncwarp(); }
SPARC_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, value, mask); }
SPARC_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
// A number that all lanes have, from lane 0: the compiler then knows it, and keeps what is made of it in
// uniform registers.
SPARC_DEVICE int same_in_warp(int value) { return __shfl_sync(0xFFFFFFFFu, value, 0); }
SPARC_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xFFFFFFFFu, value, lane); }
SPARC_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(0xFFFFFFFFu, predicate); }
SPARC_DEVICE int count_bits(uint32_t bits) { return __popc(bits); }

// Four 8 x 8 tiles of 16-bit elements from shared memory. Lane i gives the address (16-byte aligned) of row
// i % 8 of tile i / 8; lane i receives in r[k] the elements (row i / 4, columns 2 (i % 4) and the next) of
// tile k, or those of its transpose.
SPARC_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
SPARC_DEVICE void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// c += a b: a [16, 16], b [16, 8], c [16, 8] float32, fragments as PTX lays them over the lanes.
SPARC_DEVICE void multiply_add_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SPARC_DEVICE void multiply_add_f16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c += a b: a [16, 8], b [8, 8], of tf32 (float32 whose last 13 bits are not looked at).
SPARC_DEVICE void multiply_add_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// float32 rounded to tf32 (to nearest, ties away from zero).
SPARC_DEVICE uint32_t round_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
}

// 16 bytes of shared memory become the first `bytes` (0 to 16) of `global` and zeros. Both addresses are
// 16-byte aligned. The data is there for this thread after the wait, for others after a barrier behind it.
SPARC_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global), "r"(bytes)
               : "memory");
}
// All 16 bytes: fewer instructions.
SPARC_DEVICE void copy_async(void* shared, const void* global) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(at), "l"(global) : "memory");
}
// All 16 bytes where `wanted`, else zeros, and `global` is not looked at.
SPARC_DEVICE void copy_async_if(bool wanted, void* shared, const void* global) {
  const uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile(
      "{\n.reg .pred p;\nsetp.eq.s32 p, %2, 0;\ncp.async.cg.shared.global [%0], [%1], 16, p;\n}\n" ::"r"(at),
      "l"(global), "r"(static_cast<int>(wanted))
      : "memory");
}
SPARC_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most kPending of this thread's latest groups are unfinished.
template <int kPending>
SPARC_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Numbers.

SPARC_DEVICE float to_float(float x) { return x; }
SPARC_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
SPARC_DEVICE float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
SPARC_DEVICE T from_float(float x);  // rounded to nearest even
template <>
SPARC_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
SPARC_DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
SPARC_DEVICE Float16 from_float<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// Two neighbours in one register, the first in the lower half.
template <class T>
SPARC_DEVICE uint32_t pack(float first, float second) {
  return static_cast<uint32_t>(from_float<T>(first).bits) | static_cast<uint32_t>(from_float<T>(second).bits)
                                                                << 16;
}

// x, but unknown to the compiler: what is made of it is made where it stands, not ahead of a loop or at an
// earlier place that needs it too, and so takes no registers in between.
SPARC_DEVICE int made_here(int x) {
  asm volatile("" : "+r"(x));
  return x;
}
SPARC_DEVICE uint64_t made_here(uint64_t x) {
  asm volatile("" : "+l"(x));
  return x;
}
SPARC_DEVICE float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }
SPARC_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }
SPARC_DEVICE float exp(float x) { return ::expf(x); }
// Rounded: never fused with a sum.
SPARC_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
SPARC_DEVICE float log(float x) { return ::logf(x); }
// In one instruction each, with results and arguments below 2^-126 taken for 0.
SPARC_DEVICE float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}
SPARC_DEVICE float fast_log2(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}
SPARC_DEVICE float fast_reciprocal(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(result) : "f"(x));
  return result;
}
SPARC_DEVICE float sqrt(float x) { return ::sqrtf(x); }
SPARC_DEVICE float abs(float x) { return ::fabsf(x); }
SPARC_DEVICE float min(float a, float b) { return ::fminf(a, b); }  // the other one where one is NaN
SPARC_DEVICE float max(float a, float b) { return ::fmaxf(a, b); }
SPARC_DEVICE uint32_t max(uint32_t a, uint32_t b) { return ::max(a, b); }
SPARC_DEVICE uint32_t max(uint32_t a, uint32_t b, uint32_t c) { return __vimax3_u32(a, b, c); }
SPARC_DEVICE float fused_multiply_add(float a, float b, float c) { return ::fmaf(a, b, c); }
SPARC_DEVICE float infinity() { return __int_as_float(0x7F800000); }
SPARC_DEVICE float nan() { return __int_as_float(0x7FFFFFFF); }

}  // namespace device
}  // namespace sparc

#endif
