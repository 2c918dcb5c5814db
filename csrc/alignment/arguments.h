// The arguments that the ops of this family share, under their names.
#pragma once

#include "pairs/batch.h"

namespace sparc {

inline Side patch_side(const Tensor& embeds, const std::optional<Tensor>& mask) {
  return {embeds, mask, "patch_embeds", "patch_mask", "[B, P, D]"};
}
inline Side token_side(const Tensor& embeds, const std::optional<Tensor>& mask) {
  return {embeds, mask, "token_embeds", "token_mask", "[B, L, D]"};
}

// sigma; negative where it is to be 1 / valid patches.
inline double read_threshold(const std::optional<Tensor>& threshold, ScalarType dtype) {
  return threshold ? read_scalar(*threshold, "similarity_threshold", dtype) : -1.0;
}

}  // namespace sparc
