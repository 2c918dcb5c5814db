// Which instruction set the CPU kernels use: the best of this machine, unless a test asks for a lesser one.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "common/kernel_set.h"

namespace sparc {

CpuCapability cpu_capability();

// The kernel for embeddings of `dtype`: Float, Double or BFloat16.
template <class Kernel>
Kernel pick_kernel(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  KernelSet<Kernel> set = kernels_of<Kernel, CpuCapability::baseline>();
#if defined(SPARC_X86_ISAS)
  const CpuCapability best = cpu_capability();
  if (best == CpuCapability::avx2) set = kernels_of<Kernel, CpuCapability::avx2>();
  if (best >= CpuCapability::avx512) set = kernels_of<Kernel, CpuCapability::avx512>();
  if (best == CpuCapability::avx512_bf16) {
    set.bfloat16 = kernels_of<Kernel, CpuCapability::avx512_bf16>().bfloat16;
  }
#endif
  if (dtype == ScalarType::Float) return set.float32;
  return dtype == ScalarType::Double ? set.float64 : set.bfloat16;
}

}  // namespace sparc
