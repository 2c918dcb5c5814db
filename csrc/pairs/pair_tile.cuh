// The pair path: one block works on one image-text pair of at most 64 tokens and 32 kUnits patches, in half
// precision. S [L, P] stays in registers; V and T are streamed through shared memory in chunks of channels,
// the first time from DRAM, then from L2. Work follows the pair's valid tokens and patches, which are
// gathered.
//
// The eight warps stand in four rows of 16 tokens and two columns; the columns share the patches in turns of
// 16 (and the channels of a group in turns of 16). Symbols are those of
// sparc_kernels/ops/fine_grained/MATH.md.
#pragma once

#include "pairs/pair_stream.cuh"

namespace sparc {

// Sums [16, 16] at (row, column) of a contiguous matrix of `pitch` columns; `target(r)` is the row for row r
// of the tile, negative to leave it out. `words` holds them as pairs of E: [row half][column half].
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

template <class E, class Target>
SPARC_DEVICE void store_rounded(const RoundedSums<E>& sums, E* out, int64_t pitch, int column, int columns,
                                const Target& target) {
  const int g = device::lane_index() / 4, t = device::lane_index() % 4;
  const bool wide = pitch % 4 == 0;
  SPARC_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t row = target(g + 8 * r);
    if (wide) {
      const bool odd = t % 2 == 1;
      const uint32_t received = device::shuffle_xor(odd ? sums.words[r][0] : sums.words[r][1], 1);
      const TwoWords both = odd ? TwoWords{received, sums.words[r][1]} : TwoWords{sums.words[r][0], received};
      const int at = column + exchanged_column();
      if (row >= 0 && at < columns) *reinterpret_cast<TwoWords*>(out + row * pitch + at) = both;
    } else {
      SPARC_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int at = column + sum_column(e / 2, e % 2);
        if (row >= 0 && at < columns) {
          out[row * pitch + at] = E{static_cast<uint16_t>(sums.words[r][e / 2] >> (e % 2 * 16))};
        }
      }
    }
  }
}

// The inverse of store_rounded, by the same threads; zeros where nothing was stored.
template <class E, class Target>
SPARC_DEVICE RoundedSums<E> load_rounded(const E* in, int64_t pitch, int column, int columns,
                                         const Target& target) {
  const int g = device::lane_index() / 4, t = device::lane_index() % 4;
  const bool wide = pitch % 4 == 0;
  RoundedSums<E> sums;
  SPARC_UNROLL
  for (int r = 0; r < 2; ++r) {
    const int64_t row = target(g + 8 * r);
    if (wide) {
      TwoWords both = {0, 0};
      const int at = column + exchanged_column();
      if (row >= 0 && at < columns) both = *reinterpret_cast<const TwoWords*>(in + row * pitch + at);
      const bool odd = t % 2 == 1;
      const uint32_t received = device::shuffle_xor(odd ? both.first : both.second, 1);
      sums.words[r][0] = odd ? received : both.first;
      sums.words[r][1] = odd ? both.second : received;
    } else {
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t word = 0;
        for (int e = 0; e < 2; ++e) {
          const int at = column + sum_column(half, e);
          if (row >= 0 && at < columns) word |= static_cast<uint32_t>(in[row * pitch + at].bits) << (16 * e);
        }
        sums.words[r][half] = word;
      }
    }
  }
  return sums;
}

// What a warp does with the similarities of its 16 tokens and its share of the patches.
template <class E, int kUnits>
struct PairTile {
  using Products = HalfProducts<E>;
  using Rows = float[2];  // a number for each of the two rows that this lane holds
  static constexpr int kSteps = kColumnWarps * kUnits;  // all patches, 16 at a time

  const PairShared<E>& shared;
  int n, p;               // valid tokens and patches
  int row0, column_warp;  // the first row of this warp; its column

  SPARC_DEVICE PairTile(const PairShared<E>& shared_, const PairWork& work)
      : shared(shared_),
        n(work.tokens),
        p(work.patches),
        row0(device::warp_index() % kRowWarps * 16),
        column_warp(device::warp_index() / kRowWarps) {}

  SPARC_DEVICE bool active() const { return row0 < n; }
  SPARC_DEVICE int row(int half) const { return row0 + device::lane_index() / 4 + 8 * half; }
  SPARC_DEVICE int unit_column(int unit) const { return (unit * kColumnWarps + column_warp) * 16; }

  // s += rows columns^T over the chunk's channels: rows [n, chunk], columns [p, chunk].
  SPARC_DEVICE void add_products(Sums (&s)[kUnits], const Tile<E>& rows, const Tile<E>& columns,
                                 int chunk) const {
    if (!active()) return;
    SPARC_UNROLL_TWICE
    for (int k = 0; k < chunk; k += Products::kDepth) {
      const typename Products::A a = Products::load_a(rows, row0, k);
      SPARC_UNROLL
      for (int unit = 0; unit < kUnits; ++unit) {
        if (unit_column(unit) < p) {
          Products::multiply_add(s[unit], a, Products::load_b(columns, unit_column(unit), k));
        }
      }
    }
  }

