// One launch with its error check, and the list of matrix products that there are.
#pragma once

#include "common/block.cuh"
#include "common/products.cuh"
#include "common/shared_limit.h"

namespace sparc {

#define SPARC_PRODUCTS(X)              \
  X(kBFloat16, HalfProducts<BFloat16>) \
  X(kFloat16, HalfProducts<Float16>)   \
  X(kTf32, Tf32Products)               \
  X(kFloat32, Float32Products)

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(void (*kernel)(Parameters...), int64_t grid, int64_t shared_bytes,
                          cudaStream_t stream, const Arguments&... arguments) {
  const cudaError_t status = allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
  if (status != cudaSuccess) return status;
  kernel<<<static_cast<unsigned>(grid), kThreads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace sparc
