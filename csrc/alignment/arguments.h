// The arguments that the ops of this family share, under their names, and their loop over pairs on the CPU.
#pragma once

#include "alignment/alignment_pair.h"
#include "pairs/batch.h"

namespace sparc {

inline Side patch_side(const Tensor& embeds, const std::optional<Tensor>& mask) {
  return {embeds, mask, "patch_embeds", "patch_mask", "[B, P, D]"};
}
inline Side token_side(const Tensor& embeds, const std::optional<Tensor>& mask) {
  return {embeds, mask, "token_embeds", "token_mask", "[B, L, D]"};
}

// Calls body(pair, i, workspace) for every image and its caption; `pair` has what `common` says of all pairs.
template <class Pair, class Kernel, class F>
void for_each_caption(const Batch& batch, const std::optional<Tensor>& threshold, Pair common,
                      const Kernel& kernel, const F& body) {
  common.all_patches = batch.p;
  common.all_tokens = batch.l;
  common.channels = batch.d;
  common.threshold = threshold ? read_scalar(*threshold, "similarity_threshold", batch.accumulation) : -1.0;
  common.stats_stride = batch.b * batch.l;
  for_each_pair(batch, batch.b, matching, kernel.workspace(batch.l, batch.p, batch.d),
                [&](const ValidRows& patches, const ValidRows& tokens, int64_t i, void* workspace) {
                  Pair pair = common;
                  pair.patches = patches;
                  pair.tokens = tokens;
                  body(pair, i, workspace);
                });
}

}  // namespace sparc
