// The grouping ops, with the signatures of their schema, by the CUDA kernels on the host.
#include "tests/ops/alignment/emulated.h"

#include "grouping/grouping_pair_kernel.cuh"
#include "grouping/grouping_tiled_kernel.cuh"

namespace py = pybind11;

namespace sparc {
namespace emulation {
namespace {

struct Grouping {
  using Arguments = GroupingArguments;
  template <class E>
  using Shared = GroupingShared<E>;
  template <class E>
  using Scratch = GroupingScratch<E>;
  static constexpr bool kTokenMask = false;

  template <class E, int kUnits, bool kBackward>
  static void pair(const Arguments& args, const Streaming& streaming, const Shared<E>& layout) {
    grouping_pair<E, kUnits, kBackward>(args, streaming, layout);
  }
  template <class Products, bool kBackward>
  static void tiled(const Arguments& args, const TiledMemory& memory) {
    grouping_tiled<Products, kBackward>(args, memory);
  }
};

GroupingArguments describe(const PairInputs& in, bool weights) {
  GroupingArguments args = {};
  args.in = in;
  args.weights = weights;
  args.stats_stride = in.pairs * in.tokens;
  return args;
}

template <class Products>
py::tuple forward(bool weights, const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  PairTensors<E> inputs(given);
  const PairInputs in = inputs.in();
  auto output = result_array<E>({in.pairs, in.tokens, weights ? in.patches : in.channels});
  auto stats = result_array<float>({kGroupingStats, in.pairs, in.tokens});
  GroupingArguments args = describe(in, weights);
  args.output = output.data();
  args.stats = stats.data();
  launch<Grouping, Products, false>(device, args);
  return py::make_tuple(output.to_numpy(), stats.to_numpy());
}

template <class Products>
py::tuple backward(bool weights, const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  PairTensors<E> inputs(given);
  const PairInputs in = inputs.in();
  const Strided<E> upstream(given[weights ? "grad_weights" : "grad_embeddings"]);
  auto grad_patches = result_array<E>({in.pairs, in.patches, in.channels}, flag(given, "need_patches"));
  auto grad_tokens = result_array<E>({in.pairs, in.tokens, in.channels}, flag(given, "need_tokens"));
  GroupingArguments args = describe(in, weights);
  args.grad = view_of(upstream);
  args.grad_patches = data_or_null(grad_patches);
  args.grad_tokens = data_or_null(grad_tokens);
  launch<Grouping, Products, true>(device, args);
  return py::make_tuple(grad_patches.to_numpy(), grad_tokens.to_numpy());
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
  define_plan<Grouping>(m);
}

}  // namespace
}  // namespace emulation
}  // namespace sparc

PYBIND11_MODULE(emulated, m) { sparc::emulation::bind(m); }
