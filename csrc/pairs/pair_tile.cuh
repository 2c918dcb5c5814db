// The pair path: one block works on one image-text pair of at most 64 rows of text (T) and 32 kStrips of
// image (V), in half precision. S = T V^T [L, P] stays in registers; V and T are streamed through shared
// memory in chunks of channels, the first time from DRAM, then from L2. Work follows the valid rows,
// gathered.
//
// The eight warps stand in four rows of 16 text rows and two columns; the columns share the image rows in
// turns of 16 (and the channels of a product in turns of 16).
#pragma once

#include <type_traits>

#include "pairs/pair_stream.cuh"
#include "pairs/pair_work.cuh"

namespace sparc {

// Where a warp stands in [text rows, image rows]: 16 rows, and strips of 16 columns, which the warps of a row
// take in turns or (`kInTurns` false) kStrips in a row.
template <class E, int kStrips, bool kInTurns>
struct PairStrips {
  using Element = E;
  using Products = HalfProducts<E>;
  using Strips = Sums[kStrips];
  using RowPair = float[2];  // a number for each of the two rows that this lane holds
  static constexpr int kSteps = kColumnWarps * kStrips;  // all image rows, 16 at a time

  const PairPlaces& shared;
  int n, p;               // valid rows of the text and of the image
  int row0, column_warp;  // the first row of this warp; its column

  SPARC_DEVICE PairStrips(const PairPlaces& shared_, const PairWork& work)
      : shared(shared_),
        n(work.text_rows),
        p(work.image_rows),
        row0((kInTurns ? warp() / kColumnWarps : warp() % kRowWarps) * 16),
        column_warp(kInTurns ? (warp() + warp() / kRowWarps) % kColumnWarps : warp() / kRowWarps) {}

  // In turns, a row's warps are neighbours: warp w runs on scheduler w % 4, so that those of a short text
  // share none, and each scheduler has warps of both columns.
  SPARC_DEVICE static int warp() { return device::same_in_warp(device::warp_index()); }

  SPARC_DEVICE bool active() const { return row0 < n; }
  SPARC_DEVICE int row(int half) const { return row0 + device::lane_index() / 4 + 8 * half; }
  SPARC_DEVICE int strip_column(int strip) const {
    return (kInTurns ? strip * kColumnWarps + column_warp : column_warp * kStrips + strip) * 16;
  }

  // Calls f(strip, half, i, column) for every similarity of this lane whose strip holds image rows; i / 2
  // tells which of its two rows it is in. Columns from p on are padding.
  template <class F>
  SPARC_DEVICE void for_each(const F& f) const {
    SPARC_UNROLL
    for (int strip = 0; strip < kStrips; ++strip) {
      if (strip_column(strip) >= p) continue;
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        SPARC_UNROLL
        for (int i = 0; i < 4; ++i) f(strip, half, i, strip_column(strip) + sum_column(half, i));
      }
    }
  }

  // Combines a number per row over the lanes and warps that share it; `partial`: one of shared.partial.
  template <class Combine>
  SPARC_DEVICE void across_columns(RowPair& x, int partial, const Combine& combine) const {
    const device::Shared<float> parts = device::shared_at<float>(partial);
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      x[half] = combine(x[half], device::shuffle_xor(x[half], 1));
      x[half] = combine(x[half], device::shuffle_xor(x[half], 2));
      if (device::lane_index() % 4 == 0) parts[column_warp * kPairTextRows + row(half)] = x[half];
    }
    device::block_barrier();
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      x[half] = parts[row(half)];
      for (int c = 1; c < kColumnWarps; ++c) {
        x[half] = combine(x[half], static_cast<float>(parts[c * kPairTextRows + row(half)]));
      }
    }
  }

  // A tile [n, p] from value(strip, half, i), which is asked for valid rows of both only; zeros up to
  // the next multiples of 16.
  template <class To, class Value>
  SPARC_DEVICE void write_tile(const To& tile, const Value& value) const {
    if (!active()) return;
    SPARC_UNROLL
    for (int strip = 0; strip < kStrips; ++strip) {
      if (strip_column(strip) >= p) continue;
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        SPARC_UNROLL
        for (int r = 0; r < 2; ++r) {
          const int column = strip_column(strip) + sum_column(half, 0);
          const bool valid = row(r) < n;
          const float first = valid && column < p ? value(strip, half, 2 * r) : 0.0f;
          const float second = valid && column + 1 < p ? value(strip, half, 2 * r + 1) : 0.0f;
          *tile.word_at(row(r), column) = device::pack<E>(first, second);
        }
      }
    }
  }

  SPARC_DEVICE void sum_across(RowPair& x, int buffer) const {
    across_columns(x, shared.partial[buffer], [](float a, float b) { return a + b; });
  }
  SPARC_DEVICE float largest(const Sums (&s)[kStrips]) const {
    float top = 0.0f;
    for_each(
        [&](int strip, int half, int i, int) { top = device::max(top, device::abs(s[strip][half][i])); });
    return top;
  }
};

