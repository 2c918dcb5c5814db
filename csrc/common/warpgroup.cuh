// Matrix instructions of a warpgroup (compute capability 9.0, compiled for sm_90a): four warps whose first
// one's index is a multiple of 4 multiply a [64, 16] and a [16, kN] matrix of 16-bit numbers, the second and,
// if one wants, the first taken from shared memory by the instruction itself while the threads go on.
//
// Matrices in shared memory lie in panels: rows of 64 elements, 128 bytes each, no padding; piece q (16
// bytes) of row r is at byte 128 r + 16 (q ^ (r % 8)), counted from a multiple of 1024. That is the 128-byte
// swizzle of the matrix descriptors, and neither ldmatrix nor the instructions here meet bank conflicts in
// it.
// - Not transposed ("K-major"): panel rows are the operand's rows (of a) or columns (of b), panel columns are
//   k. The operand starts at a row that is a multiple of 8; 16 k further are 32 bytes further.
// - Transposed ("MN-major"): panel rows are k, panel columns the operand's rows (of a) or columns (of b).
//   16 k further are 2048 bytes further. Columns of b beyond a panel's end are those of the panel
//   kPanelBytes behind it.
//
// Semantics are those of the PTX ISA 9.0, section 9.7.15 (wgmma), and 9.7.13 for the proxy fence.
#pragma once

#include "device.cuh"

namespace sparc {
namespace device {

// A panel of 64 rows.
constexpr int kPanelBytes = 64 * 128;

// The matrix that starts `bytes` (a multiple of 16) behind that of an operand: one instruction, where
// panel_operand takes five.
SPARC_HOST_DEVICE uint64_t operand_behind(uint64_t operand, int bytes) {
  const uint32_t start = static_cast<uint32_t>(operand) + static_cast<uint32_t>(bytes >> 4);
  return (operand & 0xFFFFFFFF00000000) | start;
}

}  // namespace device
}  // namespace sparc

#if defined(SPARC_EMULATED)

#include "emulated_warpgroup.h"  // tests/emulation/, on the include path of the emulation only

#else

