#include "machine.h"

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "collectives.h"

namespace sparc {
namespace emulation {
namespace {

constexpr int kBarriers = 16;  // of a block; the first is block_barrier's

const char* name_of(Collective kind) {
  switch (kind) {
    case Collective::kWarpBarrier:
      return "warp_barrier";
    case Collective::kArrive:
      return "a barrier's arrival";
    case Collective::kShuffle:
      return "shuffle";
    case Collective::kShuffleXor:
      return "shuffle_xor";
    case Collective::kBallot:
      return "ballot";
    case Collective::kLoadMatrices:
      return "load_matrices";
    case Collective::kLoadMatricesTransposed:
      return "load_matrices_transposed";
    case Collective::kMultiplyAddBf16:
      return "multiply_add_bf16";
    case Collective::kMultiplyAddF16:
      return "multiply_add_f16";
    case Collective::kMultiplyAddTf32:
      return "multiply_add_tf32";
    case Collective::kWarpgroupFence:
      return "warpgroup_fence";
    case Collective::kWarpgroupCommit:
      return "warpgroup_commit";
    case Collective::kWarpgroupWait:
      return "warpgroup_wait";
    case Collective::kWarpgroupMultiplyAdd:
      return "warpgroup_multiply_add";
    case Collective::kNone:
      break;
  }
  return "nothing";
}

}  // namespace

Machine::Machine(int64_t grid, int threads, size_t shared_bytes, const std::vector<ScratchRegion>& scratch,
                 uint64_t seed, const std::function<void()>& kernel, Counts& counts)
    : grid_(grid),
      kernel_(kernel),
      counts_(counts),
      shadow_(threads, shared_bytes),
      warpgroups_(threads, shadow_, places_),
      random_(seed),
      threads_(threads),
      warps_(threads / kWarpSize),
      barriers_(kBarriers) {
  for (const ScratchRegion& region : scratch) shadow_.add_scratch(region.base, region.bytes);
}

void Machine::run() {
  std::vector<int64_t> order(grid_);
  std::iota(order.begin(), order.end(), int64_t{0});
  for (size_t left = order.size(); left > 1; --left) std::swap(order[left - 1], order[draw(left)]);
  for (int thread = 0; thread < static_cast<int>(threads_.size()); ++thread) {
    threads_[thread].fiber = std::make_unique<Fiber>([this, thread] { body(thread); });
  }
  for (const int64_t block : order) {
    block_ = block;
    run_block();
    if (error_ == nullptr) continue;
    try {
      std::rethrow_exception(error_);
    } catch (const EmulationError& error) {
      throw EmulationError("block " + std::to_string(block) + ": " + error.what());
    }
  }
}

void Machine::run_block() {
  shadow_.start_block();
  warpgroups_.start_block();
  finished_ = 0;
  ready_.resize(threads_.size());
  std::iota(ready_.begin(), ready_.end(), 0);
  for (Warp& warp : warps_) warp.stopped = 0;
  for (Thread& thread : threads_) {
    thread.finished = false;
    thread.groups = 0;
  }
  // Every other way to a state that nobody leaves is caught where the last thread enters it.
  while (!ready_.empty() && error_ == nullptr) {
    std::swap(ready_[draw(ready_.size())], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    threads_[current_].fiber->resume();
  }
  if (error_ == nullptr) finish_block();
}

// What barriers of some threads leave behind.
void Machine::finish_block() {
  for (int number = 0; number < kBarriers; ++number) {
    const Barrier& barrier = barriers_[number];
    if (barrier.arrived == 0) continue;
    const std::string name = "barrier " + std::to_string(number);
    throw EmulationError("block " + std::to_string(block_) + ": " + std::to_string(barrier.arrived) +
                         " threads have arrived at " + name + " and no more come, " +
                         std::to_string(barrier.waiting.size()) + " of them wait (divergent barrier)");
  }
}

void Machine::body(int thread) {
  for (;;) {  // once per block
    try {
      kernel_();
      finish_thread();
    } catch (...) {
      error_ = std::current_exception();
    }
    // No exception may be in flight across a switch: the C++ runtime keeps them per thread of the host.
    threads_[thread].fiber->suspend();
  }
}

void Machine::finish_thread() {
  Thread& thread = threads_[current_];
  if (!thread.copies.empty()) {
    fail("ends with " + std::to_string(thread.copies.size()) +
         " copies that no copy_async_wait has completed");
  }
  Warp& warp = warps_[current_ / kWarpSize];
  if (warp.waiting > 0) {
    fail(std::string("ends while lanes of its warp wait at ") + name_of(warp.kind) +
         " (divergent collective)");
  }
  if (waiting_for_block_ > 0) {
    fail("ends while " + std::to_string(waiting_for_block_) +
         " threads wait at block_barrier (divergent barrier)");
  }
  warpgroups_.finish_thread(current_);
  thread.finished = true;
  ++warp.stopped;
  if (++finished_ == static_cast<int>(threads_.size())) warpgroups_.finish_block();
}

void Machine::block_barrier() {
  Warp& warp = warps_[current_ / kWarpSize];
  if (warp.waiting > 0) {
    fail(std::string("reaches block_barrier while lanes of its warp wait at ") + name_of(warp.kind) +
         " (divergent collective)");
  }
  if (finished_ > 0) {
    fail("reaches block_barrier after " + std::to_string(finished_) +
         " threads have ended (divergent barrier)");
  }
  stop_at("block_barrier");
  if (++waiting_for_block_ == static_cast<int>(threads_.size())) {
    waiting_for_block_ = 0;
    ++counts_.block_barriers;
    for (Thread& thread : threads_) thread.waits_at = nullptr;
    for (Warp& each : warps_) each.stopped = 0;
    shadow_.order_block();
    ready_.resize(threads_.size());
    std::iota(ready_.begin(), ready_.end(), 0);
  }
  suspend_current();
}

// The thread waits from now on. Warps may stand at different places: the instruction counts them, and asks
// for one place of the lanes of a warp only (PTX ISA, barrier.sync.aligned).
void Machine::stop_at(const char* barrier) {
  Warp& warp = warps_[current_ / kWarpSize];
  const bool first = warp.stopped == 0;
  const Place place = current_place(__builtin_frame_address(0), first, warp.place);
  if (first) warp.place = place;
  if (place != warp.place) {
    fail(std::string("reaches ") + barrier + places_.apart(place, warp.place) +
         " while lanes of its warp wait at " + barrier + places_.apart(warp.place, place) +
         " (divergent barrier)");
  }
  threads_[current_].waits_at = barrier;
  ++warp.stopped;
}

bool Machine::one_warpgroup(const std::vector<int>& threads) const {
  constexpr int kThreads = kWarpgroupWarps * kWarpSize;
  return threads.size() == kThreads && std::all_of(threads.begin(), threads.end(), [&](int thread) {
           return thread / kThreads == threads[0] / kThreads;
         });
}

// Orders the memory of a warpgroup that waits, its own and before it that of threads which have arrived
// without waiting; none else: less than the device's does.
void Machine::barrier(int number, int threads, bool waits) {
  if (number <= 0 || number >= kBarriers) fail("reaches barrier " + std::to_string(number) + ", not 1 to 15");
  const Warp& warp = warps_[current_ / kWarpSize];
  if (waits && warp.waiting > 0) {  // lanes that arrive have met before
    fail("reaches barrier " + std::to_string(number) + " while lanes of its warp wait at " +
         name_of(warp.kind) + " (divergent collective)");
  }
  Barrier& barrier = barriers_[number];
  if (waits) {
    stop_at("a barrier");
    barrier.waiting.push_back(current_);
  } else {
    barrier.gone_on.emplace_back(current_, shadow_.advance());
  }
  if (++barrier.arrived == threads) {
    if (one_warpgroup(barrier.waiting)) {
      const int group = barrier.waiting[0] / kWarpSize / kWarpgroupWarps;
      shadow_.order_warpgroup(group);
      for (const auto& [thread, clock] : barrier.gone_on) shadow_.order_before(thread, clock, group);
    }
    for (const int thread : barrier.waiting) {
      threads_[thread].waits_at = nullptr;
      --warps_[thread / kWarpSize].stopped;
      ready_.push_back(thread);
    }
    barrier = Barrier();
  }
  if (waits) suspend_current();
}

void Machine::warp_collective(Collective kind, LaneArguments& lane) {
  const int index = current_ / kWarpSize;
  Warp& warp = warps_[index];
  const bool first = warp.waiting == 0;
  const Place place = current_place(__builtin_frame_address(0), first, warp.place);
  if (first) {
    warp.kind = kind;
    warp.place = place;
  } else if (warp.kind != kind || warp.place != place) {
    fail(std::string("reaches ") + name_of(kind) + places_.apart(place, warp.place) +
         " while lanes of its warp wait at " + name_of(warp.kind) + places_.apart(warp.place, place) +
         " (divergent collective)");
  }
  for (int thread = index * kWarpSize; warp.stopped > 0 && thread < (index + 1) * kWarpSize; ++thread) {
    if (!threads_[thread].finished && threads_[thread].waits_at == nullptr) continue;
    fail(std::string("reaches ") + name_of(kind) + " but " + name_thread(thread) +
         (threads_[thread].finished ? " has ended" : std::string(" waits at ") + threads_[thread].waits_at) +
         " (divergent collective)");
  }
  warp.lanes[current_ % kWarpSize] = &lane;
  if (++warp.waiting == kWarpSize) {
    warp.waiting = 0;
    complete(index);
    for (int i = 0; i < kWarpSize; ++i) ready_.push_back(index * kWarpSize + i);
  }
  suspend_current();
}

void Machine::complete(int index) {
  Warp& warp = warps_[index];
  switch (warp.kind) {
    case Collective::kNone:
    case Collective::kArrive:
      break;
    case Collective::kWarpBarrier:
      shadow_.order_warp(index);
      break;
    case Collective::kShuffle:
    case Collective::kShuffleXor:
    case Collective::kBallot:
      ++(warp.kind == Collective::kBallot ? counts_.ballots : counts_.shuffles);
      exchange(warp.kind, warp.lanes);
      break;
    case Collective::kLoadMatrices:
    case Collective::kLoadMatricesTransposed: {
      ++counts_.matrix_loads;
      uint16_t rows[kWarpSize][8];
      for (int lane = 0; lane < kWarpSize; ++lane) {
        shadow_.read_row(index * kWarpSize + lane, warp.lanes[lane]->row, rows[lane]);
      }
      distribute_matrices(warp.kind == Collective::kLoadMatricesTransposed, rows, warp.lanes);
      break;
    }
    case Collective::kMultiplyAddBf16:
    case Collective::kMultiplyAddF16:
    case Collective::kMultiplyAddTf32:
      ++counts_.multiply_adds;
      multiply_add(warp.kind, warp.lanes);
      break;
    case Collective::kWarpgroupMultiplyAdd:
      ++counts_.warpgroup_multiply_adds;
      warpgroups_.complete(warp.kind, warp.place, index, warp.lanes);
      break;
    case Collective::kWarpgroupFence:
    case Collective::kWarpgroupCommit:
    case Collective::kWarpgroupWait:
      warpgroups_.complete(warp.kind, warp.place, index, warp.lanes);
      break;
  }
}

void Machine::copy_async(void* shared, const void* global, int bytes) {
  if (bytes < 0 || bytes > 16) fail("calls copy_async with " + std::to_string(bytes) + " bytes, not 0 to 16");
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fail("calls copy_async with a misaligned global address");
  Copy copy = {threads_[current_].groups, shared, global, bytes, false, {}};
  if (bytes > 0) {
    copy.source_in_scratch = shadow_.read_if_scratch(current_, global, bytes, copy.value);
    if (!copy.source_in_scratch) {
      if (__asan_region_is_poisoned(const_cast<void*>(global), bytes) != nullptr) {
        fail("calls copy_async whose source is out of bounds: " + std::to_string(bytes) +
             " bytes of global memory");
      }
      std::memcpy(copy.value, global, bytes);
    }
  }
  ++counts_.copies;
  shadow_.claim(current_, shared);
  threads_[current_].copies.push_back(copy);
}

void Machine::copy_async_commit() { ++threads_[current_].groups; }

void Machine::copy_async_wait(int pending) {
  Thread& thread = threads_[current_];
  const int64_t complete_below = thread.groups - pending;
  auto copy = thread.copies.begin();
  for (; copy != thread.copies.end() && copy->group < complete_below; ++copy) {
    if (copy->source_in_scratch) {  // the device may have read it at any time until now
      unsigned char value[16] = {};
      shadow_.read_if_scratch(current_, copy->source, copy->bytes, value);
      if (std::memcmp(value, copy->value, sizeof(value)) != 0) {
        fail("waits for a copy_async whose source in scratch was changed in the meantime");
      }
    }
    shadow_.complete(current_, copy->destination, copy->value);
  }
  thread.copies.erase(thread.copies.begin(), copy);
}

uint64_t Machine::panel_operand(const void* at, int panel_bytes) {
  const uint64_t offset = shadow_.operand_offset(current_, at);
  return offset >> 4 | static_cast<uint64_t>(panel_bytes >> 4) << 16 | uint64_t{1024 >> 4} << 32 |
         uint64_t{1} << 62;
}

void Machine::warpgroup_fence() {
  LaneArguments lane;
  warpgroups_.remember_registers(current_, &lane, threads_[current_].fiber->stack_end());
  warp_collective(Collective::kWarpgroupFence, lane);
}

// The place from which the function of this frame was called, remembered where a message may have to name it.
Place Machine::current_place(const void* frame, bool first, Place others) {
  const void* stack_end = threads_[current_].fiber->stack_end();
  const Place place = place_of(frame, stack_end);
  if (first || place != others) places_.remember(place, frame, stack_end);
  return place;
}

void Machine::suspend_current() { threads_[current_].fiber->suspend(); }

size_t Machine::draw(size_t count) { return random_() % count; }

void Machine::fail(const std::string& what) const {
  throw EmulationError(name_thread(current_) + " " + what);
}

}  // namespace emulation
}  // namespace sparc
