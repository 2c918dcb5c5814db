// The fine-grained loss on CUDA, pair path: instances and launches.
#include "common/launch.cuh"
#include "fine_grained/fine_grained_launch.h"
#include "fine_grained/fine_grained_pair_backward.cuh"

namespace sparc {
namespace {

template <class E, int kUnits>
__global__ void __launch_bounds__(kThreads, kPairBlocksPerMultiprocessor)
    fine_grained_pair_forward_kernel(const __grid_constant__ FineGrainedArguments args,
                                     const __grid_constant__ Streaming streaming,
                                     const __grid_constant__ FineGrainedShared<E> shared) {
  fine_grained_pair_forward<E, kUnits>(args, streaming, shared);
}

template <class E, int kUnits>
__global__ void __launch_bounds__(kThreads, kPairBlocksPerMultiprocessor)
    fine_grained_pair_backward_kernel(const __grid_constant__ FineGrainedArguments args,
                                      const __grid_constant__ Streaming streaming,
                                      const __grid_constant__ FineGrainedShared<E> shared) {
  fine_grained_pair_backward<E, kUnits>(args, streaming, shared);
}

template <class E>
cudaError_t launch_with(const FineGrainedArguments& args, const LaunchPlan& plan, bool backward,
                        cudaStream_t stream) {
  const FineGrainedShared<E> shared(args.in, plan.pair.streaming, backward);
#define SPARC_LAUNCH(units_)                                                                          \
  if (plan.pair.units == units_) {                                                                    \
    return launch(backward ? &fine_grained_pair_backward_kernel<E, units_>                            \
                           : &fine_grained_pair_forward_kernel<E, units_>,                            \
                  plan.pair.grid, plan.pair.shared_bytes, stream, args, plan.pair.streaming, shared); \
  }
  SPARC_PAIR_UNITS(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t fine_grained_pair_shared_bytes(const PairInputs& in, const Streaming& streaming, bool backward) {
  return FineGrainedShared<BFloat16>(in, streaming, backward).plan.used;  // float16 is as wide
}

cudaError_t launch_fine_grained_pair(const FineGrainedArguments& args, const LaunchPlan& plan,
                                     ProductKind products, bool backward, cudaStream_t stream) {
  if (products == ProductKind::kBFloat16) return launch_with<BFloat16>(args, plan, backward, stream);
  if (products == ProductKind::kFloat16) return launch_with<Float16>(args, plan, backward, stream);
  return cudaErrorInvalidValue;
}

}  // namespace sparc