namespace sparc {
namespace device {

// The matrix that starts at `at`, which lies in a panel, as the instructions want it named: the address and
// the distance of 8 rows (1024) and of panels side by side, in units of 16 bytes, and the 128-byte swizzle.
SPARC_DEVICE uint64_t panel_operand(const void* at) {
  const uint64_t address = static_cast<uint32_t>(__cvta_generic_to_shared(at));
  return (address & 0x3FFFF) >> 4 | static_cast<uint64_t>(kPanelBytes >> 4) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

// What this thread has written to shared memory (its asynchronous copies too, once waited for) becomes
// visible to the matrix instructions, for other threads' instructions after a barrier behind it.
SPARC_DEVICE void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// A barrier of the warpgroup's threads alone.
SPARC_DEVICE void warpgroup_barrier() {
  asm volatile("bar.sync %0, 128;\n" ::"r"(1 + warp_index() / 4) : "memory");
}
// Turns of two warpgroups at something that one of them is to have for itself: a group takes a turn when all
// warps of the other one have given it, and what these have written before is there for it. Turns of a number
// are taken one by one; numbers are below 12.
SPARC_DEVICE void take_turn(int turn) { asm volatile("bar.sync %0, 256;\n" ::"r"(3 + turn) : "memory"); }
SPARC_DEVICE void give_turn(int turn) { asm volatile("bar.arrive %0, 256;\n" ::"r"(3 + turn) : "memory"); }

// Between a thread's own reading or writing of registers and a matrix instruction that takes them.
SPARC_DEVICE void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
// The instructions issued since the last one become a group.
SPARC_DEVICE void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most kPending of the latest groups are unfinished. Until then nobody may touch the registers
// that they use, nor write to their operands in shared memory.
template <int kPending>
SPARC_DEVICE void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of c over this point: it does not know that c arrives at the wait.
template <int kCount>
SPARC_DEVICE void warpgroup_hold(float (&c)[kCount]) {
  SPARC_UNROLL
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(c[i])::"memory");
  }
}

// The accumulators as the assembler names them and the compiler wants them bound, eight at a time.
#define SPARC_BOUND_4(at) "+f"(c[at]), "+f"(c[at + 1]), "+f"(c[at + 2]), "+f"(c[at + 3])
#define SPARC_BOUND_8(at)                                                                           \
  "+f"(c[at]), "+f"(c[at + 1]), "+f"(c[at + 2]), "+f"(c[at + 3]), "+f"(c[at + 4]), "+f"(c[at + 5]), \
      "+f"(c[at + 6]), "+f"(c[at + 7])
#define SPARC_NAMES_4 "%0, %1, %2, %3"
#define SPARC_BOUND_FIRST_4 SPARC_BOUND_4(0)
#define SPARC_NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SPARC_BOUND_FIRST_8 SPARC_BOUND_8(0)
#define SPARC_NAMES_16 SPARC_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SPARC_BOUND_FIRST_16 SPARC_BOUND_FIRST_8, SPARC_BOUND_8(8)
#define SPARC_NAMES_24 SPARC_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SPARC_BOUND_FIRST_24 SPARC_BOUND_FIRST_16, SPARC_BOUND_8(16)
#define SPARC_NAMES_32 SPARC_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define SPARC_BOUND_FIRST_32 SPARC_BOUND_FIRST_24, SPARC_BOUND_8(24)
#define SPARC_NAMES_40 SPARC_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SPARC_BOUND_FIRST_40 SPARC_BOUND_FIRST_32, SPARC_BOUND_8(32)
#define SPARC_NAMES_48 SPARC_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SPARC_BOUND_FIRST_48 SPARC_BOUND_FIRST_40, SPARC_BOUND_8(40)
#define SPARC_NAMES_56 SPARC_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define SPARC_BOUND_FIRST_56 SPARC_BOUND_FIRST_48, SPARC_BOUND_8(48)
#define SPARC_NAMES_64 SPARC_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define SPARC_BOUND_FIRST_64 SPARC_BOUND_FIRST_56, SPARC_BOUND_8(56)
#define SPARC_NAMES_52 SPARC_NAMES_48 ", %48, %49, %50, %51"
#define SPARC_BOUND_FIRST_52 SPARC_BOUND_FIRST_48, SPARC_BOUND_4(48)
#define SPARC_NAMES_96                                                                              \
  SPARC_NAMES_64                                                                                    \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82" \
  ", %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SPARC_BOUND_FIRST_96 \
  SPARC_BOUND_FIRST_64, SPARC_BOUND_8(64), SPARC_BOUND_8(72), SPARC_BOUND_8(80), SPARC_BOUND_8(88)
#define SPARC_NAMES_100 SPARC_NAMES_96 ", %96, %97, %98, %99"
#define SPARC_BOUND_FIRST_100 SPARC_BOUND_FIRST_96, SPARC_BOUND_4(96)
#define SPARC_NAMES_128                                                                              \
  SPARC_NAMES_100                                                                                    \
  ", %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115" \
  ", %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SPARC_BOUND_FIRST_128 \
  SPARC_BOUND_FIRST_96, SPARC_BOUND_8(96), SPARC_BOUND_8(104), SPARC_BOUND_8(112), SPARC_BOUND_8(120)

// One shape: how many columns, how many accumulators, and the numbers of the operands behind these. The one
// with `add` starts at zero where that is 0; the others do without, so that the code of kernels that have
// been timed stays what it was.
template <class E, int kN>
struct WarpgroupShape;

// clang-format off
#define SPARC_WARPGROUP_SHAPE(columns, count, type, name, o0, o1, o2, o3, o4, o5)                            \
  template <>                                                                                                \
  struct WarpgroupShape<type, columns> {                                                                     \
    template <bool kTransposedA, bool kTransposedB>                                                          \
    static SPARC_DEVICE void multiply_add(float (&c)[count], uint64_t a, uint64_t b) {                       \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" #columns       \
                   "k16.f32." name "." name " {" SPARC_NAMES_##count "}, %" #o0 ", %" #o1                    \
                   ", p, 1, 1, %" #o2 ", %" #o3 ";\n}\n"                                                     \
                   : SPARC_BOUND_FIRST_##count                                                               \
                   : "l"(a), "l"(b), "n"(kTransposedA ? 1 : 0), "n"(kTransposedB ? 1 : 0));                  \
    }                                                                                                        \
    template <bool kTransposedA, bool kTransposedB>                                                          \
    static SPARC_DEVICE void multiply_add_if(int add, float (&c)[count], uint64_t a, uint64_t b) {           \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o4 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #columns       \
                   "k16.f32." name "." name " {" SPARC_NAMES_##count "}, %" #o0 ", %" #o1                    \
                   ", p, 1, 1, %" #o2 ", %" #o3 ";\n}\n"                                                     \
                   : SPARC_BOUND_FIRST_##count                                                               \
                   : "l"(a), "l"(b), "n"(kTransposedA ? 1 : 0), "n"(kTransposedB ? 1 : 0), "r"(add));        \
    }                                                                                                        \
    template <bool kTransposedB>                                                                             \
    static SPARC_DEVICE void multiply_add(float (&c)[count], const uint32_t (&a)[4], uint64_t b) {           \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" #columns       \
                   "k16.f32." name "." name " {" SPARC_NAMES_##count "}, {%" #o0 ", %" #o1 ", %" #o2 ", %"    \
                   #o3 "}, %" #o4 ", p, 1, 1, %" #o5 ";\n}\n"                                                \
                   : SPARC_BOUND_FIRST_##count                                                               \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kTransposedB ? 1 : 0));         \
    }                                                                                                        \
  };
