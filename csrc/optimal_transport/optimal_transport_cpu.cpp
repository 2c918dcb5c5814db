// Optimal transport within pairs: the op's schemas, whatever the device, and on the CPU checks and the loop
// over pairs.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "common/cpu_capability.h"
#include "common/item_slices.h"
#include "optimal_transport/optimal_transport.h"
#include "pairs/batch.h"

namespace sparc {
namespace {

using Maybe = std::optional<Tensor>;
using torch::stable::new_empty;

// What both passes take, checked.
struct TransportCall {
  Batch batch;
  TransportPair common;
  TransportKernel kernel;

  TransportCall(const Tensor& image_tokens, const Tensor& text_tokens, const Maybe& image_mask,
                const Maybe& text_mask, const Tensor& beta, int64_t iterations, bool proximal)
      : batch({image_tokens, image_mask, "image_tokens", "image_mask", "[B, P, D]"},
              {text_tokens, text_mask, "text_tokens", "text_mask", "[B, L, D]"}),
        common(),
        kernel(pick_kernel<TransportKernel>(batch.dtype)) {
    common.all_patches = batch.p;
    common.all_tokens = batch.l;
    common.channels = batch.d;
    common.beta = read_scalar(beta, "beta", batch.accumulation);
    common.iterations = iterations;
    common.proximal = proximal;
    STD_TORCH_CHECK(common.beta > 0, "beta: expected a positive number, got ", common.beta);
    STD_TORCH_CHECK(iterations > 0, "iterations: expected at least 1, got ", iterations);
  }

  template <class F>
  void for_each(const F& work) const {
    for_each_pair(batch, batch.b, matching, kernel.workspace(batch.l, batch.p, batch.d),
                  [&](const ValidRows& patches, const ValidRows& tokens, int64_t i, void* workspace) {
                    TransportPair pair = common;
                    pair.patches = patches;
                    pair.tokens = tokens;
                    work(pair, i, workspace);
                  });
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& image_tokens, const Tensor& text_tokens,
                                           const Maybe& image_mask, const Maybe& text_mask,
                                           const Tensor& beta, int64_t iterations, bool proximal,
                                           bool with_plan,
                                           const std::string& /* the CPU products are exact */) {
  const TransportCall call(image_tokens, text_tokens, image_mask, text_mask, beta, iterations, proximal);
  const Batch& batch = call.batch;
  Tensor costs = new_empty(image_tokens, {batch.b, batch.l}, batch.accumulation);
  Tensor potentials = new_empty(image_tokens, {batch.b, batch.l + batch.p}, batch.accumulation);
  Tensor plan = with_plan ? new_empty(image_tokens, {batch.b, batch.l, batch.p}, batch.accumulation)
                          : new_empty(image_tokens, {0}, batch.accumulation);
  const int64_t size = costs.element_size();
  const ItemSlices cost(costs.mutable_data_ptr(), batch.l * size),
      potential(potentials.mutable_data_ptr(), (batch.l + batch.p) * size),
      plans(with_plan ? plan.mutable_data_ptr() : nullptr, batch.l * batch.p * size);
  call.for_each([&](TransportPair& pair, int64_t i, void* workspace) {
    pair.costs = cost.at(i);
    pair.potentials = potential.at(i);
    pair.plan = plans.at(i);
    call.kernel.forward(pair, workspace);
  });
  return {costs, potentials, plan};
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_costs, const Tensor& image_tokens,
                                    const Tensor& text_tokens, const Maybe& image_mask,
                                    const Maybe& text_mask, const Tensor& beta, const Tensor& potentials,
                                    int64_t iterations, bool proximal, bool need_image_tokens,
                                    bool need_text_tokens,
                                    const std::string& /* the CPU products are exact */) {
  const TransportCall call(image_tokens, text_tokens, image_mask, text_mask, beta, iterations, proximal);
  const Batch& batch = call.batch;
  check_cpu_input(grad_costs, "grad_costs", batch.accumulation, {batch.b, batch.l});
  check_cpu_input(potentials, "potentials", batch.accumulation, {batch.b, batch.l + batch.p});
  check_contiguous(potentials, "potentials");
  const ItemResult grad_patches(image_tokens, need_image_tokens, {batch.b, batch.p, batch.d});
  const ItemResult grad_tokens(text_tokens, need_text_tokens, {batch.b, batch.l, batch.d});
  if (!need_image_tokens && !need_text_tokens) return {grad_patches.tensor, grad_tokens.tensor};
  const int64_t size = potentials.element_size();
  const ItemSlices upstream(grad_costs.const_data_ptr(), grad_costs.stride(0) * size),
      potential(potentials.const_data_ptr(), (batch.l + batch.p) * size);
  const int64_t stride = grad_costs.stride(1);
  call.for_each([&](TransportPair& pair, int64_t i, void* workspace) {
    pair.grad_costs = upstream.at(i);
    pair.grad_stride = stride;
    pair.potentials = potential.at(i);
    pair.grad_patches = grad_patches.slices.at(i);
    pair.grad_tokens = grad_tokens.slices.at(i);
    call.kernel.backward(pair, workspace);
  });
  return {grad_patches.tensor, grad_tokens.tensor};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "transport_forward(Tensor image_tokens, Tensor text_tokens, Tensor? image_mask, Tensor? text_mask, "
      "Tensor beta, SymInt iterations, bool proximal, bool with_plan, str float32_precision) -> "
      "(Tensor costs, Tensor potentials, Tensor plan)");
  m.def(
      "transport_backward(Tensor grad_costs, Tensor image_tokens, Tensor text_tokens, Tensor? image_mask, "
      "Tensor? text_mask, Tensor beta, Tensor potentials, SymInt iterations, bool proximal, "
      "bool need_image_tokens, bool need_text_tokens, str float32_precision) -> "
      "(Tensor grad_image_tokens, Tensor grad_text_tokens)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("transport_forward", TORCH_BOX(&sparc::forward));
  m.impl("transport_backward", TORCH_BOX(&sparc::backward));
}
