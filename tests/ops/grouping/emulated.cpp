// The grouping ops, with the signatures of their schema, by the CUDA kernels on the host.
#include "grouping/grouping_pair_kernel.cuh"
#include "grouping/grouping_tiled_kernel.cuh"
#include "grouping/grouping_warpgroup_kernel.cuh"
#include "tests/emulation/host/pairs.h"

namespace py = pybind11;

namespace sparc {
namespace emulation {
namespace {

GroupingArguments describe(const PairInputs& in, const float* threshold, bool weights) {
  GroupingArguments args = {};
  args.in = in;
  args.threshold = threshold;
  args.weights = weights;
  args.stats_stride = in.pairs * in.text_rows;
  return args;
}

template <class Products>
py::tuple forward(bool weights, const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  const PairSide<E> images(given, "patch_embeds", "patch_mask"), texts(given, "token_embeds", nullptr);
  const PairInputs in = pair_inputs(images, texts);
  auto threshold = optional_tensor<float>(given, "similarity_threshold");
  auto output = result_array<E>({in.pairs, in.text_rows, weights ? in.image_rows : in.channels});
  auto stats = result_array<float>({kGroupingStats, in.pairs, in.text_rows});
  GroupingArguments args = describe(in, data_or_null(threshold), weights);
  args.output = output.data();
  args.stats = stats.data();
  launch<Products, false>(device, args);
  return py::make_tuple(output.to_numpy(), stats.to_numpy());
}

template <class Products>
py::tuple backward(bool weights, const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  const PairSide<E> images(given, "patch_embeds", "patch_mask"), texts(given, "token_embeds", nullptr);
  const PairInputs in = pair_inputs(images, texts);
  auto threshold = optional_tensor<float>(given, "similarity_threshold");
  const Strided<E> upstream(given[weights ? "grad_weights" : "grad_embeddings"]);
  auto grad_patches = result_array<E>({in.pairs, in.image_rows, in.channels}, flag(given, "need_patches"));
  auto grad_tokens = result_array<E>({in.pairs, in.text_rows, in.channels}, flag(given, "need_tokens"));
  GroupingArguments args = describe(in, data_or_null(threshold), weights);
  args.grad = view_of(upstream);
  args.grad_patches = data_or_null(grad_patches);
  args.grad_tokens = data_or_null(grad_tokens);
  Device chosen = device;
  chosen.warpgroups &= weights || args.grad.wide;  // as grouping_cuda.cpp asks for
  launch<Products, true>(chosen, args);
  return py::make_tuple(grad_patches.to_numpy(), grad_tokens.to_numpy());
}

GroupingArguments at_addresses(const PairInputs& in, const Addresses& addresses) {
  GroupingArguments args = describe(in, addresses.at<float>("threshold"), false);
  args.output = addresses.at<void>("output");
  args.stats = addresses.at<float>("stats");
  args.grad = addresses.matrix("grad", in.text_rows, in.channels);
  args.grad_patches = addresses.at<void>("grad_patches");
  args.grad_tokens = addresses.at<void>("grad_tokens");
  return args;
}

void bind(py::module_& m) {
  define(m, "grouped_embeddings_forward", [](auto products, const py::dict& given, const Device& device) {
    return forward<decltype(products)>(false, given, device);
  });
  define(m, "grouped_embeddings_backward", [](auto products, const py::dict& given, const Device& device) {
    return backward<decltype(products)>(false, given, device);
  });
  define(m, "alignment_weights_forward", [](auto products, const py::dict& given, const Device& device) {
    return forward<decltype(products)>(true, given, device);
  });
  define(m, "alignment_weights_backward", [](auto products, const py::dict& given, const Device& device) {
    return backward<decltype(products)>(true, given, device);
  });
  define_plan<GroupingArguments, false>(m);
  define_parameters<GroupingArguments>(m, at_addresses);
}

}  // namespace
}  // namespace emulation
}  // namespace sparc

PYBIND11_MODULE(emulated, m) { sparc::emulation::bind(m); }