  // Calls f(unit, half, i, column) for every similarity of this lane whose unit holds patches; i / 2 tells
  // which of its two rows it is in. Columns from p on are padding.
  template <class F>
  SPARC_DEVICE void for_each(const F& f) const {
    SPARC_UNROLL
    for (int unit = 0; unit < kUnits; ++unit) {
      if (unit_column(unit) >= p) continue;
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        SPARC_UNROLL
        for (int i = 0; i < 4; ++i) f(unit, half, i, unit_column(unit) + sum_column(half, i));
      }
    }
  }

  // Combines a number per row over the lanes and warps that share the row. `partial` is one of
  // shared.partial.
  template <class Combine>
  SPARC_DEVICE void across_columns(Rows& x, int partial, const Combine& combine) const {
    const device::Shared<float> parts = device::shared_at<float>(partial);
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      x[half] = combine(x[half], device::shuffle_xor(x[half], 1));
      x[half] = combine(x[half], device::shuffle_xor(x[half], 2));
      if (device::lane_index() % 4 == 0) parts[column_warp * kPairTokens + row(half)] = x[half];
    }
    device::block_barrier();
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      x[half] = parts[row(half)];
      for (int c = 1; c < kColumnWarps; ++c) {
        x[half] = combine(x[half], static_cast<float>(parts[c * kPairTokens + row(half)]));
      }
    }
  }

  // Minimum and maximum of each row; the buffers of shared.partial are used.
  SPARC_DEVICE void extrema(const Sums (&s)[kUnits], Rows& low, Rows& high) const {
    low[0] = low[1] = device::infinity();
    high[0] = high[1] = -device::infinity();
    for_each([&](int unit, int half, int i, int column) {
      if (column < p) {
        low[i / 2] = device::min(low[i / 2], s[unit][half][i]);
        high[i / 2] = device::max(high[i / 2], s[unit][half][i]);
      }
    });
    across_columns(low, shared.partial[0], [](float a, float b) { return device::min(a, b); });
    across_columns(high, shared.partial[1], [](float a, float b) { return device::max(a, b); });
  }

  // A tile [n, p] from value(unit, half, i), which is asked for valid tokens and patches only; zeros up to
  // the next multiples of 16.
  template <class Value>
  SPARC_DEVICE void write_tile(const Tile<E>& tile, const Value& value) const {
    if (!active()) return;
    const device::Shared<uint32_t> words = device::shared_at<uint32_t>(tile.offset);
    SPARC_UNROLL
    for (int unit = 0; unit < kUnits; ++unit) {
      if (unit_column(unit) >= p) continue;
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        SPARC_UNROLL
        for (int r = 0; r < 2; ++r) {
          const int column = unit_column(unit) + sum_column(half, 0);
          const bool valid = row(r) < n;
          const float first = valid && column < p ? value(unit, half, 2 * r) : 0.0f;
          const float second = valid && column + 1 < p ? value(unit, half, 2 * r + 1) : 0.0f;
          words[(row(r) * tile.pitch + column) / 2] = device::pack<E>(first, second);
        }
      }
    }
  }

  // What dS needs of S: which patches are kept, which are minima, one bit for each similarity of this lane,
  // and 1 / range of its rows (0 in flat ones).
  struct Kept {
    static constexpr int kWords = (kUnits * 8 + 31) / 32;
    uint32_t kept[kWords], minimum[kWords];
    float inverse_range[2];

    SPARC_DEVICE static int bit(int unit, int half, int i) { return unit * 8 + half * 4 + i; }
    SPARC_DEVICE bool is_kept(int unit, int half, int i) const {
      return kept[bit(unit, half, i) / 32] >> (bit(unit, half, i) % 32) & 1u;
    }
    SPARC_DEVICE bool is_minimum(int unit, int half, int i) const {
      return minimum[bit(unit, half, i) / 32] >> (bit(unit, half, i) % 32) & 1u;
    }
  };
  SPARC_DEVICE Kept keep(const Sums (&s)[kUnits], const RowAlignment (&rows)[2]) const {
    Kept result;
    SPARC_UNROLL
    for (int word = 0; word < Kept::kWords; ++word) result.kept[word] = result.minimum[word] = 0;
    for_each([&](int unit, int half, int i, int column) {
      const RowAlignment& row = rows[i / 2];
      const int bit = Kept::bit(unit, half, i);
      if (column < p && !row.flat()) {
        result.kept[bit / 32] |= static_cast<uint32_t>(row.kept(s[unit][half][i])) << (bit % 32);
        result.minimum[bit / 32] |= static_cast<uint32_t>(s[unit][half][i] == row.low) << (bit % 32);
      }
    });
    for (int half = 0; half < 2; ++half) result.inverse_range[half] = rows[half].inverse_range;
    return result;
  }

  // dU becomes dS: kept entries over the range, and minus their sum at the minima, split evenly.
  SPARC_DEVICE void similarity_gradient(Sums (&grad)[kUnits], const Kept& kept) const {
    Rows total = {0.0f, 0.0f}, ties = {0.0f, 0.0f};
    for_each([&](int unit, int half, int i, int) {
      float& x = grad[unit][half][i];
      x = kept.is_kept(unit, half, i) ? x : 0.0f;
      total[i / 2] += x;
      ties[i / 2] += kept.is_minimum(unit, half, i) ? 1.0f : 0.0f;
    });
    sum_across(total, 0);
    sum_across(ties, 1);
    const Rows share = {total[0] / device::max(ties[0], 1.0f), total[1] / device::max(ties[1], 1.0f)};
    for_each([&](int unit, int half, int i, int) {
      float& x = grad[unit][half][i];
      if (kept.is_minimum(unit, half, i)) x -= share[i / 2];
      x *= kept.inverse_range[i / 2];
    });
  }
  SPARC_DEVICE void sum_across(Rows& x, int buffer) const {
    across_columns(x, shared.partial[buffer], [](float a, float b) { return a + b; });
  }
  SPARC_DEVICE float largest(const Sums (&s)[kUnits]) const {
    float top = 0.0f;
    for_each([&](int unit, int half, int i, int) { top = device::max(top, device::abs(s[unit][half][i])); });
    return top;
  }

  // A tile's rows as operands of products over the patches, for all chunks: in registers,
  struct HeldRows {
    typename Products::A steps[kSteps];

    SPARC_DEVICE const typename Products::A& at(int step) const { return steps[step]; }
  };
  // or read from the tile each time, where the registers are needed for other things.
  struct TileRows {
    Tile<E> tile;
    int row0;

    SPARC_DEVICE typename Products::A at(int step) const { return Products::load_a(tile, row0, step * 16); }
  };
  SPARC_DEVICE void hold(HeldRows& held, const Tile<E>& tile) const {
    if (!active()) return;
    SPARC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step * 16 < p) held.steps[step] = Products::load_a(tile, row0, step * 16);
    }
  }
  SPARC_DEVICE void hold(TileRows& rows, const Tile<E>& tile) const { rows = {tile, row0}; }

  // c [16, 16] = rows [n, p] V [p, 16 channels from `column` of the chunk]
  template <class LeftRows>
  SPARC_DEVICE void times_patches(Sums& c, const LeftRows& rows, const Tile<E>& patches, int column) const {
    SPARC_UNROLL
    for (int i = 0; i < 8; ++i) c[i / 4][i % 4] = 0.0f;
    SPARC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step * 16 < p) {
        Products::multiply_add(c, rows.at(step), Products::load_b_transposed(patches, step * 16, column));
      }
    }
  }

  // dV of a chunk: out [p, chunk] = x_unit X^T T + U^T Q (Q only where `with_second`) and the rows' share of
  // their mean's gradient, rows as `target` says.
  template <class Target>
  SPARC_DEVICE void write_patch_gradient(const Tile<E>& x, float x_unit, const Tile<E>& tokens,
                                         bool with_second, const Tile<E>& second, float factor,
                                         const MeanShare<E>& share, int chunk, E* out, int64_t channels,
                                         int first, const Target& target) const {
    const int across = chunk / 32, tasks = (p + 15) / 16 * across;
    SPARC_NO_UNROLL
    for (int task = device::warp_index(); task < tasks; task += kWarps) {
      const int m = task / across * 16, column = task % across * 32;
      Sums c[2] = {};
      add_over_tokens(c, x, tokens, m, column);
      if (with_second) {
        SPARC_UNROLL
        for (int i = 0; i < 16; ++i) c[i / 8][i / 4 % 2][i % 4] *= x_unit;
        add_over_tokens(c, shared.weights_tile(), second, m, column);
      }
      const float last = with_second ? factor : factor * x_unit;
      SPARC_UNROLL
      for (int unit = 0; unit < 2; ++unit) {
        const int at = first + column + 16 * unit;
        if (share.grad != nullptr) {
          SPARC_UNROLL
          for (int e = 0; e < 8; ++e) {
            float& x = c[unit][e / 4][e % 4];
            x = x * last + share.at(at + sum_column(e / 4, e % 4));
          }
        }
        store_rounded(RoundedSums<E>(c[unit], share.grad != nullptr ? 1.0f : last), out, channels, at,
                      static_cast<int>(channels), [&](int r) { return target(m + r); });
      }
    }
  }

 private:
  // c [16 patches, 32 channels] += a^T b: a [n, p], b [n, chunk]
  SPARC_DEVICE void add_over_tokens(Sums (&c)[2], const Tile<E>& a, const Tile<E>& b, int m,
                                    int column) const {
    SPARC_NO_UNROLL
    for (int k = 0; k < n; k += Products::kDepth) {
      const typename Products::A left = Products::load_a_transposed(a, k, m);
      SPARC_UNROLL
      for (int unit = 0; unit < 2; ++unit) {
        Products::multiply_add(c[unit], left, Products::load_b_transposed(b, k, column + 16 * unit));
      }
    }
  }
};

}  // namespace sparc
