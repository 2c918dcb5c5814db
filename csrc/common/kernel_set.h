// The kernels of an op, by instruction set and dtype. `Kernel` is the op's struct of pointers to functions.
#pragma once

#include "common/isa.h"

namespace sparc {

template <class Kernel>
struct KernelSet {
  Kernel float32, float64, bfloat16;
};

// What SPARC_KERNELS defines in the op's *_isa.cpp.
template <class Kernel, CpuCapability kSet>
KernelSet<Kernel> kernels_of();

}  // namespace sparc

// kernel<Engine, In>() is the Kernel of one instruction set for embeddings of dtype In.
#if defined(SPARC_HAS_BF16_DOT)  // adds its bfloat16 kernel to the set before it
#define SPARC_KERNELS(Kernel, kernel)                                \
  template <>                                                        \
  KernelSet<Kernel> kernels_of<Kernel, CpuCapability::SPARC_ISA>() { \
    using namespace SPARC_ISA;                                       \
    return {{}, {}, kernel<Bf16Engine, Bf16>()};                     \
  }
#elif defined(SPARC_X86_ISAS) || defined(SPARC_FOR_BASELINE)  // computes bfloat16 in float32
#define SPARC_KERNELS(Kernel, kernel)                                                               \
  template <>                                                                                       \
  KernelSet<Kernel> kernels_of<Kernel, CpuCapability::SPARC_ISA>() {                                \
    using namespace SPARC_ISA;                                                                      \
    return {kernel<MultiplyAddEngine<float>, float>(), kernel<MultiplyAddEngine<double>, double>(), \
            kernel<MultiplyAddEngine<float>, Bf16>()};                                              \
  }
#else  // this compiler has no such set
#define SPARC_KERNELS(Kernel, kernel)
#endif
