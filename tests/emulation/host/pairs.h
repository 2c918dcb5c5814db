// Bindings of ops on pairs of images and texts (csrc/pairs): tensors of a call, and the launches that the
// plan asks for.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "common/products.cuh"
#include "emulator.h"
#include "pairs/launch_plan.h"
#include "pairs/pair_pass.cuh"
#include "pairs/tiled_pair.cuh"
#include "pairs/warpgroup_tile.cuh"
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

// The rows of one side of a call, by the names that they have in the op's schema.
template <class E>
struct PairSide {
  Strided<E> embeds;
  std::optional<Strided<bool>> mask;

  PairSide(const pybind11::dict& given, const char* embeds_name, const char* mask_name)
      : embeds(given[embeds_name]), mask(optional_tensor<bool>(given, mask_name)) {}
};

template <class E>
PairInputs pair_inputs(const PairSide<E>& images, const PairSide<E>& texts) {
  const std::vector<int64_t>& shape = images.embeds.shape;
  return {view_of(images.embeds),
          view_of(texts.embeds),
          view_of(images.mask),
          view_of(texts.mask),
          shape[0],
          static_cast<int>(shape[1]),
          static_cast<int>(texts.embeds.shape[1]),
          static_cast<int>(shape[2])};
}

// Whether the op has products of warpgroups for the pass.
template <class Arguments>
constexpr bool has_warpgroups(bool backward) {
  return backward ? WarpgroupPasses<Arguments>::kBackward : WarpgroupPasses<Arguments>::kForward;
}

template <class Arguments, class E>
LaunchPlan plan_of(const PairInputs& in, bool backward, bool pair_path, const DeviceLimits& limits) {
  const auto shared = [&](const Streaming& streaming, bool warpgroups) -> int64_t {
    if constexpr (sizeof(E) == 2) {
      if constexpr (has_warpgroups<Arguments>(false) || has_warpgroups<Arguments>(true)) {
        if (warpgroups) {
          return typename WarpgroupOp<Arguments>::template Layout<E>(in, streaming, backward).plan.used;
        }
      }
      return pair_layout_bytes<Arguments, E>(in, streaming, backward);
    } else {
      return 0;
    }
  };
  const int64_t scratch = typename TiledOp<Arguments>::template Layout<E>(in, backward).plan.used;
  return plan_launch(in, pair_path, limits, shared, TiledLayout<E>::kBytes, scratch);
}

// A thread's part of the pair path.
template <class E, bool kBackward, class Arguments>
void run_pair_path(const Arguments& args, const LaunchPlan& plan) {
  const Streaming& streaming = plan.pair.streaming;
#define SPARC_CALL_WARPGROUPS(strips_, blocks_)                                  \
  if (plan.pair.strips == strips_) {                                             \
    using Op = WarpgroupOp<Arguments>;                                           \
    const typename Op::template Layout<E> layout(args.in, streaming, kBackward); \
    return Op::template run<E, strips_, kBackward>(args, streaming, layout);     \
  }
#define SPARC_CALL_PAIR(strips_, chunk_)                                                 \
  if (plan.pair.strips == strips_ && streaming.chunk == chunk_) {                        \
    using Op = PairOp<Arguments>;                                                        \
    const typename Op::template Layout<E, chunk_> layout(args.in, streaming, kBackward); \
    return Op::template run<E, strips_, chunk_, kBackward>(args, streaming, layout);     \
  }
  if constexpr (has_warpgroups<Arguments>(kBackward)) {
    if (plan.pair.warpgroups) {
      SPARC_WARPGROUP_INSTANCES(SPARC_CALL_WARPGROUPS)
    }
  }
  SPARC_PAIR_INSTANCES(SPARC_CALL_PAIR)
#undef SPARC_CALL_PAIR
#undef SPARC_CALL_WARPGROUPS
}

