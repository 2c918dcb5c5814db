// Instances and launches of an op's pair path by products of warpgroups, from its WarpgroupOp. Compiled for
// sm_90a alone.
#pragma once

#include "common/launch.cuh"
#include "pairs/pair_launch.h"
#include "pairs/warpgroup_tile.cuh"

namespace sparc {

template <class Arguments, class E, int kStrips, bool kBackward>
__global__ void __launch_bounds__(kThreads, warpgroup_instance(32 * kStrips).blocks)
    warpgroup_kernel(const __grid_constant__ Arguments args, const __grid_constant__ Streaming streaming,
                     const __grid_constant__ typename WarpgroupOp<Arguments>::template Layout<E> layout) {
  WarpgroupOp<Arguments>::template run<E, kStrips, kBackward>(args, streaming, layout);
}

template <class Arguments>
int64_t WarpgroupPath<Arguments>::shared_bytes(const PairInputs& in, const Streaming& streaming,
                                               bool backward) {
  using Layout = typename WarpgroupOp<Arguments>::template Layout<BFloat16>;  // float16 is as wide
  return Layout(in, streaming, backward).plan.used;
}

template <bool kBackward, class E, class Arguments>
cudaError_t launch_warpgroup_path(const Arguments& args, const LaunchPlan& plan, cudaStream_t stream) {
  const typename WarpgroupOp<Arguments>::template Layout<E> layout(args.in, plan.pair.streaming, kBackward);
#define SPARC_LAUNCH(strips_, blocks_)                                                        \
  if (plan.pair.strips == strips_) {                                                          \
    return launch_kernel(&warpgroup_kernel<Arguments, E, strips_, kBackward>, plan.pair.grid, \
                         plan.pair.shared_bytes, stream, args, plan.pair.streaming, layout);  \
  }
  SPARC_WARPGROUP_INSTANCES(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

template <class Arguments>
cudaError_t WarpgroupPath<Arguments>::launch(const Arguments& args, const LaunchPlan& plan,
                                             ProductKind products, bool backward, cudaStream_t stream) {
  using Passes = WarpgroupPasses<Arguments>;
#define SPARC_LAUNCH(has_, backward_, kind_, E_)                       \
  if constexpr (Passes::has_) {                                        \
    if (backward == backward_ && products == ProductKind::kind_) {     \
      return launch_warpgroup_path<backward_, E_>(args, plan, stream); \
    }                                                                  \
  }
  SPARC_LAUNCH(kForward, false, kBFloat16, BFloat16)
  SPARC_LAUNCH(kForward, false, kFloat16, Float16)
  SPARC_LAUNCH(kBackward, true, kBFloat16, BFloat16)
  SPARC_LAUNCH(kBackward, true, kFloat16, Float16)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace sparc
