// The sweep over all pairs by products of warpgroups: instances and launches. Compiled for sm_90a alone.
#include "common/launch.cuh"
#include "contrastive/contrastive_launch.h"
#include "contrastive/contrastive_sweep.cuh"

namespace sparc {

template <class E, int kN>
__global__ void __launch_bounds__(kThreads, 1)
    contrastive_sweep_kernel(const __grid_constant__ SweepArguments args,
                             const __grid_constant__ SweepLayout layout) {
  sweep_softplus<E, kN>(args, layout);
}

bool sweep_fits(int channels, int columns) { return SweepLayout(channels, columns).fits(); }

cudaError_t launch_sweep(const SweepArguments& args, int columns, bool bfloat16, cudaStream_t stream) {
  const SweepLayout layout(args.channels, columns);
  const int64_t grid = static_cast<int64_t>(args.chunks) * args.runs;
#define SPARC_LAUNCH(columns_)                                                   \
  if (columns == columns_) {                                                     \
    const auto kernel = bfloat16 ? &contrastive_sweep_kernel<BFloat16, columns_> \
                                 : &contrastive_sweep_kernel<Float16, columns_>; \
    return launch_kernel(kernel, grid, layout.used, stream, args, layout);       \
  }
  SPARC_SWEEP_COLUMNS(SPARC_LAUNCH)
#undef SPARC_LAUNCH
  return cudaErrorInvalidValue;
}

}  // namespace sparc
