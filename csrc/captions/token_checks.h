// The tensors of images and captions that CPU ops take: checked, and as the kernels see them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "captions/token_side.h"
#include "common/checks.h"
#include "common/huge_pages.h"

namespace sparc {

using Maybe = std::optional<Tensor>;

inline int64_t parts_of(int64_t total, int64_t size) { return (total + size - 1) / size; }

inline Tensor with_rows_in_one_piece(const Tensor& tokens) {
  const int64_t last = tokens.dim() - 1;
  if (tokens.size(last) <= 1 || tokens.stride(last) == 1) return tokens;
  return torch::stable::contiguous(tokens);
}

inline void check_tokens(const Tensor& tokens, const char* name, int64_t dim, const char* shape) {
  check_on_cpu(tokens, name);
  STD_TORCH_CHECK(tokens.dim() == dim, name, ": expected ", dim, " dimensions ", shape, ", got ",
                  tokens.dim());
  STD_TORCH_CHECK(tokens.size(dim - 1) > 0 && (dim == 2 || tokens.size(1) > 0), name, ": expected a shape ",
                  shape, " that is empty in its first dimension only");
}

// The arguments that ops share, as they came.
struct TokenInputs {
  const Tensor &image_tokens, &text_tokens;
  const Maybe &image_mask, &text_mask, &text_offsets;
  int64_t max_tokens;
};

// Whose memory the sides point into.
struct CheckedTokens {
  Tensor image_tokens, text_tokens;
  ScalarType dtype, accumulation;

  CheckedTokens(const TokenInputs& in, TokenSide& images, TokenSide& texts)
      : image_tokens(in.image_tokens),
        text_tokens(in.text_tokens),
        dtype(in.image_tokens.scalar_type()),
        accumulation(accumulation_dtype(dtype)) {
    const bool packed = in.text_offsets.has_value();
    check_tokens(image_tokens, "image_tokens", 3, "[I, P, D]");
    STD_TORCH_CHECK(
        dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
        "image_tokens: the CPU kernels take Float, Double and BFloat16, got ",
        torch::headeronly::toString(dtype));
    check_tokens(text_tokens, "text_tokens", packed ? 2 : 3, packed ? "[N, D]" : "[J, L, D]");
    check_dtype(text_tokens, "text_tokens", dtype);
    const int64_t width = text_tokens.size(text_tokens.dim() - 1);
    STD_TORCH_CHECK(width == image_tokens.size(2), "text_tokens: expected the width of image_tokens, ",
                    image_tokens.size(2), ", got ", width);
    image_tokens = with_rows_in_one_piece(image_tokens);
    text_tokens = with_rows_in_one_piece(text_tokens);
    set_padded(images, image_tokens, in.image_mask, "image_mask");
    if (packed) {
      STD_TORCH_CHECK(!in.text_mask, "text_mask: expected None with text_offsets");
      set_packed(texts, text_tokens, *in.text_offsets, in.max_tokens);
    } else {
      set_padded(texts, text_tokens, in.text_mask, "text_mask");
    }
  }
  CheckedTokens(const CheckedTokens&) = delete;

  // The flat [rows of both sides] of inverse norms, images first.
  void set_stats(TokenSide& images, TokenSide& texts, void* stats) const {
    images.inverse_norms = stats;
    const int64_t size = accumulation == ScalarType::Double ? sizeof(double) : sizeof(float);
    texts.inverse_norms = static_cast<char*>(stats) + images.total * size;
  }

 private:
  static void set_padded(TokenSide& side, const Tensor& tokens, const Maybe& mask, const char* name) {
    side.data = tokens.const_data_ptr();
    side.items = tokens.size(0);
    side.rows = tokens.size(1);
    side.width = tokens.size(2);
    side.item_stride = tokens.stride(0);
    side.row_stride = tokens.stride(1);
    side.total = side.items * side.rows;
    if (!mask) return;
    check_cpu_input(*mask, name, ScalarType::Bool, {side.items, side.rows});
    side.mask = static_cast<const bool*>(mask->const_data_ptr());
    side.mask_item_stride = mask->stride(0);
    side.mask_stride = mask->stride(1);
  }

  static void set_packed(TokenSide& texts, const Tensor& tokens, const Tensor& offsets, int64_t max_tokens) {
    check_on_cpu(offsets, "text_offsets");
    check_dtype(offsets, "text_offsets", ScalarType::Long);
    STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) > 0, "text_offsets: expected a shape [J + 1]");
    check_contiguous(offsets, "text_offsets");
    STD_TORCH_CHECK(max_tokens > 0, "max_tokens: expected at least 1 with text_offsets, got ", max_tokens);
    texts.data = tokens.const_data_ptr();
    texts.items = offsets.size(0) - 1;
    texts.rows = max_tokens;
    texts.width = tokens.size(1);
    texts.row_stride = tokens.stride(0);
    texts.total = tokens.size(0);
    texts.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
    STD_TORCH_CHECK(texts.offsets[0] >= 0 && texts.offsets[texts.items] <= texts.total,
                    "text_offsets: expected values in [0, ", texts.total, "]");
    for (int64_t j = 0; j < texts.items; ++j) {
      STD_TORCH_CHECK(texts.size(j) >= 0 && texts.size(j) <= max_tokens,
                      "text_offsets: expected captions of 0 to ", max_tokens, " tokens, got ", texts.size(j),
                      " of caption ", j);
    }
  }
};

// Where the valid rows of each item begin among those of all; [items + 1].
inline std::vector<int64_t> first_valid_rows(const TokenSide& side) {
  std::vector<int64_t> first(1, 0);
  for (int64_t i = 0; i < side.items; ++i) first.push_back(first.back() + side.valid_rows(i));
  return first;
}

// The gradient of a side's tokens, or [0]; zeros where tokens may belong to no caption.
inline Tensor new_token_gradient(const Tensor& tokens, const TokenSide& side, bool needed) {
  std::vector<int64_t> shape;
  for (int64_t axis = 0; axis < tokens.dim(); ++axis) shape.push_back(tokens.size(axis));
  Tensor grad = torch::stable::new_empty(tokens, needed ? shape : std::vector<int64_t>{0});
  if (!needed) return grad;
  const int64_t bytes = grad.numel() * grad.element_size();
  prefer_huge_pages(grad.mutable_data_ptr(), bytes);
  if (side.offsets) __builtin_memset(grad.mutable_data_ptr(), 0, bytes);
  return grad;
}

}  // namespace sparc
