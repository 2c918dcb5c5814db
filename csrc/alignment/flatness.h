// When a row of similarities is flat: its range is then rounding, and every weight of it is 1 (MATH.md). The
// one place of this rule in the native code, for the host in every instruction set and for the device.
#pragma once

#if defined(__CUDACC__)
#define SPARC_FLATNESS __host__ __device__
#else
#define SPARC_FLATNESS
#endif

namespace sparc {

template <class T>
constexpr T kFlatRange =
    16 * (sizeof(T) == 4 ? T(1.1920928955078125e-07) : T(2.220446049250313e-16));  // 16 eps

// `range` = maximum - minimum, `magnitude` = the larger of their absolute values. Static, so that no set of
// instructions gets the code of another.
template <class T>
SPARC_FLATNESS static inline bool is_flat(T range, T magnitude) {
  return range <= kFlatRange<T> * magnitude;
}

}  // namespace sparc
