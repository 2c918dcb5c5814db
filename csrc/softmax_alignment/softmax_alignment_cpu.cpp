// The softmax alignment ops: their schemas, whatever the device, and on the CPU checks and the loop over
// pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "alignment/token_loss_cpu.h"
#include "softmax_alignment/softmax_alignment.h"

namespace sparc {
namespace {

TokenLossPair with_scales(const Tensor& logit_scale, const Tensor& attention_scale, const Batch& batch) {
  TokenLossPair common = {};
  common.logit_scale = read_scalar(logit_scale, "logit_scale", batch.accumulation);
  common.attention_scale = read_scalar(attention_scale, "attention_scale", batch.accumulation);
  return common;
}

std::tuple<Tensor, Tensor> forward(const Tensor& patch_embeds, const Tensor& token_embeds,
                                   const std::optional<Tensor>& token_mask,
                                   const std::optional<Tensor>& patch_mask, const Tensor& logit_scale,
                                   const Tensor& attention_scale,
                                   const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask));
  const TokenLosses out = token_losses<SoftmaxAlignmentKernel>(
      batch, std::nullopt, with_scales(logit_scale, attention_scale, batch), false, false);
  return {out.token_loss, out.stats};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_token_loss, const Tensor& patch_embeds,
                                    const Tensor& token_embeds, const std::optional<Tensor>& token_mask,
                                    const std::optional<Tensor>& patch_mask, const Tensor& logit_scale,
                                    const Tensor& attention_scale, const Tensor& stats, bool need_patches,
                                    bool need_tokens,
                                    const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask));
  return token_loss_gradients<SoftmaxAlignmentKernel>(
      batch, std::nullopt, with_scales(logit_scale, attention_scale, batch),
      {grad_token_loss, stats, {}, {}, need_patches, need_tokens});
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "softmax_alignment_forward(Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? "
      "patch_mask, Tensor logit_scale, Tensor attention_scale, str float32_precision) "
      "-> (Tensor token_loss, Tensor stats)");
  m.def(
      "softmax_alignment_backward(Tensor grad_token_loss, Tensor patch_embeds, Tensor token_embeds, Tensor? "
      "token_mask, Tensor? patch_mask, Tensor logit_scale, Tensor attention_scale, Tensor stats, "
      "bool need_patches, bool need_tokens, str float32_precision) "
      "-> (Tensor grad_patch_embeds, Tensor grad_token_embeds)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("softmax_alignment_forward", TORCH_BOX(&sparc::forward));
  m.impl("softmax_alignment_backward", TORCH_BOX(&sparc::backward));
}
