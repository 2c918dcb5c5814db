// The launch of the sweep over all pairs by products of warpgroups.
#pragma once

#include <cuda_runtime_api.h>

#include "contrastive/contrastive_sweep.h"

namespace sparc {

// Whether so many columns fit shared memory beside what is needed of rows.
bool sweep_fits(int channels, int columns);

// `columns`: one of SPARC_SWEEP_COLUMNS that fits.
cudaError_t launch_sweep(const SweepArguments& args, int columns, bool bfloat16, cudaStream_t stream);

}  // namespace sparc
