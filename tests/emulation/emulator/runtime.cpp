// A launch, and the functions of runtime.h for the one under way.
#include "runtime.h"

#include <stdexcept>
#include <utility>

#include "machine.h"

namespace sparc {
namespace emulation {
namespace {

Machine* running = nullptr;
Counts counts;

Machine& machine() {
  if (running == nullptr) throw std::logic_error("a device function was called outside of emulate()");
  return *running;
}

}  // namespace

void emulate(int64_t grid, int threads, size_t shared_bytes, const std::vector<ScratchRegion>& scratch,
             uint64_t seed, const std::function<void()>& kernel) {
  if (threads <= 0 || threads > 1024 || threads % kWarpSize != 0) {
    throw std::invalid_argument("emulate: threads must be a multiple of 32 up to 1024");
  }
  if (running != nullptr) throw std::logic_error("emulate: called by a kernel");
  struct Reset {
    ~Reset() { running = nullptr; }
  } reset;
  Machine launch(grid, threads, shared_bytes, scratch, seed, kernel, counts);
  running = &launch;
  launch.run();
}

Counts take_counts() { return std::exchange(counts, Counts()); }

int thread_index() { return machine().thread(); }
int64_t block_index() { return machine().block(); }
int64_t block_count() { return machine().grid(); }
void* shared_base() { return machine().shadow().shared_base(); }
void read_watched(const void* address, size_t bytes, size_t alignment, void* value) {
  machine().shadow().read(machine().thread(), address, bytes, alignment, value);
}
void write_watched(void* address, size_t bytes, size_t alignment, const void* value) {
  machine().shadow().write(machine().thread(), address, bytes, alignment, value);
}
void block_barrier() { machine().block_barrier(); }
void barrier(int number, int threads, bool waits) { machine().barrier(number, threads, waits); }
void warp_collective(Collective kind, LaneArguments& lane) { machine().warp_collective(kind, lane); }
void copy_async(void* shared, const void* global, int bytes) { machine().copy_async(shared, global, bytes); }
void copy_async_commit() { machine().copy_async_commit(); }
void copy_async_wait(int pending) { machine().copy_async_wait(pending); }
void fail_as_under_way() {
  machine().fail("uses c of a matrix instruction before the warpgroup_wait that completes it");
}
uint64_t panel_operand(const void* at, int panel_bytes) { return machine().panel_operand(at, panel_bytes); }
void async_proxy_fence() { machine().async_proxy_fence(); }
void warpgroup_fence() { machine().warpgroup_fence(); }

}  // namespace emulation
}  // namespace sparc
