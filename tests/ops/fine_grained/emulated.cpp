// The fine-grained ops, with the signatures of their schema, by the CUDA kernels on the host.
#include "fine_grained/fine_grained_pair_gradients.cuh"
#include "fine_grained/fine_grained_tiled_kernel.cuh"
#include "fine_grained/fine_grained_warpgroup_backward.cuh"
#include "tests/emulation/host/pairs.h"

namespace py = pybind11;

namespace sparc {
namespace emulation {
namespace {

FineGrainedArguments describe(const PairInputs& in, const Strided<float>& scale, const float* threshold) {
  FineGrainedArguments args = {};
  args.in = in;
  args.threshold = threshold;
  args.logit_scale = scale.buffer.data();
  args.stats_stride = in.pairs * in.text_rows;
  return args;
}

template <class Products>
py::tuple forward(const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  const PairSide<E> images(given, "patch_embeds", "patch_mask"), texts(given, "token_embeds", "token_mask");
  const PairInputs in = pair_inputs(images, texts);
  auto threshold = optional_tensor<float>(given, "similarity_threshold");
  const Strided<float> scale(given["logit_scale"]);
  FineGrainedArguments args = describe(in, scale, data_or_null(threshold));
  auto loss = result_array<float>({in.pairs, in.text_rows});
  auto stats = result_array<float>({kTokenLossStats, in.pairs, in.text_rows});
  auto pooled_patches = result_array<E>({in.pairs, in.channels}, flag(given, "pool_patches"));
  auto pooled_tokens = result_array<E>({in.pairs, in.channels}, flag(given, "pool_tokens"));
  args.token_loss = loss.data();
  args.stats = stats.data();
  args.pooled_patches = data_or_null(pooled_patches);
  args.pooled_tokens = data_or_null(pooled_tokens);
  launch<Products, false>(device, args);
  return py::make_tuple(loss.to_numpy(), stats.to_numpy(), pooled_patches.to_numpy(),
                        pooled_tokens.to_numpy());
}

template <class Products>
py::tuple backward(const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  const PairSide<E> images(given, "patch_embeds", "patch_mask"), texts(given, "token_embeds", "token_mask");
  const PairInputs in = pair_inputs(images, texts);
  auto threshold = optional_tensor<float>(given, "similarity_threshold");
  const Strided<float> scale(given["logit_scale"]), upstream(given["grad_token_loss"]);
  Strided<float> stats(given["stats"]);
  auto grad_pooled_patches = optional_tensor<E>(given, "grad_pooled_patches");
  auto grad_pooled_tokens = optional_tensor<E>(given, "grad_pooled_tokens");
  auto grad_patches = result_array<E>({in.pairs, in.image_rows, in.channels}, flag(given, "need_patches"));
  auto grad_tokens = result_array<E>({in.pairs, in.text_rows, in.channels}, flag(given, "need_tokens"));
  auto groups = result_array<E>({device.grid, in.text_rows, in.channels});
  FineGrainedArguments args = describe(in, scale, data_or_null(threshold));
  args.stats = stats.buffer.data();
  args.grad_token_loss = upstream.buffer.data();
  args.grad_batch_stride = upstream.strides[0];
  args.grad_stride = upstream.strides[1];
  args.grad_pooled_patches = data_or_null(grad_pooled_patches);
  args.grad_pooled_tokens = data_or_null(grad_pooled_tokens);
  args.grad_patches = data_or_null(grad_patches);
  args.grad_tokens = data_or_null(grad_tokens);
  args.saved_groups = args.grad_tokens == nullptr ? groups.data() : args.grad_tokens;
  const size_t one = sizeof(E) * static_cast<size_t>(in.text_rows) * static_cast<size_t>(in.channels);
  launch<Products, true>(device, args, [&] {
    if (args.grad_tokens == nullptr) own_part_only(groups.data(), one);
  });
  return py::make_tuple(grad_patches.to_numpy(), grad_tokens.to_numpy());
}

FineGrainedArguments at_addresses(const PairInputs& in, const Addresses& addresses) {
  FineGrainedArguments args = {};
  args.in = in;
  args.threshold = addresses.at<float>("threshold");
  args.logit_scale = addresses.at<float>("logit_scale");
  args.stats_stride = in.pairs * in.text_rows;
  args.token_loss = addresses.at<float>("token_loss");
  args.stats = addresses.at<float>("stats");
  args.pooled_patches = addresses.at<void>("pooled_patches");
  args.pooled_tokens = addresses.at<void>("pooled_tokens");
  args.grad_token_loss = addresses.at<float>("grad_token_loss");
  args.grad_batch_stride = in.text_rows;
  args.grad_stride = 1;
  args.grad_pooled_patches = addresses.at<void>("grad_pooled_patches");
  args.grad_pooled_tokens = addresses.at<void>("grad_pooled_tokens");
  args.grad_patches = addresses.at<void>("grad_patches");
  args.grad_tokens = addresses.at<void>("grad_tokens");
  args.saved_groups = addresses.at<void>("saved_groups");
  return args;
}

void bind(py::module_& m) {
  define(m, "fine_grained_forward", [](auto products, const py::dict& given, const Device& device) {
    return forward<decltype(products)>(given, device);
  });
  define(m, "fine_grained_backward", [](auto products, const py::dict& given, const Device& device) {
    return backward<decltype(products)>(given, device);
  });
  define_plan<FineGrainedArguments, true>(m);
  define_parameters<FineGrainedArguments>(m, at_addresses);
}

}  // namespace
}  // namespace emulation
}  // namespace sparc

PYBIND11_MODULE(emulated, m) { sparc::emulation::bind(m); }
