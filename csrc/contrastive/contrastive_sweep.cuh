// Softplus of all pairs' logits, its sums and the gradient operand G in one sweep, by products of warpgroups:
// what whole_softplus of sparc_kernels/ops/contrastive/triton_whole.py makes where the pairs that take no
// part are one diagonal.
//
// A block owns some columns, which stay in shared memory, and a run of rows, which pass by in tiles of 64.
// Two warpgroups take turns at the matrix units: while one multiplies its tile, the other does the end of its
// own one before, in its accumulators.
#pragma once

#include "contrastive/contrastive_rows.cuh"
#include "contrastive/contrastive_softplus.cuh"

namespace sparc {

// The work of a block.
template <class E, int kN>
struct SweepBlock {
  static constexpr int kGroupWarps = 4, kAhead = SweepLayout::kAhead;
  static_assert(kAhead == 2, "hand_over waits for two panels, one by one");

  const SweepArguments& in;
  const SweepLayout& layout;
  const SweepPlace& place;
  RowStream<E> rows;
  int warp, group, stage;  // stage: of the panel that is multiplied
  float c[kN / 2] = {};

  SPARC_DEVICE SweepBlock(const SweepArguments& args, const SweepLayout& divided, const SweepPlace& here)
      : in(args),
        layout(divided),
        place(here),
        rows(args, divided, here),
        warp(device::same_in_warp(device::warp_index())) {
    group = warp / kGroupWarps;
    stage = group == 0 ? 0 : RowStream<E>::later(0, divided.panels);
  }

  SPARC_DEVICE int first_col() const { return place.chunk * kN; }
  SPARC_DEVICE int cols() const { return at_most(in.n_cols - first_col(), kN); }

  // Starts the copies of the block's columns, and writes their inverse norms.
  SPARC_DEVICE void load_columns() const {
    const int channel = RowStream<E>::column();
    SPARC_NO_UNROLL
    for (int row = device::thread_index() >> 3; row < kN; row += kThreads / 8) {
      const int column = column_at(row);
      const bool there = column < cols();
      const E* const from =
          static_cast<const E*>(in.cols) + (first_col() + (there ? column : 0)) * in.col_stride + channel;
      SPARC_NO_UNROLL
      for (int panel = 0; panel < layout.panels; ++panel) {
        device::copy_async_if(
            there & (panel * Panel<E>::kColumns + channel < in.channels),
            device::address_of(device::shared_at<Piece>(columns_at(panel).piece(row, channel))),
            from + panel * Panel<E>::kColumns);
      }
    }
    const device::Shared<float> factors = device::shared_at<float>(layout.factors);
    for (int i = device::thread_index(); i < kN; i += kThreads) {
      factors[i] = i < cols() ? in.col_inverse[first_col() + i] : 0.0f;
    }
    device::copy_async_commit();
  }
  SPARC_DEVICE Panel<E> columns_at(int panel) const { return {panel * kN * Panel<E>::kRowBytes, kN}; }

  // The number of a warpgroup's turn at one of the first panels of its tiles.
  SPARC_DEVICE static int turn(int of_group, int panel) { return of_group + 2 * panel; }

  // Before a panel is multiplied: it is there for the warpgroup, and the products of the one before the last
  // are done, so that their stage is to be filled anew. The first panels are the other warpgroup's copies,
  // whose products were before.
  SPARC_DEVICE void begin_panel(int panel) {
    if (panel < kAhead) {
      device::take_turn(turn(group, panel));
    } else {
      device::copy_async_wait<kAhead - 1>();
      device::async_proxy_fence();
      device::warpgroup_barrier();
    }
  }
  // A tile: the products of its last panel are under way when this returns.
  SPARC_DEVICE void multiply() {
    SPARC_NO_UNROLL
    for (int panel = 0; panel < layout.panels; ++panel) {
      begin_panel(panel);
      const uint64_t left = rows.panel_at(stage).operand(0, 0), right = columns_at(panel).operand(0, 0);
      device::warpgroup_fence();
      SPARC_UNROLL
      for (int k = 0; k < Panel<E>::kColumns; k += 16) {
        device::warpgroup_multiply_add_if<E, kN, false, false>(
            (k > 0) | (panel > 0), c, Panel<E>::beside(left, k), Panel<E>::beside(right, k));
      }
      device::warpgroup_commit();
      rows.load();  // behind the products: they do not wait for it
      device::warpgroup_wait<1>();
      stage = RowStream<E>::later(stage, 1);
    }
    stage = RowStream<E>::later(stage, layout.panels);
  }

  // Behind the last panel. The matrix units are the other warpgroup's as soon as the first panel of its tile
  // is there; the second one follows when this one's products are done.
  SPARC_DEVICE void hand_over() {
    device::copy_async_wait<kAhead - 1>();
    device::async_proxy_fence();
    device::give_turn(turn(1 - group, 0));
    device::warpgroup_wait<0>();
    device::copy_async_wait<0>();
    device::async_proxy_fence();
    device::give_turn(turn(1 - group, 1));
  }

