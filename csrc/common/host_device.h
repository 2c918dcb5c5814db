// Functions that kernels and the host both call, in sources of nvcc and of a C++ compiler alone.
#pragma once

#if defined(__CUDACC__)
#define SPARC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SPARC_HOST_DEVICE inline
#endif
