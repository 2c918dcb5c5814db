// Instances and launches of an op on pairs, from its PairOp and TiledOp.
#pragma once

#include "common/launch.cuh"
#include "pairs/pair_launch.h"
#include "pairs/pair_pass.cuh"
#include "pairs/tiled_pair.cuh"

namespace sparc {

template <class Arguments, class E, int kStrips, int kChunk, bool kBackward>
__global__ void __launch_bounds__(kThreads, kPairBlocksPerMultiprocessor)
    pair_kernel(const __grid_constant__ Arguments args, const __grid_constant__ Streaming streaming,
                const __grid_constant__ typename PairOp<Arguments>::template Layout<E, kChunk> layout) {
  PairOp<Arguments>::template run<E, kStrips, kChunk, kBackward>(args, streaming, layout);
}

template <class Arguments, class Products, bool kBackward>
__global__ void __launch_bounds__(kThreads, kTiledBlocksPerMultiprocessor) tiled_kernel(
    const __grid_constant__ Arguments args, const __grid_constant__ TiledMemory memory,
    const __grid_constant__ typename TiledOp<Arguments>::template Layout<typename Products::Element> layout) {
  TiledOp<Arguments>::template run<Products, kBackward>(args, memory, layout);
}

template <class Arguments>
int64_t PairPath<Arguments>::shared_bytes(const PairInputs& in, const Streaming& streaming, bool backward) {
  return pair_layout_bytes<Arguments, BFloat16>(in, streaming, backward);  // float16 is as wide
}

template <class E, class Arguments>
cudaError_t launch_pair_path(const Arguments& args, const LaunchPlan& plan, bool backward,
                             cudaStream_t stream) {
#define SPARC_LAUNCH(strips_, chunk_)                                                                        \
  if (plan.pair.strips == strips_ && plan.pair.streaming.chunk == chunk_) {                                  \
    const typename PairOp<Arguments>::template Layout<E, chunk_> layout(args.in, plan.pair.streaming,        \
                                                                        backward);                           \
    return launch_kernel(backward ? &pair_kernel<Arguments, E, strips_, chunk_, true>                        \
                                  : &pair_kernel<Arguments, E, strips_, chunk_, false>,                      \
                         plan.pair.grid, plan.pair.shared_bytes, stream, args, plan.pair.streaming, layout); \
  }
  SPARC_PAIR_INSTANCES(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

template <class Arguments>
cudaError_t PairPath<Arguments>::launch(const Arguments& args, const LaunchPlan& plan, ProductKind products,
                                        bool backward, cudaStream_t stream) {
  if (products == ProductKind::kBFloat16) return launch_pair_path<BFloat16>(args, plan, backward, stream);
  if (products == ProductKind::kFloat16) return launch_pair_path<Float16>(args, plan, backward, stream);
  return cudaErrorInvalidValue;
}

template <class Arguments>
TiledNeeds TiledPath<Arguments>::needs(const PairInputs& in, bool half_precision, bool backward) {
  if (half_precision) {
    return {TiledLayout<BFloat16>::kBytes,
            typename TiledOp<Arguments>::template Layout<BFloat16>(in, backward).plan.used};
  }
  return {TiledLayout<float>::kBytes,
          typename TiledOp<Arguments>::template Layout<float>(in, backward).plan.used};
}

template <class Arguments>
cudaError_t TiledPath<Arguments>::launch(const Arguments& args, const LaunchPlan& plan,
                                         const TiledMemory& memory, ProductKind products, bool backward,
                                         cudaStream_t stream) {
#define SPARC_LAUNCH(kind_, Products_)                                                                     \
  if (products == ProductKind::kind_) {                                                                    \
    const typename TiledOp<Arguments>::template Layout<typename Products_::Element> layout(args.in,        \
                                                                                           backward);      \
    return launch_kernel(                                                                                  \
        backward ? &tiled_kernel<Arguments, Products_, true> : &tiled_kernel<Arguments, Products_, false>, \
        plan.tiled.grid, plan.tiled.shared_bytes, stream, args, memory, layout);                           \
  }
  SPARC_PRODUCTS(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace sparc
