// A kernel that reports what it was compiled for: proof that the CUDA half was built for, and runs on, a
// given device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace sparc {

// Loads the kernel for the current device: fails where the driver is too old or the library holds no code
// for the device.
cudaError_t find_code();

// out [2] int32 on the device: the architecture that the running code was compiled for (900 for sm_90), the
// warp size.
cudaError_t launch_build_info(int32_t* out, cudaStream_t stream);

}  // namespace sparc
