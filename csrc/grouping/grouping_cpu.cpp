// The grouping ops on the CPU: checks, choice of the instruction set, the loop over pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/checks.h"
#include "common/isa_table.h"
#include "common/pair_result.h"
#include "common/parallel.h"
#include "grouping/grouping.h"

namespace sparc {
namespace {

using torch::stable::new_empty;

enum class Output { kEmbeddings, kWeights };

GroupingKernel kernel_for(ScalarType dtype) {
  const GroupingKernels set = SPARC_PICK_KERNELS(grouping);
  if (dtype == ScalarType::Float) return set.float32;
  return dtype == ScalarType::Double ? set.float64 : set.bfloat16;
}

template <class F>
void for_each_image(const Batch& batch, const std::optional<Tensor>& threshold, const GroupingKernel& kernel,
                    const F& body) {
  const RowReader patches(batch.patches, batch.patch_mask), tokens(batch.tokens, std::nullopt);
  const ScalarType accumulation = accumulation_dtype(batch.patches.scalar_type());
  const double sigma = threshold ? read_scalar(*threshold, "similarity_threshold", accumulation) : -1.0;
  for_each_pair(batch.b, kernel.workspace(batch.l, batch.p, batch.d), [&](int64_t i, void* workspace) {
    thread_local std::vector<int32_t> patch_index, token_index;
    GroupingPair pair = {};
    pair.patches = patches.read(i, patch_index);
    pair.tokens = tokens.read(i, token_index);
    pair.all_patches = batch.p;
    pair.channels = batch.d;
    pair.threshold = sigma;
    pair.stats_stride = batch.b * batch.l;
    body(pair, i, workspace);
  });
}

template <Output kOutput>
std::tuple<Tensor, Tensor> forward(const Tensor& patch_embeds, const Tensor& token_embeds,
                                   const std::optional<Tensor>& patch_mask,
                                   const std::optional<Tensor>& threshold,
                                   const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_embeds, token_embeds, std::nullopt, patch_mask);
  const ScalarType dtype = patch_embeds.scalar_type();
  const int64_t width = kOutput == Output::kEmbeddings ? batch.d : batch.p;
  Tensor output = new_empty(token_embeds, {batch.b, batch.l, width});
  Tensor stats = new_empty(token_embeds, {kGroupingStats, batch.b, batch.l}, accumulation_dtype(dtype));

  const GroupingKernel kernel = kernel_for(dtype);
  const auto run = kOutput == Output::kEmbeddings ? kernel.embeddings_forward : kernel.weights_forward;
  char* output_data = static_cast<char*>(output.mutable_data_ptr());
  char* stats_data = static_cast<char*>(stats.mutable_data_ptr());
  const int64_t output_bytes = batch.l * width * output.element_size(),
                stats_bytes = batch.l * stats.element_size();
  for_each_image(batch, threshold, kernel, [&](GroupingPair& pair, int64_t i, void* workspace) {
    pair.output = output_data + i * output_bytes;
    pair.stats = stats_data + i * stats_bytes;
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
  const Batch batch(patch_embeds, token_embeds, std::nullopt, patch_mask);
  const ScalarType dtype = patch_embeds.scalar_type();
  check_on_cpu(grad, kGradName);
  check_dtype(grad, kGradName, dtype);
  check_shape(grad, kGradName, {batch.b, batch.l, kOutput == Output::kEmbeddings ? batch.d : batch.p});
  check_shape(stats, "stats", {kGroupingStats, batch.b, batch.l});
  const PairResult grad_patches(patch_embeds, need_patches, {batch.b, batch.p, batch.d});
  const PairResult grad_tokens(patch_embeds, need_tokens, {batch.b, batch.l, batch.d});
  if (!need_patches && !need_tokens) return {grad_patches.tensor, grad_tokens.tensor};

  const GroupingKernel kernel = kernel_for(dtype);
  const auto run = kOutput == Output::kEmbeddings ? kernel.embeddings_backward : kernel.weights_backward;
  const char* upstream = static_cast<const char*>(grad.const_data_ptr());
  const int64_t bytes = patch_embeds.element_size();
  const int64_t strides[3] = {grad.stride(0), grad.stride(1), grad.stride(2)};
  for_each_image(batch, threshold, kernel, [&](GroupingPair& pair, int64_t i, void* workspace) {
    pair.grad = upstream + i * strides[0] * bytes;
    pair.grad_strides[0] = strides[1];
    pair.grad_strides[1] = strides[2];
    pair.grad_patches = grad_patches.rows.at(i);
    pair.grad_tokens = grad_tokens.rows.at(i);
    run(pair, workspace);
  });
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  using sparc::Output;
  m.impl("grouped_embeddings_forward", TORCH_BOX(&sparc::forward<Output::kEmbeddings>));
  m.impl("grouped_embeddings_backward", TORCH_BOX(&sparc::backward<Output::kEmbeddings>));
  m.impl("alignment_weights_forward", TORCH_BOX(&sparc::forward<Output::kWeights>));
  m.impl("alignment_weights_backward", TORCH_BOX(&sparc::backward<Output::kWeights>));
}
