// The per-token loss with softmax weights of one pair: what the kernels of every instruction set take. The
// mathematics is in sparc_kernels/ops/softmax_alignment/MATH.md.
#pragma once

#include "alignment/token_loss.h"

namespace sparc {

struct SoftmaxAlignmentKernel : TokenLossKernel {};

}  // namespace sparc
