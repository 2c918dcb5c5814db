// Sums in registers to and from rows in global memory, rounded, 8 bytes at a time.
#pragma once

#include "common/products.cuh"

namespace sparc {

// Sums [16, 16] at (row, column) of a contiguous matrix of `columns` columns; `target(r)` is the row for row
// r of the tile, negative to leave it out. `words` holds them as pairs of E: [row half][column half].
template <class E>
struct RoundedSums {
  uint32_t words[2][2];

  SPARC_DEVICE explicit RoundedSums(const Sums& c, float factor = 1.0f) {
    for (int r = 0; r < 2; ++r) {
      for (int half = 0; half < 2; ++half) {
        words[r][half] = device::pack<E>(c[half][2 * r] * factor, c[half][2 * r + 1] * factor);
      }
    }
  }
  SPARC_DEVICE RoundedSums() {}

  SPARC_DEVICE float value(int half, int i) const {
    return device::to_float(E{static_cast<uint16_t>(words[i / 2][half] >> (i % 2 * 16))});
  }
};

// Where the 8 bytes that this lane moves for row half r begin, in columns of the tile, after neighbouring
// lanes have exchanged words so that each holds four columns in a row.
SPARC_DEVICE int exchanged_column() {
  const int t = device::lane_index() % 4;
  return t % 2 * 8 + t / 2 * 4;
}

// kCount sums side by side from `column` on; `kWide`: columns are known to be a multiple of 4.
template <bool kWide, class E, int kCount, class Target>
SPARC_DEVICE void store_side_by_side(const RoundedSums<E> (&sums)[kCount], E* out, int columns, int column,
                                     const Target& target) {
  const int g = device::lane_index() / 4, t = device::lane_index() % 4;
  if (kWide || columns % 4 == 0) {
    const bool odd = t % 2 == 1;
    const int at = column + exchanged_column();
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int64_t row = target(g + 8 * r);
      E* const first = out + (row * columns + at);
      SPARC_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const uint32_t (&words)[2] = sums[i].words[r];
        const uint32_t received = device::shuffle_xor(odd ? words[0] : words[1], 1);
        const uint64_t low = odd ? received : words[0], high = odd ? words[1] : received;
        // one number: of a struct of two the compiler makes two stores
        if (row >= 0 && at + 16 * i < columns)
          *reinterpret_cast<uint64_t*>(first + 16 * i) = low | high << 32;
      }
    }
  } else {
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int64_t row = target(g + 8 * r);
      SPARC_UNROLL
      for (int e = 0; e < 4 * kCount; ++e) {
        const int at = column + e / 4 * 16 + sum_column(e % 4 / 2, e % 2);
        if (row >= 0 && at < columns) {
          out[row * columns + at] = E{static_cast<uint16_t>(sums[e / 4].words[r][e % 4 / 2] >> (e % 2 * 16))};
        }
      }
    }
  }
}

}  // namespace sparc
