// What the emulated functions of csrc/common/device.cuh ask of the emulator: every call is made by a fiber
// that runs as one thread of the emulated block. A mistake of the kernel is thrown as an EmulationError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace sparc {
namespace emulation {

class EmulationError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

constexpr int kWarpSize = 32;
constexpr int kWarpgroupWarps = 4;

// What the lanes of a warp can wait for together. Lanes that wait for different kinds never meet.
enum class Collective {
  kNone,
  kWarpBarrier,
  kArrive,  // at a barrier, of a warp that does not wait
  kShuffle,
  kShuffleXor,
  kBallot,
  kLoadMatrices,
  kLoadMatricesTransposed,
  kMultiplyAddBf16,
  kMultiplyAddF16,
  kMultiplyAddTf32,
  kWarpgroupFence,
  kWarpgroupCommit,
  kWarpgroupWait,
  kWarpgroupMultiplyAdd,
};

// One thread's part of a matrix instruction of a warpgroup (csrc/common/warpgroup.cuh).
struct WarpgroupProduct {
  float* c = nullptr;  // [columns / 2]
  int columns = 0;
  bool is_bf16 = false;
  const uint32_t* a_registers = nullptr;  // [4], or null: a lies in shared memory
  uint64_t a = 0;
  uint64_t b = 0;
  bool transposed_a = false;
  bool transposed_b = false;
  bool add = true;  // to c, else to zeros
};

// What one lane brings to a collective, and where it wants the result. The fields that a kind does not use
// stay null.
struct LaneArguments {
  uint32_t value = 0;  // shuffles: the value, replaced by the result; ballot: the predicate and the mask
  int selector = 0;    // shuffles: the lane or the mask; warpgroup_wait: the groups that may be left
  const void* row = nullptr;    // load_matrices
  uint32_t* r = nullptr;        // load_matrices [4]
  float* c = nullptr;           // multiply_add [4]
  const uint32_t* a = nullptr;  // multiply_add [4]
  const uint32_t* b = nullptr;  // multiply_add [2]
  const WarpgroupProduct* product = nullptr;
};

int thread_index();
int64_t block_index();
int64_t block_count();

// The start of the block's dynamic shared memory. The address is good for arithmetic only: the bytes behind
// it are poisoned, the contents lie elsewhere.
void* shared_base();

// Accesses by the current thread to shared memory or to scratch.
void read_watched(const void* address, size_t bytes, size_t alignment, void* value);
void write_watched(void* address, size_t bytes, size_t alignment, const void* value);

void block_barrier();
// A barrier of so many threads, by its number; one that does not wait goes on when it has arrived.
void barrier(int number, int threads, bool waits);
void warp_collective(Collective kind, LaneArguments& lane);

void copy_async(void* shared, const void* global, int bytes);
void copy_async_commit();
void copy_async_wait(int pending);

// What lies in registers to which a warpgroup's matrix instructions under way will add: a NaN that arithmetic
// passes on.
constexpr uint32_t kUnderWay = 0x7FE5C0DEu;
[[noreturn]] void fail_as_under_way();

// The descriptor, with offsets in the block's shared memory as addresses.
uint64_t panel_operand(const void* at, int panel_bytes);
void async_proxy_fence();
void warpgroup_fence();

}  // namespace emulation
}  // namespace sparc
