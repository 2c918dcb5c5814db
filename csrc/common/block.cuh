// What a block of threads does in every kernel: reduce, measure rows, divide its memory.
#pragma once

#include "common/device.cuh"

namespace sparc {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr float kSmallestNorm = 1e-12f;  // as in F.normalize

SPARC_HOST_DEVICE constexpr int at_most(int x, int most) { return x < most ? x : most; }

template <class E>
constexpr bool kIsFloat16 = false;
template <>
constexpr bool kIsFloat16<Float16> = true;

SPARC_HOST_DEVICE constexpr int round_up(int x, int step) { return (x + step - 1) / step * step; }

// Reductions over the four lanes that hold one row of sums, and over a warp.
SPARC_DEVICE float quad_sum(float x) {
  x += device::shuffle_xor(x, 1);
  return x + device::shuffle_xor(x, 2);
}
SPARC_DEVICE float quad_max(float x) {
  x = device::max(x, device::shuffle_xor(x, 1));
  return device::max(x, device::shuffle_xor(x, 2));
}
SPARC_DEVICE float warp_sum(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x += device::shuffle_xor(x, mask);
  return x;
}
SPARC_DEVICE float warp_min(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x = device::min(x, device::shuffle_xor(x, mask));
  return x;
}
SPARC_DEVICE float warp_max(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x = device::max(x, device::shuffle_xor(x, mask));
  return x;
}

// Sum or maximum over the block, in an order that does not depend on timing; `parts` [kWarps] is working
// memory. All threads call it and all get the result.
template <class Combine>
SPARC_DEVICE float across_warps(float x, device::Shared<float> parts, const Combine& combine) {
  device::block_barrier();  // what stood in `parts` has been read
  if (device::lane_index() == 0) parts[device::warp_index()] = x;
  device::block_barrier();
  float result = parts[0];
  for (int warp = 1; warp < kWarps; ++warp) result = combine(result, static_cast<float>(parts[warp]));
  return result;
}
SPARC_DEVICE float block_sum(float x, device::Shared<float> parts) {
  return across_warps(warp_sum(x), parts, [](float a, float b) { return a + b; });
}
SPARC_DEVICE float block_max(float x, device::Shared<float> parts) {
  return across_warps(warp_max(x), parts, [](float a, float b) { return device::max(a, b); });
}

// The unit in which float16 holds numbers whose largest magnitude in this thread is `largest()`: that of the
// block. 1 in wider dtypes, which need none.
template <class E, class Largest>
SPARC_DEVICE float range_unit(const Largest& largest, device::Shared<float> parts) {
  float unit = 1.0f;
  if constexpr (kIsFloat16<E>) {
    const float top = block_max(largest(), parts);
    if (top > 0.0f) unit = top;
  }
  return unit;
}

SPARC_DEVICE float clamped_norm(float square) { return device::max(device::sqrt(square), kSmallestNorm); }
// What a norm has in its own gradient: a clamped norm is a constant.
SPARC_DEVICE float inverse_square(float norm) { return norm > kSmallestNorm ? 1.0f / (norm * norm) : 0.0f; }

// Offsets in a block's shared memory or scratch.
template <class Offset>
struct Plan {
  Offset used = 0;

  SPARC_HOST_DEVICE Offset take(int64_t bytes) {
    const Offset offset = used;
    used += static_cast<Offset>((bytes + 15) / 16 * 16);
    return offset;
  }
};

}  // namespace sparc
