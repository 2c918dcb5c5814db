// The rows of one image or text that its mask lets through.
#pragma once

#include <cstdint>

namespace sparc {

struct ValidRows {
  const void* data;       // row 0, column 0, of the embeddings' dtype
  int64_t row_stride;     // in elements
  int64_t column_stride;  // in elements
  const int32_t* index;   // [count] numbers of the valid rows, ascending
  int64_t count;
  bool leading;  // index[i] == i: the valid rows come first
};

}  // namespace sparc
