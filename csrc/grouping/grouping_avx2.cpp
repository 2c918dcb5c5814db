#include "common/isa/detect.h"

#if defined(SPARC_X86_ISAS)
#include "common/isa/avx2.h"
#include "grouping/grouping_pair.h"
#include "grouping/grouping_set.h"
#endif
