// The fine-grained ops: their schemas, whatever the device, and on the CPU checks and the loop over pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "alignment/token_loss_cpu.h"
#include "fine_grained/fine_grained.h"

namespace sparc {
namespace {

ItemSlices read_pooled(const std::optional<Tensor>& grad, const char* name, const Batch& batch) {
  if (!grad) return {};
  check_cpu_input(*grad, name, batch.dtype, {batch.b, batch.d});
  check_contiguous(*grad, name);
  return {grad->const_data_ptr(), batch.d * static_cast<int64_t>(grad->element_size())};
}

TokenLossPair with_scale(const Tensor& logit_scale, const Batch& batch) {
  TokenLossPair common = {};
  common.logit_scale = read_scalar(logit_scale, "logit_scale", batch.accumulation);
  return common;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& patch_embeds, const Tensor& token_embeds, const std::optional<Tensor>& token_mask,
    const std::optional<Tensor>& patch_mask, const Tensor& logit_scale,
    const std::optional<Tensor>& threshold, bool pool_patches, bool pool_tokens,
    const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask));
  const TokenLosses out = token_losses<FineGrainedKernel>(batch, threshold, with_scale(logit_scale, batch),
                                                          pool_patches, pool_tokens);
  return {out.token_loss, out.stats, out.pooled_patches.tensor, out.pooled_tokens.tensor};
}

std::tuple<Tensor, Tensor> backward(
    const Tensor& grad_token_loss, const std::optional<Tensor>& grad_pooled_patches,
    const std::optional<Tensor>& grad_pooled_tokens, const Tensor& patch_embeds, const Tensor& token_embeds,
    const std::optional<Tensor>& token_mask, const std::optional<Tensor>& patch_mask,
    const Tensor& logit_scale, const std::optional<Tensor>& threshold, const Tensor& stats, bool need_patches,
    bool need_tokens, const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask));
  return token_loss_gradients<FineGrainedKernel>(
      batch, threshold, with_scale(logit_scale, batch),
      {grad_token_loss, stats, read_pooled(grad_pooled_patches, "grad_pooled_patches", batch),
       read_pooled(grad_pooled_tokens, "grad_pooled_tokens", batch), need_patches, need_tokens});
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
