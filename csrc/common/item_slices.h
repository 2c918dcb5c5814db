// Tensors of a CPU call whose first dimension is the item that the call works on: where each item's part
// lies.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/huge_pages.h"

namespace sparc {

// The part of each item, `bytes` from the last one's, or nothing. Who gets it knows whether it may be
// written.
class ItemSlices {
 public:
  ItemSlices() = default;
  ItemSlices(const void* data, int64_t bytes)
      : data_(static_cast<char*>(const_cast<void*>(data))), bytes_(bytes) {}
  char* at(int64_t item) const { return data_ ? data_ + item * bytes_ : nullptr; }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A result [items, ...] in the dtype of `like`, or [0] where nobody asked for it.
struct ItemResult {
  torch::stable::Tensor tensor;
  ItemSlices slices;

  ItemResult(const torch::stable::Tensor& like, bool asked, const std::vector<int64_t>& shape)
      : tensor(torch::stable::new_empty(like, asked ? shape : std::vector<int64_t>{0})) {
    if (!asked || tensor.numel() == 0) return;
    const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
    prefer_huge_pages(tensor.mutable_data_ptr(), bytes);
    slices = ItemSlices(tensor.mutable_data_ptr(), bytes / shape[0]);
  }
};

}  // namespace sparc
