// The grouping ops on CUDA: checks, memory, choice of the path.
#include "grouping/grouping_cuda.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "alignment/arguments.h"
#include "pairs/pair_call.h"

namespace sparc {
namespace {

enum class Output { kEmbeddings, kWeights };

GroupingArguments describe(const PairCall& call, Output output, const std::optional<Tensor>& threshold) {
  GroupingArguments args = {};
  args.in = call.inputs();
  args.threshold = call.scalar(threshold, "similarity_threshold");
  args.weights = output == Output::kWeights;
  args.stats_stride = call.sizes().b * call.sizes().l;
  return args;
}

template <Output kOutput>
std::tuple<Tensor, Tensor> forward(const Tensor& patch_embeds, const Tensor& token_embeds,
                                   const std::optional<Tensor>& patch_mask,
                                   const std::optional<Tensor>& threshold, const std::string& precision) {
  const PairCall call(patch_side(patch_embeds, patch_mask), token_side(token_embeds, std::nullopt),
                      precision);
  const PairSizes& sizes = call.sizes();
  Tensor output =
      new_empty(token_embeds, {sizes.b, sizes.l, kOutput == Output::kEmbeddings ? sizes.d : sizes.p});
  Tensor stats = new_empty(token_embeds, {kGroupingStats, sizes.b, sizes.l}, ScalarType::Float);
  GroupingArguments args = describe(call, kOutput, threshold);
  args.output = output.mutable_data_ptr();
  args.stats = static_cast<float*>(stats.mutable_data_ptr());
  call.launch(args, call.plan<GroupingArguments>(false), token_embeds, false,
              kOutput == Output::kEmbeddings ? "grouped_embeddings_forward" : "alignment_weights_forward");
  return {output, stats};
}

template <Output kOutput>
std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& patch_embeds,
                                    const Tensor& token_embeds, const std::optional<Tensor>& patch_mask,
                                    const std::optional<Tensor>& threshold, const Tensor& stats,
                                    bool need_patches, bool need_tokens, const std::string& precision) {
  constexpr bool kEmbeddings = kOutput == Output::kEmbeddings;
  constexpr const char* kGradName = kEmbeddings ? "grad_embeddings" : "grad_weights";
  const PairCall call(patch_side(patch_embeds, patch_mask), token_side(token_embeds, std::nullopt),
                      precision);
  const PairSizes& sizes = call.sizes();
  call.check(grad, kGradName, patch_embeds.scalar_type(),
             {sizes.b, sizes.l, kEmbeddings ? sizes.d : sizes.p});
  check_shape(stats, "stats", {kGroupingStats, sizes.b, sizes.l});
  const Gradient grad_patches(patch_embeds, need_patches), grad_tokens(token_embeds, need_tokens);
  if (!need_patches && !need_tokens) return {grad_patches.tensor, grad_tokens.tensor};
  GroupingArguments args = describe(call, kOutput, threshold);
  args.grad = matrix_view(grad);
  args.grad_patches = grad_patches.data;
  args.grad_tokens = grad_tokens.data;
  call.launch(args, call.plan<GroupingArguments>(true, !kEmbeddings || args.grad.wide), token_embeds, true,
              kEmbeddings ? "grouped_embeddings_backward" : "alignment_weights_backward");
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CUDA, m) {
  using sparc::Output;
  m.impl("grouped_embeddings_forward", TORCH_BOX(&sparc::forward<Output::kEmbeddings>));
  m.impl("grouped_embeddings_backward", TORCH_BOX(&sparc::backward<Output::kEmbeddings>));
  m.impl("alignment_weights_forward", TORCH_BOX(&sparc::forward<Output::kWeights>));
  m.impl("alignment_weights_backward", TORCH_BOX(&sparc::backward<Output::kWeights>));
}
