// How much dynamic shared memory kernels may be launched with.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

namespace sparc {

// Lets a kernel be launched with so much shared memory on the current device. The limit belongs to the
// kernel, not to a launch: were it set to what each launch needs, another thread could lower it in between.
// So it is raised once, to the most that the device allows.
inline cudaError_t allow_shared_memory(const void* kernel, int64_t bytes) {
  constexpr int64_t kWithoutAsking = 48 << 10;
  if (bytes <= kWithoutAsking) return cudaSuccess;
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> raised;

  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  const std::lock_guard<std::mutex> lock(mutex);
  if (raised.count({kernel, device})) return cudaSuccess;
  int most = 0;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (status == cudaSuccess) raised.insert({kernel, device});
  return status;
}

}  // namespace sparc
