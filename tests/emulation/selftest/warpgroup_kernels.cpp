// The kernel that tries matrix instructions of warpgroups, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "emulator.h"
#include "tests/emulation/host/arrays.h"
#include "warpgroup_kernel.cuh"

namespace py = pybind11;

namespace sparc {
namespace {

using emulation::GlobalArray;

// How the operands lie.
struct Layout {
  bool a_in_registers, transposed_a, transposed_b;
};

template <class E>
using Kernel = void (*)(const WarpgroupProblem<E>&, WarpgroupFault);

template <class E, int kN>
Kernel<E> kernel_of(const Layout& layout) {
  if (layout.a_in_registers) {
    return layout.transposed_b ? &warpgroup_kernel<E, kN, true, false, true>
                               : &warpgroup_kernel<E, kN, true, false, false>;
  }
  if (layout.transposed_a) {
    return layout.transposed_b ? &warpgroup_kernel<E, kN, false, true, true>
                               : &warpgroup_kernel<E, kN, false, true, false>;
  }
  return layout.transposed_b ? &warpgroup_kernel<E, kN, false, false, true>
                             : &warpgroup_kernel<E, kN, false, false, false>;
}

template <class E>
Kernel<E> kernel_of(int columns, const Layout& layout) {
  if (columns == 32) return kernel_of<E, 32>(layout);
  if (columns == 64) return kernel_of<E, 64>(layout);
  if (columns == 112) return kernel_of<E, 112>(layout);
  throw std::invalid_argument("no kernel for " + std::to_string(columns) + " columns");
}

template <class E>
py::array product_of(const py::array& a_array, const py::array& b_array, const py::dict& given) {
  const GlobalArray<E> a(a_array);
  const GlobalArray<E> b(b_array);
  const int columns = given["columns"].cast<int>();
  GlobalArray<float> c("float32", {2, 64, columns});
  WarpgroupProblem<E> problem;
  problem.a[0] = a.data();
  problem.a[1] = problem.a[0] + a.size() / 2;
  problem.b = b.data();
  problem.c = c.data();
  problem.initial = given["initial"].cast<float>();
  problem.scale = given["scale"].cast<float>();
  problem.chunks = given["chunks"].cast<int>();
  problem.b_start = given["b_start"].cast<int>();
  problem.b_rows = given["b_rows"].cast<int>();
  const Layout layout = {given["a_in_registers"].cast<bool>(), given["transposed_a"].cast<bool>(),
                         given["transposed_b"].cast<bool>()};
  const auto fault = static_cast<WarpgroupFault>(given["fault"].cast<int>());
  const Kernel<E> kernel = kernel_of<E>(columns, layout);
  emulation::emulate(1, kWarpgroupThreads, kWarpgroupBytes, {}, given["seed"].cast<uint64_t>(),
                     [&] { kernel(problem, fault); });
  return c.to_numpy();
}

// a [2, 64, k] or [2, k, 64], b [192, k] or [k, 192], by the transposed_... of `given`.
py::array product(const py::array& a, const py::array& b, const py::dict& given) {
  if (given["type"].cast<std::string>() == "bf16") return product_of<BFloat16>(a, b, given);
  return product_of<Float16>(a, b, given);
}

}  // namespace
}  // namespace sparc

PYBIND11_MODULE(warpgroup_kernels, module) {
  module.def("product", &sparc::product, py::arg("a"), py::arg("b"), py::arg("given"));
}
