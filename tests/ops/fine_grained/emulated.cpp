// The CUDA kernels of the library on the host, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "arrays.h"
#include "common/launch_plan.h"
#include "emulator.h"
#include "fine_grained/fine_grained_pair_backward.cuh"
#include "fine_grained/fine_grained_tiled_kernel.cuh"
#include "grouping/grouping_pair_kernel.cuh"
#include "grouping/grouping_tiled_kernel.cuh"

namespace py = pybind11;

namespace sparc {
namespace {

using emulation::GlobalArray;

// How to run a call. `shared_bytes`: what a block of the device that is played can have.
struct Options {
  std::string products;  // bf16, f16, tf32 or float32
  bool pair_path;        // where it serves; false: the tiled path
  int64_t shared_bytes;
  int64_t grid;
  uint64_t seed;
};

Options options_of(const py::dict& given) {
  return {given["products"].cast<std::string>(), given["pair_path"].cast<bool>(),
          given["shared_bytes"].cast<int64_t>(), given["grid"].cast<int64_t>(),
          given["seed"].cast<uint64_t>()};
}

// An input: a flat buffer and strides in elements, so that gaps and transposed layouts come through.
template <class T>
struct Strided {
  GlobalArray<T> buffer;
  std::vector<int64_t> shape, strides;

  explicit Strided(const py::dict& given)
      : buffer(given["buffer"].cast<py::array>()),
        shape(given["shape"].cast<std::vector<int64_t>>()),
        strides(given["strides"].cast<std::vector<int64_t>>()) {}

  MatrixView view() const {
    const int64_t unit = 16 / static_cast<int64_t>(sizeof(T));
    const bool wide = strides[2] == 1 && strides[0] % unit == 0 && strides[1] % unit == 0;
    return {buffer.data(), strides[0], strides[1], strides[2], wide};
  }
};

struct Mask {
  std::unique_ptr<Strided<bool>> data;

  explicit Mask(const std::optional<py::dict>& given) {
    if (given) data = std::make_unique<Strided<bool>>(*given);
  }
  MaskView view() const {
    return data ? MaskView{data->buffer.data(), data->strides[0], data->strides[1]} : MaskView{nullptr, 0, 0};
  }
};

template <class E>
struct Inputs {
  Strided<E> patches, tokens;
  Mask token_mask, patch_mask;
  std::unique_ptr<GlobalArray<float>> threshold;
  PairInputs in;

