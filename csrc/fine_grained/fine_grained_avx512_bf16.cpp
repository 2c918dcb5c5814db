#include "common/isa/detect.h"

#if defined(SPARC_X86_ISAS)
#include "common/isa/avx512_bf16.h"
#include "fine_grained/fine_grained_backward.h"

namespace sparc {
namespace avx512_bf16 {
FineGrainedKernel fine_grained_bfloat16() { return fine_grained_kernel<Bf16Engine, Bf16>(); }
}  // namespace avx512_bf16
}  // namespace sparc
#endif
