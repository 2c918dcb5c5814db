// The fine-grained loss on the pair path by products of warpgroups: backward pass. The steps are those of
// fine_grained_pair_backward.cuh; C' and Q come into shared memory with the chunks that need them.
//
// Both warpgroups make all of W = dZ T + Q: each needs all channels of it for its own patches, and the
// product is a small one.
#pragma once

#include "fine_grained/fine_grained_pair_backward.cuh"
#include "fine_grained/fine_grained_warpgroup_kernel.cuh"
#include "pairs/warpgroup_gradients.cuh"

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
    : WarpgroupGradients<
          FineGrainedBackwardParts<FineGrainedWarpgroupSteps<E, kStrips, Layout, FinishedPanelStream>>> {
  using Base = WarpgroupGradients<
      FineGrainedBackwardParts<FineGrainedWarpgroupSteps<E, kStrips, Layout, FinishedPanelStream>>>;
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

  // dV and dT, as asked for. x_unit: what X was divided by, unit: what dZ was.
  SPARC_DEVICE void write_gradients(float x_unit, float unit) const {
    const typename Base::ImageGradient patches = this->image_gradient(x_unit, unit);
    const typename Base::TextGradient tokens = this->text_gradient(x_unit);
    this->template for_visits<Way::kBack>(gradients_loader(), [&](int c, int stage) {
      const int first = c * Base::kChunk;
      const StagedShare<E> patch_share = {patches.share, shared.mean(stage, false), first},
                           token_share = {tokens.share, shared.mean(stage, true), first};
      this->template chunk_gradients<true>(
          stage, x_unit, [] {},
          [&](const auto& sums, int row, int channel) {
            if (args.grad_patches != nullptr) {
              this->store_image_gradient(patches, patch_share, sums, row, first + channel);
            }
          },
          [&](const auto& sums, int channel) {
            if (args.grad_tokens != nullptr) {
              this->store_text_gradient(tokens, token_share, sums, shared.text_tile(stage), c, channel);
            }
          });
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

  static constexpr int kOwnStrips = Base::kOwnStrips;
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
