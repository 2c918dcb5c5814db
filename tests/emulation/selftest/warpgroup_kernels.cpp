// The kernel that tries matrix instructions of warpgroups, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

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
  if (columns == 104) return kernel_of<E, 104>(layout);
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

// One instruction by one group, whose operands lie where the caller wants them: `memory` is shared memory,
// elements; a [128, 4] by thread where it comes from registers. c [128, columns / 2] by thread.
template <class E, int kN, bool kTransposedA, bool kTransposedB>
void multiply_once(float* c, const uint32_t (&a)[4], const py::dict& given) {
  const auto at = [&](const char* name) {
    return device::panel_operand(
        device::address_of(device::shared_at<uint16_t>(0) + given[name].cast<int>()));
  };
  float (&own)[kN / 2] = *reinterpret_cast<float (*)[kN / 2]>(c);
  if (!given["a_in_registers"].cast<bool>()) {
    device::warpgroup_multiply_add<E, kN, kTransposedA, kTransposedB>(own, at("a_at"), at("b_at"));
  } else {
    device::warpgroup_multiply_add<E, kN, kTransposedB>(own, a, at("b_at"));
  }
}

using Multiply = void (*)(float*, const uint32_t (&)[4], const py::dict&);

template <class E, int kN>
Multiply multiply_of(const py::dict& given) {
  const bool transposed_b = given["transposed_b"].cast<bool>();
  if (given["transposed_a"].cast<bool>()) {
    return transposed_b ? &multiply_once<E, kN, true, true> : &multiply_once<E, kN, true, false>;
  }
  return transposed_b ? &multiply_once<E, kN, false, true> : &multiply_once<E, kN, false, false>;
}

// The shapes that kernels take (common/warpgroup.cuh).
using Columns = std::integer_sequence<int, 16, 32, 48, 64, 80, 96, 104, 112, 128, 192, 200, 256>;

template <class E, int... kN>
Multiply multiply_of(int columns, const py::dict& given, std::integer_sequence<int, kN...>) {
  Multiply found = nullptr;
  ((found = columns == kN ? multiply_of<E, kN>(given) : found), ...);
  if (found == nullptr)
    throw std::invalid_argument("no instruction of " + std::to_string(columns) + " columns");
  return found;
}

py::array multiply_in_place(const py::array& memory_array, const py::array& a_array, const py::dict& given) {
  const GlobalArray<uint16_t> memory(memory_array);
  const GlobalArray<uint32_t> all_a(a_array);
  const int columns = given["columns"].cast<int>();
  const Multiply multiply = given["type"].cast<std::string>() == "bf16"
                                ? multiply_of<BFloat16>(columns, given, Columns())
                                : multiply_of<Float16>(columns, given, Columns());
  GlobalArray<float> all_c("float32", {128, columns / 2});
  emulation::emulate(1, 128, memory.bytes(), {}, 0, [&] {
    const int thread = device::thread_index();
    for (int i = thread; i < static_cast<int>(memory.size()); i += 128) {
      device::shared_at<uint16_t>(0)[i] = memory.data()[i];
    }
    uint32_t a[4];
    float c[128] = {};
    for (int i = 0; i < 4; ++i) a[i] = all_a.data()[thread * 4 + i];
    device::async_proxy_fence();
    device::block_barrier();
    device::warpgroup_fence();
    multiply(c, a, given);
    device::warpgroup_commit();
    device::warpgroup_wait<0>();
    for (int i = 0; i < columns / 2; ++i) all_c.data()[thread * (columns / 2) + i] = c[i];
  });
  return all_c.to_numpy();
}

// The descriptor of the first panel.
uint64_t descriptor() {
  uint64_t found = 0;
  emulation::emulate(1, 32, 1024, {}, 0, [&] {
    found = device::panel_operand(device::address_of(device::shared_at<unsigned char>(0)));
  });
  return found;
}

}  // namespace
}  // namespace sparc

PYBIND11_MODULE(warpgroup_kernels, module) {
  module.def("product", &sparc::product, py::arg("a"), py::arg("b"), py::arg("given"));
  module.def("multiply_in_place", &sparc::multiply_in_place, py::arg("memory"), py::arg("a"),
             py::arg("given"));
  module.def("descriptor", &sparc::descriptor);
}
