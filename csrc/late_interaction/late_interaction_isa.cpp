// The steps of both passes, for one instruction set.
#include "late_interaction/backward.h"
#include "late_interaction/forward.h"

namespace sparc {
namespace SPARC_ISA {

template <class E, class In>
LateKernel late_kernel() {
  LateKernel kernel = {};
  kernel.token_bytes = [](const LateCall& call) {
    return padded_units<E>(call.texts) * static_cast<int64_t>(sizeof(typename E::Unit));
  };
  kernel.score_bytes = [](const LateCall& call) {
    Arena arena(nullptr);
    ImagePatches<E, In>(call, arena);
    return arena.used();
  };
  kernel.gradient_bytes = [](const LateSide& own) {
    return static_cast<size_t>(items_at_once(own) * own.rows * own.width) * sizeof(typename E::Acc);
  };
  kernel.image_norms = &image_norms<E, In>;
  kernel.pack_caption = &pack_caption<E, In>;
  kernel.scores = &scores<E, In>;
  kernel.image_gradient = [](const LateCall& call, int64_t item, void* workspace) {
    gradient<E, In>(call, true, item, workspace);
  };
  kernel.text_gradient = [](const LateCall& call, int64_t item, void* workspace) {
    gradient<E, In>(call, false, item, workspace);
  };
  return kernel;
}

}  // namespace SPARC_ISA

SPARC_KERNELS(LateKernel, late_kernel)

}  // namespace sparc
