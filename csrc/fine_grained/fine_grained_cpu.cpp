// The fine-grained ops: their schemas, whatever the device, and on the CPU checks and the loop over pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "alignment/arguments.h"
#include "common/cpu_capability.h"
#include "common/item_slices.h"
#include "fine_grained/fine_grained.h"

namespace sparc {
namespace {

using torch::stable::new_empty;

ItemSlices read_pooled(const std::optional<Tensor>& grad, const char* name, const Batch& batch) {
  if (!grad) return {};
  check_cpu_input(*grad, name, batch.dtype, {batch.b, batch.d});
  check_contiguous(*grad, name);
  return {grad->const_data_ptr(), batch.d * static_cast<int64_t>(grad->element_size())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& patch_embeds, const Tensor& token_embeds, const std::optional<Tensor>& token_mask,
    const std::optional<Tensor>& patch_mask, const Tensor& logit_scale,
    const std::optional<Tensor>& threshold, bool pool_patches, bool pool_tokens,
    const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask));
  Tensor token_loss = new_empty(patch_embeds, {batch.b, batch.l}, batch.accumulation);
  Tensor stats = new_empty(patch_embeds, {kFineGrainedStats, batch.b, batch.l}, batch.accumulation);
  const ItemResult pooled_patches(patch_embeds, pool_patches, {batch.b, batch.d});
  const ItemResult pooled_tokens(patch_embeds, pool_tokens, {batch.b, batch.d});

  FineGrainedPair common = {};
  common.logit_scale = read_scalar(logit_scale, "logit_scale", batch.accumulation);
  const FineGrainedKernel kernel = pick_kernel<FineGrainedKernel>(batch.dtype);
  const int64_t row_bytes = batch.l * token_loss.element_size();
  const ItemSlices losses(token_loss.mutable_data_ptr(), row_bytes),
      stat(stats.mutable_data_ptr(), row_bytes);
  for_each_caption(batch, threshold, common, kernel, [&](FineGrainedPair& pair, int64_t i, void* workspace) {
    pair.token_loss = losses.at(i);
    pair.stats = stat.at(i);
    pair.pooled_patches = pooled_patches.slices.at(i);
    pair.pooled_tokens = pooled_tokens.slices.at(i);
    kernel.forward(pair, workspace);
  });
  return {token_loss, stats, pooled_patches.tensor, pooled_tokens.tensor};
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_token_loss, const std::optional<Tensor>& grad_pooled_patches,
    const std::optional<Tensor>& grad_pooled_tokens, const Tensor& patch_embeds, const Tensor& token_embeds,
    const std::optional<Tensor>& token_mask, const std::optional<Tensor>& patch_mask,
    const Tensor& logit_scale, const std::optional<Tensor>& threshold, const Tensor& stats, bool need_patches,
    bool need_tokens, const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask));
  check_cpu_input(grad_token_loss, "grad_token_loss", batch.accumulation, {batch.b, batch.l});
  check_cpu_input(stats, "stats", batch.accumulation, {kFineGrainedStats, batch.b, batch.l});
  check_contiguous(stats, "stats");
  const ItemSlices pooled_patches = read_pooled(grad_pooled_patches, "grad_pooled_patches", batch);
  const ItemSlices pooled_tokens = read_pooled(grad_pooled_tokens, "grad_pooled_tokens", batch);
  const ItemResult grad_patches(patch_embeds, need_patches, {batch.b, batch.p, batch.d});
  const ItemResult grad_tokens(patch_embeds, need_tokens, {batch.b, batch.l, batch.d});
  if (!need_patches && !need_tokens) return {grad_patches.tensor, grad_tokens.tensor};

  FineGrainedPair common = {};
  common.logit_scale = read_scalar(logit_scale, "logit_scale", batch.accumulation);
  const FineGrainedKernel kernel = pick_kernel<FineGrainedKernel>(batch.dtype);
  const int64_t acc_bytes = stats.element_size(), grad_stride = grad_token_loss.stride(1);
  const ItemSlices upstream(grad_token_loss.const_data_ptr(), grad_token_loss.stride(0) * acc_bytes);
  const ItemSlices stat(stats.const_data_ptr(), batch.l * acc_bytes);
  for_each_caption(batch, threshold, common, kernel, [&](FineGrainedPair& pair, int64_t i, void* workspace) {
    pair.stats = stat.at(i);
    pair.grad_token_loss = upstream.at(i);
    pair.grad_stride = grad_stride;
    pair.grad_pooled_patches = pooled_patches.at(i);
    pair.grad_pooled_tokens = pooled_tokens.at(i);
    pair.grad_patches = grad_patches.slices.at(i);
    pair.grad_tokens = grad_tokens.slices.at(i);
    kernel.backward(pair, workspace);
  });
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "fine_grained_forward(Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? "
      "patch_mask, "
      "Tensor logit_scale, Tensor? similarity_threshold, bool pool_patches, bool pool_tokens, "
      "str float32_precision) "
      "-> (Tensor token_loss, Tensor stats, Tensor pooled_patches, Tensor pooled_tokens)");
  m.def(
      "fine_grained_backward(Tensor grad_token_loss, Tensor? grad_pooled_patches, Tensor? "
      "grad_pooled_tokens, Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? patch_mask, "
      "Tensor logit_scale, Tensor? similarity_threshold, Tensor stats, bool need_patches, bool need_tokens, "
      "str float32_precision) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("fine_grained_forward", TORCH_BOX(&sparc::forward));
  m.impl("fine_grained_backward", TORCH_BOX(&sparc::backward));
}
