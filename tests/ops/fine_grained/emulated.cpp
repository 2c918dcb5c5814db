// The fine-grained ops, with the signatures of their schema, by the CUDA kernels on the host.
#include "tests/ops/alignment/emulated.h"

#include "fine_grained/fine_grained_pair_backward.cuh"
#include "fine_grained/fine_grained_tiled_kernel.cuh"

namespace py = pybind11;

namespace sparc {
namespace {

using namespace emulation;

struct FineGrained {
  using Arguments = FineGrainedArguments;
  template <class E>
  using Shared = FineGrainedShared<E>;
  template <class E>
  using Scratch = FineGrainedScratch<E>;
  static constexpr bool kTokenMask = true;

  template <class E, int kUnits, bool kBackward>
  static void pair(const Arguments& args, const Streaming& streaming, const Shared<E>& layout) {
    if constexpr (kBackward) {
      fine_grained_pair_backward<E, kUnits>(args, streaming, layout);
    } else {
      fine_grained_pair_forward<E, kUnits>(args, streaming, layout);
    }
  }
  template <class Products, bool kBackward>
  static void tiled(const Arguments& args, const TiledMemory& memory) {
    fine_grained_tiled<Products, kBackward>(args, memory);
  }
};

FineGrainedArguments describe(const PairInputs& in, const Strided<float>& scale) {
  FineGrainedArguments args = {};
  args.in = in;
  args.logit_scale = scale.buffer.data();
  args.stats_stride = in.pairs * in.tokens;
  return args;
}

template <class Products>
py::tuple forward(const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  PairTensors<E> inputs(given);
  const PairInputs in = inputs.in();
  const Strided<float> scale(given["logit_scale"]);
  FineGrainedArguments args = describe(in, scale);
  auto loss = result_array<float>({in.pairs, in.tokens});
  auto stats = result_array<float>({kFineGrainedStats, in.pairs, in.tokens});
  const bool pool_patches = given["pool_patches"].cast<bool>(),
             pool_tokens = given["pool_tokens"].cast<bool>();
  const auto mean = [&](bool wanted) {
    return wanted ? result_array<E>({in.pairs, in.channels}) : result_array<E>({0});
  };
  auto pooled_patches = mean(pool_patches), pooled_tokens = mean(pool_tokens);
  args.token_loss = loss.data();
  args.stats = stats.data();
  args.pooled_patches = pool_patches ? pooled_patches.data() : nullptr;
  args.pooled_tokens = pool_tokens ? pooled_tokens.data() : nullptr;
  launch<FineGrained, Products, false>(device, args);
  return py::make_tuple(loss.to_numpy(), stats.to_numpy(), pooled_patches.to_numpy(),
                        pooled_tokens.to_numpy());
}

template <class Products>
py::tuple backward(const py::dict& given, const Device& device) {
  using E = typename Products::Element;
  PairTensors<E> inputs(given);
  const PairInputs in = inputs.in();
  const Strided<float> scale(given["logit_scale"]), upstream(given["grad_token_loss"]);
  Strided<float> stats(given["stats"]);
  auto grad_pooled_patches = optional_tensor<E>(given, "grad_pooled_patches");
  auto grad_pooled_tokens = optional_tensor<E>(given, "grad_pooled_tokens");
  PairGradients<E> grads(given, in);
  auto groups = result_array<E>({device.grid, in.tokens, in.channels});
  FineGrainedArguments args = describe(in, scale);
  args.stats = stats.buffer.data();
  args.grad_token_loss = upstream.buffer.data();
  args.grad_batch_stride = upstream.strides[0];
  args.grad_stride = upstream.strides[1];
  args.grad_pooled_patches = data_or_null(grad_pooled_patches);
  args.grad_pooled_tokens = data_or_null(grad_pooled_tokens);
  args.grad_patches = grads.place(grads.patches);
  args.grad_tokens = grads.place(grads.tokens);
  args.saved_groups = args.grad_tokens == nullptr ? groups.data() : args.grad_tokens;
  launch<FineGrained, Products, true>(device, args);
  return grads.to_python();
}

}  // namespace
}  // namespace sparc

PYBIND11_MODULE(emulated, m) {
  using namespace sparc;
  define(m, "fine_grained_forward", [](auto products, const py::dict& given, const Device& device) {
    return forward<decltype(products)>(given, device);
  });
  define(m, "fine_grained_backward", [](auto products, const py::dict& given, const Device& device) {
    return backward<decltype(products)>(given, device);
  });
  define_plan<FineGrained>(m);
}
