// Tensors of a CPU call whose first dimension is the pair: where each pair's part lies.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/huge_pages.h"

namespace sparc {

// The contiguous part of each pair, or nothing.
class PairRows {
 public:
  PairRows() = default;
  PairRows(const void* data, int64_t bytes)
      : data_(static_cast<char*>(const_cast<void*>(data))), bytes_(bytes) {}
  char* at(int64_t pair) const { return data_ ? data_ + pair * bytes_ : nullptr; }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;  // of one pair
};

// A result [B, ...] in the dtype of `like`, or [0] where nobody asked for it.
struct PairResult {
  torch::stable::Tensor tensor;
  PairRows rows;

  PairResult(const torch::stable::Tensor& like, bool asked, const std::vector<int64_t>& shape)
      : tensor(torch::stable::new_empty(like, asked ? shape : std::vector<int64_t>{0})) {
    if (!asked || tensor.numel() == 0) return;
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    prefer_huge_pages(tensor.mutable_data_ptr(), bytes);
    rows = PairRows(tensor.mutable_data_ptr(), bytes / shape[0]);
  }
};

}  // namespace sparc