// The tile of a pair whose products are those of single warps, on kChunk channels at a time.
template <class E, int kStrips, int kChunk_>
struct PairTile : PairStrips<E, kStrips, true> {
  using Base = PairStrips<E, kStrips, true>;
  using Products = typename Base::Products;
  using A = typename Products::A;
  using B = typename Products::B;
  using Stream = PairStream;
  static constexpr bool kWhole = false;  // whether rows are known to be whole pieces of 16 bytes
  using ImageCopies = RowCopies<kChunk_>;
  using TextCopies = RowCopies<kChunk_>;
  using Base::active;
  using Base::Base;
  using Base::column_warp;
  using Base::kSteps;
  using Base::n;
  using Base::p;
  using Base::row0;
  using Base::strip_column;

  static constexpr int kChunk = kChunk_;
  // Turns of 16 channels of a chunk that a warp takes, side by side, and where they begin.
  static constexpr int kTurns = kChunk / kChannelStep;
  using Turns = Sums[kTurns];
  // How much of the image's gradient a warp takes at a time, in steps of 16 rows and channels.
  static constexpr int kTasksDown = kStrips < 8 ? 1 : 2, kTasksAcross = kStrips < 8 ? 2 : kChunk / 16;
  SPARC_DEVICE int turn_column(int turn) const { return (column_warp * kTurns + turn) * 16; }

  // What the threads have written to shared memory is there for the products of all.
  SPARC_DEVICE static void publish() { device::block_barrier(); }

  // Calls f(strips, exact) with the strips of 32 image rows that are used, as a constant. Where these are
  // more than half of kStrips it is exact: all but the last half of the last strip are there for certain.
  template <int kUsed = kStrips, class F>
  SPARC_DEVICE void for_used_strips(const F& f) const {
    if constexpr (kUsed < 2 || 4 * kUsed <= kStrips) {
      f(std::integral_constant<int, kUsed>(), std::false_type());
    } else if (p > 32 * (kUsed - 1)) {
      f(std::integral_constant<int, kUsed>(), std::true_type());
    } else {
      for_used_strips<kUsed - 1>(f);
    }
  }

  // s += rows columns^T over a chunk's channels: rows [n, kChunk], columns [p, kChunk]. On the way f(a) for
  // each operand of this warp's rows.
  template <class Rows, class Columns>
  SPARC_DEVICE void add_products(Sums (&s)[kStrips], const Rows& rows, const Columns& columns) const {
    add_products(s, rows, columns, [](const A&) {});
  }
  template <class Rows, class Columns, class F>
  SPARC_DEVICE void add_products(Sums (&s)[kStrips], const Rows& rows, const Columns& columns,
                                 const F& f) const {
    if (!active()) return;
    for_used_strips([&](auto strips, auto exact) {
      constexpr int kUsed = decltype(strips)::value, kCertain = decltype(exact)::value ? kUsed - 1 : 0;
      SPARC_UNROLL
      for (int k = 0; k < kChunk; k += Products::kDepth) {
        const A a = Products::load_a(rows, row0, k);
        SPARC_UNROLL
        for (int strip = 0; strip < kUsed; ++strip) {
          if (strip < kCertain || strip_column(strip) < p) {
            Products::multiply_add(s[strip], a, Products::load_b(columns, strip_column(strip), k));
          }
        }
        f(a);
      }
    });
  }

  // A tile's rows as operands of products over the image, for all chunks: in registers,
  struct HeldOperand {
    A steps[kSteps];

    SPARC_DEVICE const A& at(int step) const { return steps[step]; }
  };
  // or read from the tile each time, where the registers are needed for other things.
  struct TileOperand {
    Tile<E> tile;
    int row0;

    SPARC_DEVICE A at(int step) const { return Products::load_a(tile, row0, step * 16); }
  };
  SPARC_DEVICE void hold(HeldOperand& held, const Tile<E>& tile) const {
    if (!active()) return;
    SPARC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (step * 16 < p) held.steps[step] = Products::load_a(tile, row0, step * 16);
    }
  }
  SPARC_DEVICE void hold(TileOperand& rows, const Tile<E>& tile) const {
    rows.tile = tile;
    rows.row0 = row0;
  }

  // c = rows [n, p] V [p, channels]: for each turn of this warp the [16, 16] at turn_column.
  template <class Left, class Image>
  SPARC_DEVICE void times_image(Turns& c, const Left& left, const Image& image) const {
    SPARC_UNROLL
    for (int i = 0; i < 8 * kTurns; ++i) c[i / 8][i / 4 % 2][i % 4] = 0.0f;
    for_used_strips([&](auto strips, auto exact) {
      constexpr int kUsed = decltype(strips)::value * kColumnWarps,
                    kCertain = decltype(exact)::value ? kUsed - 1 : 0;
      SPARC_UNROLL
      for (int step = 0; step < kUsed; ++step) {
        if (step < kCertain || step * 16 < p) {
          const A a = left.at(step);
          SPARC_UNROLL
          for (int turn = 0; turn < kTurns; ++turn) {
            Products::multiply_add(c[turn], a,
                                   Products::load_b_transposed(image, step * 16, turn_column(turn)));
          }
        }
      }
    });
  }
};

}  // namespace sparc
