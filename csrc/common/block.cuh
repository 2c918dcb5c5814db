// What a block of threads does in every kernel: read masks and rows of the inputs, reduce, measure rows.
#pragma once

#include "pairs/pair_inputs.h"
#include "common/products.cuh"

namespace sparc {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr float kSmallestNorm = 1e-12f;  // as in F.normalize
constexpr float kLargest = 3.4028234663852886e38f;
// A row of similarities is flat if its range is at most 16 eps of its largest magnitude.
constexpr float kFlatRange = 16 * 1.1920928955078125e-07f;

SPARC_HOST_DEVICE constexpr int at_most(int x, int most) { return x < most ? x : most; }

// Whether the pair path serves a pair with so many valid tokens and patches.
SPARC_HOST_DEVICE constexpr bool pair_path_holds(int tokens, int patches) {
  return tokens <= kPairTokens && patches <= kPairPatches;
}

template <class E>
constexpr bool kIsFloat16 = false;
template <>
constexpr bool kIsFloat16<Float16> = true;

SPARC_HOST_DEVICE constexpr int round_up(int x, int step) { return (x + step - 1) / step * step; }

// One pair's rows of an input.
template <class E>
struct InputRows {
  const E* data;
  int64_t row_stride, column_stride;
  bool wide;  // rows of neighbouring channels, 16-byte aligned

  SPARC_DEVICE InputRows(const MatrixView& view, int64_t pair)
      : data(static_cast<const E*>(view.data) + pair * view.batch_stride),
        row_stride(view.row_stride),
        column_stride(view.column_stride),
        wide(view.wide) {}
};

SPARC_DEVICE bool is_valid(const MaskView& mask, int64_t pair, int64_t row) {
  return mask.data == nullptr || mask.data[pair * mask.batch_stride + row * mask.stride];
}

// Zeros in the masked rows of a pair's [rows, columns] of `out`; `otherwise(column)` in the valid ones if
// they have no result. Nothing where `out` is null.
template <class E, class Otherwise>
SPARC_DEVICE void fill_rows(const MaskView& mask, int64_t pair, int rows, int64_t columns, bool computed,
                            const Otherwise& otherwise, void* out) {
  if (out == nullptr) return;
  E* const data = static_cast<E*>(out) + pair * rows * columns;
  for (int row = device::warp_index(); row < rows; row += kWarps) {
    const bool valid = is_valid(mask, pair, row);
    if (valid && computed) continue;
    for (int64_t i = device::lane_index(); i < columns; i += 32) {
      data[row * columns + i] = device::from_float<E>(valid ? otherwise(i) : 0.0f);
    }
  }
}

// The mean of a pair's valid rows of an input, into its row of `out` [B, columns]; 0 where none is valid.
// Nothing where `out` is null.
template <class E>
SPARC_DEVICE void write_mean(const MatrixView& view, const MaskView& mask, int64_t pair, int rows,
                             int64_t columns, void* out) {
  if (out == nullptr) return;
  const InputRows<E> from(view, pair);
  for (int64_t column = device::thread_index(); column < columns; column += kThreads) {
    float total = 0.0f;
    int count = 0;
    for (int row = 0; row < rows; ++row) {
      if (!is_valid(mask, pair, row)) continue;
      total += device::to_float(from.data[row * from.row_stride + column * from.column_stride]);
      ++count;
    }
    static_cast<E*>(out)[pair * columns + column] =
        device::from_float<E>(count > 0 ? total / static_cast<float>(count) : 0.0f);
  }
}

SPARC_DEVICE int count_valid(const MaskView& mask, int64_t pair, int rows) {
  int count = 0;
  for (int row = 0; row < rows; ++row) count += is_valid(mask, pair, row) ? 1 : 0;
  return count;
}

// What each of a pair's valid rows gets of the gradient of their mean; nothing where there is none.
template <class E>
struct MeanShare {
  const E* grad = nullptr;
  int64_t columns = 0;
  float factor = 0.0f;

  SPARC_DEVICE MeanShare() {}
  SPARC_DEVICE MeanShare(const void* grads, int64_t pair, int64_t columns_, int rows)
      : grad(grads == nullptr ? nullptr : static_cast<const E*>(grads) + pair * columns_),
        columns(columns_),
        factor(rows > 0 ? 1.0f / static_cast<float>(rows) : 0.0f) {}
  SPARC_DEVICE float at(int64_t column) const {
    return grad == nullptr || column >= columns ? 0.0f : device::to_float(grad[column]) * factor;
  }
};

// The numbers of the valid rows of a pair, ascending, into index [length]; returns how many they are.
// `counts` [kWarps] is working memory. All threads call it, and may read the index when it returns.
template <class Index>
SPARC_DEVICE int list_valid(const MaskView& mask, int64_t pair, int length, Index index,
                            device::Shared<int> counts) {
  int total = 0;
  SPARC_NO_UNROLL
  for (int start = 0; start < length; start += kThreads) {
    const int i = start + device::thread_index();
    const bool valid = i < length && is_valid(mask, pair, i);
    const uint32_t votes = device::ballot(valid);
    device::block_barrier();  // the counts of the round before have been read
    if (device::lane_index() == 0) counts[device::warp_index()] = device::count_bits(votes);
    device::block_barrier();
    int before = total;
    for (int warp = 0; warp < kWarps; ++warp) {
      const int count = counts[warp];
      if (warp < device::warp_index()) before += count;
      total += count;
    }
    if (valid) index[before + device::count_bits(votes & ((1u << device::lane_index()) - 1u))] = i;
  }
  device::block_barrier();
  return total;
}

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

// A row of similarities: from its extrema to alignment weights in units of its range (eq 2-3).
struct RowAlignment {
  float low, high, range, inverse_range;  // range and inverse are 0 in a flat row
  float sigma;                            // no patch of a flat row is cut

  SPARC_DEVICE RowAlignment(float low_, float high_, float sigma_) : low(low_), high(high_) {
    const float spread = high - low;
    const bool flat = spread <= kFlatRange * device::max(device::abs(low), device::abs(high));
    range = flat ? 0.0f : spread;
    inverse_range =
        flat ? 0.0f : device::min(1.0f / spread, kLargest);  // a subnormal range: any factor serves
    sigma = flat ? 0.0f : sigma_;
  }
  SPARC_DEVICE bool flat() const { return range == 0.0f; }
  SPARC_DEVICE float height(float s) const { return s == high ? 1.0f : (s - low) * inverse_range; }
  // "Not cut", so that a NaN is kept and seen.
  SPARC_DEVICE bool kept(float s) const { return !(height(s) < sigma); }
  SPARC_DEVICE float weight(float s) const { return flat() ? 1.0f : (kept(s) ? height(s) : 0.0f); }
};

SPARC_DEVICE float threshold_of(const float* threshold, int patches) {
  return threshold == nullptr ? 1.0f / static_cast<float>(patches) : *threshold;
}

// C' is a sum over patches, which may leave the range of float16: there it is taken in this unit (a power of
// two: scaling rounds nothing). Any positive factor of C' cancels in the cosine.
template <class E>
SPARC_DEVICE float group_unit(int patches) {
  float unit = 1.0f;
  if (kIsFloat16<E>) {
    while (unit * static_cast<float>(patches) > 1.0f) unit *= 0.5f;
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
