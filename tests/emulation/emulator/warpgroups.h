// Matrix instructions of warpgroups: what is under way, which registers and which bytes of shared memory it
// uses, and when its results arrive.
//
// The warps of a group are not held together: each does its 16 rows when it waits for them, the latest time
// at which the device may. Faults that are found: warps of a group that take different instructions, or the
// same at different places; operands that are no part of a panel; registers used without a warpgroup_fence
// since they were written, or written while an instruction adds to them (reading is found by what
// emulated_device.h does with the number that lies in them meanwhile); instructions never waited for. The
// shadow of shared memory sees to the operands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "collectives.h"
#include "places.h"
#include "runtime.h"
#include "shadow.h"

namespace sparc {
namespace emulation {

class Warpgroups {
 public:
  Warpgroups(int threads, Shadow& shadow, const Places& places);

  void start_block();
  void finish_thread(int thread) const;
  void finish_block() const;

  // The thread's warpgroup_fence: remembers its registers, that is all of its stack in use.
  void remember_registers(int thread, const void* stack_begin, const void* stack_end);
  // A warpgroup collective of a warp, whose lanes have all arrived at the place.
  void complete(Collective kind, Place place, int warp, WarpArguments& lanes);

 private:
  static constexpr int kWarps = kWarpgroupWarps;
  static constexpr int kRows = 16;           // of a and c, per warp
  static constexpr int kInner = 16;          // columns of a, rows of b
  static constexpr size_t kPieceBytes = 16;  // what stays together under the swizzle

  // An instruction as all lanes of all warps of the group must give it.
  struct Step {
    Collective kind;
    int columns;
    uint64_t a, b;
    bool is_bf16, transposed_a, transposed_b, a_in_registers, add;
    int pending;
    Place place = 0;

    bool operator==(const Step& other) const;
  };
  struct Group {
    std::deque<Step> steps;  // those that not all warps have taken yet
    int64_t steps_before = 0;
    int64_t taken[kWarps] = {};
  };
  // The accumulators of a warp while instructions that add to them are under way.
  struct Accumulator {
    float* c[kWarpSize];
    int count;  // per lane
    std::vector<float> values;
    int instructions = 0;
  };
  struct Product {
    Step step;
    int64_t group;  // of warpgroup_commit
    float* c;       // of the first lane
    std::vector<uint32_t> a_registers;
    std::vector<size_t> pieces;
  };
  struct Warp {
    int64_t groups = 0;  // committed
    std::deque<Product> products;
    std::vector<Accumulator> accumulators;
  };
  struct Registers {
    const unsigned char* begin = nullptr;
    std::vector<unsigned char> bytes;
  };

  static Step step_of(Collective kind, const LaneArguments& lane);
  static std::string name_of(const Step& step);
  void take(int warp, const Step& step);
  void issue(int warp, const Step& step, WarpArguments& lanes);
  void check_registers(int thread, const void* registers, size_t bytes, const char* what) const;
  Accumulator& accumulator_of(int warp, const Step& step, WarpArguments& lanes);
  void finish(int warp, const Product& product);
  void deliver(int warp, const Accumulator& accumulator);
  static size_t element_offset(uint64_t operand, bool transposed, int i, int k);
  void check_operand(int warp, uint64_t operand, bool transposed, int extent, const char* name) const;
  float element(const Step& step, size_t offset) const;
  [[noreturn]] static void fail(const std::string& who, const std::string& what);

  Shadow& shadow_;
  const Places& places_;
  std::vector<Group> groups_;
  std::vector<Warp> warps_;
  std::vector<Registers> registers_;
};

}  // namespace emulation
}  // namespace sparc
