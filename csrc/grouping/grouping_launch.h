// Launches of the grouping kernels: between grouping_cuda.cpp (checks, memory) and the .cu files.
#pragma once

#include "common/launch.h"
#include "grouping/grouping_cuda.h"

namespace sparc {

int64_t grouping_pair_shared_bytes(const PairInputs& in, const Streaming& streaming, bool backward);
cudaError_t launch_grouping_pair(const GroupingArguments& args, const LaunchPlan& plan, ProductKind products,
                                 bool backward, cudaStream_t stream);

TiledNeeds grouping_tiled_needs(const PairInputs& in, bool half_precision, bool backward);
cudaError_t launch_grouping_tiled(const GroupingArguments& args, const LaunchPlan& plan,
                                  const TiledMemory& memory, ProductKind products, bool backward,
                                  cudaStream_t stream);

}  // namespace sparc
