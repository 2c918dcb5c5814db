// One launch: the fibers of a block, what they wait for, their copies under way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "emulator.h"
#include "fibers.h"
#include "places.h"
#include "runtime.h"
#include "shadow.h"
#include "warpgroups.h"

namespace sparc {
namespace emulation {

class Machine {
 public:
  // `counts` are added to.
  Machine(int64_t grid, int threads, size_t shared_bytes, const std::vector<ScratchRegion>& scratch,
          uint64_t seed, const std::function<void()>& kernel, Counts& counts);

  void run();

  // Called by fibers.
  int thread() const { return current_; }
  int64_t block() const { return block_; }
  int64_t grid() const { return grid_; }
  Shadow& shadow() { return shadow_; }
  void block_barrier();
  void barrier(int number, int threads, bool waits);
  void warp_collective(Collective kind, LaneArguments& lane);
  void copy_async(void* shared, const void* global, int bytes);
  void copy_async_commit();
  void copy_async_wait(int pending);
  uint64_t panel_operand(const void* at, int panel_bytes);
  void async_proxy_fence() { shadow_.fence_proxy(current_); }
  void warpgroup_fence();
  [[noreturn]] void fail(const std::string& what) const;

 private:
  struct Copy {
    int64_t group;
    void* destination;
    const void* source;
    int bytes;
    bool source_in_scratch;
    unsigned char value[16];
  };
  struct Thread {
    std::unique_ptr<Fiber> fiber;
    const char* waits_at = nullptr;  // a barrier
    bool finished = false;
    int64_t groups = 0;  // committed
    std::vector<Copy> copies;
  };
  struct Barrier {  // of some threads
    int arrived = 0;
    std::vector<int> waiting;
    std::vector<std::pair<int, uint32_t>>
        gone_on;  // threads that do not wait, with the time of their arrival
  };
  struct Warp {
    Collective kind = Collective::kNone;  // what its lanes wait for
    Place place = 0;                      // and where; or where they wait at a barrier
    int waiting = 0;
    int stopped = 0;  // lanes that have ended or wait at a barrier
    LaneArguments* lanes[kWarpSize] = {};
  };

  void run_block();
  void body(int thread);
  void finish_thread();
  void finish_block();
  void stop_at(const char* barrier);
  bool one_warpgroup(const std::vector<int>& threads) const;
  void complete(int warp);
  Place current_place(const void* frame, bool first, Place others);
  void suspend_current();
  size_t draw(size_t count);

  int64_t grid_;
  const std::function<void()>& kernel_;
  Counts& counts_;
  Shadow shadow_;
  Places places_;
  Warpgroups warpgroups_;
  std::mt19937_64 random_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::vector<Barrier> barriers_;
  std::vector<int> ready_;
  int current_ = 0;
  int64_t block_ = 0;
  int waiting_for_block_ = 0;
  int finished_ = 0;
  std::exception_ptr error_;
};

}  // namespace emulation
}  // namespace sparc
