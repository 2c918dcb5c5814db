// Launches of the fine-grained kernels: between fine_grained_cuda.cpp (checks, memory) and the .cu files.
#pragma once

#include "common/launch.h"
#include "fine_grained/fine_grained_cuda.h"

namespace sparc {

int64_t fine_grained_pair_shared_bytes(const PairInputs& in, const Streaming& streaming, bool backward);
cudaError_t launch_fine_grained_pair(const FineGrainedArguments& args, const LaunchPlan& plan,
                                     ProductKind products, bool backward, cudaStream_t stream);

TiledNeeds fine_grained_tiled_needs(const PairInputs& in, bool half_precision, bool backward);
cudaError_t launch_fine_grained_tiled(const FineGrainedArguments& args, const LaunchPlan& plan,
                                      const TiledMemory& memory, ProductKind products, bool backward,
                                      cudaStream_t stream);

}  // namespace sparc
