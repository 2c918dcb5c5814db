// The fine-grained loss on the pair path by products of warpgroups: backward pass. The steps are those of
// fine_grained_pair_backward.cuh; C' and Q come into shared memory with the chunks that need them.
//
// Both warpgroups make all of W = dZ T + Q: each needs all channels of it for its own patches, and the
// product is a small one.
#pragma once

#include "fine_grained/fine_grained_pair_backward.cuh"
#include "fine_grained/fine_grained_warpgroup_kernel.cuh"

namespace sparc {

// A MeanShare whose gradient is in shared memory, as far as a chunk's channels go. Read from global memory
// where it is needed, it took a fifth of the pass.
template <class E>
struct StagedShare {
  const MeanShare<E>& share;
  int begin;  // of its chunk, in bytes from the start of shared memory
  int first;  // channel

  SPARC_DEVICE bool is_there() const { return share.is_there(); }
  template <bool>
  SPARC_DEVICE void two_at(int column, float (&each)[2]) const {
    share.unpack(device::shared_at<uint32_t>(begin)[(column - first) / 2], each);
  }
};

// The products of a backward pass by warpgroups.
template <class E, int kStrips, class Layout>
struct FineGrainedWarpgroupGradients
    : FineGrainedBackwardParts<FineGrainedWarpgroupSteps<E, kStrips, Layout, FinishedPanelStream>> {
  using Base = FineGrainedBackwardParts<FineGrainedWarpgroupSteps<E, kStrips, Layout, FinishedPanelStream>>;
  using Products = typename Base::Products;
  using Base::args;
  using Base::Base;
  using Base::shared;
  using Held = typename Base::HeldOperand;

  SPARC_DEVICE void start_weights() const { this->template start_visits<Way::kForth>(weights_loader()); }
  SPARC_DEVICE void start_gradients() const { this->template start_visits<Way::kBack>(gradients_loader()); }

  // dU (s, in units of dZ) from W, chunk by chunk; C' becomes Q in units of C'.
  SPARC_DEVICE void grad_weights(Sums (&s)[kStrips], float unit) const {
    constexpr int kTurns = Panel<E>::kColumns / 16;
    const float alpha[2] = {this->of_row(shared.alpha, 0), this->of_row(shared.alpha, 1)};
    this->template for_visits<Way::kForth>(weights_loader(), [&](int c, int stage) {
      const Panel<E> t = shared.text_tile(stage), v = shared.image_tile(stage),
                     groups = shared.second_tile(stage);
      Sums w[kTurns];
      SPARC_UNROLL
      for (int turn = 0; turn < kTurns; ++turn) {
        this->scale_groups(w[turn], groups, turn * 16, alpha);
      }
      Sums q[kOwnStrips];  // of the channels of this warpgroup
      SPARC_UNROLL
      for (int i = 0; i < 8 * kOwnStrips; ++i) {
        accumulators(q)[i] =
            this->column_warp == 0 ? accumulators(w)[i] : accumulators(w)[i + 8 * kOwnStrips];
      }
      const uint64_t dz = shared.grads_tile().operand(0, 0), tokens = t.operand(0, 0),
                     patches = v.operand(this->strip_column(0), 0);
      device::warpgroup_fence();
      SPARC_UNROLL
      for (int k = 0; k < kTextSteps; ++k) {
        device::warpgroup_multiply_add<E, Panel<E>::kColumns, false, true>(
            accumulators(w), Panel<E>::beside(dz, k * 16), Panel<E>::below(tokens, k * 16));
      }
      device::warpgroup_commit();
      if (args.grad_patches != nullptr) {
        this->save_groups(q, unit, c * this->streaming.chunk + this->first_channel());
      }
      device::warpgroup_wait<0>();
      device::warpgroup_hold(accumulators(w));
      typename Products::A rounded[kTurns];
      SPARC_UNROLL
      for (int turn = 0; turn < kTurns; ++turn) rounded[turn] = Products::as_operand(w[turn]);
      device::warpgroup_fence();
      SPARC_UNROLL
      for (int turn = 0; turn < kTurns; ++turn) {
        device::warpgroup_multiply_add<E, 16 * kStrips, false>(accumulators(s), rounded[turn].r,
                                                               Panel<E>::beside(patches, turn * 16));
      }
      device::warpgroup_commit();
    });
    device::warpgroup_hold(accumulators(s));
  }

  // s += dZ^T U
  SPARC_DEVICE void add_mixed(Sums (&s)[kStrips]) const {
    typename Products::A dz[kTextSteps];
    SPARC_UNROLL
    for (int k = 0; k < kTextSteps; ++k) {
      dz[k] = Products::load_a_transposed(shared.grads_tile(), k * 16, this->row0);
    }
    // not into s itself: the assembler finds no registers for sums of both widths, and waits for each product
    Sums products[kStrips] = {};
    device::warpgroup_fence();
    SPARC_UNROLL
    for (int strip = 0; strip < kStrips; ++strip) {
      const uint64_t weights = shared.weights_tile().operand(0, this->strip_column(strip));
      SPARC_UNROLL
      for (int k = 0; k < kTextSteps; ++k) {
        device::warpgroup_multiply_add<E, 16, true>(accumulators(products[strip]), dz[k].r,
                                                    Panel<E>::below(weights, k * 16));
      }
    }
    device::warpgroup_commit();
    device::warpgroup_wait<0>();
    device::warpgroup_hold(accumulators(products));
    SPARC_UNROLL
    for (int i = 0; i < 8 * kStrips; ++i) accumulators(s)[i] += accumulators(products)[i];
  }

  // dV and dT, as asked for; both are worked out, since a branch around products under way would wait for
  // them. x_unit: what X was divided by, unit: what dZ was.
  SPARC_DEVICE void write_gradients(float x_unit, float unit) const {
    const typename Base::ImageGradient patches = this->image_gradient(x_unit, unit);
    const typename Base::TextGradient tokens = this->text_gradient(x_unit);
    this->template for_visits<Way::kBack>(gradients_loader(), [&](int c, int stage) {
      const int first = c * Base::kChunk;
      const StagedShare<E> patch_share = {patches.share, shared.mean(stage, false), first},
                           token_share = {tokens.share, shared.mean(stage, true), first};
      Sums dv[kPatchTurns][kPatchStrips] = {};
      Sums dt[kOwnStrips] = {};
      SPARC_UNROLL
      for (int turn = 0; turn < kPatchTurns; ++turn) multiply_patches(dv[turn], turn, stage, x_unit);
      multiply_tokens(dt, stage);
      SPARC_UNROLL
      for (int turn = 0; turn < kPatchTurns; ++turn) {
        if (turn + 1 < kPatchTurns) {
          device::warpgroup_wait<kPatchTurns>();
        } else {
          device::warpgroup_wait<1>();
        }
        device::warpgroup_hold(accumulators(dv[turn]));
        if (args.grad_patches != nullptr) {
          this->store_image_gradient(patches, patch_share, dv[turn], patch_row(turn) + this->row0,
                                     first + patch_channel());
        }
      }
      device::warpgroup_wait<0>();
      device::warpgroup_hold(accumulators(dt));
      if (args.grad_tokens != nullptr) {
        this->store_text_gradient(tokens, token_share, dt, shared.text_tile(stage), c, this->first_channel());
      }
    });
  }

 private:
  SPARC_DEVICE auto weights_loader() const {
    return [this](int c, int stage, bool there) { this->load_for_weights(c, stage, there); };
  }
  SPARC_DEVICE auto gradients_loader() const {
    return [this](int c, int stage, bool there) {
      this->load_for_gradients(c, stage, there);
      load_means(c, stage);
    };
  }
  // A chunk of the gradients of both means, those that are there: a piece to a thread.
  SPARC_DEVICE void load_means(int c, int stage) const {
    constexpr int kPieces = Panel<E>::kColumns / 8;
    const int i = device::thread_index(), channel = c * Base::kChunk + i % kPieces * 8;
    if (i >= 2 * kPieces) return;
    const void* const means = i < kPieces ? args.grad_pooled_patches : args.grad_pooled_tokens;
    if (means == nullptr) return;
    const int64_t item = i < kPieces ? this->work.image : this->work.text;
    const device::Shared<Piece> to = device::shared_at<Piece>(shared.mean(stage, i >= kPieces));
    device::copy_async_if(channel < args.in.channels, device::address_of(to + i % kPieces),
                          static_cast<const E*>(means) + (item * args.in.channels + channel));
  }

  static constexpr int kTextSteps = kPairTextRows / 16;
  static constexpr int kOwnStrips = Base::kChannels / 16;
  // dV comes 64 patches at a time. The warpgroups take turns of these, or share the channels of the only one.
  static constexpr int kPatchTiles = (kColumnWarps * 16 * kStrips + 63) / 64;
  static constexpr bool kInTurns = kPatchTiles > 1;
  static constexpr int kPatchTurns = kInTurns ? kPatchTiles / kColumnWarps : 1;
  static constexpr int kPatchStrips = kInTurns ? Panel<E>::kColumns / 16 : kOwnStrips;
  static_assert(!kInTurns || kPatchTiles == kColumnWarps * kPatchTurns, "turns of both");
  static_assert(kPatchTurns <= 2, "wait_group takes a constant");
  SPARC_DEVICE int patch_row(int turn) const {
    return kInTurns ? (turn * kColumnWarps + this->column_warp) * 64 : 0;
  }
  SPARC_DEVICE int patch_channel() const { return kInTurns ? 0 : this->first_channel(); }

  // Issues c = x_unit X^T T + U^T Q for 64 patches, as a group.
  SPARC_DEVICE void multiply_patches(Sums (&c)[kPatchStrips], int turn, int stage, float x_unit) const {
    const auto add = [&](const Panel<E>& left, const Panel<E>& right) {
      const uint64_t a = left.operand(0, patch_row(turn)), b = right.operand(0, patch_channel());
      SPARC_UNROLL
      for (int k = 0; k < kPairTextRows; k += Products::kDepth) {
        device::warpgroup_multiply_add<E, 16 * kPatchStrips, true, true>(
            accumulators(c), Panel<E>::below(a, k), Panel<E>::below(b, k));
      }
    };
    device::warpgroup_fence();
    add(shared.x_tile(), shared.text_tile(stage));
    if constexpr (kIsFloat16<E>) {
      device::warpgroup_commit();
      device::warpgroup_wait<0>();
      device::warpgroup_hold(accumulators(c));
      SPARC_UNROLL
      for (int i = 0; i < 8 * kPatchStrips; ++i) accumulators(c)[i] *= x_unit;
      device::warpgroup_fence();
    }
    add(shared.weights_tile(), shared.second_tile(stage));
    device::warpgroup_commit();
  }

  // Issues c [64, 32] = X V for the channels of this warpgroup, as a group. X comes from shared memory: there
  // are no registers for it beside the sums of dV.
  SPARC_DEVICE void multiply_tokens(Sums (&c)[kOwnStrips], int stage) const {
    const uint64_t patches = shared.image_tile(stage).operand(0, this->first_channel());
    device::warpgroup_fence();
    SPARC_UNROLL
    for (int panel = 0; panel < kPatchTiles; ++panel) {
      const uint64_t x = shared.x_tile().operand(0, panel * 64);
      SPARC_UNROLL
      for (int k = 0; k < 64; k += Products::kDepth) {
        if (panel * 64 + k < 16 * Base::kSteps) {
          device::warpgroup_multiply_add<E, Base::kChannels, false, true>(
              accumulators(c), Panel<E>::beside(x, k), Panel<E>::below(patches, panel * 64 + k));
        }
      }
    }
    device::warpgroup_commit();
  }
};

template <>
struct WarpgroupOp<FineGrainedArguments> {
  template <class E>
  using Layout = FineGrainedPanelLayout<E>;

  template <class E, int kStrips, bool kBackward>
  SPARC_DEVICE static void run(const FineGrainedArguments& args, const Streaming& streaming,
                               const Layout<E>& shared) {
    if constexpr (kBackward) {
      using Pass = FineGrainedPairBackward<FineGrainedWarpgroupGradients<E, kStrips, Layout<E>>>;
      run_backward<Pass>(args, streaming, shared);
    } else {
      using Pass = FineGrainedPairForward<FineGrainedWarpgroupSteps<E, kStrips, Layout<E>>>;
      shared.write_ones();
      run_forward<Pass>(args, streaming, shared);
    }
  }
};

}  // namespace sparc
