// The kernels of one pair, compiled once per instruction set.
#include "alignment/token_loss_backward.h"
#include "fine_grained/fine_grained.h"

namespace sparc {
namespace SPARC_ISA {

template <class E, class In>
FineGrainedKernel fine_grained_kernel() {
  return token_loss_kernel<FineGrainedKernel, E, MinMaxRows, In>();
}

}  // namespace SPARC_ISA

SPARC_KERNELS(FineGrainedKernel, fine_grained_kernel)

}  // namespace sparc
