// The grouping ops: their schemas, whatever the device, and on the CPU checks and the loop over pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "alignment/arguments.h"
#include "common/cpu_capability.h"
#include "common/item_slices.h"
#include "grouping/grouping.h"

namespace sparc {
namespace {

using torch::stable::new_empty;

enum class Output { kEmbeddings, kWeights };

template <Output kOutput>
std::tuple<Tensor, Tensor> forward(const Tensor& patch_embeds, const Tensor& token_embeds,
                                   const std::optional<Tensor>& patch_mask,
                                   const std::optional<Tensor>& threshold,
                                   const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, std::nullopt));
  const int64_t width = kOutput == Output::kEmbeddings ? batch.d : batch.p;
  Tensor output = new_empty(token_embeds, {batch.b, batch.l, width});
  Tensor stats = new_empty(token_embeds, {kGroupingStats, batch.b, batch.l}, batch.accumulation);

  const GroupingKernel kernel = pick_kernel<GroupingKernel>(batch.dtype);
  const auto run = kOutput == Output::kEmbeddings ? kernel.embeddings_forward : kernel.weights_forward;
  const ItemSlices outputs(output.mutable_data_ptr(), batch.l * width * output.element_size());
  const ItemSlices stat(stats.mutable_data_ptr(), batch.l * stats.element_size());
  for_each_caption(batch, threshold, GroupingPair{}, kernel,
                   [&](GroupingPair& pair, int64_t i, void* workspace) {
                     pair.output = outputs.at(i);
                     pair.stats = stat.at(i);
                     run(pair, workspace);
                   });
  return {output, stats};
}

template <Output kOutput>
std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& patch_embeds,
                                    const Tensor& token_embeds, const std::optional<Tensor>& patch_mask,
                                    const std::optional<Tensor>& threshold, const Tensor& stats,
                                    bool need_patches, bool need_tokens,
                                    const std::string& /* float32_precision: the CPU products are exact */) {
  constexpr const char* kGradName = kOutput == Output::kEmbeddings ? "grad_embeddings" : "grad_weights";
  const Batch batch(patch_side(patch_embeds, patch_mask), token_side(token_embeds, std::nullopt));
  check_cpu_input(grad, kGradName, batch.dtype,
                  {batch.b, batch.l, kOutput == Output::kEmbeddings ? batch.d : batch.p});
  check_shape(stats, "stats", {kGroupingStats, batch.b, batch.l});
  const ItemResult grad_patches(patch_embeds, need_patches, {batch.b, batch.p, batch.d});
  const ItemResult grad_tokens(patch_embeds, need_tokens, {batch.b, batch.l, batch.d});
  if (!need_patches && !need_tokens) return {grad_patches.tensor, grad_tokens.tensor};

  const GroupingKernel kernel = pick_kernel<GroupingKernel>(batch.dtype);
  const auto run = kOutput == Output::kEmbeddings ? kernel.embeddings_backward : kernel.weights_backward;
  const ItemSlices upstream(grad.const_data_ptr(), grad.stride(0) * grad.element_size());
  const int64_t strides[2] = {grad.stride(1), grad.stride(2)};
  for_each_caption(batch, threshold, GroupingPair{}, kernel,
                   [&](GroupingPair& pair, int64_t i, void* workspace) {
                     pair.grad = upstream.at(i);
                     pair.grad_strides[0] = strides[0];
                     pair.grad_strides[1] = strides[1];
                     pair.grad_patches = grad_patches.slices.at(i);
                     pair.grad_tokens = grad_tokens.slices.at(i);
                     run(pair, workspace);
                   });
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "grouped_embeddings_forward(Tensor patch_embeds, Tensor token_embeds, Tensor? patch_mask, "
      "Tensor? similarity_threshold, str float32_precision) -> (Tensor embeddings, Tensor stats)");
  m.def(
      "grouped_embeddings_backward(Tensor grad_embeddings, Tensor patch_embeds, Tensor token_embeds, "
      "Tensor? patch_mask, Tensor? similarity_threshold, Tensor stats, bool need_patches, bool need_tokens, "
      "str float32_precision) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)");
  m.def(
      "alignment_weights_forward(Tensor patch_embeds, Tensor token_embeds, Tensor? patch_mask, "
      "Tensor? similarity_threshold, str float32_precision) -> (Tensor weights, Tensor stats)");
  m.def(
      "alignment_weights_backward(Tensor grad_weights, Tensor patch_embeds, Tensor token_embeds, "
      "Tensor? patch_mask, Tensor? similarity_threshold, Tensor stats, bool need_patches, bool need_tokens, "
      "str float32_precision) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  using sparc::Output;
  m.impl("grouped_embeddings_forward", TORCH_BOX(&sparc::forward<Output::kEmbeddings>));
  m.impl("grouped_embeddings_backward", TORCH_BOX(&sparc::backward<Output::kEmbeddings>));
  m.impl("alignment_weights_forward", TORCH_BOX(&sparc::forward<Output::kWeights>));
  m.impl("alignment_weights_backward", TORCH_BOX(&sparc::backward<Output::kWeights>));
}