// One pass of the op that takes `Arguments`, on the paths that the plan takes. Every thread calls start()
// first.
template <class Products, bool kBackward, class Arguments, class Start>
void launch(const Device& device, const Arguments& args, const Start& start) {
  using E = typename Products::Element;
  if (args.in.pairs == 0) return;
  const bool pair_path = device.pair_path && sizeof(E) == 2;
  const DeviceLimits limits = {static_cast<int>(device.grid), device.shared_bytes,
                               device.warpgroups && has_warpgroups<Arguments>(kBackward)};
  const LaunchPlan plan = plan_of<Arguments, E>(args.in, kBackward, pair_path, limits);
  if (pair_path && !plan.pair.used) throw std::invalid_argument("the pair path does not serve this shape");
  if (plan.pair.used) {
    emulate(std::min(plan.pair.grid, device.grid), kThreads, static_cast<size_t>(plan.pair.shared_bytes), {},
            device.seed, [&] {
              start();
              if constexpr (sizeof(E) == 2) run_pair_path<E, kBackward>(args, plan);
            });
  }
  if (plan.tiled.used) {
    const int64_t grid = std::min(plan.tiled.grid, device.grid);
    GlobalArray<unsigned char> memory("uint8", {grid * plan.tiled.scratch_bytes});  // blocks side by side
    const TiledMemory given = {memory.data(), plan.tiled.scratch_bytes, plan.pair.used};
    const typename TiledOp<Arguments>::template Layout<E> layout(args.in, kBackward);
    emulate(grid, kThreads, static_cast<size_t>(plan.tiled.shared_bytes), {{memory.data(), memory.bytes()}},
            device.seed, [&] { TiledOp<Arguments>::template run<Products, kBackward>(args, given, layout); });
  }
}

