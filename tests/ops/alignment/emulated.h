// What the emulated ops over PairInputs share: tensors of a call, and the launches that the plan asks for.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>

#include "common/launch_plan.h"
#include "common/tiled_path.cuh"
#include "emulator.h"
#include "tests/emulation/host/arrays.h"

namespace sparc {
namespace emulation {

template <class T>
MatrixView view_of(const Strided<T>& given) {
  const std::vector<int64_t>& strides = given.strides;
  const int64_t unit = 16 / static_cast<int64_t>(sizeof(T));
  const bool wide = strides[2] == 1 && strides[0] % unit == 0 && strides[1] % unit == 0;
  return {given.buffer.data(), strides[0], strides[1], strides[2], wide};
}

inline MaskView view_of(const std::optional<Strided<bool>>& given) {
  return given ? MaskView{given->buffer.data(), given->strides[0], given->strides[1]}
               : MaskView{nullptr, 0, 0};
}

// The inputs of a call, by the names of the op's schema.
template <class E>
class PairTensors {
 public:
  explicit PairTensors(const pybind11::dict& given)
      : patches_(given["patch_embeds"]),
        tokens_(given["token_embeds"]),
        patch_mask_(optional_tensor<bool>(given, "patch_mask")),
        token_mask_(optional_tensor<bool>(given, "token_mask")),
        threshold_(optional_tensor<float>(given, "similarity_threshold")) {}

  PairInputs in() {
    return {view_of(patches_),
            view_of(tokens_),
            view_of(patch_mask_),
            view_of(token_mask_),
            patches_.shape[0],
            static_cast<int>(patches_.shape[1]),
            static_cast<int>(tokens_.shape[1]),
            static_cast<int>(patches_.shape[2]),
            threshold()};
  }
  const float* threshold() { return data_or_null(threshold_); }

 private:
  Strided<E> patches_, tokens_;
  std::optional<Strided<bool>> patch_mask_, token_mask_;
  std::optional<Strided<float>> threshold_;
};

template <class Op, class E, bool kBackward>
LaunchPlan plan_of(const PairInputs& in, bool pair_path, const DeviceLimits& limits) {
  const auto shared = [&](const Streaming& streaming) -> int64_t {
    if constexpr (sizeof(E) == 2) {
      return typename Op::template Shared<E>(in, streaming, kBackward).plan.used;
    } else {
      return 0;
    }
  };
  const int64_t scratch = typename Op::template Scratch<E>(in, kBackward).plan.used;
  return plan_launch(in, pair_path, limits, shared, TiledShared<E>::kBytes, scratch);
}

// One pass of an op on the paths that the plan takes. Op names the kernels: Arguments, Shared<E>, Scratch<E>,
// pair<E, kUnits, kBackward>(args, streaming, layout) and tiled<Products, kBackward>(args, memory).
template <class Op, class Products, bool kBackward>
void launch(const Device& device, const typename Op::Arguments& args) {
  using E = typename Products::Element;
  if (args.in.pairs == 0) return;
  const bool pair_path = device.pair_path && sizeof(E) == 2;
  const LaunchPlan plan =
      plan_of<Op, E, kBackward>(args.in, pair_path, {static_cast<int>(device.grid), device.shared_bytes});
  if (pair_path && !plan.pair.used) throw std::invalid_argument("the pair path does not serve this shape");
  if (plan.pair.used) {
    const auto kernel = [&](auto units) {
      if constexpr (sizeof(E) == 2) {
        const typename Op::template Shared<E> layout(args.in, plan.pair.streaming, kBackward);
        Op::template pair<E, decltype(units)::value, kBackward>(args, plan.pair.streaming, layout);
      }
    };
    emulate(std::min(plan.pair.grid, device.grid), kThreads, static_cast<size_t>(plan.pair.shared_bytes), {},
            device.seed, [&] {
#define SPARC_CALL_PAIR(units_) \
  if (plan.pair.units == units_) kernel(std::integral_constant<int, units_>());
              SPARC_PAIR_UNITS(SPARC_CALL_PAIR)
#undef SPARC_CALL_PAIR
            });
  }
  if (plan.tiled.used) {
    const int64_t grid = std::min(plan.tiled.grid, device.grid);
    GlobalArray<unsigned char> memory("uint8", {grid * plan.tiled.scratch_bytes});  // blocks side by side
    const TiledMemory given = {memory.data(), plan.tiled.scratch_bytes, plan.pair.used};
    emulate(grid, kThreads, static_cast<size_t>(plan.tiled.shared_bytes), {{memory.data(), memory.bytes()}},
            device.seed, [&] { Op::template tiled<Products, kBackward>(args, given); });
  }
}

// Defines a function of the module: call(products, given, device), for the products in which the device
// computes.
template <class Call>
void define(pybind11::module_& m, const char* name, const Call& call) {
  const auto function = [call](const pybind11::dict& given, const pybind11::dict& played) -> pybind11::tuple {
    const Device device(played);
    if (device.products == "bf16") return call(HalfProducts<BFloat16>(), given, device);
    if (device.products == "f16") return call(HalfProducts<Float16>(), given, device);
    if (device.products == "tf32") return call(Tf32Products(), given, device);
    if (device.products == "float32") return call(Float32Products(), given, device);
    throw std::invalid_argument("products: " + device.products);
  };
  m.def(name, function, pybind11::arg("given"), pybind11::arg("device"));
}

// What plan_launch chooses with masks: for docs/cuda_resources.md, and to see that every choice is reached.
template <class Op>
pybind11::dict plan(bool half_precision, bool backward, int tokens, int patches, int channels, int64_t pairs,
                    int multiprocessors, int64_t shared_bytes) {
  const bool masked = true;
  PairInputs in = {};
  in.pairs = pairs;
  in.tokens = tokens;
  in.patches = patches;
  in.channels = channels;
  in.patch_mask = {&masked, 0, 0};  // never read
  if (Op::kTokenMask) in.token_mask = in.patch_mask;
  const DeviceLimits limits = {multiprocessors, shared_bytes};
  const auto chosen_for = [&](auto element) {
    using E = decltype(element);
    return backward ? plan_of<Op, E, true>(in, half_precision, limits)
                    : plan_of<Op, E, false>(in, half_precision, limits);
  };
  const LaunchPlan chosen = half_precision ? chosen_for(BFloat16{}) : chosen_for(0.0f);
  pybind11::dict result;
  result["pair_path"] = chosen.pair.used;
  result["tiled_path"] = chosen.tiled.used;
  result["units"] = chosen.pair.units;
  result["chunk"] = chosen.pair.streaming.chunk;
  result["stages"] = chosen.pair.streaming.stages;
  result["pair_bytes"] = chosen.pair.shared_bytes;
  result["tiled_bytes"] = chosen.tiled.shared_bytes;
  return result;
}

template <class Op>
void define_plan(pybind11::module_& m) {
  using pybind11::arg;
  m.def("plan", &plan<Op>, arg("half_precision"), arg("backward"), arg("tokens"), arg("patches"),
        arg("channels"), arg("pairs"), arg("multiprocessors"), arg("shared_bytes"));
}

}  // namespace emulation
}  // namespace sparc
