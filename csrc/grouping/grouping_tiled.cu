// Grouped embeddings and alignment weights on CUDA, tiled path: instances and launches.
#include "common/launch.cuh"
#include "grouping/grouping_launch.h"
#include "grouping/grouping_tiled_kernel.cuh"

namespace sparc {
namespace {

template <class Products, bool kBackward>
__global__ void __launch_bounds__(kThreads, kTiledBlocksPerMultiprocessor)
    grouping_tiled_kernel(const __grid_constant__ GroupingArguments args,
                          const __grid_constant__ TiledMemory memory) {
  grouping_tiled<Products, kBackward>(args, memory);
}

template <class E>
int64_t scratch_bytes(const PairInputs& in, bool backward) {
  return GroupingScratch<E>(in, backward).plan.used;
}

}  // namespace

TiledNeeds grouping_tiled_needs(const PairInputs& in, bool half_precision, bool backward) {
  return half_precision ? TiledNeeds{TiledShared<BFloat16>::kBytes, scratch_bytes<BFloat16>(in, backward)}
                        : TiledNeeds{TiledShared<float>::kBytes, scratch_bytes<float>(in, backward)};
}

cudaError_t launch_grouping_tiled(const GroupingArguments& args, const LaunchPlan& plan,
                                  const TiledMemory& memory, ProductKind products, bool backward,
                                  cudaStream_t stream) {
#define SPARC_LAUNCH(kind_, Products_)                                                                 \
  if (products == ProductKind::kind_) {                                                                \
    return launch(                                                                                     \
        backward ? &grouping_tiled_kernel<Products_, true> : &grouping_tiled_kernel<Products_, false>, \
        plan.tiled.grid, plan.tiled.shared_bytes, stream, args, memory);                               \
  }
  SPARC_PRODUCTS(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace sparc
