// The kernels of one instruction set: the steps of both passes.
#include "contrastive/backward.h"
#include "contrastive/forward.h"

namespace sparc {
namespace SPARC_ISA {

template <class E, class In>
SimilarityKernel similarity_kernel() {
  SimilarityKernel kernel = {};
  kernel.forward_bytes = [](const SimilarityCall& call) { return CallMemory<E, In>::bytes(call, false); };
  kernel.backward_bytes = [](const SimilarityCall& call) { return CallMemory<E, In>::bytes(call, true); };
  kernel.thread_bytes = &TileMemory<E, In>::bytes;
  kernel.panel_width = kPanelWidth<typename E::Acc>;
  kernel.gradient_bytes = sizeof(typename E::Elem);
  kernel.pack_cols_forward = &pack_cols_forward<E, In>;
  kernel.forward = &forward_rows<E, In>;
  kernel.merge = &merge_columns<E, In>;
  kernel.pack_cols_backward = &pack_cols_backward<E, In>;
  kernel.pack_rows = &pack_rows_backward<E, In>;
  kernel.gradient = &gradient_rows<E, In>;
  kernel.transposed = &gradient_transposed<E, In>;
  kernel.finish = &finish_columns<E, In>;
  kernel.finish_scales = &finish_scales<E, In>;
  kernel.total = &weighted_total<typename E::Acc>;
  kernel.scale = &scale_values<typename E::Acc, In>;
  return kernel;
}

}  // namespace SPARC_ISA

SPARC_KERNELS(SimilarityKernel, similarity_kernel)

}  // namespace sparc
