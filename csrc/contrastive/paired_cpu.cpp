// Cosines of row i and column i: the op's schemas, whatever the device, and on the CPU checks and the loop
// over rows.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/parallel.h"
#include "contrastive/arguments.h"
#include "contrastive/paired.h"

namespace sparc {
namespace {

// A call, its tensors checked.
struct CheckedPairs : PairedCall {
  ScalarType accumulation;
  PairedKernel kernel;

  CheckedPairs(const Tensor& row_embeds, const Tensor& col_embeds)
      : accumulation(accumulation_dtype(row_embeds.scalar_type())) {
    check_embeds(row_embeds, "rows", "[M, D]");
    check_kernel_dtype(row_embeds, "rows");
    check_cpu_input(col_embeds, "cols", row_embeds.scalar_type(), {row_embeds.size(0), row_embeds.size(1)});
    rows = view_of(row_embeds);
    cols = view_of(col_embeds);
    kernel = pick_kernel<PairedKernel>(row_embeds.scalar_type());
  }

  void run(PairedStep step) const {
    for_each_item(parts_of(rows.count, kPairedRows), kernel.thread_bytes(*this),
                  [&](int64_t item, void* workspace) { step(*this, item, workspace); });
  }
};

std::tuple<Tensor, Tensor> paired_cosines_forward(
    const Tensor& rows, const Tensor& cols,
    const std::string& /* float32_precision: the CPU products are exact */) {
  CheckedPairs call(rows, cols);
  const int64_t m = call.rows.count;
  Tensor cosines = torch::stable::new_empty(rows, std::vector<int64_t>{m}, call.accumulation);
  Tensor stats = torch::stable::new_empty(rows, std::vector<int64_t>{kPairedStats, m}, call.accumulation);
  call.cosines = cosines.mutable_data_ptr();
  call.stats = stats.mutable_data_ptr();
  call.run(call.kernel.forward);
  return {cosines, stats};
}

std::tuple<Tensor, Tensor> paired_cosines_backward(
    const Tensor& grad_cosines, const Tensor& rows, const Tensor& cols, const Tensor& stats, bool need_rows,
    bool need_cols, const std::string& /* float32_precision: the CPU products are exact */) {
  CheckedPairs call(rows, cols);
  const int64_t m = call.rows.count;
  call.upstream = items_of(grad_cosines, "grad_cosines", call.accumulation, m);
  check_cpu_input(stats, "stats", call.accumulation, {kPairedStats, m});
  check_contiguous(stats, "stats");
  call.stats = const_cast<void*>(stats.const_data_ptr());
  const Gradient of_rows(rows, need_rows), of_cols(cols, need_cols);
  call.grad_rows = of_rows.data;
  call.grad_cols = of_cols.data;
  call.run(call.kernel.backward);
  return {of_rows.tensor, of_cols.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "paired_cosines_forward(Tensor rows, Tensor cols, str float32_precision) -> (Tensor cosines, Tensor "
      "stats)");
  m.def(
      "paired_cosines_backward(Tensor grad_cosines, Tensor rows, Tensor cols, Tensor stats, bool need_rows, "
      "bool need_cols, str float32_precision) -> (Tensor grad_rows, Tensor grad_cols)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("paired_cosines_forward", TORCH_BOX(&sparc::paired_cosines_forward));
  m.impl("paired_cosines_backward", TORCH_BOX(&sparc::paired_cosines_backward));
}
