// The fine-grained ops on the CPU: checks, choice of the instruction set, the loop over pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/checks.h"
#include "common/isa_table.h"
#include "common/pair_result.h"
#include "common/parallel.h"
#include "fine_grained/fine_grained.h"

namespace sparc {
namespace {

using torch::stable::new_empty;

FineGrainedKernel kernel_for(ScalarType dtype) {
  const FineGrainedKernels set = SPARC_PICK_KERNELS(fine_grained);
  if (dtype == ScalarType::Float) return set.float32;
  return dtype == ScalarType::Double ? set.float64 : set.bfloat16;
}

// Runs `body(pair description, pair, workspace)` for every pair, with the rows that the masks let through.
template <class F>
void for_each_caption(const Batch& batch, const FineGrainedPair& common, const FineGrainedKernel& kernel,
                      const F& body) {
  const RowReader patches(batch.patches, batch.patch_mask), tokens(batch.tokens, batch.token_mask);
  for_each_pair(batch.b, kernel.workspace(batch.l, batch.p, batch.d), [&](int64_t i, void* workspace) {
    thread_local std::vector<int32_t> patch_index, token_index;
    FineGrainedPair pair = common;
    pair.patches = patches.read(i, patch_index);
    pair.tokens = tokens.read(i, token_index);
    body(pair, i, workspace);
  });
}

FineGrainedPair describe(const Batch& batch, const Tensor& logit_scale,
                         const std::optional<Tensor>& threshold) {
  const ScalarType accumulation = accumulation_dtype(batch.patches.scalar_type());
  FineGrainedPair pair = {};
  pair.all_patches = batch.p;
  pair.all_tokens = batch.l;
  pair.channels = batch.d;
  pair.logit_scale = read_scalar(logit_scale, "logit_scale", accumulation);
  pair.threshold = threshold ? read_scalar(*threshold, "similarity_threshold", accumulation) : -1.0;
  pair.stats_stride = batch.b * batch.l;
  return pair;
}

PairRows read_pooled(const std::optional<Tensor>& grad, const char* name, const Batch& batch) {
  if (!grad) return PairRows(nullptr, 0);
  check_on_cpu(*grad, name);
  check_dtype(*grad, name, batch.patches.scalar_type());
  check_shape(*grad, name, {batch.b, batch.d});
  check_contiguous(*grad, name);
  return PairRows(static_cast<char*>(const_cast<void*>(grad->const_data_ptr())),
                  batch.d * static_cast<int64_t>(grad->element_size()));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& patch_embeds, const Tensor& token_embeds, const std::optional<Tensor>& token_mask,
    const std::optional<Tensor>& patch_mask, const Tensor& logit_scale,
    const std::optional<Tensor>& threshold, bool pool_patches, bool pool_tokens,
    const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_embeds, token_embeds, token_mask, patch_mask);
  const ScalarType dtype = patch_embeds.scalar_type(), accumulation = accumulation_dtype(dtype);
  const FineGrainedPair common = describe(batch, logit_scale, threshold);
  Tensor token_loss = new_empty(patch_embeds, {batch.b, batch.l}, accumulation);
  Tensor stats = new_empty(patch_embeds, {kFineGrainedStats, batch.b, batch.l}, accumulation);
  const PairResult pooled_patches(patch_embeds, pool_patches, {batch.b, batch.d});
  const PairResult pooled_tokens(patch_embeds, pool_tokens, {batch.b, batch.d});

  const FineGrainedKernel kernel = kernel_for(dtype);
  char* loss_data = static_cast<char*>(token_loss.mutable_data_ptr());
  char* stats_data = static_cast<char*>(stats.mutable_data_ptr());
  const int64_t row_bytes = batch.l * token_loss.element_size();
  for_each_caption(batch, common, kernel, [&](FineGrainedPair& pair, int64_t i, void* workspace) {
    pair.token_loss = loss_data + i * row_bytes;
    pair.stats = stats_data + i * row_bytes;
    pair.pooled_patches = pooled_patches.rows.at(i);
    pair.pooled_tokens = pooled_tokens.rows.at(i);
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
  const Batch batch(patch_embeds, token_embeds, token_mask, patch_mask);
  const ScalarType dtype = patch_embeds.scalar_type(), accumulation = accumulation_dtype(dtype);
  const FineGrainedPair common = describe(batch, logit_scale, threshold);
  check_on_cpu(grad_token_loss, "grad_token_loss");
  check_dtype(grad_token_loss, "grad_token_loss", accumulation);
  check_shape(grad_token_loss, "grad_token_loss", {batch.b, batch.l});
  check_on_cpu(stats, "stats");
  check_dtype(stats, "stats", accumulation);
  check_shape(stats, "stats", {kFineGrainedStats, batch.b, batch.l});
  check_contiguous(stats, "stats");
  const PairRows pooled_patches = read_pooled(grad_pooled_patches, "grad_pooled_patches", batch);
  const PairRows pooled_tokens = read_pooled(grad_pooled_tokens, "grad_pooled_tokens", batch);
  const PairResult grad_patches(patch_embeds, need_patches, {batch.b, batch.p, batch.d});
  const PairResult grad_tokens(patch_embeds, need_tokens, {batch.b, batch.l, batch.d});
  if (!need_patches && !need_tokens) return {grad_patches.tensor, grad_tokens.tensor};

  const FineGrainedKernel kernel = kernel_for(dtype);
  const char* upstream = static_cast<const char*>(grad_token_loss.const_data_ptr());
  char* stats_data = static_cast<char*>(const_cast<void*>(stats.const_data_ptr()));
  const int64_t acc_bytes = stats.element_size();
  const int64_t upstream_bytes = grad_token_loss.stride(0) * acc_bytes,
                upstream_stride = grad_token_loss.stride(1);
  for_each_caption(batch, common, kernel, [&](FineGrainedPair& pair, int64_t i, void* workspace) {
    pair.stats = stats_data + i * batch.l * acc_bytes;
    pair.grad_token_loss = upstream + i * upstream_bytes;
    pair.grad_stride = upstream_stride;
    pair.grad_pooled_patches = pooled_patches.at(i);
    pair.grad_pooled_tokens = pooled_tokens.at(i);
    pair.grad_patches = grad_patches.rows.at(i);
    pair.grad_tokens = grad_tokens.rows.at(i);
    kernel.backward(pair, workspace);
  });
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("fine_grained_forward", TORCH_BOX(&sparc::forward));
  m.impl("fine_grained_backward", TORCH_BOX(&sparc::backward));
}
