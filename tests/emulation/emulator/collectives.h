// What warp collectives compute, lane by lane, after the fragment layouts of the PTX ISA.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace sparc {
namespace emulation {

// Arguments of the 32 lanes.
using WarpArguments = LaneArguments* const[kWarpSize];

// shuffle, shuffle_xor and ballot: `value` of every lane becomes its result.
void exchange(Collective kind, WarpArguments& lanes);

// `rows` holds what the 32 row addresses point to, 8 elements each.
void distribute_matrices(bool transposed, const uint16_t (&rows)[kWarpSize][8], WarpArguments& lanes);

void multiply_add(Collective kind, WarpArguments& lanes);

}  // namespace emulation
}  // namespace sparc
