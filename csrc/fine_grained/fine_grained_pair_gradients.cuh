// The fine-grained loss on the pair path by products of single warps: backward pass, and the op. The steps
// are those of fine_grained_pair_backward.cuh.
#pragma once

#include "fine_grained/fine_grained_pair_backward.cuh"

namespace sparc {

// The products of a backward pass by single warps.
template <class E, int kStrips, int kChunk>
struct FineGrainedPairGradients : FineGrainedBackwardParts<FineGrainedPairSteps<E, kStrips, kChunk>> {
  using Base = FineGrainedBackwardParts<FineGrainedPairSteps<E, kStrips, kChunk>>;
  using Products = typename Base::Products;
  using Base::args;
  using Base::Base;
  using Base::shared;

  // 64 registers of operands beside the bits and sums of 256 patches would spill.
  using Held =
      typename std::conditional<(kStrips < 8), typename Base::HeldOperand, typename Base::TileOperand>::type;

  SPARC_DEVICE void start_weights() const {
    this->start([&](int c, int stage) { this->load_for_weights(c, stage); });
  }
  SPARC_DEVICE void start_gradients() const {
    this->start([&](int c, int stage) { this->load_for_gradients(c, stage); });
  }

  // dU (s, in units of dZ) from W, chunk by chunk; C' becomes Q in units of C'.
  SPARC_DEVICE void grad_weights(Sums (&s)[kStrips], float unit) const {
    const Tile<E> dz_tile = shared.grads_tile();
    const auto w_tile = shared.w_tile();
    const float alpha[2] = {this->of_row(shared.alpha, 0), this->of_row(shared.alpha, 1)};
    typename Products::A dz[kTextSteps];
    SPARC_UNROLL
    for (int j = 0; j < kTextSteps; ++j) {
      if (this->active() && j * 16 < this->n) dz[j] = Products::load_a(dz_tile, this->row0, j * 16);
    }
    const auto load = [&](int c, int stage) { this->load_for_weights(c, stage); };
    this->for_chunks(load, [&](int c, int stage) {
      if (this->active()) {
        typename Base::Turns w;
        SPARC_UNROLL
        for (int turn = 0; turn < Base::kTurns; ++turn) {
          this->scale_groups(w[turn], shared.second_tile(stage), this->turn_column(turn), alpha);
        }
        if (args.grad_patches != nullptr) this->save_groups(w, unit, c * kChunk + this->turn_column(0));
        SPARC_UNROLL
        for (int turn = 0; turn < Base::kTurns; ++turn) {
          const int column = this->turn_column(turn);
          SPARC_UNROLL
          for (int j = 0; j < kTextSteps; ++j) {
            if (j * 16 >= this->n) break;
            Products::multiply_add(w[turn], dz[j],
                                   Products::load_b_transposed(shared.text_tile(stage), j * 16, column));
          }
          const RoundedSums<E> rounded(w[turn]);
          SPARC_UNROLL
          for (int e = 0; e < 4; ++e) {
            *w_tile.word_at(this->row(e / 2), column + sum_column(e % 2, 0)) = rounded.words[e / 2][e % 2];
          }
        }
      }
      device::block_barrier();
      this->add_products(s, w_tile, shared.image_tile(stage));
    });
  }

  // s += dZ^T U
  SPARC_DEVICE void add_mixed(Sums (&s)[kStrips]) const {
    if (!this->active()) return;
    SPARC_NO_UNROLL
    for (int l = 0; l < this->n; l += Products::kDepth) {
      const typename Products::A a = Products::load_a_transposed(shared.grads_tile(), l, this->row0);
      SPARC_UNROLL
      for (int strip = 0; strip < kStrips; ++strip) {
        if (this->strip_column(strip) < this->p) {
          Products::multiply_add(
              s[strip], a, Products::load_b_transposed(shared.weights_tile(), l, this->strip_column(strip)));
        }
      }
    }
  }

  // dV and dT, as asked for. x_unit: what X was divided by, unit: what dZ was.
  SPARC_DEVICE void write_gradients(float x_unit, float unit) const {
    const typename Base::ImageGradient patches = this->image_gradient(x_unit, unit);
    const typename Base::TextGradient tokens = this->text_gradient(x_unit);
    Held held;
    if (args.grad_tokens != nullptr) this->hold(held, shared.x_tile());
    const auto load = [&](int c, int stage) { this->load_for_gradients(c, stage); };
    this->for_chunks(load, [&](int c, int stage) {
      if (args.grad_patches != nullptr) this->write_image_gradient(patches, shared.x_tile(), c, stage);
      if (args.grad_tokens == nullptr || !this->active()) return;
      typename Base::Turns x;
      this->times_image(x, held, shared.image_tile(stage));
      this->store_text_gradient(tokens, tokens.share, x, shared.text_tile(stage), c, this->turn_column(0));
    });
  }
};

template <>
struct PairOp<FineGrainedArguments> {
  template <class E, int kChunk>
  using Layout = FineGrainedLayout<E, kChunk>;

  template <class E, int kStrips, int kChunk, bool kBackward>
  SPARC_DEVICE static void run(const FineGrainedArguments& args, const Streaming& streaming,
                               const Layout<E, kChunk>& shared) {
    if constexpr (kBackward) {
      using Pass = FineGrainedPairBackward<FineGrainedPairGradients<E, kStrips, kChunk>>;
      run_backward<Pass>(args, streaming, shared);
    } else {
      run_forward<FineGrainedPairForward<FineGrainedPairSteps<E, kStrips, kChunk>>>(args, streaming, shared);
    }
  }
};

}  // namespace sparc
