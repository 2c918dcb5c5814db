// The kernels of an instruction set without a bfloat16 dot product: bfloat16 embeddings are computed in
// float32.
#pragma once

#include "grouping/grouping_pair.h"

namespace sparc {
namespace SPARC_ISA {

GroupingKernels grouping_kernels() {
  return {grouping_kernel<MultiplyAddEngine<float>, float>(),
          grouping_kernel<MultiplyAddEngine<double>, double>(),
          grouping_kernel<MultiplyAddEngine<float>, Bf16>()};
}

}  // namespace SPARC_ISA
}  // namespace sparc
