// Checks of op arguments. The Python side validates first and words errors for users; these guard the memory
// that the kernels touch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>

namespace sparc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline ScalarType accumulation_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_dtype(const Tensor& tensor, const char* name, ScalarType dtype) {
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, ": expected dtype ",
                  torch::headeronly::toString(dtype), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

inline void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t axis = 0;
  for (const int64_t size : shape) same = same && tensor.size(axis++) == size;
  if (same) return;
  std::string expected, got;
  for (const int64_t size : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  for (int64_t i = 0; i < tensor.dim(); ++i) got += (i ? ", " : "") + std::to_string(tensor.size(i));
  STD_TORCH_CHECK(false, name, ": expected shape [", expected, "], got [", got, "]");
}

inline void check_on_cpu(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a tensor on the CPU");
}

inline void check_cpu_input(const Tensor& tensor, const char* name, ScalarType dtype,
                            std::initializer_list<int64_t> shape) {
  check_on_cpu(tensor, name);
  check_dtype(tensor, name, dtype);
  check_shape(tensor, name, shape);
}

// The number in a [] tensor on the CPU.
inline double read_scalar(const Tensor& tensor, const char* name, ScalarType dtype) {
  check_cpu_input(tensor, name, dtype, {});
  const void* value = tensor.const_data_ptr();
  return dtype == ScalarType::Double ? *static_cast<const double*>(value) : *static_cast<const float*>(value);
}

// Contiguous, whatever the strides of dimensions of size 1 say.
inline void check_contiguous(const Tensor& tensor, const char* name) {
  int64_t expected = 1;
  bool contiguous = true;
  for (int64_t axis = tensor.dim() - 1; axis >= 0; --axis) {
    contiguous = contiguous && (tensor.size(axis) == 1 || tensor.stride(axis) == expected);
    expected *= tensor.size(axis);
  }
  STD_TORCH_CHECK(contiguous || expected == 0, name, ": expected a contiguous tensor");
}

}  // namespace sparc
