#include "common/isa/detect.h"

#if defined(SPARC_X86_ISAS)
#include "common/isa/avx512_bf16.h"
#include "grouping/grouping_pair.h"

namespace sparc {
namespace avx512_bf16 {
GroupingKernel grouping_bfloat16() { return grouping_kernel<Bf16Engine, Bf16>(); }
}  // namespace avx512_bf16
}  // namespace sparc
#endif
