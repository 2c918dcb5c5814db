// The fine-grained loss of one image-text pair: what the kernels of every instruction set take. The
// mathematics is in sparc_kernels/ops/fine_grained/MATH.md.
#pragma once

#include "alignment/token_loss.h"

namespace sparc {

struct FineGrainedKernel : TokenLossKernel {};

}  // namespace sparc
