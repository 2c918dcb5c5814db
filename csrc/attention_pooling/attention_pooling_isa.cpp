// The steps of both passes, for one instruction set.
#include "attention_pooling/backward.h"
#include "attention_pooling/forward.h"

namespace sparc {
namespace SPARC_ISA {

template <class T, class... Arguments>
size_t bytes_of(const PooledCall& call, Arguments... arguments) {
  Arena arena(nullptr);
  T(call, arena, arguments...);
  return arena.used();
}

template <class E, class In>
PooledKernel pooled_kernel() {
  using Unit = typename E::Unit;
  PooledKernel kernel = {};
  kernel.token_bytes = [](const PooledCall& call) {
    return padded_units<E>(call.texts) * static_cast<int64_t>(sizeof(Unit));
  };
  kernel.pair_bytes = [](const PooledCall& call) {
    return E::kPack > 1 ? channel_columns<E>(call.texts) * static_cast<int64_t>(sizeof(Unit)) : int64_t{0};
  };
  kernel.forward_bytes = &bytes_of<ForwardMemory<E, In>>;
  kernel.state_bytes = &bytes_of<ImageState<E, In>>;
  kernel.backward_bytes = &bytes_of<BackwardMemory<E>>;
  kernel.gradient_bytes = [](const PooledCall& call) {
    return padded_columns<typename E::Acc>(call.images) * static_cast<int64_t>(sizeof(typename E::Elem));
  };
  kernel.sum_bytes = [](const PooledCall& call) {
    return channel_columns<E>(call.texts) * static_cast<int64_t>(sizeof(typename E::Acc));
  };
  kernel.image_norms = &image_norms<E, In>;
  kernel.text_norms = &text_norms<E, In>;
  kernel.pack_caption = &pack_caption<E, In>;
  kernel.pack_pairs = &pack_pairs<E, In>;
  kernel.scores = &scores<E, In>;
  kernel.open_image = &open_image<E, In>;
  kernel.image_sums = &image_sums<E, In>;
  kernel.text_sums = &text_sums<E, In>;
  kernel.close_image = &close_image<E, In>;
  kernel.close_caption = &close_caption<E, In>;
  return kernel;
}

}  // namespace SPARC_ISA

SPARC_KERNELS(PooledKernel, pooled_kernel)

}  // namespace sparc
