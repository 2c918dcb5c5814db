// How the host describes tensors and products to the CUDA kernels.
#pragma once

#include <cstdint>

namespace sparc {

// [batch, rows, columns]; strides in elements.
struct MatrixView {
  const void* data;
  int64_t batch_stride, row_stride, column_stride;
  // column_stride 1, every row 16-byte aligned, less than 4 GiB between rows: they can be copied 16 bytes at
  // a time
  bool wide;
};

// [batch, rows] bool, or all valid.
struct MaskView {
  const bool* data;  // null: all valid
  int64_t batch_stride, stride;
};

// Which matrix products a call computes with.
enum class ProductKind { kBFloat16, kFloat16, kTf32, kFloat32 };

}  // namespace sparc
