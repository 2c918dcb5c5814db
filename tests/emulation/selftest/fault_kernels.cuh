// Kernels of a few lines that do one thing, right or (where `faulty`) wrong. The threads of each write their
// results to `out`, one float per thread of the launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/device.cuh"

namespace sparc {

constexpr int kFaultThreads = 64;
constexpr size_t kFaultShared = kFaultThreads * 16;
constexpr size_t kFaultScratch = kFaultThreads * 16;  // per block

struct FaultArguments {
  const float* in;  // [4 kFaultThreads]
  float* out;       // [blocks kFaultThreads]
  void* scratch;    // [blocks kFaultScratch] bytes
  bool faulty;
};

SPARC_DEVICE float& own_result(const FaultArguments& arguments) {
  return arguments.out[device::block_index() * kFaultThreads + device::thread_index()];
}

// Each thread reads what its counterpart in the block wrote.
SPARC_DEVICE void missing_block_barrier(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  shared[thread] = arguments.in[thread];
  if (!arguments.faulty) device::block_barrier();
  own_result(arguments) = shared[kFaultThreads - 1 - thread];
}

// Everyone has read before anyone writes.
SPARC_DEVICE void write_after_read(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  shared[thread] = arguments.in[thread];
  device::block_barrier();
  const float theirs = shared[kFaultThreads - 1 - thread];
  if (!arguments.faulty) device::block_barrier();
  shared[thread] = theirs;
  own_result(arguments) = shared[thread];
}

// A place that all have read is written by one, whoever came last or before.
SPARC_DEVICE void one_writes_what_all_read(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  if (thread == 50) shared[0] = 1.0f;
  device::block_barrier();
  const float before = shared[0];
  device::warp_barrier();
  const float again = shared[0];
  if (!arguments.faulty) device::block_barrier();
  if (thread == 20) shared[0] = 2.0f;
  own_result(arguments) = before + again;
}

// Lanes pass a value around their warp.
SPARC_DEVICE void write_after_read_in_warp(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0) + device::warp_index() * 32;
  const int lane = device::lane_index();
  shared[lane] = arguments.in[lane];
  device::warp_barrier();
  for (int i = 0; i < 31; ++i) {
    const float theirs = shared[(lane + 1) % 32];
    if (!arguments.faulty) device::warp_barrier();
    shared[lane] = theirs;
    device::warp_barrier();
  }
  own_result(arguments) = shared[lane];
}

// Within a warp: a shuffle between write and read is no barrier for memory.
SPARC_DEVICE void missing_warp_barrier(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  shared[thread] = arguments.in[thread];
  device::shuffle_xor(0.0f, 1);
  if (!arguments.faulty) device::warp_barrier();
  own_result(arguments) = shared[thread ^ 31];
}

// Across warps: a warp barrier orders the lanes of one warp only.
SPARC_DEVICE void warp_barrier_across_warps(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  shared[thread] = arguments.in[thread];
  if (arguments.faulty) {
    device::warp_barrier();
  } else {
    device::block_barrier();
  }
  own_result(arguments) = shared[thread ^ 32];
}

SPARC_DEVICE void shared_out_of_bounds(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(kFaultShared - kFaultThreads * sizeof(float));
  const int thread = device::thread_index();
  shared[thread + (arguments.faulty ? 1 : 0)] = arguments.in[thread];
  own_result(arguments) = arguments.in[thread];
}

SPARC_DEVICE void global_out_of_bounds(const FaultArguments& arguments) {
  const int last = 4 * kFaultThreads - 1;
  const int at = device::thread_index() == 17 ? last + (arguments.faulty ? 1 : 0) : 0;
  own_result(arguments) = arguments.in[at];
}

SPARC_DEVICE void unwritten_read(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  if (!arguments.faulty || thread != 5) shared[thread] = arguments.in[thread];
  own_result(arguments) = shared[thread];
}

SPARC_DEVICE void divergent_barrier(const FaultArguments& arguments) {
  own_result(arguments) = 1.0f;
  if (!arguments.faulty || device::thread_index() < 32) device::block_barrier();
}

SPARC_DEVICE void divergent_collective(const FaultArguments& arguments) {
  float value = 1.0f;
  if (!arguments.faulty || device::lane_index() != 7) value += device::shuffle_xor(value, 1);
  own_result(arguments) = value;
}

SPARC_DEVICE void mixed_collectives(const FaultArguments& arguments) {
  float value = 1.0f;
  if (arguments.faulty && device::lane_index() < 16) {
    value += static_cast<float>(device::ballot(true) & 1u);
  } else {
    value += device::shuffle(value, 0);
  }
  own_result(arguments) = value;
}

