// Maxima of late interaction by products of warpgroups: instances and launches. Compiled for sm_90a alone.
#include "common/launch.cuh"
#include "late_interaction/late_interaction_launch.h"
#include "late_interaction/late_interaction_maxima.cuh"

namespace sparc {

template <class E, int kN>
__global__ void __launch_bounds__(kThreads, 1)
    late_interaction_maxima_kernel(const __grid_constant__ MaximaArguments args,
                                   const __grid_constant__ MaximaLayout layout) {
  find_maxima<E, kN>(args, layout);
}

bool maxima_fit(int channels, int columns) { return MaximaLayout(channels, columns).fits(); }

cudaError_t launch_maxima(const MaximaArguments& args, int columns, bool bfloat16, int64_t images,
                          cudaStream_t stream) {
  const MaximaLayout layout(args.channels, columns);
  const int64_t grid = images * args.chunks * args.runs;
#define SPARC_LAUNCH(columns_)                                                         \
  if (columns == columns_) {                                                           \
    const auto kernel = bfloat16 ? &late_interaction_maxima_kernel<BFloat16, columns_> \
                                 : &late_interaction_maxima_kernel<Float16, columns_>; \
    return launch_kernel(kernel, grid, layout.used, stream, args, layout);             \
  }
  SPARC_MAXIMA_COLUMNS(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace sparc
