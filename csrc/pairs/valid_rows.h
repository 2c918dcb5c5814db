// Plain types that the code of every instruction set shares.
#pragma once

#include <cstdint>

namespace sparc {

// bfloat16 as it lies in memory; arithmetic is done in float32.
struct Bf16 {
  uint16_t bits;
};

// The rows of one image or caption that its mask lets through.
struct Rows {
  const void* data;       // row 0, column 0, of the embeddings' dtype
  int64_t row_stride;     // in elements
  int64_t column_stride;  // in elements
  const int32_t* index;   // [count] numbers of the valid rows, ascending
  int64_t count;          // valid rows
  bool leading;           // index[i] == i: the valid rows come first
};

}  // namespace sparc
