// sparc_kernels::cuda_build_info on CUDA: checks and launch; and whether this library can run on a device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "common/cuda_build_info.h"

#define SPARC_STRING_OF(...) #__VA_ARGS__
#define SPARC_STRING(...) SPARC_STRING_OF(__VA_ARGS__)

namespace {

// Read from the file by sparc_kernels._native.build_info(), which cannot load this library under a CPU-only
// PyTorch.
__attribute__((used)) const char kArchitectures[] =
    "sparc_cuda_architectures=" SPARC_STRING(SPARC_CUDA_ARCHITECTURES) ";";
// And by the tests, whose tables are those of one nvcc: what it writes itself is compressed with the code.
__attribute__((used)) const char kToolkit[] = "sparc_cuda_toolkit=" SPARC_STRING(CUDART_VERSION) ";";

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

cudaError_t find_code_on(int device) {
  int before = device;
  cudaError_t status = cudaGetDevice(&before);
  if (status != cudaSuccess) return status;
  if (before != device) status = cudaSetDevice(device);
  if (status == cudaSuccess) status = sparc::find_code();
  if (before != device) cudaSetDevice(before);
  return status;
}

std::string release(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

// Null where the library can run on the device, else the reason why not, which lives until the thread's next
// call. Called by sparc_kernels._native.cuda_device_reason().
extern "C" __attribute__((visibility("default"))) const char* sparc_cuda_refusal(int device) {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // loading code is no part of a graph
  cudaThreadExchangeStreamCaptureMode(&mode);
  const cudaError_t status = find_code_on(device);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // lest the next launch report it as its own
  int driver = 0;
  cudaDriverGetVersion(&driver);
  static thread_local std::string reason;
  reason = std::string(cudaGetErrorString(status)) +
           " (holds " SPARC_STRING(SPARC_CUDA_ARCHITECTURES) " and the runtime of CUDA " +
           release(CUDART_VERSION) + "; " +
           (driver ? "the driver is for CUDA " + release(driver) : "no driver") + ")";
  return reason.c_str();
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CUDA, m) { m.impl("cuda_build_info", TORCH_BOX(&cuda_build_info)); }
