// Between Python and kernels: global memory as exactly sized heap allocations, so that AddressSanitizer sees
// what leaves them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sanitizer/asan_interface.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "runtime.h"

namespace sparc {
namespace emulation {

// An array of T in global memory. 16-bit floats come and go as uint16 (or any other dtype of their size). The
// first element lies at a multiple of 16 bytes.
template <class T>
class GlobalArray {
 public:
  // A copy of `array`, which must have elements of T's size.
  explicit GlobalArray(const pybind11::array& array) : dtype_(array.dtype()) {
    if (array.itemsize() != static_cast<pybind11::ssize_t>(sizeof(T))) {
      throw std::invalid_argument("an array of items of " + std::to_string(array.itemsize()) +
                                  " bytes, not " + std::to_string(sizeof(T)));
    }
    const pybind11::array packed = pybind11::array::ensure(array, pybind11::array::c_style);
    shape_.assign(packed.shape(), packed.shape() + packed.ndim());
    allocate();
    std::memcpy(data_.get(), packed.data(), bytes());
  }
  // For results. Every byte is 0xFF (in floats: NaN) until it is written.
  GlobalArray(const char* dtype, std::vector<pybind11::ssize_t> shape)
      : dtype_(pybind11::dtype(dtype)), shape_(std::move(shape)) {
    if (dtype_.itemsize() != static_cast<pybind11::ssize_t>(sizeof(T))) throw std::invalid_argument("dtype");
    allocate();
    std::memset(static_cast<void*>(data_.get()), 0xFF, bytes());
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  pybind11::ssize_t shape(size_t dimension) const { return shape_.at(dimension); }
  size_t size() const {
    size_t count = 1;
    for (const pybind11::ssize_t extent : shape_) count *= static_cast<size_t>(extent);
    return count;
  }
  size_t bytes() const { return size() * sizeof(T); }

  pybind11::array to_numpy() const {
    pybind11::array result(dtype_, shape_);
    std::memcpy(result.mutable_data(), data_.get(), bytes());
    return result;
  }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };

  void allocate() {
    data_.reset(static_cast<T*>(std::malloc(bytes())));
    if (data_ == nullptr) throw std::bad_alloc();
  }

  pybind11::dtype dtype_;
  std::vector<pybind11::ssize_t> shape_;
  std::unique_ptr<T[], Free> data_;
};

// For results of a kernel's element type; empty where they are not asked for.
template <class E>
GlobalArray<E> result_array(std::vector<pybind11::ssize_t> shape, bool wanted = true) {
  if (!wanted) shape = {0};
  return {sizeof(E) == 2 ? "uint16" : "float32", std::move(shape)};
}

template <class T>
T* data_or_null(GlobalArray<T>& array) {
  return array.size() > 0 ? array.data() : nullptr;
}

// A tensor of a call (backend.py): a flat buffer and strides in elements, so that gaps and transposed layouts
// come through.
template <class T>
struct Strided {
  GlobalArray<T> buffer;
  std::vector<int64_t> shape, strides;

  explicit Strided(const pybind11::handle& given)
      : buffer(given["buffer"].cast<pybind11::array>()),
        shape(given["shape"].cast<std::vector<int64_t>>()),
        strides(given["strides"].cast<std::vector<int64_t>>()) {}
};

// The tensor of that name, unless it is None; without a name none.
template <class T>
std::optional<Strided<T>> optional_tensor(const pybind11::dict& given, const char* name) {
  if (name == nullptr || given[name].is_none()) return std::nullopt;
  return Strided<T>(given[name]);
}

template <class T>
T* data_or_null(std::optional<Strided<T>>& tensor) {
  return tensor ? tensor->buffer.data() : nullptr;
}

// For kernels. Of global memory with `bytes` for every block, the other blocks' parts are out of bounds from
// here on: blocks run one after another here, so a clash would have no effect.
inline void own_part_only(void* base, size_t bytes) {
  auto* const first = static_cast<unsigned char*>(base);
  ASAN_POISON_MEMORY_REGION(first, bytes * static_cast<size_t>(block_count()));
  ASAN_UNPOISON_MEMORY_REGION(first + bytes * static_cast<size_t>(block_index()), bytes);
}

inline bool flag(const pybind11::dict& given, const char* name) { return given[name].cast<bool>(); }

// The device that is played (Device of backend.py).
struct Device {
  std::string products;  // bf16, f16, tf32 or float32
  bool pair_path;        // where it serves; false: the tiled path
  bool warpgroups;       // by their products, for ops and passes that have them
  int64_t shared_bytes;  // what a block can have
  int64_t grid;          // blocks at most
  uint64_t seed;         // of the order of threads and blocks

  explicit Device(const pybind11::dict& given)
      : products(given["products"].cast<std::string>()),
        pair_path(given["pair_path"].cast<bool>()),
        warpgroups(given["warpgroups"].cast<bool>()),
        shared_bytes(given["shared_bytes"].cast<int64_t>()),
        grid(given["grid"].cast<int64_t>()),
        seed(given["seed"].cast<uint64_t>()) {}
};

}  // namespace emulation
}  // namespace sparc
