// What launches need on the host.
#pragma once

#include <cuda_runtime_api.h>

#include "pairs/launch_plan.h"

namespace sparc {

// Which matrix products a call computes with.
enum class ProductKind { kBFloat16, kFloat16, kTf32, kFloat32 };

// Shared memory and scratch of one block of the tiled path, in bytes.
struct TiledNeeds {
  int64_t shared, scratch;
};

}  // namespace sparc
