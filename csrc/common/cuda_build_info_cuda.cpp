// sparc_kernels::cuda_build_info on CUDA: checks and launch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "common/cuda_build_info.h"

#define SPARC_STRING_OF(...) #__VA_ARGS__
#define SPARC_STRING(...) SPARC_STRING_OF(__VA_ARGS__)

namespace {

// Read from the file by sparc_kernels._native.build_info(), which cannot load this library under a CPU-only
// PyTorch.
__attribute__((used)) const char kArchitectures[] =
    "sparc_cuda_architectures=" SPARC_STRING(SPARC_CUDA_ARCHITECTURES) ";";

torch::stable::Tensor cuda_build_info(const torch::stable::Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cuda(), "cuda_build_info: expected a tensor on a CUDA device");
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  torch::stable::Tensor out = torch::stable::new_empty(tensor, {2}, torch::headeronly::ScalarType::Int);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const cudaError_t status =
      sparc::launch_build_info(out.mutable_data_ptr<int32_t>(), static_cast<cudaStream_t>(stream));
  STD_TORCH_CHECK(status == cudaSuccess, "cuda_build_info: ", cudaGetErrorString(status));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CUDA, m) { m.impl("cuda_build_info", TORCH_BOX(&cuda_build_info)); }
