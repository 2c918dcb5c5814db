// The fine-grained ops on the CPU: checks, choice of the instruction set, the loop over pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/checks.h"
#include "common/huge_pages.h"
#include "common/isa_table.h"
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

double read_scale(const Tensor& logit_scale, ScalarType accumulation) {
  check_on_cpu(logit_scale, "logit_scale");
  check_shape(logit_scale, "logit_scale", {});
  check_dtype(logit_scale, "logit_scale", accumulation);
  const void* value = logit_scale.const_data_ptr();
  return accumulation == ScalarType::Double ? *static_cast<const double*>(value)
                                            : *static_cast<const float*>(value);
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

FineGrainedPair describe(const Batch& batch, double scale, const std::optional<double>& threshold) {
  FineGrainedPair pair = {};
  pair.all_patches = batch.p;
  pair.all_tokens = batch.l;
  pair.channels = batch.d;
  pair.logit_scale = scale;
  pair.threshold = threshold.value_or(-1.0);
  pair.stats_stride = batch.b * batch.l;
  return pair;
}

std::tuple<Tensor, Tensor> forward(const Tensor& patch_embeds, const Tensor& token_embeds,
                                   const std::optional<Tensor>& token_mask,
                                   const std::optional<Tensor>& patch_mask, const Tensor& logit_scale,
                                   std::optional<double> threshold,
                                   const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_embeds, token_embeds, token_mask, patch_mask);
  const ScalarType dtype = patch_embeds.scalar_type(), accumulation = accumulation_dtype(dtype);
  const FineGrainedPair common = describe(batch, read_scale(logit_scale, accumulation), threshold);
  Tensor token_loss = new_empty(patch_embeds, {batch.b, batch.l}, accumulation);
  Tensor stats = new_empty(patch_embeds, {kFineGrainedStats, batch.b, batch.l}, accumulation);

  const FineGrainedKernel kernel = kernel_for(dtype);
  char* loss_data = static_cast<char*>(token_loss.mutable_data_ptr());
  char* stats_data = static_cast<char*>(stats.mutable_data_ptr());
  const int64_t row_bytes = batch.l * token_loss.element_size();
  for_each_caption(batch, common, kernel, [&](FineGrainedPair& pair, int64_t i, void* workspace) {
    pair.token_loss = loss_data + i * row_bytes;
    pair.stats = stats_data + i * row_bytes;
    kernel.forward(pair, workspace);
  });
  return {token_loss, stats};
}

std::tuple<Tensor, Tensor, Tensor> backward(
    const Tensor& grad_token_loss, const Tensor& patch_embeds, const Tensor& token_embeds,
    const std::optional<Tensor>& token_mask, const std::optional<Tensor>& patch_mask,
    const Tensor& logit_scale, const Tensor& stats, std::optional<double> threshold,
    const std::string& /* float32_precision: the CPU products are exact */) {
  const Batch batch(patch_embeds, token_embeds, token_mask, patch_mask);
  const ScalarType dtype = patch_embeds.scalar_type(), accumulation = accumulation_dtype(dtype);
  const FineGrainedPair common = describe(batch, read_scale(logit_scale, accumulation), threshold);
  check_on_cpu(grad_token_loss, "grad_token_loss");
  check_dtype(grad_token_loss, "grad_token_loss", accumulation);
  check_shape(grad_token_loss, "grad_token_loss", {batch.b, batch.l});
  check_on_cpu(stats, "stats");
  check_dtype(stats, "stats", accumulation);
  check_shape(stats, "stats", {kFineGrainedStats, batch.b, batch.l});
  STD_TORCH_CHECK(stats.is_contiguous(), "stats: expected a contiguous tensor");
  Tensor grad_patches = new_empty(patch_embeds, {batch.b, batch.p, batch.d});
  Tensor grad_tokens = new_empty(token_embeds, {batch.b, batch.l, batch.d});
  Tensor grad_scale = new_empty(stats, {batch.b});

  const FineGrainedKernel kernel = kernel_for(dtype);
  const char* upstream = static_cast<const char*>(grad_token_loss.const_data_ptr());
  char* stats_data = static_cast<char*>(const_cast<void*>(stats.const_data_ptr()));
  char* patches_data = static_cast<char*>(grad_patches.mutable_data_ptr());
  prefer_huge_pages(patches_data, grad_patches.numel() * grad_patches.element_size());
  char* tokens_data = static_cast<char*>(grad_tokens.mutable_data_ptr());
  prefer_huge_pages(tokens_data, grad_tokens.numel() * grad_tokens.element_size());
  char* scale_data = static_cast<char*>(grad_scale.mutable_data_ptr());
  const int64_t acc_bytes = stats.element_size(), in_bytes = patch_embeds.element_size();
  const int64_t upstream_bytes = grad_token_loss.stride(0) * acc_bytes,
                upstream_stride = grad_token_loss.stride(1);
  for_each_caption(batch, common, kernel, [&](FineGrainedPair& pair, int64_t i, void* workspace) {
    pair.stats = stats_data + i * batch.l * acc_bytes;
    pair.grad_token_loss = upstream + i * upstream_bytes;
    pair.grad_stride = upstream_stride;
    pair.grad_patches = patches_data + i * batch.p * batch.d * in_bytes;
    pair.grad_tokens = tokens_data + i * batch.l * batch.d * in_bytes;
    pair.grad_logit_scale = scale_data + i * acc_bytes;
    kernel.backward(pair, workspace);
  });
  return {grad_patches, grad_tokens, grad_scale};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("fine_grained_forward", TORCH_BOX(&sparc::forward));
  m.impl("fine_grained_backward", TORCH_BOX(&sparc::backward));
}