#define SPARC_WARPGROUP_SHAPES(columns, count, o0, o1, o2, o3, o4, o5)                                       \
  SPARC_WARPGROUP_SHAPE(columns, count, BFloat16, "bf16", o0, o1, o2, o3, o4, o5)                            \
  SPARC_WARPGROUP_SHAPE(columns, count, Float16, "f16", o0, o1, o2, o3, o4, o5)

SPARC_WARPGROUP_SHAPES(8, 4, 4, 5, 6, 7, 8, 9)
SPARC_WARPGROUP_SHAPES(16, 8, 8, 9, 10, 11, 12, 13)
SPARC_WARPGROUP_SHAPES(32, 16, 16, 17, 18, 19, 20, 21)
SPARC_WARPGROUP_SHAPES(48, 24, 24, 25, 26, 27, 28, 29)
SPARC_WARPGROUP_SHAPES(64, 32, 32, 33, 34, 35, 36, 37)
SPARC_WARPGROUP_SHAPES(80, 40, 40, 41, 42, 43, 44, 45)
SPARC_WARPGROUP_SHAPES(96, 48, 48, 49, 50, 51, 52, 53)
SPARC_WARPGROUP_SHAPES(104, 52, 52, 53, 54, 55, 56, 57)
SPARC_WARPGROUP_SHAPES(112, 56, 56, 57, 58, 59, 60, 61)
SPARC_WARPGROUP_SHAPES(128, 64, 64, 65, 66, 67, 68, 69)
SPARC_WARPGROUP_SHAPES(192, 96, 96, 97, 98, 99, 100, 101)
SPARC_WARPGROUP_SHAPES(200, 100, 100, 101, 102, 103, 104, 105)
SPARC_WARPGROUP_SHAPES(256, 128, 128, 129, 130, 131, 132, 133)
// clang-format on

#undef SPARC_WARPGROUP_SHAPES
#undef SPARC_WARPGROUP_SHAPE
#undef SPARC_NAMES_4
#undef SPARC_BOUND_FIRST_4
#undef SPARC_NAMES_8
#undef SPARC_BOUND_FIRST_8
#undef SPARC_NAMES_16
#undef SPARC_BOUND_FIRST_16
#undef SPARC_NAMES_24
#undef SPARC_BOUND_FIRST_24
#undef SPARC_NAMES_32
#undef SPARC_BOUND_FIRST_32
#undef SPARC_NAMES_40
#undef SPARC_BOUND_FIRST_40
#undef SPARC_NAMES_48
#undef SPARC_BOUND_FIRST_48
#undef SPARC_NAMES_56
#undef SPARC_BOUND_FIRST_56
#undef SPARC_NAMES_64
#undef SPARC_BOUND_FIRST_64
#undef SPARC_NAMES_52
#undef SPARC_BOUND_FIRST_52
#undef SPARC_NAMES_96
#undef SPARC_BOUND_FIRST_96
#undef SPARC_NAMES_100
#undef SPARC_BOUND_FIRST_100
#undef SPARC_NAMES_128
#undef SPARC_BOUND_FIRST_128
#undef SPARC_BOUND_8
#undef SPARC_BOUND_4

// c += a b for a [64, 16] and b [16, kN] by a warpgroup, kN one of the shapes above. Warp w has the rows
// 16 (w % 4) to 16 (w % 4) + 15 of c (and of a where it comes from registers), its columns 8 j to 8 j + 7 in
// c[4 j] to c[4 j + 3], laid over the lanes as c of multiply_add_bf16 is.
template <class E, int kN, bool kTransposedA, bool kTransposedB>
SPARC_DEVICE void warpgroup_multiply_add(float (&c)[kN / 2], uint64_t a, uint64_t b) {
  WarpgroupShape<E, kN>::template multiply_add<kTransposedA, kTransposedB>(c, a, b);
}
// The same where `add`, else c = a b.
template <class E, int kN, bool kTransposedA, bool kTransposedB>
SPARC_DEVICE void warpgroup_multiply_add_if(bool add, float (&c)[kN / 2], uint64_t a, uint64_t b) {
  WarpgroupShape<E, kN>::template multiply_add_if<kTransposedA, kTransposedB>(add ? 1 : 0, c, a, b);
}
template <class E, int kN, bool kTransposedB>
SPARC_DEVICE void warpgroup_multiply_add(float (&c)[kN / 2], const uint32_t (&a)[4], uint64_t b) {
  WarpgroupShape<E, kN>::template multiply_add<kTransposedB>(c, a, b);
}

}  // namespace device
}  // namespace sparc

#endif
