// Launches of an op on pairs, for its *_cuda.cpp; its .cu files define them by pairs/pair_launch.cuh.
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

// The same by products of warpgroups, for ops with WarpgroupPasses; in builds for compute capability 9.0
// (kWarpgroupsBuilt), by pairs/warpgroup_launch.cuh.
template <class Arguments>
struct WarpgroupPath {
  static int64_t shared_bytes(const PairInputs& in, const Streaming& streaming, bool backward);
  static cudaError_t launch(const Arguments& args, const LaunchPlan& plan, ProductKind products,
                            bool backward, cudaStream_t stream);
};

#if defined(SPARC_WARPGROUPS)
constexpr bool kWarpgroupsBuilt = true;
#else
constexpr bool kWarpgroupsBuilt = false;
#endif

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
