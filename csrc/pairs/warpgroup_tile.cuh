// The pair path where a warpgroup's matrix instructions are (compute capability 9.0): two warpgroups, each
// with all 64 text rows and half of the image rows, one block of neighbouring strips. Operands in shared
// memory are read by the instructions themselves.
#pragma once

#include "pairs/pair_tile.cuh"
#include "pairs/panel_stream.cuh"

namespace sparc {

// The pair path by warpgroups of the op that takes `Arguments`, specialised by those that have one (as
// WarpgroupPasses): Layout<E>, and the kernel run<E, kStrips, kBackward>(arguments, streaming, layout).
template <class Arguments>
struct WarpgroupOp;

// Strips side by side as the accumulators of one instruction.
template <int kStrips>
SPARC_DEVICE float (&accumulators(Sums (&s)[kStrips]))[8 * kStrips] {
  return reinterpret_cast<float (&)[8 * kStrips]>(s);
}

SPARC_DEVICE float (&accumulators(Sums& s))[8] { return reinterpret_cast<float (&)[8]>(s); }

// The tile of a pair whose products are those of warpgroups. All eight warps take part in every product,
// whether their rows are valid or not.
template <class E, int kStrips, class Stream_ = PanelStream>
struct WarpgroupTile : PairStrips<E, kStrips, false> {
  using Base = PairStrips<E, kStrips, false>;
  using Products = typename Base::Products;
  using Stream = Stream_;
  static constexpr bool kWhole = true;  // whether rows are known to be whole pieces of 16 bytes
  using ImageCopies = HeldCopies<kStrips>;
  using TextCopies = HeldCopies<kPairTextRows / 32>;
  using Base::Base;
  using Base::kSteps;

  static constexpr int kChunk = Panel<E>::kColumns;
  // Channels of a chunk that this warpgroup takes where the two share them, from first_channel() on.
  static constexpr int kChannels = Panel<E>::kColumns / kColumnWarps;
  SPARC_DEVICE int first_channel() const { return this->column_warp * kChannels; }

  // What the threads have written to shared memory is there for the products of all.
  SPARC_DEVICE static void publish() {
    device::async_proxy_fence();
    device::block_barrier();
  }

  // Issues s += rows columns^T over a chunk's channels: rows [64, 64], columns [P, 64].
  SPARC_DEVICE void add_products(Sums (&s)[kStrips], const Panel<E>& rows, const Panel<E>& columns) const {
    const uint64_t left = rows.operand(0, 0), right = columns.operand(this->strip_column(0), 0);
    device::warpgroup_fence();
    SPARC_UNROLL
    for (int k = 0; k < Panel<E>::kColumns; k += Products::kDepth) {
      device::warpgroup_multiply_add<E, 16 * kStrips, false, false>(
          accumulators(s), Panel<E>::beside(left, k), Panel<E>::beside(right, k));
    }
    device::warpgroup_commit();
  }

  // A tile [64, P] from value(strip, half, i), which is asked for valid rows of both only; zeros beyond, to
  // the end of its panels.
  template <class Value>
  SPARC_DEVICE void write_tile(const Panel<E>& tile, const Value& value) const {
    const int first_row = device::made_here(this->row(0)), first_column = device::made_here(sum_column(0, 0));
    SPARC_UNROLL
    for (int strip = 0; strip < kStrips; ++strip) {
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int column = this->strip_column(strip) + 8 * half + first_column;
        const device::Shared<uint32_t> words = tile.word_at(first_row, column);
        SPARC_UNROLL
        for (int r = 0; r < 2; ++r) {
          const bool valid = first_row + 8 * r < this->n;
          const float first = value(strip, half, 2 * r), second = value(strip, half, 2 * r + 1);
          words[tile.rows_apart(8 * r) / 2] = device::pack<E>(valid & (column < this->p) ? first : 0.0f,
                                                              valid & (column + 1 < this->p) ? second : 0.0f);
        }
      }
    }
    constexpr int kFirst = 16 * kColumnWarps * kStrips, kWords = (round_up(kFirst, 64) - kFirst) / 2;
    if constexpr (kWords > 0) {
      for (int i = device::thread_index(); i < kPairTextRows * kWords; i += kThreads) {
        *tile.word_at(i / kWords, kFirst + i % kWords * 2) = 0;
      }
    }
  }

  // A tile's rows as operands of products over the image, for all chunks, in registers.
  struct HeldOperand {
    typename Products::A steps[kSteps];
  };
  SPARC_DEVICE void hold(HeldOperand& held, const Panel<E>& tile) const {
    const int i = device::made_here(device::lane_index());
    SPARC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      device::load_matrices(held.steps[step].r,
                            device::address_of(tile.at(this->row0 + i % 16, step * 16 + i / 16 * 8)));
    }
  }

  // Issues c [64, 32] += rows [64, P] V [P, 32 channels of this warpgroup].
  SPARC_DEVICE void times_image(Sums (&c)[kChannels / 16], const HeldOperand& rows,
                                const Panel<E>& image) const {
    const uint64_t right = image.operand(0, first_channel());
    device::warpgroup_fence();
    SPARC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      device::warpgroup_multiply_add<E, kChannels, true>(accumulators(c), rows.steps[step].r,
                                                         Panel<E>::below(right, step * 16));
    }
    device::warpgroup_commit();
  }
};

}  // namespace sparc
