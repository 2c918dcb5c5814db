// Products of panels by warpgroups: two groups, each with an a of its own, share b, whose chunks of 64 k come
// through two stages. To try the emulator with, and the instructions themselves where there is a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/warpgroup.cuh"

namespace sparc {

enum class WarpgroupFault {
  kNone,
  kNoProxyFence,      // copies have arrived, but nobody made them visible to the matrix instructions
  kNoArrivalBarrier,  // made visible by each thread, for itself only
  kOverwritten,       // the next chunk is copied over one that is being multiplied
  kNoReuseBarrier,    // each warp waits for its own products only
  kReadEarly,         // c is used before the last wait
  kWrittenEarly,      // c is set while products that add to it are under way
  kNoRegisterFence,
  kEarlyRegisterFence,  // before a is loaded into registers
  kLateRegisterWrite,   // of c, behind the fence
  kOtherShape,          // a product with fewer columns into the same c
  kNoWait,              // at the end
  kRowOff,              // b starts in the middle of eight rows
  kColumnOff,           // b crosses the right end of its panel
  kWarpApart,           // one warp leaves a product out
  kWarpAhead,           // one warp of a group takes its products in another order
  kLaneApart,           // a lane names another b
  kWarpElsewhere,       // one warp commits its products at a line of its own
  kBarrierOfGroup,      // where warps of both groups have copied
  kNoTurn,              // for the second group, which waits for one
  kTurnLeft,            // that nobody takes
  kLateLetter,          // what the second group reads in its turn is written behind the first one's
};

constexpr int kWarpgroupThreads = 256;
constexpr int kChunkInner = 64;
constexpr int kStageBytes = 5 * device::kPanelBytes;  // a of both groups, then b: up to 192 rows or columns
constexpr int kLetter = 2 * kStageBytes;              // from one group to the other
constexpr size_t kWarpgroupBytes = kLetter + 16;

// Matrices whose rows are `chunks` times 64 elements (not transposed), or that have so many rows of 64 (a) or
// 192 (b) elements (transposed).
template <class E>
struct WarpgroupProblem {
  const E* a[2];
  const E* b;
  float* c;       // [2, 64, kN]
  float initial;  // of c, to which the products are added
  float scale;    // of the sum
  int chunks;
  int b_start;  // the first of b's 192 columns that is multiplied
  int b_rows;   // b's columns (transposed: k) from here on are zero; the memory behind them is not read
};

// The byte of a panel where piece `piece` (8 elements) of row `row` lies.
SPARC_DEVICE int panel_byte(int row, int piece) { return row * 128 + ((piece ^ (row % 8)) * 16); }

// `rows` rows of 64 elements to a panel; those from `limit` on become zeros.
template <class E>
SPARC_DEVICE void copy_panel(int offset, const E* from, int64_t stride, int rows, int limit) {
  const auto panel = device::shared_at<unsigned char>(static_cast<size_t>(offset));
  for (int i = device::thread_index(); i < rows * 8; i += kWarpgroupThreads) {
    const int row = i / 8;
    const E* source = row < limit ? from + row * stride + i % 8 * 8 : from;
    device::copy_async(device::address_of(panel + panel_byte(row, i % 8)), source, row < limit ? 16 : 0);
  }
}

template <class E, bool kTransposedA, bool kTransposedB>
SPARC_DEVICE void copy_chunk(const WarpgroupProblem<E>& problem, int chunk) {
  const int stage = chunk % 2 * kStageBytes;
  const int stride = problem.chunks * kChunkInner;
  const int k = chunk * kChunkInner;
  for (int group = 0; group < 2; ++group) {
    const int at = stage + group * device::kPanelBytes;
    if (kTransposedA) {
      copy_panel(at, problem.a[group] + k * 64, 64, 64, 64);
    } else {
      copy_panel(at, problem.a[group] + k, stride, 64, 64);
    }
  }
  for (int panel = 0; panel < 3; ++panel) {
    const int at = stage + (2 + panel) * device::kPanelBytes;
    if (kTransposedB) {
      copy_panel(at, problem.b + k * 192 + panel * 64, 192, 64, problem.b_rows - k);
    } else {
      copy_panel(at, problem.b + panel * 64 * stride + k, stride, 64, problem.b_rows - panel * 64);
    }
  }
  device::copy_async_commit();
}

SPARC_DEVICE uint64_t operand_at(int offset) {
  return device::panel_operand(
      device::address_of(device::shared_at<unsigned char>(0) + static_cast<size_t>(offset)));
}

// The four products of a chunk.
template <class E, int kN, bool kRegistersA, bool kTransposedA, bool kTransposedB>
SPARC_DEVICE void multiply_chunk(float (&c)[kN / 2], const WarpgroupProblem<E>& problem, int chunk,
                                 WarpgroupFault fault) {
  const int warp = device::warp_index();
  const int lane = device::lane_index();
  const int stage = chunk % 2 * kStageBytes;
  const int a_at = stage + warp / 4 * device::kPanelBytes;
  int b_at = stage + 2 * device::kPanelBytes;
  b_at += kTransposedB ? problem.b_start / 64 * device::kPanelBytes + problem.b_start % 64 * 2
                       : problem.b_start * 128;
  if (fault == WarpgroupFault::kRowOff) b_at += 4 * 128;
  if (fault == WarpgroupFault::kColumnOff) b_at += 16;
  if (fault == WarpgroupFault::kLaneApart && lane == 7) b_at += 1024;
  uint32_t a[4][4];
  if (fault == WarpgroupFault::kEarlyRegisterFence) device::warpgroup_fence();
  if (kRegistersA) {
    const auto panel = device::shared_at<unsigned char>(static_cast<size_t>(a_at));
    const int row = warp % 4 * 16 + lane % 16;
    SPARC_UNROLL
    for (int k = 0; k < 4; ++k) {
      device::load_matrices(a[k], device::address_of(panel + panel_byte(row, 2 * k + lane / 16)));
    }
  }
  if (fault != WarpgroupFault::kEarlyRegisterFence && fault != WarpgroupFault::kNoRegisterFence) {
    device::warpgroup_fence();
  }
  if (fault == WarpgroupFault::kLateRegisterWrite && chunk == 0) c[3] += 1.0f;
  SPARC_UNROLL
  for (int step = 0; step < 4; ++step) {
    if (fault == WarpgroupFault::kWarpApart && warp == 5 && step == 3) continue;
    const int k = fault == WarpgroupFault::kWarpAhead && warp == 6 ? step ^ 1 : step;
    const uint64_t b = operand_at(b_at + k * (kTransposedB ? 2048 : 32));
    if constexpr (kRegistersA) {
      device::warpgroup_multiply_add<E, kN, kTransposedB>(c, a[step], b);
    } else {
      device::warpgroup_multiply_add<E, kN, kTransposedA, kTransposedB>(
          c, operand_at(a_at + k * (kTransposedA ? 2048 : 32)), b);
    }
  }
  if constexpr (kN > 16 && !kRegistersA) {
    if (fault == WarpgroupFault::kOtherShape) {
      float (&fewer)[8] = *reinterpret_cast<float (*)[8]>(&c[8]);
      device::warpgroup_multiply_add<E, 16, kTransposedA, kTransposedB>(fewer, operand_at(a_at),
                                                                        operand_at(b_at));
    }
  }
  if (fault == WarpgroupFault::kWarpElsewhere && warp == 6) {
    device::warpgroup_commit();
  } else {
    device::warpgroup_commit();
  }
}

template <class E, int kN, bool kRegistersA, bool kTransposedA, bool kTransposedB>
SPARC_DEVICE void warpgroup_kernel(const WarpgroupProblem<E>& problem, WarpgroupFault fault) {
  static_assert(!(kRegistersA && kTransposedA), "a in registers has one layout");
  float c[kN / 2];
  SPARC_UNROLL
  for (int i = 0; i < kN / 2; ++i) c[i] = problem.initial;
  copy_chunk<E, kTransposedA, kTransposedB>(problem, 0);
  SPARC_NO_UNROLL
  for (int chunk = 0; chunk < problem.chunks; ++chunk) {
    device::copy_async_wait<0>();
    if (fault != WarpgroupFault::kNoProxyFence) device::async_proxy_fence();
    if (fault == WarpgroupFault::kBarrierOfGroup) {
      device::warpgroup_barrier();
    } else if (fault != WarpgroupFault::kNoArrivalBarrier) {
      device::block_barrier();
    }
    multiply_chunk<E, kN, kRegistersA, kTransposedA, kTransposedB>(c, problem, chunk, fault);
    if (fault == WarpgroupFault::kWrittenEarly) c[3] = 1.0f;
    // The chunk before this one has been multiplied, and its stage becomes free.
    if (fault != WarpgroupFault::kOverwritten) device::warpgroup_wait<1>();
    if (fault != WarpgroupFault::kNoReuseBarrier) device::block_barrier();
    if (chunk + 1 < problem.chunks) copy_chunk<E, kTransposedA, kTransposedB>(problem, chunk + 1);
  }
  float scale = problem.scale;
  const device::Shared<float> letter = device::shared_at<float>(kLetter);
  if (device::warp_index() < 4) {
    const bool writes = device::thread_index() == 0, late = fault == WarpgroupFault::kLateLetter;
    if (writes && !late) letter[0] = 1.0f;
    if (fault != WarpgroupFault::kNoTurn) device::give_turn(1);
    if (writes && late) letter[0] = 1.0f;
  } else if (fault != WarpgroupFault::kTurnLeft) {
    device::take_turn(1);
    scale *= letter[0];
  }
  if (fault != WarpgroupFault::kReadEarly && fault != WarpgroupFault::kNoWait) device::warpgroup_wait<0>();
  device::warpgroup_hold(c);

  const int warp = device::warp_index();
  const int lane = device::lane_index();
  SPARC_UNROLL
  for (int i = 0; fault != WarpgroupFault::kNoWait && i < kN / 2; ++i) {
    const int row = warp * 16 + i % 4 / 2 * 8 + lane / 4;
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    problem.c[row * kN + column] = device::product(c[i], scale);
  }
}

}  // namespace sparc
