// The gradients of both sides of a pair by products of warpgroups, a chunk of channels at a time.
#pragma once

#include "pairs/pair_pass.cuh"
#include "pairs/warpgroup_tile.cuh"

namespace sparc {

// `Steps`: a PairPass by a WarpgroupTile, whose layout has x_tile().
template <class Steps>
struct WarpgroupGradients : Steps {
  using Base = Steps;
  using E = typename Base::E;
  using Products = typename Base::Products;
  using Base::Base;
  using Base::shared;

  static constexpr int kOwnStrips = Base::kChannels / 16;  // sums [64, 32] of this warpgroup's channels
  using TextGradientSums = Sums[kOwnStrips];

  // A chunk of x_unit X^T T + weights^T second (or, without a second, of X^T T): store_image(sums, row,
  // channel) with 16 rows of the image from `row` on; and of X V: store_text(sums, channel) with this warp's
  // rows. Both are worked out, since a branch around products under way would wait for them. copy() is called
  // behind the products.
  template <bool kWithSecond, class Copy, class StoreImage, class StoreText>
  SPARC_DEVICE void chunk_gradients(int stage, float x_unit, const Copy& copy, const StoreImage& store_image,
                                    const StoreText& store_text) const {
    Sums of_image[kImageTurns][kImageStrips] = {};
    TextGradientSums of_text = {};
    SPARC_UNROLL
    for (int turn = 0; turn < kImageTurns; ++turn) {
      multiply_image<kWithSecond>(of_image[turn], turn, stage, x_unit);
    }
    multiply_text(of_text, stage);
    copy();
    SPARC_UNROLL
    for (int turn = 0; turn < kImageTurns; ++turn) {
      if (turn + 1 < kImageTurns) {
        device::warpgroup_wait<kImageTurns>();
      } else {
        device::warpgroup_wait<1>();
      }
      device::warpgroup_hold(accumulators(of_image[turn]));
      store_image(of_image[turn], image_row(turn) + this->row0, image_channel());
    }
    device::warpgroup_wait<0>();
    device::warpgroup_hold(accumulators(of_text));
    store_text(of_text, this->first_channel());
  }

 private:
  // The image's comes 64 rows at a time. The warpgroups take turns of these, or share the channels of the
  // only one.
  static constexpr int kImageTiles = (16 * Base::kSteps + 63) / 64;
  static constexpr bool kInTurns = kImageTiles > 1;
  static constexpr int kImageTurns = kInTurns ? kImageTiles / kColumnWarps : 1;
  static constexpr int kImageStrips = kInTurns ? Panel<E>::kColumns / 16 : kOwnStrips;
  static_assert(!kInTurns || kImageTiles == kColumnWarps * kImageTurns, "turns of both");
  static_assert(kImageTurns <= 2, "wait_group takes a constant");
  SPARC_DEVICE int image_row(int turn) const {
    return kInTurns ? (turn * kColumnWarps + this->column_warp) * 64 : 0;
  }
  SPARC_DEVICE int image_channel() const { return kInTurns ? 0 : this->first_channel(); }

  // Issues c = x_unit X^T T + weights^T second for 64 rows, as a group; without the second c = X^T T.
  template <bool kWithSecond>
  SPARC_DEVICE void multiply_image(Sums (&c)[kImageStrips], int turn, int stage, float x_unit) const {
    const auto add = [&](const Panel<E>& left, const Panel<E>& right) {
      const uint64_t a = left.operand(0, image_row(turn)), b = right.operand(0, image_channel());
      SPARC_UNROLL
      for (int k = 0; k < kPairTextRows; k += Products::kDepth) {
        device::warpgroup_multiply_add<E, 16 * kImageStrips, true, true>(
            accumulators(c), Panel<E>::below(a, k), Panel<E>::below(b, k));
      }
    };
    device::warpgroup_fence();
    add(shared.x_tile(), shared.text_tile(stage));
    if constexpr (kWithSecond && kIsFloat16<E>) {
      device::warpgroup_commit();
      device::warpgroup_wait<0>();
      device::warpgroup_hold(accumulators(c));
      SPARC_UNROLL
      for (int i = 0; i < 8 * kImageStrips; ++i) accumulators(c)[i] *= x_unit;
      device::warpgroup_fence();
    }
    if constexpr (kWithSecond) add(shared.weights_tile(), shared.second_tile(stage));
    device::warpgroup_commit();
  }

  // Issues c [64, 32] = X V for the channels of this warpgroup, as a group. X comes from shared memory: there
  // are no registers for it beside the sums of the image.
  SPARC_DEVICE void multiply_text(TextGradientSums& c, int stage) const {
    const uint64_t rows = shared.image_tile(stage).operand(0, this->first_channel());
    device::warpgroup_fence();
    SPARC_UNROLL
    for (int panel = 0; panel < kImageTiles; ++panel) {
      const uint64_t x = shared.x_tile().operand(0, panel * 64);
      SPARC_UNROLL
      for (int k = 0; k < 64; k += Products::kDepth) {
        if (panel * 64 + k < 16 * Base::kSteps) {
          device::warpgroup_multiply_add<E, Base::kChannels, false, true>(
              accumulators(c), Panel<E>::beside(x, k), Panel<E>::below(rows, panel * 64 + k));
        }
      }
    }
    device::warpgroup_commit();
  }
};

}  // namespace sparc
