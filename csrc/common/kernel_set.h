// Picks among the kernel sets that the instruction-set files export.
#pragma once

#include "common/cpu_capability.h"
#include "common/isa/detect.h"

#if defined(SPARC_X86_ISAS)
// `room`_kernels() of the current capability; the bfloat16 kernel of an AVX-512 set gives way to the one with
// dot products.
#define SPARC_PICK_KERNELS(room)                       \
  [] {                                                 \
    auto set = baseline::room##_kernels();             \
    const CpuCapability capability = cpu_capability(); \
    if (capability == CpuCapability::kAvx2) {          \
      set = avx2::room##_kernels();                    \
    } else if (capability >= CpuCapability::kAvx512) { \
      set = avx512::room##_kernels();                  \
    }                                                  \
    if (capability == CpuCapability::kAvx512Bf16) {    \
      set.bfloat16 = avx512_bf16::room##_bfloat16();   \
    }                                                  \
    return set;                                        \
  }()
#else
#define SPARC_PICK_KERNELS(room) baseline::room##_kernels()
#endif
