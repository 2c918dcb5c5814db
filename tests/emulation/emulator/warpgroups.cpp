#include "warpgroups.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "numbers.h"

namespace sparc {
namespace emulation {
namespace {

constexpr size_t kRowBytes = 128;    // of a panel
constexpr size_t kAtomBytes = 1024;  // eight rows, after which the swizzle repeats
constexpr int kAtomColumns = 64;

std::string name_warp(int warp) { return "warp " + std::to_string(warp); }

// The fields of a matrix descriptor (PTX ISA 9.0, 9.7.15.5.1.2.2), in bytes.
size_t start_of(uint64_t operand) { return (operand & 0x3FFF) << 4; }
size_t leading_distance(uint64_t operand) { return (operand >> 16 & 0x3FFF) << 4; }
size_t stride_distance(uint64_t operand) { return (operand >> 32 & 0x3FFF) << 4; }

float float_of(bool is_bf16, uint32_t bits) {
  return is_bf16 ? float_of_bf16(static_cast<uint16_t>(bits)) : float_of_f16(static_cast<uint16_t>(bits));
}

}  // namespace

bool Warpgroups::Step::operator==(const Step& other) const {
  if (place != other.place) return false;
  return kind == other.kind && columns == other.columns && a == other.a && b == other.b &&
         is_bf16 == other.is_bf16 && transposed_a == other.transposed_a &&
         transposed_b == other.transposed_b && a_in_registers == other.a_in_registers && add == other.add &&
         pending == other.pending;
}

Warpgroups::Warpgroups(int threads, Shadow& shadow, const Places& places)
    : shadow_(shadow),
      places_(places),
      groups_(threads / kWarpSize / kWarps),
      warps_(threads / kWarpSize),
      registers_(threads) {}

void Warpgroups::start_block() {
  std::fill(groups_.begin(), groups_.end(), Group());
  for (Warp& warp : warps_) warp.groups = 0;
  for (Registers& registers : registers_) registers.begin = nullptr;
}

void Warpgroups::finish_thread(int thread) const {
  const size_t count = warps_[thread / kWarpSize].products.size();
  if (count > 0) {
    fail(name_thread(thread),
         "ends with " + std::to_string(count) + " matrix instructions that no warpgroup_wait has completed");
  }
}

void Warpgroups::finish_block() const {
  for (size_t group = 0; group < groups_.size(); ++group) {
    const Group& each = groups_[group];
    if (each.steps.empty()) continue;
    const int behind = static_cast<int>(std::min_element(each.taken, each.taken + kWarps) - each.taken);
    fail(name_warp(static_cast<int>(group) * kWarps + behind),
         "ends without " + name_of(each.steps.front()) +
             ", which another warp of its warpgroup takes (divergent warpgroup)");
  }
}

void Warpgroups::remember_registers(int thread, const void* stack_begin, const void* stack_end) {
  Registers& registers = registers_[thread];
  // Rounded down: an address below stack_begin is no variable of the kernel's.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(stack_begin) & ~uintptr_t{7};
  registers.begin = reinterpret_cast<const unsigned char*>(begin);
  registers.bytes.resize((reinterpret_cast<uintptr_t>(stack_end) - begin) / 8 * 8);
  // Word by word: memcpy is AddressSanitizer's, which would object to what lies between the variables.
  const volatile uint64_t* from = reinterpret_cast<const volatile uint64_t*>(begin);
  uint64_t* to = reinterpret_cast<uint64_t*>(registers.bytes.data());
  for (size_t i = 0; i < registers.bytes.size() / 8; ++i) to[i] = from[i];
}

Warpgroups::Step Warpgroups::step_of(Collective kind, const LaneArguments& lane) {
  Step step = {kind, 0, 0, 0, false, false, false, false, false, lane.selector};
  if (kind != Collective::kWarpgroupMultiplyAdd) return step;
  const WarpgroupProduct& product = *lane.product;
  step.columns = product.columns;
  step.a = product.a;
  step.b = product.b;
  step.is_bf16 = product.is_bf16;
  step.transposed_a = product.transposed_a;
  step.transposed_b = product.transposed_b;
  step.a_in_registers = product.a_registers != nullptr;
  step.add = product.add;
  return step;
}

std::string Warpgroups::name_of(const Step& step) {
  if (step.kind == Collective::kWarpgroupFence) return "warpgroup_fence";
  if (step.kind == Collective::kWarpgroupCommit) return "warpgroup_commit";
  if (step.kind == Collective::kWarpgroupWait) {
    return "warpgroup_wait<" + std::to_string(step.pending) + ">";
  }
  std::string name = "warpgroup_multiply_add of " + std::to_string(step.columns) + " columns, a ";
  if (step.a_in_registers) {
    name += "in registers";
  } else {
    name += "at " + std::to_string(start_of(step.a)) + (step.transposed_a ? " transposed" : "");
  }
  return name + ", b at " + std::to_string(start_of(step.b)) + (step.transposed_b ? " transposed" : "");
}

void Warpgroups::complete(Collective kind, Place place, int warp, WarpArguments& lanes) {
  Step step = step_of(kind, *lanes[0]);
  for (int lane = 1; lane < kWarpSize; ++lane) {
    const Step other = step_of(kind, *lanes[lane]);
    if (other == step) continue;
    fail(name_thread(warp * kWarpSize + lane),
         "takes " + name_of(other) + " where lane 0 takes " + name_of(step) + " (divergent warpgroup)");
  }
  step.place = place;  // of all lanes
  take(warp, step);
  Warp& own = warps_[warp];
  if (kind == Collective::kWarpgroupMultiplyAdd) issue(warp, step, lanes);
  if (kind == Collective::kWarpgroupCommit) ++own.groups;
  if (kind != Collective::kWarpgroupWait) return;
  while (!own.products.empty() && own.products.front().group < own.groups - step.pending) {
    finish(warp, own.products.front());
    own.products.pop_front();
  }
}

void Warpgroups::take(int warp, const Step& step) {
  const size_t index = static_cast<size_t>(warp / kWarps);
  if (index >= groups_.size()) {
    fail(name_warp(warp), "takes " + name_of(step) + " but belongs to no whole warpgroup");
  }
  Group& group = groups_[index];
  int64_t& taken = group.taken[warp % kWarps];
  const size_t ahead = static_cast<size_t>(taken - group.steps_before);
  if (ahead == group.steps.size()) {
    group.steps.push_back(step);
  } else if (!(group.steps[ahead] == step)) {
    const Step& other = group.steps[ahead];
    fail(name_warp(warp), "takes " + name_of(step) + places_.apart(step.place, other.place) +
                              " where another warp of its warpgroup took " + name_of(other) +
                              places_.apart(other.place, step.place) + " (divergent warpgroup)");
  }
  ++taken;
  while (group.steps_before < *std::min_element(group.taken, group.taken + kWarps)) {
    group.steps.pop_front();
    ++group.steps_before;
  }
}

void Warpgroups::issue(int warp, const Step& step, WarpArguments& lanes) {
  Product product = {step, warps_[warp].groups, lanes[0]->product->c, {}, {}};
  if (step.a_in_registers) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const uint32_t* a = lanes[lane]->product->a_registers;
      check_registers(warp * kWarpSize + lane, a, 4 * sizeof(*a), "a");
      product.a_registers.insert(product.a_registers.end(), a, a + 4);
    }
  }
  const auto add_pieces = [&](uint64_t operand, bool transposed, int extent) {
    for (int i = 0; i < extent; i += transposed ? 8 : 1) {
      for (int k = 0; k < kInner; k += transposed ? 1 : 8) {
        product.pieces.push_back(element_offset(operand, transposed, i, k));
      }
    }
  };
  if (!step.a_in_registers) {
    check_operand(warp, step.a, step.transposed_a, kWarps * kRows, "a");
    add_pieces(step.a, step.transposed_a, kWarps * kRows);
  }
  check_operand(warp, step.b, step.transposed_b, step.columns, "b");
  add_pieces(step.b, step.transposed_b, step.columns);
  for (const size_t piece : product.pieces) shadow_.start_product(warp * kWarpSize, piece, kPieceBytes);
  ++accumulator_of(warp, step, lanes).instructions;
  warps_[warp].products.push_back(std::move(product));
}

