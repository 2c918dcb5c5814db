// A call of an op on CUDA: the device it runs on, its stream, checks and views of its tensors.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "common/checks.h"
#include "common/views.h"

namespace sparc {

inline void check_cuda(cudaError_t status, const char* what) {
  STD_TORCH_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorString(status));
}

inline MatrixView matrix_view(const Tensor& tensor) {
  const int64_t unit = 16 / tensor.element_size();
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  // strides of dimensions of size 1 are never walked
  const bool rows = (tensor.size(0) <= 1 || tensor.stride(0) % unit == 0) &&
                    (tensor.size(1) <= 1 || tensor.stride(1) % unit == 0);
  const bool near = tensor.size(1) <= 1 || tensor.stride(1) * tensor.element_size() <= UINT32_MAX;
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), tensor.stride(2),
          aligned && rows && near && tensor.stride(2) == 1};
}

inline MaskView mask_view(const std::optional<Tensor>& mask) {
  if (!mask) return {nullptr, 0, 0};
  return {static_cast<const bool*>(mask->const_data_ptr()), mask->stride(0), mask->stride(1)};
}

// Makes the device of `first`, an argument of that name, current while it lives.
class CudaCall {
 public:
  CudaCall(const Tensor& first, const char* name, const std::string& float32_precision)
      : name_(name),
        device_(checked_device(first, name)),
        guard_(device_),
        products_(product_kind(first, name, float32_precision)) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  ProductKind products() const { return products_; }
  cudaStream_t stream() const { return stream_; }
  int32_t device() const { return device_; }
  bool half_precision() const {
    return products_ == ProductKind::kBFloat16 || products_ == ProductKind::kFloat16;
  }

  void check_on_device(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device_, name,
                    ": expected a tensor on the CUDA device of ", name_);
  }
  // Of this dtype and shape, on the device.
  void check(const Tensor& tensor, const char* name, ScalarType dtype,
             std::initializer_list<int64_t> shape) const {
    check_on_device(tensor, name);
    check_dtype(tensor, name, dtype);
    check_shape(tensor, name, shape);
  }
  // Where the kernels read a number, a [] float32 tensor; null where it is not given.
  const float* scalar(const std::optional<Tensor>& tensor, const char* name) const {
    if (!tensor) return nullptr;
    check(*tensor, name, ScalarType::Float, {});
    return static_cast<const float*>(tensor->const_data_ptr());
  }

 private:
  static int32_t checked_device(const Tensor& first, const char* name) {
    STD_TORCH_CHECK(first.is_cuda(), name, ": expected a tensor on a CUDA device");
    return first.get_device_index();
  }

  // `precision`: torch.get_float32_matmul_precision(). "highest" is exact; below it, tf32 in three parts,
  // which is nearly so.
  static ProductKind product_kind(const Tensor& first, const char* name, const std::string& precision) {
    const ScalarType dtype = first.scalar_type();
    if (dtype == ScalarType::BFloat16) return ProductKind::kBFloat16;
    if (dtype == ScalarType::Half) return ProductKind::kFloat16;
    STD_TORCH_CHECK(dtype == ScalarType::Float, name,
                    ": the CUDA kernels take Float, BFloat16 and Half, got ",
                    torch::headeronly::toString(dtype));
    if (precision == "highest") return ProductKind::kFloat32;
    STD_TORCH_CHECK(precision == "high" || precision == "medium",
                    "float32_precision: expected highest, high or medium, got ", precision);
    return ProductKind::kTf32;
  }

  const char* name_;
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  ProductKind products_;
  cudaStream_t stream_;
};

// For ops whose kernels are compiled for sm_90a alone.
inline void check_hopper(const CudaCall& call, const char* op) {
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, call.device()),
             "cudaDevAttrComputeCapabilityMajor");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, call.device()),
             "cudaDevAttrComputeCapabilityMinor");
  STD_TORCH_CHECK(major == 9 && minor == 0, op, ": expected a device of compute capability 9.0, got ", major,
                  ".", minor);
}

}  // namespace sparc
