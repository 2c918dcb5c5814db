// Launches of an op on pairs, between its *_cuda.cpp (checks, memory) and its .cu files, which define them by
// pairs/pair_launch.cuh.
#pragma once

#include <cuda_runtime_api.h>

#include "pairs/launch_plan.h"

namespace sparc {

// The pair path of the op that takes `Arguments`.
template <class Arguments>
struct PairPath {
  static int64_t shared_bytes(const PairInputs& in, const Streaming& streaming, bool backward);
  static cudaError_t launch(const Arguments& args, const LaunchPlan& plan, ProductKind products,
                            bool backward, cudaStream_t stream);
};

// Shared memory and scratch of one block of the tiled path, in bytes.
struct TiledNeeds {
  int64_t shared, scratch;
};

// Its tiled path.
template <class Arguments>
struct TiledPath {
  static TiledNeeds needs(const PairInputs& in, bool half_precision, bool backward);
  static cudaError_t launch(const Arguments& args, const LaunchPlan& plan, const TiledMemory& memory,
                            ProductKind products, bool backward, cudaStream_t stream);
};

}  // namespace sparc
