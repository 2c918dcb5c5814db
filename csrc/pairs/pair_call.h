// A call of an op on CUDA: checks, views of its tensors, the device it runs on, scratch.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <limits>
#include <string>

#include "common/checks.h"
#include "common/launch.h"

namespace sparc {

inline void check_cuda(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

inline void check_on_device(const Tensor& tensor, const char* name, int32_t device) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, name,
                  ": expected a tensor on the CUDA device of patch_embeds");
}

inline MatrixView matrix_view(const Tensor& tensor) {
  const int64_t unit = 16 / tensor.element_size();
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  // strides of dimensions of size 1 are never walked
  const bool rows = (tensor.size(0) <= 1 || tensor.stride(0) % unit == 0) &&
                    (tensor.size(1) <= 1 || tensor.stride(1) % unit == 0);
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          aligned && rows && tensor.stride(2) == 1};
}

inline MaskView mask_view(const std::optional<Tensor>& mask) {
  if (!mask) return {nullptr, 0, 0};
  return {static_cast<const bool*>(mask->const_data_ptr()), mask->stride(0), mask->stride(1)};
}

// The gradients of a backward op: [0], and null, for one that is not needed.
struct GradientPair {
  Tensor patches, tokens;
  void *patches_data, *tokens_data;

  GradientPair(const Tensor& patch_embeds, const Tensor& token_embeds, bool need_patches, bool need_tokens)
      : patches(like(patch_embeds, need_patches)),
        tokens(like(token_embeds, need_tokens)),
        patches_data(need_patches ? patches.mutable_data_ptr() : nullptr),
        tokens_data(need_tokens ? tokens.mutable_data_ptr() : nullptr) {}

 private:
  static Tensor like(const Tensor& embeds, bool needed) {
    if (!needed) return torch::stable::new_empty(embeds, {0});
    return torch::stable::new_empty(embeds, {embeds.size(0), embeds.size(1), embeds.size(2)});
  }
};

// Makes the tensors' device current while it lives.
class CudaCall {
 public:
  CudaCall(const Tensor& patch_embeds, const Tensor& token_embeds, const std::optional<Tensor>& token_mask,
           const std::optional<Tensor>& patch_mask, const std::optional<Tensor>& threshold,
           const std::string& float32_precision)
      : sizes_(patch_embeds, token_embeds, token_mask, patch_mask),
        device_(checked_device(patch_embeds)),
        guard_(device_) {
    check_on_device(token_embeds, "token_embeds", device_);
    if (token_mask) check_on_device(*token_mask, "token_mask", device_);
    if (patch_mask) check_on_device(*patch_mask, "patch_mask", device_);
    const ScalarType dtype = patch_embeds.scalar_type();
    if (dtype == ScalarType::BFloat16) {
      products_ = ProductKind::kBFloat16;
    } else if (dtype == ScalarType::Half) {
      products_ = ProductKind::kFloat16;
    } else {
      STD_TORCH_CHECK(dtype == ScalarType::Float,
                      "patch_embeds: the CUDA kernels take Float, BFloat16 and Half, got ",
                      torch::headeronly::toString(dtype));
      products_ = float32_products(float32_precision);
    }
    if (threshold) {
      check_on_device(*threshold, "similarity_threshold", device_);
      check_shape(*threshold, "similarity_threshold", {});
      check_dtype(*threshold, "similarity_threshold", ScalarType::Float);
    }
    constexpr int64_t kLargest = std::numeric_limits<int32_t>::max() / 8;
    STD_TORCH_CHECK(sizes_.p <= kLargest && sizes_.l <= kLargest && sizes_.d <= kLargest,
                    "patch_embeds, token_embeds: P, L and D may be at most ", kLargest);
    in_ = {matrix_view(patch_embeds),
           matrix_view(token_embeds),
           mask_view(patch_mask),
           mask_view(token_mask),
           sizes_.b,
           static_cast<int>(sizes_.p),
           static_cast<int>(sizes_.l),
           static_cast<int>(sizes_.d),
           threshold ? static_cast<const float*>(threshold->const_data_ptr()) : nullptr};
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  const PairSizes& sizes() const { return sizes_; }
  const PairInputs& inputs() const { return in_; }
  ProductKind products() const { return products_; }
  cudaStream_t stream() const { return stream_; }
  int32_t device() const { return device_; }
  bool half_precision() const {
    return products_ == ProductKind::kBFloat16 || products_ == ProductKind::kFloat16;
  }

  template <class Shared>
  LaunchPlan plan(const Shared& pair_shared, const TiledNeeds& tiled) const {
    DeviceLimits limits = {};
    int shared = 0;
    check_cuda(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device_),
               "cudaDevAttrMultiProcessorCount");
    check_cuda(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_),
               "cudaDevAttrMaxSharedMemoryPerBlockOptin");
    limits.shared_bytes = shared;
    return plan_launch(in_, half_precision(), limits, pair_shared, tiled.shared, tiled.scratch);
  }

  // A gradient [B, D] of the embeddings' dtype that flows into a mean, or null.
  const void* pooled_gradient(const std::optional<Tensor>& grad, const Tensor& like, const char* name) const {
    if (!grad) return nullptr;
    check_on_device(*grad, name, device_);
    check_dtype(*grad, name, like.scalar_type());
    check_shape(*grad, name, {sizes_.b, sizes_.d});
    check_contiguous(*grad, name);
    return grad->const_data_ptr();
  }

  // Scratch of a tiled launch, from PyTorch's allocator.
  Tensor scratch(const Tensor& like, const LaunchPlan& plan) const {
    return torch::stable::new_empty(like, {plan.tiled.grid * plan.tiled.scratch_bytes}, ScalarType::Byte);
  }

 private:
  // torch.get_float32_matmul_precision(): "highest" is exact; below it, tf32 in three parts, which is nearly
  // so.
  static ProductKind float32_products(const std::string& precision) {
    if (precision == "highest") return ProductKind::kFloat32;
    STD_TORCH_CHECK(precision == "high" || precision == "medium",
                    "float32_precision: expected highest, high or medium, got ", precision);
    return ProductKind::kTf32;
  }

  static int32_t checked_device(const Tensor& patch_embeds) {
    STD_TORCH_CHECK(patch_embeds.is_cuda(), "patch_embeds: expected a tensor on a CUDA device");
    return patch_embeds.get_device_index();
  }

  PairSizes sizes_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  ProductKind products_;
  PairInputs in_;
  cudaStream_t stream_;
};

}  // namespace sparc
