// The ops that belong to no room. Each room's <op>/<op>_cpu.cpp adds its own, and
// sparc_kernels/ops/<op>/schema.py holds the same schemas (a test compares them). Implementations register
// themselves by dispatch key.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sparc_kernels, m) {
  m.def("cuda_build_info(Tensor tensor) -> Tensor");
  m.def("cpu_capability() -> str");
  m.def("set_cpu_capability(str name) -> str");
}