  explicit Inputs(const py::dict& given)
      : patches(given["patch_embeds"].cast<py::dict>()),
        tokens(given["token_embeds"].cast<py::dict>()),
        token_mask(given["token_mask"].cast<std::optional<py::dict>>()),
        patch_mask(given["patch_mask"].cast<std::optional<py::dict>>()) {
    if (!given["threshold"].is_none()) {
      threshold = std::make_unique<GlobalArray<float>>(given["threshold"].cast<py::array>());
    }
    in = {patches.view(),
          tokens.view(),
          patch_mask.view(),
          token_mask.view(),
          patches.shape[0],
          static_cast<int>(patches.shape[1]),
          static_cast<int>(tokens.shape[1]),
          static_cast<int>(patches.shape[2]),
          threshold ? threshold->data() : nullptr};
  }
};

template <class E>
const char* numpy_name() {
  return sizeof(E) == 2 ? "uint16" : "float32";
}

// Runs the pair path or the tiled path as the plan says; `pair(units)` and `tiled(memory)` are the kernels.
template <class E, class Shared, class Pair, class Tiled>
void run(const Options& options, const PairInputs& in, const Shared& shared, int64_t scratch,
         const Pair& pair, const Tiled& tiled) {
  const DeviceLimits limits = {static_cast<int>(options.grid), options.shared_bytes};
  const bool pair_path = options.pair_path && sizeof(E) == 2;
  const LaunchPlan plan = plan_launch(in, pair_path, limits, shared, TiledShared<E>::kBytes, scratch);
  if (pair_path && !plan.pair.used) throw std::invalid_argument("the pair path does not serve this shape");
  if (plan.pair.used) {
    emulation::emulate(std::min(plan.pair.grid, options.grid), kThreads,
                       static_cast<size_t>(plan.pair.shared_bytes), {}, options.seed, [&] { pair(plan); });
  }
  if (plan.tiled.used) {
    const int64_t grid = std::min(plan.tiled.grid, options.grid);
    GlobalArray<unsigned char> memory("uint8", {grid * plan.tiled.scratch_bytes});  // blocks side by side
    const TiledMemory given = {memory.data(), plan.tiled.scratch_bytes, plan.pair.used};
    emulation::emulate(grid, kThreads, static_cast<size_t>(plan.tiled.shared_bytes),
                       {{memory.data(), memory.bytes()}}, options.seed, [&] { tiled(given); });
  }
}

#define SPARC_CALL_PAIR(units_) \
  if (plan.pair.units == units_) kernel(std::integral_constant<int, units_>());

template <class Products>
py::dict fine_grained_with(const py::dict& given, bool backward) {
  using E = typename Products::Element;
  const Options options = options_of(given["options"].cast<py::dict>());
  const Inputs<E> inputs(given);
  const PairInputs& in = inputs.in;
  const int64_t b = in.pairs, l = in.tokens, p = in.patches, d = in.channels;
  const GlobalArray<float> scale(given["logit_scale"].cast<py::array>());
  const bool pool = given["pool"].cast<bool>(), need_patches = given["need_patches"].cast<bool>(),
             need_tokens = given["need_tokens"].cast<bool>();
  GlobalArray<float> loss("float32", {b, l}), stats("float32", {kFineGrainedStats, b, l});
  GlobalArray<E> pooled_patches(numpy_name<E>(), {b, d}), pooled_tokens(numpy_name<E>(), {b, d});
  GlobalArray<E> grad_patches(numpy_name<E>(), {b, p, d}), grad_tokens(numpy_name<E>(), {b, l, d});
  const auto run_pass = [&](bool back, const FineGrainedArguments& args) {
    const auto shared = [&](const Streaming& streaming) {
      if constexpr (sizeof(E) == 2) return FineGrainedShared<E>(in, streaming, back).plan.used;
      return 0;
    };
    run<E>(
        options, in, shared, FineGrainedScratch<E>(in, back).plan.used,
        [&](const LaunchPlan& plan) {
          const auto kernel = [&](auto units) {
            if constexpr (sizeof(E) == 2) {
              constexpr int kUnits = decltype(units)::value;
              const FineGrainedShared<E> layout(in, plan.pair.streaming, back);
              if (back) {
                fine_grained_pair_backward<E, kUnits>(args, plan.pair.streaming, layout);
              } else {
                fine_grained_pair_forward<E, kUnits>(args, plan.pair.streaming, layout);
              }
            }
          };
          SPARC_PAIR_UNITS(SPARC_CALL_PAIR)
        },
        [&](const TiledMemory& memory) {
          if (back) {
            fine_grained_tiled<Products, true>(args, memory);
          } else {
            fine_grained_tiled<Products, false>(args, memory);
          }
        });
  };
  FineGrainedArguments args = {};
  args.in = in;
  args.logit_scale = scale.data();
  args.stats_stride = b * l;
  args.token_loss = loss.data();
  args.stats = stats.data();
  if (pool) {
    args.pooled_patches = pooled_patches.data();
    args.pooled_tokens = pooled_tokens.data();
  }
  run_pass(false, args);
  py::dict result;
  if (pool) {
    result["pooled_patches"] = pooled_patches.to_numpy();
    result["pooled_tokens"] = pooled_tokens.to_numpy();
  }
  result["token_loss"] = loss.to_numpy();
  result["stats"] = stats.to_numpy();
  if (!backward) return result;
  const Strided<float> upstream(given["grad_token_loss"].cast<py::dict>());
  args.grad_token_loss = upstream.buffer.data();
  args.grad_batch_stride = upstream.strides[0];
  args.grad_stride = upstream.strides[1];
  std::unique_ptr<Strided<E>> grad_pooled_patches, grad_pooled_tokens;
  if (pool) {
    grad_pooled_patches = std::make_unique<Strided<E>>(given["grad_pooled_patches"].cast<py::dict>());
    grad_pooled_tokens = std::make_unique<Strided<E>>(given["grad_pooled_tokens"].cast<py::dict>());
    args.grad_pooled_patches = grad_pooled_patches->buffer.data();
    args.grad_pooled_tokens = grad_pooled_tokens->buffer.data();
  }
  GlobalArray<E> saved(numpy_name<E>(), {options.grid, l, d});
  args.grad_patches = need_patches ? grad_patches.data() : nullptr;
  args.grad_tokens = need_tokens ? grad_tokens.data() : nullptr;
  args.saved_groups = need_tokens ? grad_tokens.data() : saved.data();
  run_pass(true, args);
  if (need_patches) result["grad_patch_embeds"] = grad_patches.to_numpy();
  if (need_tokens) result["grad_token_embeds"] = grad_tokens.to_numpy();
  return result;
}

template <class Products>
py::dict grouping_with(const py::dict& given, bool backward) {
  using E = typename Products::Element;
  const Options options = options_of(given["options"].cast<py::dict>());
  const Inputs<E> inputs(given);
  const PairInputs& in = inputs.in;
  const int64_t b = in.pairs, l = in.tokens, p = in.patches, d = in.channels;
  GroupingArguments args = {};
  args.in = in;
  args.weights = given["weights"].cast<bool>();
  args.stats_stride = b * l;
  GlobalArray<float> stats("float32", {kGroupingStats, b, l});
  GlobalArray<E> output(numpy_name<E>(), {b, l, args.weights ? p : d}),
      grad_patches(numpy_name<E>(), {b, p, d}), grad_tokens(numpy_name<E>(), {b, l, d});
  const auto run_pass = [&](bool back) {
    const auto shared = [&](const Streaming& streaming) {
      if constexpr (sizeof(E) == 2) return GroupingShared<E>(in, streaming, back).plan.used;
      return 0;
    };
    run<E>(
        options, in, shared, GroupingScratch<E>(in, back).plan.used,
        [&](const LaunchPlan& plan) {
          const auto kernel = [&](auto units) {
            if constexpr (sizeof(E) == 2) {
              constexpr int kUnits = decltype(units)::value;
              const GroupingShared<E> layout(in, plan.pair.streaming, back);
              if (back) {
                grouping_pair<E, kUnits, true>(args, plan.pair.streaming, layout);
              } else {
                grouping_pair<E, kUnits, false>(args, plan.pair.streaming, layout);
              }
            }
          };
          SPARC_PAIR_UNITS(SPARC_CALL_PAIR)
        },
        [&](const TiledMemory& memory) {
          if (back) {
            grouping_tiled<Products, true>(args, memory);
          } else {
            grouping_tiled<Products, false>(args, memory);
          }
        });
  };
  args.output = output.data();
  args.stats = stats.data();
  run_pass(false);
  py::dict result;
  result["output"] = output.to_numpy();
  result["stats"] = stats.to_numpy();
  if (!backward) return result;
  const Strided<E> upstream(given["grad"].cast<py::dict>());
  args.grad = upstream.view();
  const bool need_patches = given["need_patches"].cast<bool>(),
             need_tokens = given["need_tokens"].cast<bool>();
  args.grad_patches = need_patches ? grad_patches.data() : nullptr;
  args.grad_tokens = need_tokens ? grad_tokens.data() : nullptr;
  run_pass(true);
  if (need_patches) result["grad_patch_embeds"] = grad_patches.to_numpy();
  if (need_tokens) result["grad_token_embeds"] = grad_tokens.to_numpy();
  return result;
}

// What plan_launch chooses: for docs/cuda_resources.md, and to see that every choice is reached.
py::dict plan(const std::string& op, bool half_precision, bool backward, int tokens, int patches,
              int channels, int64_t pairs, int multiprocessors, int64_t shared_bytes) {
  const bool masked = true;
  PairInputs in = {};
  in.pairs = pairs;
  in.tokens = tokens;
  in.patches = patches;
  in.channels = channels;
  const bool loss = op == "fine_grained";
  in.patch_mask = {&masked, 0, 0};  // never read
  if (loss) in.token_mask = in.patch_mask;
  const auto shared = [&](const Streaming& streaming) -> int64_t {
    return loss ? FineGrainedShared<BFloat16>(in, streaming, backward).plan.used
                : GroupingShared<BFloat16>(in, streaming, backward).plan.used;
  };
  const auto scratch = [&](auto element) -> int64_t {
    using E = decltype(element);
    return loss ? FineGrainedScratch<E>(in, backward).plan.used : GroupingScratch<E>(in, backward).plan.used;
  };
  const int64_t tiled_shared = half_precision ? TiledShared<BFloat16>::kBytes : TiledShared<float>::kBytes;
  const LaunchPlan chosen = plan_launch(in, half_precision, {multiprocessors, shared_bytes}, shared,
                                        tiled_shared, half_precision ? scratch(BFloat16{}) : scratch(0.0f));
  py::dict result;
  result["pair_path"] = chosen.pair.used;
  result["tiled_path"] = chosen.tiled.used;
  result["units"] = chosen.pair.units;
  result["chunk"] = chosen.pair.streaming.chunk;
  result["stages"] = chosen.pair.streaming.stages;
  result["pair_bytes"] = chosen.pair.shared_bytes;
  result["tiled_bytes"] = chosen.tiled.shared_bytes;
  return result;
}

#define SPARC_BY_PRODUCTS(function)                                                    \
  const std::string products = options_of(given["options"].cast<py::dict>()).products; \
  if (products == "bf16") return function<HalfProducts<BFloat16>>(given, backward);    \
  if (products == "f16") return function<HalfProducts<Float16>>(given, backward);      \
  if (products == "tf32") return function<Tf32Products>(given, backward);              \
  if (products == "float32") return function<Float32Products>(given, backward);        \
  throw std::invalid_argument("products: " + products)

py::dict fine_grained(const py::dict& given, bool backward) { SPARC_BY_PRODUCTS(fine_grained_with); }
py::dict grouping(const py::dict& given, bool backward) { SPARC_BY_PRODUCTS(grouping_with); }

}  // namespace
}  // namespace sparc

PYBIND11_MODULE(ops_emulated, m) {
  m.def("fine_grained", &sparc::fine_grained, py::arg("given"), py::arg("backward"));
  m.def("plan", &sparc::plan, py::arg("op"), py::arg("half_precision"), py::arg("backward"),
        py::arg("tokens"), py::arg("patches"), py::arg("channels"), py::arg("pairs"),
        py::arg("multiprocessors"), py::arg("shared_bytes"));
  m.def("grouping", &sparc::grouping, py::arg("given"), py::arg("backward"));
}
