// Pointers into shared memory and scratch whose every access goes through the emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "numbers.h"
#include "runtime.h"

namespace sparc {
namespace emulation {

// What `p[i]` gives: reads where it is converted to T, writes where it is assigned to. Both are for
// temporaries only, so that `auto x = p[i]`, whose every use would read anew, does not compile where x is
// used.
template <class T>
class Reference {
 public:
  using Value = std::remove_const_t<T>;
  static_assert(std::is_trivially_copyable<Value>::value, "shared memory holds plain data");

  explicit Reference(T* address) : address_(address) {}
  Reference(const Reference&) = default;

  operator Value() const&& { return read(); }
  const Reference operator=(const Value& value) const&& { return write(value); }
  // Assigns the element, as a real reference does.
  const Reference operator=(const Reference& other) const&& { return write(other.read()); }
  const Reference operator+=(const Value& other) const&& { return write(static_cast<Value>(read() + other)); }
  const Reference operator-=(const Value& other) const&& { return write(static_cast<Value>(read() - other)); }
  const Reference operator*=(const Value& other) const&& { return write(static_cast<Value>(read() * other)); }
  const Reference operator/=(const Value& other) const&& { return write(static_cast<Value>(read() / other)); }
  const Reference operator|=(const Value& other) const&& { return write(static_cast<Value>(read() | other)); }
  const Reference operator&=(const Value& other) const&& { return write(static_cast<Value>(read() & other)); }
  const Reference operator^=(const Value& other) const&& { return write(static_cast<Value>(read() ^ other)); }

 private:
  Value read() const {
    Value value;
    read_watched(address_, sizeof(Value), alignof(Value), &value);
    return value;
  }
  const Reference write(const Value& value) const {
    static_assert(!std::is_const<T>::value, "a write through a pointer to const");
    if constexpr (std::is_same<Value, float>::value) {
      if ((bits_of_float(value) & 0x7FFFFFFFu) == kUnderWay) fail_as_under_way();
    }
    write_watched(address_, sizeof(Value), alignof(Value), &value);
    return *this;
  }

  T* address_;
};

template <class T>
class Watched {
 public:
  Watched() = default;
  explicit Watched(T* address) : address_(address) {}
  // To a pointer to const, as plain pointers convert.
  template <class U, class = std::enable_if_t<std::is_same<const U, T>::value && !std::is_const<U>::value>>
  Watched(const Watched<U>& other) : address_(other.address()) {}

  T* address() const { return address_; }

  template <class Index>
  Reference<T> operator[](Index i) const {
    return Reference<T>((*this + i).address_);
  }
  Reference<T> operator*() const { return Reference<T>(address_); }

  // Like a device pointer, one that leaves its memory is no fault until it is used: hence the integers.
  template <class Index>
  Watched operator+(Index n) const {
    const intptr_t bytes = static_cast<intptr_t>(n) * static_cast<intptr_t>(sizeof(T));
    return Watched(reinterpret_cast<T*>(reinterpret_cast<intptr_t>(address_) + bytes));
  }
  template <class Index>
  Watched operator-(Index n) const {
    return *this + -static_cast<intptr_t>(n);
  }
  intptr_t operator-(const Watched& other) const {
    return (reinterpret_cast<intptr_t>(address_) - reinterpret_cast<intptr_t>(other.address_)) /
           static_cast<intptr_t>(sizeof(T));
  }
  template <class Index>
  Watched& operator+=(Index n) {
    return *this = *this + n;
  }
  template <class Index>
  Watched& operator-=(Index n) {
    return *this = *this - n;
  }
  Watched& operator++() { return *this += 1; }
  Watched& operator--() { return *this -= 1; }

  bool operator==(const Watched& other) const { return address_ == other.address_; }
  bool operator!=(const Watched& other) const { return address_ != other.address_; }

 private:
  T* address_ = nullptr;
};

}  // namespace emulation
}  // namespace sparc