template <class Products, bool kBackward, class Arguments>
void launch(const Device& device, const Arguments& args) {
  launch<Products, kBackward>(device, args, [] {});
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

// What plan_launch chooses with masks, of texts where the op has them: for docs/cuda_resources.md, and to see
// that every choice is reached.
template <class Arguments, bool kTextMask>
pybind11::dict plan(bool half_precision, bool backward, int text_rows, int image_rows, int channels,
                    int64_t pairs, int multiprocessors, int64_t shared_bytes, bool warpgroups) {
  const bool masked = true;
  PairInputs in = {};
  in.pairs = pairs;
  in.text_rows = text_rows;
  in.image_rows = image_rows;
  in.channels = channels;
  in.image_embeds.wide = in.text_embeds.wide = true;
  in.image_mask = {&masked, 0, 0};  // never read
  if (kTextMask) in.text_mask = in.image_mask;
  const DeviceLimits limits = {multiprocessors, shared_bytes,
                               warpgroups && has_warpgroups<Arguments>(backward)};
  const LaunchPlan chosen = half_precision ? plan_of<Arguments, BFloat16>(in, backward, true, limits)
                                           : plan_of<Arguments, float>(in, backward, false, limits);
  pybind11::dict result;
  result["pair_path"] = chosen.pair.used;
  result["tiled_path"] = chosen.tiled.used;
  result["warpgroups"] = chosen.pair.warpgroups;
  result["units"] = chosen.pair.strips;
  result["chunk"] = chosen.pair.streaming.chunk;
  result["stages"] = chosen.pair.streaming.stages;
  result["pair_grid"] = chosen.pair.grid;
  result["pair_bytes"] = chosen.pair.shared_bytes;
  result["tiled_bytes"] = chosen.tiled.shared_bytes;
  return result;
}

// Addresses of tensors that are not there: a launch of the compiled code is described by them.
class Addresses {
 public:
  explicit Addresses(const pybind11::dict& given) : given_(given) {}

  template <class T>
  T* at(const char* name) const {  // null where it is not given
    if (!given_.contains(name)) return nullptr;
    return reinterpret_cast<T*>(given_[name].cast<uintptr_t>());
  }
  MatrixView matrix(const char* name, int64_t rows, int64_t columns) const {
    return {at<void>(name), rows * columns, columns, 1, columns % 8 == 0};
  }

 private:
  pybind11::dict given_;
};

// The bytes of a parameter as the host passes it.
template <class T>
pybind11::bytes bytes_of(const T& part) {
  return pybind11::bytes(reinterpret_cast<const char*>(&part), sizeof(part));
}

// The parameters of a kernel and its launch, for tools/sass_model: of the pair path in bfloat16, or of the
// tiled path for elements E. `describe` makes the op's arguments of its inputs and the addresses, by their
// names in those arguments. These are of in.pairs pairs, the plan is that of a batch.
template <class E, class Arguments, class Describe>
pybind11::dict parameters(const Describe& describe, const PairInputs& in, const Addresses& addresses,
                          bool backward, bool tiled, const DeviceLimits& limits, int64_t batch) {
  const Arguments args = describe(in, addresses);
  PairInputs planned = in;
  planned.pairs = batch;
  const LaunchPlan plan = plan_of<Arguments, E>(planned, backward, !tiled, limits);
  pybind11::dict result;
  if (tiled) {
    const TiledMemory memory = {addresses.at<void>("scratch"), plan.tiled.scratch_bytes, false};
    const typename TiledOp<Arguments>::template Layout<E> layout(in, backward);
    result["parameters"] = pybind11::make_tuple(bytes_of(args), bytes_of(memory), bytes_of(layout));
    result["grid"] = plan.tiled.grid;
    result["shared_bytes"] = plan.tiled.shared_bytes;
    result["scratch_bytes"] = plan.tiled.scratch_bytes;
    return result;
  }
  if (!plan.pair.used) throw std::invalid_argument("the pair path does not serve this shape");
  const auto with_layout = [&](const auto& layout) {
    result["parameters"] =
        pybind11::make_tuple(bytes_of(args), bytes_of(plan.pair.streaming), bytes_of(layout));
  };
  if constexpr (has_warpgroups<Arguments>(false) || has_warpgroups<Arguments>(true)) {
    if (plan.pair.warpgroups) {
      using Layout = typename WarpgroupOp<Arguments>::template Layout<BFloat16>;
      with_layout(Layout(in, plan.pair.streaming, backward));
    }
  }
  if (!plan.pair.warpgroups) {
    using Op = PairOp<Arguments>;
    if (plan.pair.streaming.chunk == 64) {
      with_layout(typename Op::template Layout<BFloat16, 64>(in, plan.pair.streaming, backward));
    } else {
      with_layout(typename Op::template Layout<BFloat16, 32>(in, plan.pair.streaming, backward));
    }
  }
  result["warpgroups"] = plan.pair.warpgroups;
  result["strips"] = plan.pair.strips;
  result["chunk"] = plan.pair.streaming.chunk;
  result["stages"] = plan.pair.streaming.stages;
  result["grid"] = plan.pair.grid;
  result["shared_bytes"] = plan.pair.shared_bytes;
  return result;
}

template <class Arguments, class Describe>
void define_parameters(pybind11::module_& m, const Describe& describe) {
  const auto function = [describe](const std::string& path, bool backward, int64_t batch, int text_rows,
                                   int image_rows, int channels, int multiprocessors, int64_t shared_bytes,
                                   const pybind11::dict& given) {
    const Addresses addresses(given);
    PairInputs in = {};
    in.image_embeds = addresses.matrix("image_embeds", image_rows, channels);
    in.text_embeds = addresses.matrix("text_embeds", text_rows, channels);
    in.image_mask = {addresses.at<bool>("image_mask"), image_rows, 1};
    in.text_mask = {addresses.at<bool>("text_mask"), text_rows, 1};
    in.pairs = 1;
    in.image_rows = image_rows;
    in.text_rows = text_rows;
    in.channels = channels;
    const bool warpgroups = path == "warpgroups" && has_warpgroups<Arguments>(backward);
    const DeviceLimits limits = {multiprocessors, shared_bytes, warpgroups};
    if (path == "tiled float32") {
      return parameters<float, Arguments>(describe, in, addresses, backward, true, limits, batch);
    }
    return parameters<BFloat16, Arguments>(describe, in, addresses, backward, path == "tiled", limits, batch);
  };
  using pybind11::arg;
  m.def("parameters", function, arg("path"), arg("backward"), arg("batch"), arg("text_rows"),
        arg("image_rows"), arg("channels"), arg("multiprocessors"), arg("shared_bytes"), arg("addresses"));
  m.def("take_counts", [] {
    const Counts counts = take_counts();
    pybind11::dict result;
    result["block_barriers"] = counts.block_barriers;
    result["shuffles"] = counts.shuffles;
    result["ballots"] = counts.ballots;
    result["matrix_loads"] = counts.matrix_loads;
    result["multiply_adds"] = counts.multiply_adds;
    result["copies"] = counts.copies;
    return result;
  });
}

template <class Arguments, bool kTextMask>
void define_plan(pybind11::module_& m) {
  using pybind11::arg;
  m.def("plan", &plan<Arguments, kTextMask>, arg("half_precision"), arg("backward"), arg("text_rows"),
        arg("image_rows"), arg("channels"), arg("pairs"), arg("multiprocessors"), arg("shared_bytes"),
        arg("warpgroups") = false);
}

}  // namespace emulation
}  // namespace sparc
