// The kernels that try the emulator, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/device.cuh"
#include "emulator.h"
#include "fault_kernels.cuh"
#include "product_kernel.cuh"
#include "shadow_oracle.h"
#include "tests/emulation/host/arrays.h"

namespace py = pybind11;

namespace sparc {
namespace {

using emulation::emulate;
using emulation::GlobalArray;

template <class T>
py::array product_of(const py::array& a_array, const py::array& b_array, Fault fault, uint64_t seed) {
  const GlobalArray<T> a(a_array);
  const GlobalArray<T> b(b_array);
  GlobalArray<float> c("float32", {a.shape(0), b.shape(1)});
  const ProductProblem<T> problem = {a.data(), b.data(), c.data(), a.shape(0), a.shape(1), b.shape(1)};
  const int64_t down = (problem.rows + kTileRows - 1) / kTileRows;
  const int64_t across = (problem.columns + kTileColumns - 1) / kTileColumns;
  emulate(down * across, kProductThreads, ProductTile<T>::kBytes, {}, seed,
          [&] { product_kernel<T>(problem, fault); });
  return c.to_numpy();
}

py::array product(const py::array& a, const py::array& b, const std::string& type, const std::string& fault,
                  uint64_t seed) {
  Fault planted = Fault::kNone;
  if (fault == "no wait") planted = Fault::kNoWait;
  if (fault == "no arrival barrier") planted = Fault::kNoArrivalBarrier;
  if (fault == "no reuse barrier") planted = Fault::kNoReuseBarrier;
  if (fault == "plain b") planted = Fault::kPlainB;
  if (type == "bf16") return product_of<BFloat16>(a, b, planted, seed);
  if (type == "f16") return product_of<Float16>(a, b, planted, seed);
  return product_of<float>(a, b, planted, seed);
}

using FaultKernel = void (*)(const FaultArguments&);

FaultKernel find_fault_kernel(const std::string& name) {
#define SPARC_FAULT(kernel) \
  if (name == #kernel) return &kernel
  SPARC_FAULT(missing_block_barrier);
  SPARC_FAULT(write_after_read);
  SPARC_FAULT(one_writes_what_all_read);
  SPARC_FAULT(write_after_read_in_warp);
  SPARC_FAULT(missing_warp_barrier);
  SPARC_FAULT(warp_barrier_across_warps);
  SPARC_FAULT(shared_out_of_bounds);
  SPARC_FAULT(global_out_of_bounds);
  SPARC_FAULT(unwritten_read);
  SPARC_FAULT(divergent_barrier);
  SPARC_FAULT(divergent_collective);
  SPARC_FAULT(mixed_collectives);
  SPARC_FAULT(collective_against_barrier);
  SPARC_FAULT(shuffle_in_branches);
  SPARC_FAULT(shuffle_in_ragged_loop);
  SPARC_FAULT(collectives_of_a_helper);
  SPARC_FAULT(same_in_warp_in_branch);
  SPARC_FAULT(ballot_in_branches);
  SPARC_FAULT(barrier_in_branches);
  SPARC_FAULT(misaligned_load_matrices);
  SPARC_FAULT(unordered_load_matrices);
  SPARC_FAULT(misaligned_copy);
  SPARC_FAULT(abandoned_copy);
  SPARC_FAULT(long_copy);
  SPARC_FAULT(copy_out_of_bounds);
  SPARC_FAULT(wait_for_the_wrong_group);
  SPARC_FAULT(scratch_race);
  SPARC_FAULT(scratch_changed_under_way);
  SPARC_FAULT(copy_from_shared);
  SPARC_FAULT(scratch_of_another_block);
  SPARC_FAULT(scratch_out_of_bounds);
  SPARC_FAULT(plain_read_of_shared);
  SPARC_FAULT(integer_overflow);
#undef SPARC_FAULT
  throw std::invalid_argument("no kernel " + name);
}

py::array run_fault_kernel(const std::string& name, const py::array& in_array, bool faulty, uint64_t seed) {
  constexpr int kBlocks = 2;
  const FaultKernel kernel = find_fault_kernel(name);
  const GlobalArray<float> in(in_array);
  GlobalArray<float> out("float32", {kBlocks * kFaultThreads});
  GlobalArray<unsigned char> scratch("uint8", {kBlocks * static_cast<py::ssize_t>(kFaultScratch)});
  const FaultArguments arguments = {in.data(), out.data(), scratch.data(), faulty};
  emulate(kBlocks, kFaultThreads, kFaultShared, {{scratch.data(), scratch.bytes()}}, seed,
          [&] { kernel(arguments); });
  return out.to_numpy();
}

// One warp that loads 32 rows of 8 elements: what each lane receives, [32, 4].
py::array matrices_of(const py::array& rows_array, bool transposed) {
  const GlobalArray<uint16_t> rows(rows_array);
  GlobalArray<uint32_t> received("uint32", {32, 4});
  emulate(1, 32, 512, {}, 0, [&] {
    const auto shared = device::shared_at<uint16_t>(0) + device::lane_index() * 8;
    for (int i = 0; i < 8; ++i) shared[i] = rows.data()[device::lane_index() * 8 + i];
    uint32_t r[4];
    if (transposed) {
      device::load_matrices_transposed(r, device::address_of(shared));
    } else {
      device::load_matrices(r, device::address_of(shared));
    }
    for (int i = 0; i < 4; ++i) received.data()[device::lane_index() * 4 + i] = r[i];
  });
  return received.to_numpy();
}

// One warp that multiplies fragments: a [32, 4], b [32, 2], c [32, 4] by lane.
py::array multiply_fragments(const py::array& a_array, const py::array& b_array, const py::array& c_array,
                             const std::string& type) {
  const GlobalArray<uint32_t> all_a(a_array);
  const GlobalArray<uint32_t> all_b(b_array);
  GlobalArray<float> all_c(c_array);
  emulate(1, 32, 0, {}, 0, [&] {
    const int lane = device::lane_index();
    uint32_t a[4];
    uint32_t b[2];
    float c[4];
    for (int i = 0; i < 4; ++i) a[i] = all_a.data()[lane * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = all_b.data()[lane * 2 + i];
    for (int i = 0; i < 4; ++i) c[i] = all_c.data()[lane * 4 + i];
    if (type == "bf16") device::multiply_add_bf16(c, a, b);
    if (type == "f16") device::multiply_add_f16(c, a, b);
    if (type == "tf32") device::multiply_add_tf32(c, a, b);
    for (int i = 0; i < 4; ++i) all_c.data()[lane * 4 + i] = c[i];
  });
  return all_c.to_numpy();
}

// What each lane receives from shuffle_xor, shuffle and ballot, [32, 3].
py::array exchanges(const py::array& values_array, int mask, int source) {
  const GlobalArray<float> values(values_array);
  GlobalArray<float> received("float32", {32, 3});
  emulate(1, 32, 0, {}, 0, [&] {
    const int lane = device::lane_index();
    const float own = values.data()[lane];
    float* results = received.data() + lane * 3;
    results[0] = device::shuffle_xor(own, mask);
    results[1] = device::shuffle(own, source);
    results[2] = static_cast<float>(device::count_bits(device::ballot(own > 0.0f)));
  });
  return received.to_numpy();
}

// The order in which threads of one block of 64 run after a barrier.
py::array order_of_threads(uint64_t seed) {
  GlobalArray<int32_t> order("int32", {64});
  int next = 0;
  emulate(1, 64, 0, {}, seed, [&] {
    device::block_barrier();
    order.data()[next++] = device::thread_index();
  });
  return order.to_numpy();
}

template <class T>
struct alignas(16) Four {
  T values[4];
};

// Whether a value of the type comes back from shared memory.
template <class T>
bool holds(T first, T second) {
  bool right = true;
  emulate(1, 32, 2048, {}, 0, [&] {
    device::Shared<T> shared;
    shared = device::shared_at<T>(0);
    shared += device::thread_index();
    shared[0] = first;
    shared[32] = second;
    shared[64] = shared[32];
    device::Shared<const T> reading = shared;
    const T read = reading[64];
    const T before = (shared + 1 - 1)[0];
    right =
        right && std::memcmp(&read, &second, sizeof(T)) == 0 && std::memcmp(&before, &first, sizeof(T)) == 0;
  });
  return right;
}

bool holds_all_types() {
  const Four<uint32_t> first = {{1, 2, 3, 4}};
  const Four<uint32_t> second = {{5, 6, 7, 8}};
  return holds<float>(1.5f, -2.0f) && holds<int>(3, -4) && holds<uint32_t>(3u, ~0u) &&
         holds<int64_t>(-1, 1) && holds<BFloat16>({0x3F80}, {0x4000}) && holds<Float16>({1}, {2}) &&
         holds<unsigned char>(7, 255) && holds<bool>(true, false) && holds<Four<uint32_t>>(first, second);
}

// Every operator of references and pointers.
py::array operators() {
  GlobalArray<int32_t> out("int32", {8});
  emulate(1, 32, 2048, {}, 0, [&] {
    if (device::thread_index() != 0) return;
    device::Shared<int> p = device::shared_at<int>(0);
    p[0] = p[1] = 12;
    p[1] += p[0];
    *++p -= 3;
    out.data()[0] = p[0];                      // 21
    out.data()[1] = (p[0] /= 2) * 2;           // 20
    out.data()[2] = p[0] *= 5;                 // 50
    out.data()[3] = p[0] &= 0x33;              // 50
    out.data()[4] = (p[0] |= 1) ^ (p[0] & 3);  // 51 ^ 3 = 48
    out.data()[5] = p[0] ^= 1;                 // 50
    device::Shared<int> q = p;
    q += 10;
    q -= 3;
    out.data()[6] = static_cast<int32_t>(q - p);  // 7
    out.data()[7] = q != p && --p == device::shared_at<int>(0) ? 1 : 0;
  });
  return out.to_numpy();
}

py::array to_float(const py::array& array, const std::string& type) {
  const GlobalArray<uint16_t> in(array);
  GlobalArray<float> out("float32", {static_cast<py::ssize_t>(in.size())});
  for (size_t i = 0; i < in.size(); ++i) {
    const uint16_t bits = in.data()[i];
    out.data()[i] = type == "bf16" ? device::to_float(BFloat16{bits}) : device::to_float(Float16{bits});
  }
  return out.to_numpy();
}

// Bits of the rounded numbers.
py::array from_float(const py::array& array, const std::string& type) {
  const GlobalArray<float> in(array);
  GlobalArray<uint32_t> out("uint32", {static_cast<py::ssize_t>(in.size())});
  for (size_t i = 0; i < in.size(); ++i) {
    const float value = in.data()[i];
    if (type == "bf16") out.data()[i] = device::pack<BFloat16>(value, 0.0f);
    if (type == "f16") out.data()[i] = device::pack<Float16>(value, 0.0f);
    if (type == "tf32") out.data()[i] = device::round_to_tf32(value);
  }
  return out.to_numpy();
}

}  // namespace
}  // namespace sparc

PYBIND11_MODULE(emulator_kernels, module) {
  module.def("product", &sparc::product, py::arg("a"), py::arg("b"), py::arg("type"), py::arg("fault"),
             py::arg("seed"));
  module.def("run_fault_kernel", &sparc::run_fault_kernel, py::arg("name"), py::arg("in_array"),
             py::arg("faulty"), py::arg("seed"));
  module.def("matrices_of", &sparc::matrices_of, py::arg("rows"), py::arg("transposed"));
  module.def("multiply_fragments", &sparc::multiply_fragments, py::arg("a"), py::arg("b"), py::arg("c"),
             py::arg("type"));
  module.def("exchanges", &sparc::exchanges, py::arg("values"), py::arg("mask"), py::arg("source"));
  module.def("order_of_threads", &sparc::order_of_threads, py::arg("seed"));
  module.def("holds_all_types", &sparc::holds_all_types);
  module.def("compare_with_oracle", &sparc::emulation::compare_with_oracle, py::arg("seed"),
             py::arg("rounds"));
  module.def("operators", &sparc::operators);
  module.def("to_float", &sparc::to_float, py::arg("array"), py::arg("type"));
  module.def("from_float", &sparc::from_float, py::arg("array"), py::arg("type"));
}
