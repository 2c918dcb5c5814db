// The statistics of a similarity matrix: the ops' schemas, whatever the device, and on the CPU checks, memory
// and the steps of a pass.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <tuple>

#include "common/parallel.h"
#include "contrastive/arguments.h"

namespace sparc {
namespace {

// Memory for a call, written before it is read. Neither it nor the kept cosines ask for huge pages: fresh
// ones in every call cost more than they saved where the host takes free ones back (docs/performance_log.md).
struct CallBlock {
  std::unique_ptr<void, FreeDeleter> block;
  CallBlock(SimilarityCall& call, size_t bytes) : block(aligned_block(bytes)) { call.memory = block.get(); }
};

// Numbers of a gradient that a thread scales before it takes the next ones.
constexpr int64_t kScaledAtOnce = int64_t{1} << 16;

void run_step(const CheckedCall& call, SimilarityStep step, int64_t items) {
  for_each_item(items, call.kernel.thread_bytes(call),
                [&](int64_t item, void* workspace) { step(call, item, workspace); });
}

// `stats` of a forward pass, which it becomes a part of `call`.
Tensor new_stats(CheckedCall& call, bool keep) {
  Tensor stats = call.vector(true, call.stats_size(keep));
  if (stats.numel() == 0) return stats;
  char* data = static_cast<char*>(stats.mutable_data_ptr());
  std::memset(data, 0, call.stats_size(false) * stats.element_size());
  call.set_stats(data, keep);
  return stats;
}

void run_forward(CheckedCall& call) {
  const CallBlock memory(call, call.kernel.forward_bytes(call));
  const int64_t col_tiles = parts_of(call.cols.embeds.count, kTileCols);
  run_step(call, call.kernel.pack_cols_forward, col_tiles);
  run_step(call, call.kernel.forward, call.parts);
  if (call.cols.results[kLogsumexp]) run_step(call, call.kernel.merge, col_tiles);
}

// Rows of a chunk of G: whole steps of G^T X, in chunks as even as can be. Sums do not depend on it, so it
// may depend on the number of threads.
int64_t chunk_rows(const CheckedCall& call) {
  const int64_t cols = parts_of(call.cols.embeds.count, kTileCols) * kTileCols;
  const int64_t step_bytes = std::max<int64_t>(cols * call.kernel.gradient_bytes * kDepthRows, 1);
  const int64_t busy = parts_of(torch::stable::get_num_threads() * kTilesPerThread * kTileRows, kDepthRows);
  const int64_t wanted =
      std::max(kGradientBytes / step_bytes, std::min(busy, kMostGradientBytes / step_bytes));
  const int64_t steps = parts_of(call.rows.embeds.count, kDepthRows);
  const int64_t chunks = std::max<int64_t>(parts_of(steps, std::max<int64_t>(wanted, 1)), 1);
  return parts_of(steps, chunks) * kDepthRows;
}

void run_backward(CheckedCall& call) {
  const SimilarityKernel& kernel = call.kernel;
  const int64_t m = call.rows.embeds.count;
  const int64_t col_tiles = parts_of(call.cols.embeds.count, kTileCols);
  const int64_t channel_panels = std::max<int64_t>(parts_of(call.cols.embeds.width, kernel.panel_width), 1);
  const bool col_scales = call.cols.need_scale && call.cols.scale_per_item;
  call.chunk = chunk_rows(call);
  const CallBlock memory(call, kernel.backward_bytes(call));
  run_step(call, kernel.pack_cols_backward, col_tiles);
  if (call.cols.need_embeds) run_step(call, kernel.pack_rows, parts_of(m, kTileCols));
  for (call.first = 0; call.first < m; call.first = call.last) {
    call.last = std::min(m, call.first + call.chunk);
    run_step(call, kernel.gradient, parts_of(call.last - call.first, kTileRows));
    const int64_t panels = call.cols.need_embeds ? channel_panels : col_scales ? 1 : 0;
    run_step(call, kernel.transposed, panels * col_tiles);
  }
  if (call.cols.need_embeds) run_step(call, kernel.finish, col_tiles);
  kernel.finish_scales(call);
}

// The upstream gradient of a result; none where there is none or nobody asked for the result.
void set_upstream(SimilaritySide& side, SimilarityResult result, const Maybe& grad, const char* name,
                  ScalarType dtype) {
  if (!grad || (grad->dim() == 1 && grad->size(0) == 0)) return;
  side.upstream[result] = items_of(*grad, name, dtype, side.embeds.count);
}

void use_stats(CheckedCall& call, const Tensor& stats, bool kept) {
  check_cpu_input(stats, "stats", call.accumulation, {call.stats_size(kept)});
  check_contiguous(stats, "stats");
  call.set_stats(const_cast<void*>(stats.const_data_ptr()), kept);
}

void want_embeds(SimilaritySide& side, const Gradient& gradient) {
  side.need_embeds = gradient.needed;
  side.grad_embeds = gradient.data;
}

void want_scale(SimilaritySide& side, const Gradient& gradient) {
  side.need_scale = gradient.needed;
  side.grad_scale = gradient.data;
}

void set_soft(CheckedCall& call, const Maybe& guide_scale, const Maybe& guide_rows) {
  if (!guide_scale) return;
  STD_TORCH_CHECK(guide_rows, "guide_scale: expected guide_rows with it, got None");
  call.soft = true;
  call.guide_scale = read_scalar(*guide_scale, "guide_scale", call.accumulation);
}

// A number of the dtype of `like`.
Tensor number_like(const Tensor& like, double value) {
  Tensor number = torch::stable::new_empty(like, std::vector<int64_t>{});
  if (like.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(number.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(number.mutable_data_ptr()) = static_cast<float>(value);
  }
  return number;
}

using LogsumexpResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

LogsumexpResults logsumexp_forward(const Tensor& rows, const Tensor& cols, const Tensor& row_scale,
                                   const Tensor& col_scale, const Maybe& row_ids, const Maybe& col_ids,
                                   const Maybe& excluded_indptr, const Maybe& excluded_indices,
                                   const Maybe& guide_rows, const Maybe& guide_cols, const Maybe& guide_scale,
                                   const Maybe& guide_threshold, bool by_rows, bool by_cols, bool ids_exclude,
                                   bool keep_similarities,
                                   const std::string& /* float32_precision: the CPU products are exact */) {
  CheckedCall call({rows, cols, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows, guide_cols,
                    guide_threshold},
                   ids_exclude);
  set_scale(call.rows, row_scale, "row_scale", call.accumulation);
  set_scale(call.cols, col_scale, "col_scale", call.accumulation);
  set_soft(call, guide_scale, guide_rows);
  const bool has[kSimilarityResults] = {true, call.targets, call.soft};
  std::vector<Tensor> found;
  for (int result = 0; result < kSimilarityResults; ++result) {
    for (SimilaritySide* side : {&call.rows, &call.cols}) {
      const bool wanted = (side == &call.rows ? by_rows : by_cols) && has[result];
      found.push_back(call.vector(wanted, side->embeds.count));
      if (wanted) side->results[result] = found.back().mutable_data_ptr();
    }
  }
  const Tensor stats = new_stats(call, keep_similarities);
  run_forward(call);
  return {found[0], stats, found[1], found[2], found[3], found[4], found[5]};
}

Gradients logsumexp_backward(const Maybe& grad_row_lse, const Maybe& grad_col_lse,
                             const Maybe& grad_row_target, const Maybe& grad_col_target,
                             const Maybe& grad_row_soft, const Maybe& grad_col_soft, const Tensor& rows,
                             const Tensor& cols, const Tensor& row_scale, const Tensor& col_scale,
                             const Maybe& row_ids, const Maybe& col_ids, const Maybe& excluded_indptr,
                             const Maybe& excluded_indices, const Maybe& guide_rows, const Maybe& guide_cols,
                             const Maybe& guide_scale, const Maybe& guide_threshold, const Tensor& stats,
                             bool ids_exclude, bool keep_similarities, bool need_rows, bool need_cols,
                             bool need_row_scale, bool need_col_scale,
                             const std::string& /* float32_precision: the CPU products are exact */) {
  CheckedCall call({rows, cols, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows, guide_cols,
                    guide_threshold},
                   ids_exclude);
  set_scale(call.rows, row_scale, "row_scale", call.accumulation);
  set_scale(call.cols, col_scale, "col_scale", call.accumulation);
  set_soft(call, guide_scale, guide_rows);
  set_upstream(call.rows, kLogsumexp, grad_row_lse, "grad_row_lse", call.accumulation);
  set_upstream(call.cols, kLogsumexp, grad_col_lse, "grad_col_lse", call.accumulation);
  set_upstream(call.rows, kTarget, grad_row_target, "grad_row_target", call.accumulation);
  set_upstream(call.cols, kTarget, grad_col_target, "grad_col_target", call.accumulation);
  set_upstream(call.rows, kSoft, grad_row_soft, "grad_row_soft", call.accumulation);
  set_upstream(call.cols, kSoft, grad_col_soft, "grad_col_soft", call.accumulation);
  use_stats(call, stats, keep_similarities);
  const Gradient of_rows(rows, need_rows), of_cols(cols, need_cols);
  const Gradient of_row_scale(row_scale, need_row_scale), of_col_scale(col_scale, need_col_scale);
  want_embeds(call.rows, of_rows);
  want_embeds(call.cols, of_cols);
  want_scale(call.rows, of_row_scale);
  want_scale(call.cols, of_col_scale);
  run_backward(call);
  return {of_rows.tensor, of_cols.tensor, of_row_scale.tensor, of_col_scale.tensor};
}

// The scale and the bias of the softplus op.
void set_logits(CheckedCall& call, const Tensor& scale, const Tensor& bias) {
  check_cpu_input(scale, "scale", call.accumulation, {});
  set_scale(call.rows, scale, "scale", call.accumulation);
  call.bias = read_scalar(bias, "bias", call.accumulation);
  call.softplus = true;
}

std::tuple<Tensor, Tensor> softplus_forward(
    const Tensor& rows, const Tensor& cols, const Tensor& scale, const Tensor& bias, const Maybe& row_ids,
    const Maybe& col_ids, const Maybe& excluded_indptr, const Maybe& excluded_indices,
    const Maybe& guide_rows, const Maybe& guide_cols, const Maybe& guide_threshold, bool ids_exclude,
    bool keep_similarities, const std::string& /* float32_precision: the CPU products are exact */) {
  CheckedCall call({rows, cols, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows, guide_cols,
                    guide_threshold},
                   ids_exclude);
  set_logits(call, scale, bias);
  Tensor row_sum = call.vector(true, call.rows.embeds.count);
  call.rows.results[kLogsumexp] = row_sum.mutable_data_ptr();
  const Tensor stats = new_stats(call, keep_similarities);
  run_forward(call);
  return {row_sum, stats};
}

Gradients softplus_backward(const Tensor& grad_row_sum, const Tensor& rows, const Tensor& cols,
                            const Tensor& scale, const Tensor& bias, const Maybe& row_ids,
                            const Maybe& col_ids, const Maybe& excluded_indptr, const Maybe& excluded_indices,
                            const Maybe& guide_rows, const Maybe& guide_cols, const Maybe& guide_threshold,
                            const Tensor& stats, bool ids_exclude, bool keep_similarities, bool need_rows,
                            bool need_cols, bool need_scale, bool need_bias,
                            const std::string& /* float32_precision: the CPU products are exact */) {
  CheckedCall call({rows, cols, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows, guide_cols,
                    guide_threshold},
                   ids_exclude);
  set_logits(call, scale, bias);
  call.rows.upstream[kLogsumexp] =
      items_of(grad_row_sum, "grad_row_sum", call.accumulation, call.rows.embeds.count);
  use_stats(call, stats, keep_similarities);
  const Gradient of_rows(rows, need_rows), of_cols(cols, need_cols);
  const Gradient of_scale(scale, need_scale), of_bias(bias, need_bias);
  want_embeds(call.rows, of_rows);
  want_embeds(call.cols, of_cols);
  want_scale(call.rows, of_scale);
  call.grad_bias = of_bias.data;
  run_backward(call);
  return {of_rows.tensor, of_cols.tensor, of_scale.tensor, of_bias.tensor};
}

using SoftplusTotalResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

SoftplusTotalResults softplus_total_forward(
    const Tensor& rows, const Tensor& cols, const Tensor& scale, const Tensor& bias,
    const Tensor& row_weights, const Maybe& row_ids, const Maybe& col_ids, const Maybe& excluded_indptr,
    const Maybe& excluded_indices, const Maybe& guide_rows, const Maybe& guide_cols,
    const Maybe& guide_threshold, bool ids_exclude, bool keep_rows, bool keep_cols, bool keep_scale,
    bool keep_bias, const std::string& /* float32_precision: the CPU products are exact */) {
  CheckedCall call({rows, cols, row_ids, col_ids, excluded_indptr, excluded_indices, guide_rows, guide_cols,
                    guide_threshold},
                   ids_exclude);
  set_logits(call, scale, bias);
  const int64_t m = call.rows.embeds.count;
  call.rows.upstream[kLogsumexp] = items_of(row_weights, "row_weights", call.accumulation, m);
  const auto row_sums = aligned_block(m * row_weights.element_size());
  call.rows.results[kLogsumexp] = row_sums.get();
  const Tensor stats = new_stats(call, false);
  const Gradient of_rows(rows, keep_rows), of_cols(cols, keep_cols);
  const Gradient of_scale(scale, keep_scale), of_bias(bias, keep_bias);
  if (keep_rows || keep_cols || keep_scale || keep_bias) {
    call.one_sweep = true;
    want_embeds(call.rows, of_rows);
    want_embeds(call.cols, of_cols);
    want_scale(call.rows, of_scale);
    call.grad_bias = of_bias.data;
    run_backward(call);
  } else {
    run_forward(call);
  }
  return {number_like(row_weights, call.kernel.total(call)),
          stats,
          of_rows.tensor,
          of_cols.tensor,
          of_scale.tensor,
          of_bias.tensor};
}

// `kept` times a number, in the same dtype.
Tensor scaled(const Tensor& kept, const char* name, double factor) {
  check_on_cpu(kept, name);
  check_contiguous(kept, name);
  check_kernel_dtype(kept, name);
  const Gradient found(kept, true);
  const auto scale = pick_kernel<SimilarityKernel>(kept.scalar_type()).scale;
  const int64_t size = kept.element_size(), count = kept.numel();
  const char* from = static_cast<const char*>(kept.const_data_ptr());
  char* to = static_cast<char*>(found.data);
  for_each_item(parts_of(count, kScaledAtOnce), 0, [&](int64_t item, void*) {
    const int64_t first = item * kScaledAtOnce;
    scale(from + first * size, std::min(kScaledAtOnce, count - first), factor, to + first * size);
  });
  return found.tensor;
}

Gradients softplus_total_backward(const Tensor& grad_total, const Tensor& rows, const Tensor& kept_rows,
                                  const Tensor& kept_cols, const Tensor& kept_scale, const Tensor& kept_bias,
                                  const std::string& /* float32_precision: no product */) {
  const ScalarType accumulation = accumulation_dtype(rows.scalar_type());
  check_dtype(kept_rows, "kept_rows", rows.scalar_type());
  check_dtype(kept_cols, "kept_cols", rows.scalar_type());
  check_dtype(kept_scale, "kept_scale", accumulation);
  check_dtype(kept_bias, "kept_bias", accumulation);
  const double factor = read_scalar(grad_total, "grad_total", accumulation);
  return {scaled(kept_rows, "kept_rows", factor), scaled(kept_cols, "kept_cols", factor),
          scaled(kept_scale, "kept_scale", factor), scaled(kept_bias, "kept_bias", factor)};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "similarity_logsumexp_forward(Tensor rows, Tensor cols, Tensor row_scale, Tensor col_scale, "
      "Tensor? row_ids, Tensor? col_ids, Tensor? excluded_indptr, Tensor? excluded_indices, "
      "Tensor? guide_rows, Tensor? guide_cols, Tensor? guide_scale, Tensor? guide_threshold, "
      "bool by_rows, bool by_cols, bool ids_exclude, bool keep_similarities, str float32_precision) "
      "-> (Tensor row_lse, Tensor stats, Tensor col_lse, Tensor row_target, Tensor col_target, "
      "Tensor row_soft, Tensor col_soft)");
  m.def(
      "similarity_logsumexp_backward(Tensor? grad_row_lse, Tensor? grad_col_lse, "
      "Tensor? grad_row_target, Tensor? grad_col_target, Tensor? grad_row_soft, Tensor? grad_col_soft, "
      "Tensor rows, Tensor cols, Tensor row_scale, Tensor col_scale, Tensor? row_ids, Tensor? col_ids, "
      "Tensor? excluded_indptr, Tensor? excluded_indices, Tensor? guide_rows, Tensor? guide_cols, "
      "Tensor? guide_scale, Tensor? guide_threshold, Tensor stats, bool ids_exclude, "
      "bool keep_similarities, bool need_rows, bool need_cols, bool need_row_scale, "
      "bool need_col_scale, str float32_precision) -> (Tensor grad_rows, Tensor grad_cols, "
      "Tensor grad_row_scale, Tensor grad_col_scale)");
  m.def(
      "similarity_softplus_forward(Tensor rows, Tensor cols, Tensor scale, Tensor bias, "
      "Tensor? row_ids, Tensor? col_ids, Tensor? excluded_indptr, Tensor? excluded_indices, "
      "Tensor? guide_rows, Tensor? guide_cols, Tensor? guide_threshold, bool ids_exclude, "
      "bool keep_similarities, str float32_precision) -> (Tensor row_sum, Tensor stats)");
  m.def(
      "similarity_softplus_backward(Tensor grad_row_sum, Tensor rows, Tensor cols, Tensor scale, "
      "Tensor bias, Tensor? row_ids, Tensor? col_ids, Tensor? excluded_indptr, "
      "Tensor? excluded_indices, Tensor? guide_rows, Tensor? guide_cols, Tensor? guide_threshold, "
      "Tensor stats, bool ids_exclude, bool keep_similarities, bool need_rows, bool need_cols, "
      "bool need_scale, bool need_bias, str float32_precision) -> (Tensor grad_rows, Tensor grad_cols, "
      "Tensor grad_scale, Tensor grad_bias)");
  m.def(
      "similarity_softplus_total_forward(Tensor rows, Tensor cols, Tensor scale, Tensor bias, "
      "Tensor row_weights, Tensor? row_ids, Tensor? col_ids, Tensor? excluded_indptr, "
      "Tensor? excluded_indices, Tensor? guide_rows, Tensor? guide_cols, Tensor? guide_threshold, "
      "bool ids_exclude, bool keep_rows, bool keep_cols, bool keep_scale, bool keep_bias, "
      "str float32_precision) -> (Tensor total, Tensor stats, Tensor kept_rows, Tensor kept_cols, "
      "Tensor kept_scale, Tensor kept_bias)");
  m.def(
      "similarity_softplus_total_backward(Tensor grad_total, Tensor rows, Tensor kept_rows, "
      "Tensor kept_cols, Tensor kept_scale, Tensor kept_bias, str float32_precision) "
      "-> (Tensor grad_rows, Tensor grad_cols, Tensor grad_scale, Tensor grad_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("similarity_logsumexp_forward", TORCH_BOX(&sparc::logsumexp_forward));
  m.impl("similarity_logsumexp_backward", TORCH_BOX(&sparc::logsumexp_backward));
  m.impl("similarity_softplus_forward", TORCH_BOX(&sparc::softplus_forward));
  m.impl("similarity_softplus_backward", TORCH_BOX(&sparc::softplus_backward));
  m.impl("similarity_softplus_total_forward", TORCH_BOX(&sparc::softplus_total_forward));
  m.impl("similarity_softplus_total_backward", TORCH_BOX(&sparc::softplus_total_backward));
}
