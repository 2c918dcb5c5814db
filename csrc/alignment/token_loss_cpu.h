// The ops of a per-token loss on the CPU: what they allocate, and their loops over pairs.
#pragma once

#include <tuple>

#include "alignment/arguments.h"
#include "alignment/token_loss.h"
#include "common/cpu_capability.h"
#include "common/item_slices.h"

namespace sparc {

// What a forward op returns.
struct TokenLosses {
  Tensor token_loss, stats;
  ItemResult pooled_patches, pooled_tokens;
};

// `common`: what all pairs share.
template <class Kernel>
TokenLosses token_losses(const Batch& batch, const std::optional<Tensor>& threshold,
                         const TokenLossPair& common, bool pool_patches, bool pool_tokens) {
  const Tensor& like = batch.images.embeds;
  TokenLosses out = {torch::stable::new_empty(like, {batch.b, batch.l}, batch.accumulation),
                     torch::stable::new_empty(like, {kTokenLossStats, batch.b, batch.l}, batch.accumulation),
                     {like, pool_patches, {batch.b, batch.d}},
                     {like, pool_tokens, {batch.b, batch.d}}};
  const Kernel kernel = pick_kernel<Kernel>(batch.dtype);
  const int64_t row_bytes = batch.l * static_cast<int64_t>(out.token_loss.element_size());
  const ItemSlices losses(out.token_loss.mutable_data_ptr(), row_bytes);
  const ItemSlices stat(out.stats.mutable_data_ptr(), row_bytes);
  for_each_caption(batch, threshold, common, kernel, [&](TokenLossPair& pair, int64_t i, void* workspace) {
    pair.token_loss = losses.at(i);
    pair.stats = stat.at(i);
    pair.pooled_patches = out.pooled_patches.slices.at(i);
    pair.pooled_tokens = out.pooled_tokens.slices.at(i);
    kernel.forward(pair, workspace);
  });
  return out;
}

// What a backward op is given beside the inputs of the forward.
struct TokenLossUpstream {
  const Tensor &grad_token_loss, &stats;
  ItemSlices pooled_patches, pooled_tokens;
  bool need_patches, need_tokens;
};

template <class Kernel>
std::tuple<Tensor, Tensor> token_loss_gradients(const Batch& batch, const std::optional<Tensor>& threshold,
                                                const TokenLossPair& common, const TokenLossUpstream& given) {
  check_cpu_input(given.grad_token_loss, "grad_token_loss", batch.accumulation, {batch.b, batch.l});
  check_cpu_input(given.stats, "stats", batch.accumulation, {kTokenLossStats, batch.b, batch.l});
  check_contiguous(given.stats, "stats");
  const Tensor& like = batch.images.embeds;
  const ItemResult grad_patches(like, given.need_patches, {batch.b, batch.p, batch.d});
  const ItemResult grad_tokens(like, given.need_tokens, {batch.b, batch.l, batch.d});
  if (!given.need_patches && !given.need_tokens) return {grad_patches.tensor, grad_tokens.tensor};

  const Kernel kernel = pick_kernel<Kernel>(batch.dtype);
  const int64_t acc_bytes = given.stats.element_size(), grad_stride = given.grad_token_loss.stride(1);
  const ItemSlices upstream(given.grad_token_loss.const_data_ptr(),
                            given.grad_token_loss.stride(0) * acc_bytes);
  const ItemSlices stat(given.stats.const_data_ptr(), batch.l * acc_bytes);
  for_each_caption(batch, threshold, common, kernel, [&](TokenLossPair& pair, int64_t i, void* workspace) {
    pair.stats = stat.at(i);
    pair.grad_token_loss = upstream.at(i);
    pair.grad_stride = grad_stride;
    pair.grad_pooled_patches = given.pooled_patches.at(i);
    pair.grad_pooled_tokens = given.pooled_tokens.at(i);
    pair.grad_patches = grad_patches.slices.at(i);
    pair.grad_tokens = grad_tokens.slices.at(i);
    kernel.backward(pair, workspace);
  });
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace sparc
