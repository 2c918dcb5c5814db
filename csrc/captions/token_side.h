// Images with their patches, or captions with their tokens, as the CPU kernels see them that let every image
// meet every caption.
#pragma once

#include "common/isa.h"

namespace sparc {

// Strides in elements, columns side by side. Row r of item i is row start(i) + r of all rows.
struct TokenSide {
  const void* data = nullptr;
  int64_t items = 0, rows = 0;  // rows of an item: all, or the most where they are packed
  int64_t width = 0, item_stride = 0, row_stride = 0;
  const bool* mask = nullptr;  // null: all are valid
  int64_t mask_item_stride = 0, mask_stride = 0;
  const int64_t* offsets = nullptr;  // [items + 1] where packed
  int64_t total = 0;                 // rows of all items
  void* inverse_norms = nullptr;     // [total] Acc

  int64_t start(int64_t i) const { return offsets ? offsets[i] : i * rows; }
  int64_t size(int64_t i) const { return offsets ? offsets[i + 1] - offsets[i] : rows; }
  bool valid(int64_t i, int64_t r) const { return !mask || mask[i * mask_item_stride + r * mask_stride]; }
  int64_t place(int64_t i, int64_t r) const {  // of a row's first element
    return offsets ? (offsets[i] + r) * row_stride : i * item_stride + r * row_stride;
  }
  int64_t valid_rows(int64_t i) const {
    if (!mask) return size(i);
    int64_t count = 0;
    for (int64_t r = 0; r < rows; ++r) count += valid(i, r);
    return count;
  }
};

}  // namespace sparc
