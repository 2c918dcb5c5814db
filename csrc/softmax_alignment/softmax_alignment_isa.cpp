// The kernels of one pair, compiled once per instruction set.
#include "alignment/token_loss_backward.h"
#include "softmax_alignment/softmax_alignment.h"

namespace sparc {
namespace SPARC_ISA {

template <class E, class In>
SoftmaxAlignmentKernel softmax_alignment_kernel() {
  return token_loss_kernel<SoftmaxAlignmentKernel, E, SoftmaxRows, In>();
}

}  // namespace SPARC_ISA

SPARC_KERNELS(SoftmaxAlignmentKernel, softmax_alignment_kernel)

}  // namespace sparc
