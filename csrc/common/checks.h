// Checks of op arguments, and views of a batch by pair. The Python side validates first and words errors for
// users; these guard the memory that the kernels touch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "common/types.h"

namespace sparc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType accumulation_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) same = same && tensor.size(axis++) == size;
  if (same) return;
  std::string expected, got;
  for (const int64_t size : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  for (int64_t i = 0; i < tensor.dim(); ++i) got += (i ? ", " : "") + std::to_string(tensor.size(i));
  STD_TORCH_CHECK(false, name, ": expected shape [", expected, "], got [", got, "]");
}

inline void check_on_cpu(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
}

// The number in a [] tensor on the CPU.
inline double read_scalar(const Tensor& tensor, const char* name, ScalarType dtype) {
  check_on_cpu(tensor, name);
  check_shape(tensor, name, {});
  check_dtype(tensor, name, dtype);
  const void* value = tensor.const_data_ptr();
  return dtype == ScalarType::Double ? *static_cast<const double*>(value) : *static_cast<const float*>(value);
}

// Contiguous, whatever the strides of dimensions of size 1 say.
inline void check_contiguous(const Tensor& tensor, const char* name) {
  int64_t expected = 1;
  bool contiguous = true;
  for (int64_t axis = tensor.dim() - 1; axis >= 0; --axis) {
    contiguous = contiguous && (tensor.size(axis) == 1 || tensor.stride(axis) == expected);
    expected *= tensor.size(axis);
  }
  STD_TORCH_CHECK(contiguous || expected == 0, name, ": expected a contiguous tensor");
}

// B, P, L, D of patch_embeds [B, P, D] and token_embeds [B, L, D], whose shapes and dtypes are checked
// against each other and against the masks'.
struct PairSizes {
  int64_t b, p, l, d;

  PairSizes(const Tensor& patches, const Tensor& tokens, const std::optional<Tensor>& token_mask,
            const std::optional<Tensor>& patch_mask) {
    STD_TORCH_CHECK(patches.dim() == 3, "patch_embeds: expected 3 dimensions [B, P, D], got ", patches.dim());
    b = patches.size(0);
    p = patches.size(1);
    d = patches.size(2);
    STD_TORCH_CHECK(tokens.dim() == 3, "token_embeds: expected 3 dimensions [B, L, D], got ", tokens.dim());
    l = tokens.size(1);
    check_shape(tokens, "token_embeds", {b, l, d});
    check_dtype(tokens, "token_embeds", patches.scalar_type());
    check_mask(token_mask, "token_mask", l);
    check_mask(patch_mask, "patch_mask", p);
  }

 private:
  void check_mask(const std::optional<Tensor>& mask, const char* name, int64_t length) const {
    if (!mask) return;
    check_dtype(*mask, name, ScalarType::Bool);
    check_shape(*mask, name, {b, length});
  }
};

// patch_embeds [B, P, D] and token_embeds [B, L, D] with their masks, checked, on the CPU.
struct Batch : PairSizes {
  Tensor patches, tokens;
  std::optional<Tensor> token_mask, patch_mask;

  Batch(const Tensor& patch_embeds, const Tensor& token_embeds, const std::optional<Tensor>& token_mask_,
        const std::optional<Tensor>& patch_mask_)
      : PairSizes(patch_embeds, token_embeds, token_mask_, patch_mask_),
        patches(patch_embeds),
        tokens(token_embeds),
        token_mask(token_mask_),
        patch_mask(patch_mask_) {
    check_on_cpu(patches, "patch_embeds");
    check_on_cpu(tokens, "token_embeds");
    if (token_mask) check_on_cpu(*token_mask, "token_mask");
    if (patch_mask) check_on_cpu(*patch_mask, "patch_mask");
    const ScalarType dtype = patches.scalar_type();
    STD_TORCH_CHECK(
        dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
        "patch_embeds: the CPU kernels take Float, Double and BFloat16, got ",
        torch::headeronly::toString(dtype));
  }
};

// The rows of pair after pair of one of the two tensors. Bound once per call: asking a tensor for its strides
// crosses the ABI each time.
class RowReader {
 public:
  RowReader(const Tensor& embeds, const std::optional<Tensor>& mask)
      : data_(static_cast<const char*>(embeds.const_data_ptr())),
        bytes_(embeds.element_size()),
        length_(embeds.size(1)),
        batch_stride_(embeds.stride(0)),
        row_stride_(embeds.stride(1)),
        column_stride_(embeds.stride(2)) {
    if (mask) {
      mask_ = static_cast<const bool*>(mask->const_data_ptr());
      mask_batch_stride_ = mask->stride(0);
      mask_stride_ = mask->stride(1);
    }
  }

  int64_t length() const { return length_; }

  // The rows of `pair`; `index` holds their numbers as long as the result is in use.
  Rows read(int64_t pair, std::vector<int32_t>& index) const {
    index.clear();
    for (int64_t i = 0; i < length_; ++i) {
      if (!mask_ || mask_[pair * mask_batch_stride_ + i * mask_stride_])
        index.push_back(static_cast<int32_t>(i));
    }
    const int64_t count = static_cast<int64_t>(index.size());
    const bool leading = count == 0 || index.back() == count - 1;
    return {data_ + pair * batch_stride_ * bytes_, row_stride_, column_stride_, index.data(), count, leading};
  }

 private:
  const char* data_;
  const bool* mask_ = nullptr;
  int64_t bytes_, length_, batch_stride_, row_stride_, column_stride_;
  int64_t mask_batch_stride_ = 0, mask_stride_ = 0;
};

}  // namespace sparc
