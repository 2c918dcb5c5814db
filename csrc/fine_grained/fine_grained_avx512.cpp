#include "common/isa/detect.h"

#if defined(SPARC_X86_ISAS)
#include "common/isa/avx512.h"
#include "fine_grained/fine_grained_backward.h"
#include "fine_grained/fine_grained_set.h"
#endif