void Warpgroups::check_registers(int thread, const void* registers, size_t bytes, const char* what) const {
  const Registers& remembered = registers_[thread];
  const std::string matrix = std::string("a matrix instruction with ") + what;
  if (remembered.begin == nullptr)
    fail(name_thread(thread), "issues " + matrix + " before any warpgroup_fence");
  const unsigned char* at = static_cast<const unsigned char*>(registers);
  const uintptr_t offset = reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(remembered.begin);
  const size_t size = remembered.bytes.size();
  if (offset > size || bytes > size - offset || std::memcmp(at, &remembered.bytes[offset], bytes) != 0) {
    fail(name_thread(thread),
         "issues " + matrix + " in registers that were written after its last warpgroup_fence");
  }
}

Warpgroups::Accumulator& Warpgroups::accumulator_of(int warp, const Step& step, WarpArguments& lanes) {
  const int count = step.columns / 2;
  std::vector<Accumulator>& under_way = warps_[warp].accumulators;
  for (Accumulator& each : under_way) {
    int same = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const float* c = lanes[lane]->product->c;
      if (c == each.c[lane] && count == each.count) {
        ++same;
      } else if (c < each.c[lane] + each.count && each.c[lane] < c + count) {
        fail(name_thread(warp * kWarpSize + lane),
             "issues a matrix instruction with c in registers to which one of another shape under way adds");
      }
    }
    if (same == kWarpSize) return each;
  }
  Accumulator added;
  added.count = count;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* c = lanes[lane]->product->c;
    check_registers(warp * kWarpSize + lane, c, static_cast<size_t>(count) * sizeof(*c), "c");
    added.c[lane] = c;
    added.values.insert(added.values.end(), c, c + count);
    std::fill(c, c + count, float_of_bits(kUnderWay));
  }
  under_way.push_back(std::move(added));
  return under_way.back();
}

