// Launches kernels on the host. Faults that are found: accesses to shared memory and scratch that race, leave
// their bounds or read what was never written; asynchronous copies that are used before they are waited for,
// or never waited for; barriers and warp collectives that not all threads reach, or that lanes of one warp
// reach at different places of the kernel, where a GPU may wait for ever; misaligned addresses; what
// warpgroups.h says of a warpgroup's matrix instructions. Lanes that reach one place in different rounds of a
// loop count as together.
// AddressSanitizer sees to global memory (arrays.h); races between threads or blocks on plain global pointers
// are not looked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "runtime.h"

namespace sparc {
namespace emulation {

// Global memory that a launch uses through scratch_at. Its bytes are poisoned during the launch (the contents
// lie in the emulator), so that nothing reads it past the Scratch pointers, and undefined after it.
struct ScratchRegion {
  void* base;
  size_t bytes;
};

// What kernels asked the machine for: instructions of a warp (a copy: of a thread), passes of a block.
struct Counts {
  int64_t block_barriers = 0, shuffles = 0, ballots = 0, matrix_loads = 0, multiply_adds = 0, copies = 0;
  int64_t warpgroup_multiply_adds = 0;
};
// Of all launches since it was last asked for.
Counts take_counts();

// Runs `kernel` once in every thread of `grid` blocks. The blocks run one after another; their order, and
// that of their threads between synchronisation points, is drawn from `seed`. Throws EmulationError at the
// first fault.
void emulate(int64_t grid, int threads, size_t shared_bytes, const std::vector<ScratchRegion>& scratch,
             uint64_t seed, const std::function<void()>& kernel);

}  // namespace emulation
}  // namespace sparc
