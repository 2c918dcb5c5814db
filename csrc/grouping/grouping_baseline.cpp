#include "common/isa/baseline.h"
#include "common/isa/detect.h"
#include "grouping/grouping_pair.h"
#include "grouping/grouping_set.h"
