// The fine-grained ops on CUDA: checks, memory, choice of the path.
#include "fine_grained/fine_grained_cuda.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "alignment/arguments.h"
#include "pairs/pair_call.h"

namespace sparc {
namespace {

FineGrainedArguments describe(const PairCall& call, const Tensor& logit_scale,
                              const std::optional<Tensor>& similarity_threshold) {
  FineGrainedArguments args = {};
  args.in = call.inputs();
  args.threshold = call.scalar(similarity_threshold, "similarity_threshold");
  args.logit_scale = call.scalar(logit_scale, "logit_scale");
  args.stats_stride = call.sizes().b * call.sizes().l;
  return args;
}

void run(const PairCall& call, FineGrainedArguments args, const Tensor& like, bool backward) {
  const auto in_pieces = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const LaunchPlan plan = call.plan<FineGrainedArguments>(
      backward, in_pieces(args.grad_pooled_patches) && in_pieces(args.grad_pooled_tokens));
  Tensor groups = new_empty(like, {backward && args.grad_tokens == nullptr ? plan.pair.grid : 0,
                                   args.in.text_rows, args.in.channels});
  args.saved_groups = args.grad_tokens == nullptr ? groups.mutable_data_ptr() : args.grad_tokens;
  call.launch(args, plan, like, backward, backward ? "fine_grained_backward" : "fine_grained_forward");
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(const Tensor& patch_embeds, const Tensor& token_embeds,
                                                   const std::optional<Tensor>& token_mask,
                                                   const std::optional<Tensor>& patch_mask,
                                                   const Tensor& logit_scale,
                                                   const std::optional<Tensor>& similarity_threshold,
                                                   bool pool_patches, bool pool_tokens,
                                                   const std::string& precision) {
  const PairCall call(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask), precision);
  FineGrainedArguments args = describe(call, logit_scale, similarity_threshold);
  const PairSizes& sizes = call.sizes();
  Tensor token_loss = new_empty(token_embeds, {sizes.b, sizes.l}, ScalarType::Float);
  Tensor stats = new_empty(token_embeds, {kTokenLossStats, sizes.b, sizes.l}, ScalarType::Float);
  const auto mean = [&](bool wanted) {
    return wanted ? new_empty(token_embeds, {sizes.b, sizes.d}) : new_empty(token_embeds, {0});
  };
  Tensor pooled_patches = mean(pool_patches), pooled_tokens = mean(pool_tokens);
  args.token_loss = static_cast<float*>(token_loss.mutable_data_ptr());
  args.stats = static_cast<float*>(stats.mutable_data_ptr());
  args.pooled_patches = pool_patches ? pooled_patches.mutable_data_ptr() : nullptr;
  args.pooled_tokens = pool_tokens ? pooled_tokens.mutable_data_ptr() : nullptr;
  run(call, args, token_embeds, false);
  return {token_loss, stats, pooled_patches, pooled_tokens};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_token_loss,
                                    const std::optional<Tensor>& grad_pooled_patches,
                                    const std::optional<Tensor>& grad_pooled_tokens,
                                    const Tensor& patch_embeds, const Tensor& token_embeds,
                                    const std::optional<Tensor>& token_mask,
                                    const std::optional<Tensor>& patch_mask, const Tensor& logit_scale,
                                    const std::optional<Tensor>& similarity_threshold, const Tensor& stats,
                                    bool need_patches, bool need_tokens, const std::string& precision) {
  const PairCall call(patch_side(patch_embeds, patch_mask), token_side(token_embeds, token_mask), precision);
  FineGrainedArguments args = describe(call, logit_scale, similarity_threshold);
  const PairSizes& sizes = call.sizes();
  call.check(grad_token_loss, "grad_token_loss", ScalarType::Float, {sizes.b, sizes.l});
  call.check(stats, "stats", ScalarType::Float, {kTokenLossStats, sizes.b, sizes.l});
  check_contiguous(stats, "stats");
  const Gradient grad_patches(patch_embeds, need_patches), grad_tokens(token_embeds, need_tokens);
  if (!need_patches && !need_tokens) return {grad_patches.tensor, grad_tokens.tensor};
  args.stats =
      static_cast<float*>(const_cast<void*>(stats.const_data_ptr()));  // read only, in a backward pass
  args.grad_token_loss = static_cast<const float*>(grad_token_loss.const_data_ptr());
  args.grad_batch_stride = grad_token_loss.stride(0);
  args.grad_stride = grad_token_loss.stride(1);
  args.grad_pooled_patches = call.pooled_gradient(grad_pooled_patches, patch_embeds, "grad_pooled_patches");
  args.grad_pooled_tokens = call.pooled_gradient(grad_pooled_tokens, patch_embeds, "grad_pooled_tokens");
  args.grad_patches = grad_patches.data;
  args.grad_tokens = grad_tokens.data;
  run(call, args, token_embeds, true);
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CUDA, m) {
  m.impl("fine_grained_forward", TORCH_BOX(&sparc::forward));
  m.impl("fine_grained_backward", TORCH_BOX(&sparc::backward));
}
