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

struct alignas(8) TwoWords {
  uint32_t first, second;
};

// Where the 8 bytes that this lane moves for row half r begin, in columns of the tile, after neighbouring
// lanes have exchanged words so that each holds four columns in a row.
SPARC_DEVICE int exchanged_column() {
  const int t = device::lane_index() % 4;
  return t % 2 * 8 + t / 2 * 4;
}

// Where the two rows of a tile of 16 that this lane holds begin in a contiguous matrix of `columns` columns:
// rows target(r), null where that is negative.
template <class E>
struct StoredRows {
  E* rows[2];

  template <class Target>
  SPARC_DEVICE StoredRows(E* out, int columns, const Target& target) {
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int64_t row = target(device::lane_index() / 4 + 8 * r);
      rows[r] = row < 0 ? nullptr : out + row * columns;
    }
  }
};

template <class E>
SPARC_DEVICE void store_rounded(const RoundedSums<E>& sums, const StoredRows<E>& out, int columns,
                                int column) {
  const bool wide = columns % 4 == 0, odd = device::lane_index() % 2 == 1;
  if (wide) {
    const int at = column + exchanged_column();
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      const uint32_t received = device::shuffle_xor(odd ? sums.words[r][0] : sums.words[r][1], 1);
      const TwoWords both = odd ? TwoWords{received, sums.words[r][1]} : TwoWords{sums.words[r][0], received};
      if (out.rows[r] != nullptr && at < columns) *reinterpret_cast<TwoWords*>(out.rows[r] + at) = both;
    }
    return;
  }
  SPARC_UNROLL
  for (int e = 0; e < 8; ++e) {
    const int r = e / 4, at = column + sum_column(e % 4 / 2, e % 2);
    if (out.rows[r] != nullptr && at < columns) {
      out.rows[r][at] = E{static_cast<uint16_t>(sums.words[r][e % 4 / 2] >> (e % 2 * 16))};
    }
  }
}

template <class E, class Target>
SPARC_DEVICE void store_rounded(const RoundedSums<E>& sums, E* out, int columns, int column,
                                const Target& target) {
  store_rounded(sums, StoredRows<E>(out, columns, target), columns, column);
}

}  // namespace sparc
