// From a row of similarities to alignment weights.
#pragma once

#include "alignment/flatness.h"
#include "common/block.cuh"

namespace sparc {

constexpr float kLargest = 3.4028234663852886e38f;

// A row of similarities: from its extrema to alignment weights in units of its range (eq 2-3).
struct RowAlignment {
  float low, high, range, inverse_range;  // range and inverse are 0 in a flat row
  float sigma;                            // no patch of a flat row is cut

  SPARC_DEVICE RowAlignment(float low_, float high_, float sigma_) : low(low_), high(high_) {
    const float spread = high - low;
    const bool flat = is_flat(spread, device::max(device::abs(low), device::abs(high)));
    range = flat ? 0.0f : spread;
    inverse_range =
        flat ? 0.0f : device::min(1.0f / spread, kLargest);  // a subnormal range: any factor serves
    sigma = flat ? 0.0f : sigma_;
  }
  SPARC_DEVICE bool flat() const { return range == 0.0f; }
  SPARC_DEVICE float height(float s) const { return s == high ? 1.0f : (s - low) * inverse_range; }
  // "Not cut", so that a NaN is kept and seen.
  SPARC_DEVICE bool kept(float s) const { return !(height(s) < sigma); }
  // Both ways are worked out, so that no branch is made of it.
  SPARC_DEVICE float weight(float s) const {
    const float reached = height(s), cut = reached < sigma ? 0.0f : reached;
    return flat() ? 1.0f : cut;
  }
};

SPARC_DEVICE float threshold_of(const float* threshold, int patches) {
  return threshold == nullptr ? 1.0f / static_cast<float>(patches) : *threshold;
}

// C' is a sum over patches, which may leave the range of float16: there it is taken in this unit (a power of
// two: scaling rounds nothing). Any positive factor of C' cancels in the cosine.
template <class E>
SPARC_DEVICE float group_unit(int patches) {
  float unit = 1.0f;
  if (kIsFloat16<E>) {
    while (unit * static_cast<float>(patches) > 1.0f) unit *= 0.5f;
  }
  return unit;
}

}  // namespace sparc
