// The functions of csrc/common/warpgroup.cuh for the host, of the same names and signatures. Included by that
// header where SPARC_EMULATED is defined.
#pragma once

#include <cstdint>
#include <type_traits>

#include "runtime.h"

namespace sparc {
namespace device {

SPARC_DEVICE uint64_t panel_operand(const void* at) { return emulation::panel_operand(at, kPanelBytes); }

SPARC_DEVICE void async_proxy_fence() { emulation::async_proxy_fence(); }

SPARC_DEVICE void warpgroup_barrier() {
  emulation::barrier(1 + warp_index() / emulation::kWarpgroupWarps, 128, true);
}
SPARC_DEVICE void take_turn(int turn) { emulation::barrier(3 + turn, 256, true); }
SPARC_DEVICE void give_turn(int turn) {
  emulation::LaneArguments lane;
  emulation::warp_collective(emulation::Collective::kArrive, lane);
  emulation::barrier(3 + turn, 256, false);
}

SPARC_DEVICE void warpgroup_fence() { emulation::warpgroup_fence(); }
SPARC_DEVICE void warpgroup_commit() {
  emulation::LaneArguments lane;
  emulation::warp_collective(emulation::Collective::kWarpgroupCommit, lane);
}
template <int kPending>
SPARC_DEVICE void warpgroup_wait() {
  static_assert(kPending >= 0 && kPending < 8, "a number of groups");
  emulation::LaneArguments lane;
  lane.selector = kPending;
  emulation::warp_collective(emulation::Collective::kWarpgroupWait, lane);
}
template <int kCount>
SPARC_DEVICE void warpgroup_hold(float (&)[kCount]) {}

template <class E, int kN>
SPARC_DEVICE void warpgroup_multiply_add(emulation::WarpgroupProduct product) {
  static_assert(sizeof(E) == 2, "16-bit numbers");
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256, "a shape that the instruction has");
  product.is_bf16 = std::is_same<E, BFloat16>::value;
  product.columns = kN;
  emulation::LaneArguments lane;
  lane.product = &product;
  emulation::warp_collective(emulation::Collective::kWarpgroupMultiplyAdd, lane);
}
template <class E, int kN, bool kTransposedA, bool kTransposedB>
SPARC_DEVICE void warpgroup_multiply_add_if(bool add, float (&c)[kN / 2], uint64_t a, uint64_t b) {
  emulation::WarpgroupProduct product;
  product.add = add;
  product.c = c;
  product.a = a;
  product.b = b;
  product.transposed_a = kTransposedA;
  product.transposed_b = kTransposedB;
  warpgroup_multiply_add<E, kN>(product);
}
template <class E, int kN, bool kTransposedA, bool kTransposedB>
SPARC_DEVICE void warpgroup_multiply_add(float (&c)[kN / 2], uint64_t a, uint64_t b) {
  warpgroup_multiply_add_if<E, kN, kTransposedA, kTransposedB>(true, c, a, b);
}
template <class E, int kN, bool kTransposedB>
SPARC_DEVICE void warpgroup_multiply_add(float (&c)[kN / 2], const uint32_t (&a)[4], uint64_t b) {
  emulation::WarpgroupProduct product;
  product.c = c;
  product.a_registers = a;
  product.b = b;
  product.transposed_b = kTransposedB;
  warpgroup_multiply_add<E, kN>(product);
}

}  // namespace device
}  // namespace sparc