SPARC_DEVICE void collective_against_barrier(const FaultArguments& arguments) {
  if (arguments.faulty && device::lane_index() == 3) device::block_barrier();
  device::warp_barrier();
  device::block_barrier();
  own_result(arguments) = 1.0f;
}

// The next six reach the same collective as often in every lane, but some of them at another place.

SPARC_DEVICE void shuffle_in_branches(const FaultArguments& arguments) {
  float value = 1.0f;
  if (arguments.faulty && device::lane_index() < 16) {
    value += device::shuffle_xor(value, 1);
  } else {
    value += device::shuffle_xor(value, 1);
  }
  own_result(arguments) = value;
}

SPARC_DEVICE void shuffle_in_ragged_loop(const FaultArguments& arguments) {
  const int lane = device::lane_index();
  float value = 1.0f;
  for (int i = arguments.faulty ? lane : 0; i < 48; i += 32) value += device::shuffle(value, 0);
  if (arguments.faulty && lane >= 16) value += device::shuffle(value, 0);
  own_result(arguments) = value;
}

SPARC_DEVICE_NOINLINE float sum_over_lanes(float value) {
  for (int mask = 1; mask < 32; mask *= 2) value += device::shuffle_xor(value, mask);
  return value;
}

SPARC_DEVICE void collectives_of_a_helper(const FaultArguments& arguments) {
  float value = 1.0f;
  if (arguments.faulty && device::lane_index() == 31) value = sum_over_lanes(value);
  if (!arguments.faulty || device::lane_index() != 31) value = sum_over_lanes(value);
  own_result(arguments) = value;
}

// The warp's number, from lane 0, where one lane stores and where the others go on.
SPARC_DEVICE void same_in_warp_in_branch(const FaultArguments& arguments) {
  int warp = 0;
  if (!arguments.faulty || device::lane_index() == 0) warp = device::same_in_warp(device::warp_index());
  if (arguments.faulty && device::lane_index() != 0) warp = device::same_in_warp(device::warp_index());
  own_result(arguments) = static_cast<float>(warp);
}

SPARC_DEVICE void ballot_in_branches(const FaultArguments& arguments) {
  const bool odd = device::lane_index() % 2 == 1;
  uint32_t votes = 0;
  if (arguments.faulty && odd) {
    votes = device::ballot(true);
  } else {
    votes = device::ballot(odd);
  }
  own_result(arguments) = static_cast<float>(device::count_bits(votes));
}

// Whole warps may part.
SPARC_DEVICE void barrier_in_branches(const FaultArguments& arguments) {
  if (arguments.faulty ? device::lane_index() < 16 : device::warp_index() == 0) {
    device::block_barrier();
  } else {
    device::block_barrier();
  }
  own_result(arguments) = 1.0f;
}

SPARC_DEVICE void misaligned_load_matrices(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  for (int i = 0; i < 4; ++i) shared[thread * 4 + i] = arguments.in[thread * 4 + i];
  device::block_barrier();
  uint32_t r[4];
  const bool off = arguments.faulty && device::lane_index() == 9;
  device::load_matrices(r, device::address_of(shared + device::lane_index() * 4 + (off ? 1 : 0)));
  own_result(arguments) = device::bits_to_float(r[0]);
}

SPARC_DEVICE void unordered_load_matrices(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int lane = device::lane_index();
  const auto own = shared + device::warp_index() * 128 + lane * 4;
  for (int i = 0; i < 4; ++i) own[i] = arguments.in[i];
  if (!arguments.faulty) device::warp_barrier();
  uint32_t r[4];
  device::load_matrices(r, device::address_of(shared + device::warp_index() * 128 + (lane ^ 1) * 4));
  own_result(arguments) = device::bits_to_float(r[0]);
}

// The next three copy 16 bytes per thread.

SPARC_DEVICE void misaligned_copy(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0) + device::thread_index() * 4;
  const int off = arguments.faulty && device::thread_index() == 40 ? 2 : 0;
  device::copy_async(device::address_of(shared + off), arguments.in, 16);
  device::copy_async_commit();
  device::copy_async_wait<0>();
  own_result(arguments) = shared[0];
}

SPARC_DEVICE void abandoned_copy(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0) + device::thread_index() * 4;
  device::copy_async(device::address_of(shared), arguments.in, 16);
  if (!arguments.faulty) device::copy_async_commit();  // or else the wait has nothing to wait for
  device::copy_async_wait<0>();
  own_result(arguments) = 1.0f;
}

