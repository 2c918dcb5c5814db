// A call of an op on pairs of images and texts: checks and views of its tensors, and its launches.
#pragma once

#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "common/cuda_call.h"
#include "pairs/batch.h"
#include "pairs/pair_launch.h"

namespace sparc {

using torch::stable::new_empty;

// A gradient of a backward op: [0], and null, where it is not needed.
struct Gradient {
  Tensor tensor;
  void* data;

  Gradient(const Tensor& like, bool needed)
      : tensor(needed ? new_empty(like, {like.size(0), like.size(1), like.size(2)}) : new_empty(like, {0})),
        data(needed ? tensor.mutable_data_ptr() : nullptr) {}
};

class PairCall : public CudaCall {
 public:
  PairCall(const Side& images, const Side& texts, const std::string& float32_precision)
      : CudaCall(images.embeds, images.name, float32_precision), sizes_(images, texts) {
    check_on_device(texts.embeds, texts.name);
    for (const Side* side : {&images, &texts}) {
      if (side->mask) check_on_device(*side->mask, side->mask_name);
    }
    constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() / 8;
    STD_TORCH_CHECK(sizes_.p <= kLargest && sizes_.l <= kLargest && sizes_.d <= kLargest, images.name, ", ",
                    texts.name, ": P, L and D may be at most ", kLargest);
    in_ = {matrix_view(images.embeds),
           matrix_view(texts.embeds),
           mask_view(images.mask),
           mask_view(texts.mask),
           sizes_.b,
           static_cast<int>(sizes_.p),
           static_cast<int>(sizes_.l),
           static_cast<int>(sizes_.d)};
  }

  const PairSizes& sizes() const { return sizes_; }
  const PairInputs& inputs() const { return in_; }

  // A gradient [B, D] of the embeddings' dtype that flows into a mean, or null.
  const void* pooled_gradient(const std::optional<Tensor>& grad, const Tensor& like, const char* name) const {
    if (!grad) return nullptr;
    check(*grad, name, like.scalar_type(), {sizes_.b, sizes_.d});
    check_contiguous(*grad, name);
    return grad->const_data_ptr();
  }

  // Which kernels of the op that takes `Arguments` serve the call: none where there is nothing to do.
  // `aligned`: what flows into the pass beside the inputs lies as the path by warpgroups takes for granted.
  template <class Arguments>
  LaunchPlan plan(bool backward, bool aligned = true) const {
    if (in_.pairs == 0) return {};
    DeviceLimits limits = {};
    int shared = 0;
    check_cuda(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device()),
               "cudaDevAttrMultiProcessorCount");
    check_cuda(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device()),
               "cudaDevAttrMaxSharedMemoryPerBlockOptin");
    limits.shared_bytes = shared;
    limits.warpgroups = aligned && has_warpgroups<Arguments>(backward);
    const TiledNeeds tiled = TiledPath<Arguments>::needs(in_, half_precision(), backward);
    return plan_launch(
        in_, half_precision(), limits,
        [&](const Streaming& streaming, bool warpgroups) {
          if constexpr (kWarpgroups<Arguments>) {
            if (warpgroups) return WarpgroupPath<Arguments>::shared_bytes(in_, streaming, backward);
          }
          return PairPath<Arguments>::shared_bytes(in_, streaming, backward);
        },
        tiled.shared, tiled.scratch);
  }

  // Launches them, with scratch from PyTorch's allocator. `name` is the op's, for errors.
  template <class Arguments>
  void launch(const Arguments& args, const LaunchPlan& plan, const Tensor& like, bool backward,
              const char* name) const {
    if constexpr (kWarpgroups<Arguments>) {
      if (plan.pair.warpgroups) {
        check_cuda(WarpgroupPath<Arguments>::launch(args, plan, products(), backward, stream()), name);
      }
    }
    if (plan.pair.used && !plan.pair.warpgroups) {
      check_cuda(PairPath<Arguments>::launch(args, plan, products(), backward, stream()), name);
    }
    if (plan.tiled.used) {
      Tensor scratch = new_empty(like, {plan.tiled.grid * plan.tiled.scratch_bytes}, ScalarType::Byte);
      const TiledMemory memory = {scratch.mutable_data_ptr(), plan.tiled.scratch_bytes, plan.pair.used};
      check_cuda(TiledPath<Arguments>::launch(args, plan, memory, products(), backward, stream()), name);
    }
  }

 private:
  template <class Arguments>
  static constexpr bool kWarpgroups =
      kWarpgroupsBuilt && (WarpgroupPasses<Arguments>::kForward || WarpgroupPasses<Arguments>::kBackward);

  // Code for sm_90a runs on compute capability 9.0 alone. SPARC_CUDA_WARPGROUPS=0 leaves it out, so that both
  // ways can be compared on one device.
  template <class Arguments>
  bool has_warpgroups(bool backward) const {
    using Passes = WarpgroupPasses<Arguments>;
    if (!kWarpgroups<Arguments> || !(backward ? Passes::kBackward : Passes::kForward)) return false;
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device()),
               "cudaDevAttrComputeCapabilityMajor");
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device()),
               "cudaDevAttrComputeCapabilityMinor");
    const char* const wanted = std::getenv("SPARC_CUDA_WARPGROUPS");
    return major == 9 && minor == 0 && (wanted == nullptr || std::strcmp(wanted, "0") != 0);
  }

  PairSizes sizes_;
  PairInputs in_;
};

}  // namespace sparc
