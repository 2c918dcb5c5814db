// The launch of late interaction's maxima by products of warpgroups.
#pragma once

#include <cuda_runtime_api.h>

#include "late_interaction/late_interaction_maxima.h"

namespace sparc {

// Whether the patches of so many columns fit shared memory beside what is needed of tokens.
bool maxima_fit(int channels, int columns);

// `columns`: one of SPARC_MAXIMA_COLUMNS that fits.
cudaError_t launch_maxima(const MaximaArguments& args, int columns, bool bfloat16, int64_t images,
                          cudaStream_t stream);

}  // namespace sparc
