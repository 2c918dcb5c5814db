// The rows of an image or a text: which of them are valid, their numbers, their mean, and rows without a
// result. `item` is the number of the image or the text.
#pragma once

#include "common/block.cuh"
#include "common/views.h"

namespace sparc {

// The rows of one image or text of an input.
template <class E>
struct InputRows {
  const E* data;
  int64_t row_stride, column_stride;
  bool wide;  // rows of neighbouring channels, 16-byte aligned

  SPARC_DEVICE InputRows(const MatrixView& view, int64_t item)
      : data(static_cast<const E*>(view.data) + item * view.batch_stride),
        row_stride(view.row_stride),
        column_stride(view.column_stride),
        wide(view.wide) {}
};

// The [rows, columns] of an image or text in a contiguous output.
template <class E>
SPARC_DEVICE E* rows_of(void* out, int64_t item, int64_t rows, int64_t columns) {
  return static_cast<E*>(out) + item * rows * columns;
}

SPARC_DEVICE bool is_valid(const MaskView& mask, int64_t item, int64_t row) {
  return mask.data == nullptr || mask.data[item * mask.batch_stride + row * mask.stride];
}

// Zeros in the masked rows of `item` in `out` [B, rows, columns]; `otherwise(column)` in the valid ones if
// they have no result. Nothing where `out` is null.
template <class E, class Otherwise>
SPARC_DEVICE void fill_rows(const MaskView& mask, int64_t item, int rows, int64_t columns, bool computed,
                            const Otherwise& otherwise, void* out) {
  if (out == nullptr || (computed && mask.data == nullptr)) return;
  E* const data = rows_of<E>(out, item, rows, columns);
  SPARC_NO_UNROLL
  for (int row = device::warp_index(); row < rows; row += kWarps) {
    const bool valid = is_valid(mask, item, row);
    if (valid && computed) continue;
    SPARC_NO_UNROLL
    for (int64_t i = device::lane_index(); i < columns; i += 32) {
      data[row * columns + i] = device::from_float<E>(valid ? otherwise(i) : 0.0f);
    }
  }
}

// The mean of the valid rows of an input, into its row of `out` [B, columns]; 0 where none is valid.
// Nothing where `out` is null.
template <class E>
SPARC_DEVICE void write_mean(const MatrixView& view, const MaskView& mask, int64_t item, int rows,
                             int64_t columns, void* out) {
  if (out == nullptr) return;
  const InputRows<E> from(view, item);
  for (int64_t column = device::thread_index(); column < columns; column += kThreads) {
    float total = 0.0f;
    int count = 0;
    SPARC_UNROLL_FOUR_TIMES
    for (int row = 0; row < rows; ++row) {  // without a branch: loads of several rows are under way
      const bool valid = is_valid(mask, item, row);
      const float x = device::to_float(from.data[row * from.row_stride + column * from.column_stride]);
      total += valid ? x : 0.0f;
      count += valid ? 1 : 0;
    }
    static_cast<E*>(out)[item * columns + column] =
        device::from_float<E>(count > 0 ? total / static_cast<float>(count) : 0.0f);
  }
}

SPARC_DEVICE int count_valid(const MaskView& mask, int64_t item, int rows) {
  int count = 0;
  SPARC_NO_UNROLL
  for (int row = 0; row < rows; ++row) count += is_valid(mask, item, row) ? 1 : 0;
  return count;
}

// What each valid row gets of the gradient of their mean; nothing where there is none.
template <class E>
struct MeanShare {
  const E* grad = nullptr;
  int64_t columns = 0;
  float factor = 0.0f;

  SPARC_DEVICE MeanShare() {}
  SPARC_DEVICE MeanShare(const void* grads, int64_t item, int64_t columns_, int rows)
      : grad(grads == nullptr ? nullptr : static_cast<const E*>(grads) + item * columns_),
        columns(columns_),
        factor(rows > 0 ? 1.0f / static_cast<float>(rows) : 0.0f) {}
  SPARC_DEVICE bool is_there() const { return grad != nullptr; }
  // That of an even column and of the next, of a gradient that is there; `kWhole`: columns are even in
  // number.
  template <bool kWhole>
  SPARC_DEVICE void two_at(int64_t column, float (&share)[2]) const {
    if constexpr (kWhole) {
      const uint32_t words = column < columns ? *reinterpret_cast<const uint32_t*>(grad + column) : 0u;
      unpack(words, share);
    } else {
      share[0] = at(column);
      share[1] = at(column + 1);
    }
  }
  SPARC_DEVICE void unpack(uint32_t words, float (&share)[2]) const {
    share[0] = device::to_float(E{static_cast<uint16_t>(words)}) * factor;
    share[1] = device::to_float(E{static_cast<uint16_t>(words >> 16)}) * factor;
  }
  // The same of a gradient that may not be there: then 0.
  SPARC_DEVICE void two_at(int64_t column, float (&share)[2]) const {
    share[0] = share[1] = 0.0f;
    if (is_there()) two_at<false>(column, share);
  }
  SPARC_DEVICE float at(int64_t column) const {
    return grad == nullptr || column >= columns ? 0.0f : device::to_float(grad[column]) * factor;
  }
};

// The numbers of the valid rows of a item, ascending, into index [length]; returns how many they are.
// `counts` [kWarps] is working memory. All threads call it, and may read the index when it returns.
template <class Index>
SPARC_DEVICE int list_valid(const MaskView& mask, int64_t item, int length, Index index,
                            device::Shared<int> counts) {
  if (mask.data == nullptr) {
    SPARC_NO_UNROLL
    for (int i = device::thread_index(); i < length; i += kThreads) index[i] = i;
    device::block_barrier();
    return length;
  }
  int total = 0;
  SPARC_NO_UNROLL
  for (int start = 0; start < length; start += kThreads) {
    const int i = start + device::thread_index();
    const bool valid = i < length && is_valid(mask, item, i);
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

}  // namespace sparc