  // Of the warp.
  SPARC_DEVICE int first_row(int tile) const {
    return place.first_row + tile * kSweepRows + warp % kGroupWarps * 16;
  }
  // The column of the block, or a number that is none's, that takes no part in a row.
  SPARC_DEVICE int not_paired_with(int row) const { return row + in.diagonal - first_col(); }

  // Fetched while the products are under way. Behind the last row: that one's.
  SPARC_DEVICE TwoRows rows_of(int tile) const {
    TwoRows result = {};
    const int first = first_row(tile) + device::lane_index() / 4;
    result.scale = *in.scale;
    result.bias = *in.bias;
    result.power = in.power == nullptr ? 1.0f : *in.power;
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      result.row[r] = first + 8 * r;
      const int at = result.row[r] < in.n_rows ? result.row[r] : in.n_rows - 1;
      result.inverse[r] = in.row_inverse[at];
      result.weight[r] = in.weights[at];
    }
    return result;
  }

  // Whether all pairs of the warp's rows take part, and there are such rows and columns.
  SPARC_DEVICE bool whole(int tile) const {
    const int first = first_row(tile), own = not_paired_with(first);
    return (cols() == kN) & (first + 16 <= in.n_rows) & ((own >= kN) | (own + 16 <= 0));
  }

  SPARC_DEVICE void finish(int tile, const TwoRows& of_tile) {
    const device::Shared<FourFactors> factors = device::shared_at<FourFactors>(layout.factors);
    E* const gradient = static_cast<E*>(in.gradient);
    E* to[2];
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r)
      to[r] = gradient + static_cast<int64_t>(of_tile.row[r]) * in.gradient_stride + first_col();
    const RowFactors of_rows(of_tile);
    TileSums sums;
    bool careful = device::same_in_warp(!whole(tile)) != 0;
    if (!careful) {
      const auto everyone = [](int, int) { return 0xFFu; };
      const auto store = [&](int r, int column, const EightNumbers& eight) {
        if (gradient != nullptr) *reinterpret_cast<EightNumbers*>(to[r] + column) = eight;
      };
      sums = end_of_tile<E, kN, false>(c, of_rows, factors, everyone, store);
      careful = device::ballot(!sums.within()) != 0;
    }
    if (careful) {
      const int own[2] = {not_paired_with(of_tile.row[0]), not_paired_with(of_tile.row[1])};
      const auto partners = [&](int r, int column) {
        const int there = at_most(cols() - column, 8), left_out = own[r] - column;
        const uint32_t all = there > 0 ? (1u << there) - 1 : 0;
        return (left_out >= 0) & (left_out < 8) ? all & ~(1u << left_out) : all;
      };
      const auto store = [&](int r, int column, const EightNumbers& eight) {
        if ((gradient != nullptr) & (of_tile.row[r] < in.n_rows) & (first_col() + column < in.padded_cols)) {
          *reinterpret_cast<EightNumbers*>(to[r] + column) = eight;
        }
      };
      sums = end_of_tile<E, kN, true>(c, of_rows, factors, partners, store);
    }
    store_sums(of_tile, sums);
  }

  // The sums of the block's columns, of which a row's four lanes have a part each; the first three lanes
  // store one each.
  SPARC_DEVICE void store_sums(const TwoRows& of_tile, const TileSums& sums) const {
    const int quad = device::lane_index() & 3;
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float slope = quad_sum(sums.slopes[r]) * of_tile.inverse[r] * of_tile.weight[r];
      const float sigmoid = quad_sum(sums.sigmoids[r]) * of_tile.weight[r];
      const float value = quad_sum(sums.value(r)) * kLn2;
      if ((quad < 3) & (of_tile.row[r] < in.n_rows)) {
        in.partials[(static_cast<int64_t>(quad) * in.chunks + place.chunk) * in.n_rows + of_tile.row[r]] =
            quad == 0   ? slope
            : quad == 1 ? sigmoid
                        : value;
      }
    }
  }

  SPARC_DEVICE void run() {
    load_columns();
    if (group == 1) {  // the first tile's first panels, as if it had one before
      for (int ahead = 0; ahead < kAhead; ++ahead) rows.load();
      device::copy_async_wait<kAhead>();
    } else {
      rows.skip(kAhead);
      device::copy_async_wait<0>();
    }
    device::async_proxy_fence();
    device::block_barrier();  // columns are there
    if (group == 1) {
      hand_over();
      rows.skip(layout.panels);
    }
    SPARC_NO_UNROLL
    for (int tile = group; tile < place.tiles; tile += 2) {
      const TwoRows of_tile = rows_of(tile);
      multiply();
      if (tile + 1 < place.tiles) {
        hand_over();
      } else {
        device::warpgroup_wait<0>();
      }
      rows.skip(layout.panels);
      device::warpgroup_hold(c);
      finish(tile, of_tile);
    }
    device::copy_async_wait<0>();
  }
};

template <class E, int kN>
SPARC_DEVICE void sweep_softplus(const SweepArguments& in, const SweepLayout& layout) {
  const SweepPlace place(in);
  if (place.tiles > 0) SweepBlock<E, kN>(in, layout, place).run();
}

}  // namespace sparc
