// Grouped embeddings and alignment weights on CUDA, pair path: instances and launches.
#include "common/launch.cuh"
#include "grouping/grouping_launch.h"
#include "grouping/grouping_pair_kernel.cuh"

namespace sparc {
namespace {

template <class E, int kUnits, bool kBackward>
__global__ void __launch_bounds__(kThreads, kPairBlocksPerMultiprocessor)
    grouping_pair_kernel(const __grid_constant__ GroupingArguments args,
                         const __grid_constant__ Streaming streaming,
                         const __grid_constant__ GroupingShared<E> shared) {
  grouping_pair<E, kUnits, kBackward>(args, streaming, shared);
}

template <class E>
cudaError_t launch_with(const GroupingArguments& args, const LaunchPlan& plan, bool backward,
                        cudaStream_t stream) {
  const GroupingShared<E> shared(args.in, plan.pair.streaming, backward);
#define SPARC_LAUNCH(units_)                                                                         \
  if (plan.pair.units == units_) {                                                                   \
    return launch(                                                                                   \
        backward ? &grouping_pair_kernel<E, units_, true> : &grouping_pair_kernel<E, units_, false>, \
        plan.pair.grid, plan.pair.shared_bytes, stream, args, plan.pair.streaming, shared);          \
  }
  SPARC_PAIR_UNITS(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t grouping_pair_shared_bytes(const PairInputs& in, const Streaming& streaming, bool backward) {
  return GroupingShared<BFloat16>(in, streaming, backward).plan.used;  // float16 is as wide
}

cudaError_t launch_grouping_pair(const GroupingArguments& args, const LaunchPlan& plan, ProductKind products,
                                 bool backward, cudaStream_t stream) {
  if (products == ProductKind::kBFloat16) return launch_with<BFloat16>(args, plan, backward, stream);
  if (products == ProductKind::kFloat16) return launch_with<Float16>(args, plan, backward, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sparc
