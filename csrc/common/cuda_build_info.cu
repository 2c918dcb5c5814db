#include "common/cuda_build_info.h"

namespace sparc {
namespace {

__global__ void build_info_kernel(int32_t* out) {
#if defined(__CUDA_ARCH__)
  out[0] = __CUDA_ARCH__;
  out[1] = warpSize;
#endif
}

}  // namespace

cudaError_t find_code() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, build_info_kernel);
}

cudaError_t launch_build_info(int32_t* out, cudaStream_t stream) {
  build_info_kernel<<<1, 1, 0, stream>>>(out);
  return cudaGetLastError();
}

}  // namespace sparc