void Warpgroups::finish(int warp, const Product& product) {
  const Step& step = product.step;
  float a[kRows][kInner];
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < kInner; ++k) {
      if (step.a_in_registers) {  // laid over the lanes as a of multiply_add_bf16
        const int lane = row % 8 * 4 + k % 8 / 2;
        const uint32_t pair = product.a_registers[static_cast<size_t>(lane * 4 + k / 8 * 2 + row / 8)];
        a[row][k] = float_of(step.is_bf16, k % 2 == 0 ? pair & 0xFFFF : pair >> 16);
      } else {
        a[row][k] = element(step, element_offset(step.a, step.transposed_a, warp % kWarps * kRows + row, k));
      }
    }
  }
  std::vector<Accumulator>& under_way = warps_[warp].accumulators;
  const auto accumulator = std::find_if(under_way.begin(), under_way.end(),
                                        [&](const Accumulator& each) { return each.c[0] == product.c; });
  float b[kInner];
  for (int column = 0; column < step.columns; ++column) {
    for (int k = 0; k < kInner; ++k)
      b[k] = element(step, element_offset(step.b, step.transposed_b, column, k));
    for (int row = 0; row < kRows; ++row) {
      const int lane = row % 8 * 4 + column % 8 / 2;
      const int index = column / 8 * 4 + row / 8 * 2 + column % 2;
      // As multiply_add of collectives.cpp sums.
      float& value = accumulator->values[static_cast<size_t>(lane * accumulator->count + index)];
      double sum = step.add ? static_cast<double>(value) : 0.0;
      for (int k = 0; k < kInner; ++k) sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k]);
      value = static_cast<float>(sum);
    }
  }
  for (const size_t piece : product.pieces) shadow_.finish_product(warp * kWarpSize, piece, kPieceBytes);
  if (--accumulator->instructions > 0) return;
  deliver(warp, *accumulator);
  under_way.erase(accumulator);
}

void Warpgroups::deliver(int warp, const Accumulator& accumulator) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int thread = warp * kWarpSize + lane;
    const volatile float* c = accumulator.c[lane];
    for (int i = 0; i < accumulator.count; ++i) {
      if (bits_of_float(c[i]) == kUnderWay) continue;
      fail(name_thread(thread), "has written to c[" + std::to_string(i) +
                                    "] of a matrix instruction before the warpgroup_wait that completes it");
    }
    const float* values = &accumulator.values[static_cast<size_t>(lane * accumulator.count)];
    std::copy(values, values + accumulator.count, accumulator.c[lane]);
    // An instruction of the same shape may follow without a fence.
    Registers& remembered = registers_[thread];
    const uintptr_t offset =
        reinterpret_cast<uintptr_t>(accumulator.c[lane]) - reinterpret_cast<uintptr_t>(remembered.begin);
    const size_t bytes = static_cast<size_t>(accumulator.count) * sizeof(float);
    if (offset < remembered.bytes.size() && bytes <= remembered.bytes.size() - offset) {
      std::memcpy(&remembered.bytes[offset], values, bytes);
    }
  }
}

// The byte of shared memory where the operand's element lies in row i (a) or column i (b) and at k.
size_t Warpgroups::element_offset(uint64_t operand, bool transposed, int i, int k) {
  const size_t across = static_cast<size_t>(transposed ? i : k);
  const size_t down = static_cast<size_t>(transposed ? k : i);
  const size_t at = start_of(operand) + across / kAtomColumns * leading_distance(operand) +
                    across % kAtomColumns * 2 + down / 8 * stride_distance(operand) + down % 8 * kRowBytes;
  return at ^ (at / kRowBytes % 8 * kPieceBytes);
}

void Warpgroups::check_operand(int warp, uint64_t operand, bool transposed, int extent,
                               const char* name) const {
  const size_t in_atom = start_of(operand) % kAtomBytes;
  const size_t columns = static_cast<size_t>(transposed ? std::min(extent, kAtomColumns) : kInner);
  const std::string where =
      std::string("multiplies ") + name + " at shared memory offset " + std::to_string(start_of(operand));
  if (operand >> 62 != 1 || (operand >> 49 & 7) != 0) {
    fail(name_warp(warp), where + ": no panel_operand");
  }
  if (in_atom >= kRowBytes) {
    fail(name_warp(warp), where + ": misaligned, does not start in a row of a panel that is a multiple of 8");
  }
  if (in_atom + columns * 2 > kRowBytes || (transposed && extent > kAtomColumns && in_atom != 0)) {
    fail(name_warp(warp), where + ": misaligned, crosses the right end of its panel");
  }
}

float Warpgroups::element(const Step& step, size_t offset) const {
  return float_of(step.is_bf16, shadow_.half_at(offset));
}

void Warpgroups::fail(const std::string& who, const std::string& what) {
  throw EmulationError(who + " " + what);
}

}  // namespace emulation
}  // namespace sparc