SPARC_DEVICE void long_copy(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0) + device::thread_index() * 4;
  const float* last = arguments.in + 4 * kFaultThreads - 4;
  device::copy_async(device::address_of(shared), last, arguments.faulty ? 20 : 12);
  device::copy_async_commit();
  device::copy_async_wait<0>();
  own_result(arguments) = shared[3];  // a zero
}

SPARC_DEVICE void copy_out_of_bounds(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0) + device::thread_index() * 4;
  const float* end = arguments.in + 4 * kFaultThreads;
  device::copy_async(device::address_of(shared), end, arguments.faulty ? 4 : 0);
  device::copy_async_commit();
  device::copy_async_wait<0>();
  own_result(arguments) = shared[0];
}

// Waiting until one group is left completes the first of two groups, not the second.
SPARC_DEVICE void wait_for_the_wrong_group(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  if (thread < 32) {
    device::copy_async(device::address_of(shared + thread * 8), arguments.in, 16);
    device::copy_async_commit();
    device::copy_async(device::address_of(shared + thread * 8 + 4), arguments.in + 4, 16);
    device::copy_async_commit();
    device::copy_async_wait<1>();
    const float first = shared[thread * 8];
    if (!arguments.faulty) device::copy_async_wait<0>();
    own_result(arguments) = first + shared[thread * 8 + 4];
    device::copy_async_wait<0>();
  } else {
    own_result(arguments) = 0.0f;
  }
}

// Scratch, by pointer and as the source of copies.

SPARC_DEVICE device::Scratch<float> own_scratch(const FaultArguments& arguments, int64_t block) {
  return device::scratch_at<float>(arguments.scratch, static_cast<size_t>(block) * kFaultScratch);
}

SPARC_DEVICE void scratch_race(const FaultArguments& arguments) {
  const auto scratch = own_scratch(arguments, device::block_index());
  const auto shared = device::shared_at<float>(0);
  const int thread = device::thread_index();
  for (int i = 0; i < 4; ++i) scratch[thread * 4 + i] = arguments.in[thread * 4 + i];
  if (!arguments.faulty) device::block_barrier();
  device::copy_async(device::address_of(shared + thread * 4), device::address_of(scratch + (thread ^ 33) * 4),
                     16);
  device::copy_async_commit();
  device::copy_async_wait<0>();
  own_result(arguments) = shared[thread * 4];
}

SPARC_DEVICE void scratch_changed_under_way(const FaultArguments& arguments) {
  const auto scratch = own_scratch(arguments, device::block_index()) + device::thread_index() * 4;
  const auto shared = device::shared_at<float>(0) + device::thread_index() * 4;
  for (int i = 0; i < 4; ++i) scratch[i] = 1.0f;
  device::copy_async(device::address_of(shared), device::address_of(scratch), 16);
  device::copy_async_commit();
  if (!arguments.faulty) device::copy_async_wait<0>();
  scratch[2] = 3.0f;
  device::copy_async_wait<0>();
  own_result(arguments) = shared[2];
}

SPARC_DEVICE void copy_from_shared(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0) + device::thread_index() * 4;
  for (int i = 0; i < 4; ++i) shared[i] = 1.0f;
  device::block_barrier();
  const void* source = arguments.faulty ? device::address_of(shared) : arguments.in;
  device::copy_async(device::address_of(shared), source, 16);
  device::copy_async_commit();
  device::copy_async_wait<0>();
  own_result(arguments) = shared[0];
}

SPARC_DEVICE void scratch_of_another_block(const FaultArguments& arguments) {
  const auto scratch = own_scratch(arguments, arguments.faulty ? 0 : device::block_index());
  scratch[device::thread_index()] = 1.0f;
  own_result(arguments) = scratch[device::thread_index()];
}

SPARC_DEVICE void scratch_out_of_bounds(const FaultArguments& arguments) {
  const auto scratch = own_scratch(arguments, device::block_count() - (arguments.faulty ? 0 : 1));
  if (device::block_index() == 0) scratch[device::thread_index()] = 1.0f;
  own_result(arguments) = 1.0f;
}

// Plain reads past the watch.

SPARC_DEVICE void plain_read_of_shared(const FaultArguments& arguments) {
  const auto shared = device::shared_at<float>(0) + device::thread_index();
  shared[0] = 1.0f;
  if (arguments.faulty) {
    own_result(arguments) = *device::address_of(shared);
  } else {
    own_result(arguments) = shared[0];
  }
}

SPARC_DEVICE void integer_overflow(const FaultArguments& arguments) {
  const int large = 0x7FFFFFF0 + device::thread_index() / (arguments.faulty ? 1 : 16);
  own_result(arguments) = static_cast<float>(large);
}

}  // namespace sparc
