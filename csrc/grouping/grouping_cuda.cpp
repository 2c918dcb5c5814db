// The grouping ops on CUDA: checks, memory, choice of the path.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "pairs/pair_call.h"
#include "grouping/grouping_launch.h"

namespace sparc {
namespace {

using torch::stable::new_empty;

enum class Output { kEmbeddings, kWeights };

void run(const CudaCall& call, const GroupingArguments& args, const Tensor& like, bool backward,
         const char* name) {
  if (args.in.pairs == 0) return;
  const LaunchPlan plan = call.plan(
      [&](const Streaming& streaming) { return grouping_pair_shared_bytes(args.in, streaming, backward); },
      grouping_tiled_needs(args.in, call.half_precision(), backward));
  if (plan.pair.used) {
    check_cuda(launch_grouping_pair(args, plan, call.products(), backward, call.stream()), name);
  }
  if (plan.tiled.used) {
    Tensor scratch = call.scratch(like, plan);
    const TiledMemory memory = {scratch.mutable_data_ptr(), plan.tiled.scratch_bytes, plan.pair.used};
    check_cuda(launch_grouping_tiled(args, plan, memory, call.products(), backward, call.stream()), name);
  }
}

GroupingArguments describe(const CudaCall& call, Output output) {
  GroupingArguments args = {};
  args.in = call.inputs();
  args.weights = output == Output::kWeights;
  args.stats_stride = call.sizes().b * call.sizes().l;
  return args;
}

template <Output kOutput>
std::tuple<Tensor, Tensor> forward(const Tensor& patch_embeds, const Tensor& token_embeds,
                                   const std::optional<Tensor>& patch_mask,
                                   const std::optional<Tensor>& threshold, const std::string& precision) {
  const CudaCall call(patch_embeds, token_embeds, std::nullopt, patch_mask, threshold, precision);
  const PairSizes& sizes = call.sizes();
  Tensor output =
      new_empty(token_embeds, {sizes.b, sizes.l, kOutput == Output::kEmbeddings ? sizes.d : sizes.p});
  Tensor stats = new_empty(token_embeds, {kGroupingStats, sizes.b, sizes.l}, ScalarType::Float);
  GroupingArguments args = describe(call, kOutput);
  args.output = output.mutable_data_ptr();
  args.stats = static_cast<float*>(stats.mutable_data_ptr());
  run(call, args, token_embeds, false,
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
  const CudaCall call(patch_embeds, token_embeds, std::nullopt, patch_mask, threshold, precision);
  const PairSizes& sizes = call.sizes();
  check_on_device(grad, kGradName, call.device());
  check_dtype(grad, kGradName, patch_embeds.scalar_type());
  check_shape(grad, kGradName, {sizes.b, sizes.l, kEmbeddings ? sizes.d : sizes.p});
  check_shape(stats, "stats", {kGroupingStats, sizes.b, sizes.l});
  const GradientPair grads(patch_embeds, token_embeds, need_patches, need_tokens);
  if (!need_patches && !need_tokens) return {grads.patches, grads.tokens};
  GroupingArguments args = describe(call, kOutput);
  args.grad = matrix_view(grad);
  args.grad_patches = grads.patches_data;
  args.grad_tokens = grads.tokens_data;
  run(call, args, token_embeds, true,
      kEmbeddings ? "grouped_embeddings_backward" : "alignment_weights_backward");
  return {grads.patches, grads.tokens};
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
