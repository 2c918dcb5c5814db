// The kernels of an instruction set without a bfloat16 dot product: bfloat16 embeddings are computed in
// float32.
#pragma once

#include "fine_grained/fine_grained_backward.h"

namespace sparc {
namespace SPARC_ISA {

FineGrainedKernels fine_grained_kernels() {
  return {fine_grained_kernel<MultiplyAddEngine<float>, float>(),
          fine_grained_kernel<MultiplyAddEngine<double>, double>(),
          fine_grained_kernel<MultiplyAddEngine<float>, Bf16>()};
}

}  // namespace SPARC_ISA
}  // namespace sparc
