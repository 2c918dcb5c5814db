#include "common/isa/baseline.h"
#include "common/isa/detect.h"
#include "fine_grained/fine_grained_backward.h"
#include "fine_grained/fine_grained_set.h"
