// The fine-grained loss on the pair path by products of warpgroups: forward pass.
#pragma once

#include <type_traits>

#include "fine_grained/fine_grained_pair_kernel.cuh"
#include "pairs/warpgroup_tile.cuh"

namespace sparc {

// Shared memory of both passes. In the forward pass Z stands where U stood, which is held in registers by
// then; in the backward pass X takes the place of Z and dZ.
template <class E>
struct FineGrainedPanelLayout : PanelLayout<E>, FineGrainedPlaces {
  int grads;  // dZ [64, 64] E
  int x;      // X [64, P] E
  int ones;   // [8, 64] E, in a forward pass
  int means;  // [stages, 2, 64] E, in a backward pass: the gradients of both means

  static constexpr int kMeanBytes = Panel<E>::kColumns * sizeof(E);

  SPARC_HOST_DEVICE FineGrainedPanelLayout(const PairInputs& in, const Streaming& streaming, bool backward)
      : PanelLayout<E>(in, streaming, backward), FineGrainedPlaces(this->plan) {
    constexpr int kLogitRows =
        round_up(kPairTextRows * kLogitsPitch * 4, Panel<E>::kBoundary) / Panel<E>::kRowBytes;
    const int weight_rows = this->weights_panels() * kPairTextRows;
    if (backward) {
      const int before = kLogitRows + kPairTextRows;
      logits = this->take_panels(weight_rows > before ? weight_rows : before);
    } else {
      logits = weight_rows >= kLogitRows ? this->weights : this->take_panels(kLogitRows);
    }
    grads = logits + kLogitRows * Panel<E>::kRowBytes;
    x = logits;
    ones = backward ? 0 : this->take_panels(8);
    means = backward ? this->plan.take(streaming.stages * 2 * kMeanBytes) : 0;
  }

  SPARC_DEVICE Panel<E> grads_tile() const { return {grads, kPairTextRows}; }
  SPARC_DEVICE Panel<E> x_tile() const { return {x, kPairTextRows}; }
  SPARC_DEVICE Panel<E> ones_tile() const { return {ones, 8}; }
  // A chunk of the gradient of the mean of the image's rows, and, `text`, of the text's.
  SPARC_DEVICE int mean(int stage, bool text) const { return means + (2 * stage + text) * kMeanBytes; }
  SPARC_DEVICE void write_ones() const {
    for (int i = device::thread_index(); i < 8 * Panel<E>::kColumns / 2; i += kThreads) {
      device::shared_at<uint32_t>(ones)[i] = device::pack<E>(1.0f, 1.0f);
    }
  }
};

// Its products by warpgroups.
template <class E, int kStrips, class Layout, class Stream = PanelStream>
struct FineGrainedWarpgroupSteps : FineGrainedPairBase<WarpgroupTile<E, kStrips, Stream>, Layout> {
  using Base = FineGrainedPairBase<WarpgroupTile<E, kStrips, Stream>, Layout>;
  using Products = typename Base::Products;
  using Base::Base;
  using Base::shared;
  using Base::streaming;
  using Base::work;

  // Whether the stream of V and T goes on from one loop over chunks to the next, and to the next pair.
  static constexpr bool kGoesOn = std::is_same<Stream, PanelStream>::value;

  SPARC_DEVICE void start_both() const {
    if constexpr (kGoesOn) {
      PanelStream::start(streaming, this->chunks, [&](int c, int stage) { this->load(c, stage); });
    } else {
      start_visits<Way::kFirst>(both_loader());
    }
  }
  SPARC_DEVICE void start_both_again() const {}  // the way back begins with what is there

  // Passes of a stream that ends with each: load(c, stage, there), compute(c, stage).
  template <Way kWay, class Load>
  SPARC_DEVICE void start_visits(const Load& load) const {
    Stream::template start<kWay>(streaming, this->chunks, load);
  }
  template <Way kWay, class Load, class Compute>
  SPARC_DEVICE void for_visits(const Load& load, const Compute& compute) const {
    Stream::template run<kWay>(streaming, this->chunks, load, compute);
  }

  // s = S; square = this thread's share of |t|^2 of row thread / 4. The same in both passes: the means of a
  // forward pass come with the groups.
  template <bool>
  SPARC_DEVICE void similarities(Sums (&s)[kStrips], float& square) const {
    const int row = device::thread_index() / 4, part = device::thread_index() % 4;
    square = 0.0f;
    const auto compute = [&](int, int stage, const auto& copy) {
      const Panel<E> t = shared.text_tile(stage);
      this->add_products(s, t, shared.image_tile(stage));
      copy();
      if (row >= this->n) return;
      SPARC_UNROLL
      for (int piece = 0; piece < 2; ++piece) {
        const Piece numbers = *device::shared_at<Piece>(t.piece(row, (part + 4 * piece) * 8));
        SPARC_UNROLL
        for (int i = 0; i < 8; ++i) {
          const float x = device::to_float(E{static_cast<uint16_t>(numbers.words[i / 2] >> (i % 2 * 16))});
          square += x * x;
        }
      }
    };
    if constexpr (kGoesOn) {
      const auto load = [&](int c, int stage) { this->load(c, stage); };
      PanelStream::there(streaming, mirrored(), this->chunks, load, compute);
    } else {
      for_both<Way::kFirst>(compute);
    }
    device::warpgroup_hold(accumulators(s));
  }

  // The groups of all chunks in C' units: f(c, chunk, column) with this warp's sums from `column` on. z
  // becomes what this warpgroup's channels give to C' T^T.
  template <class F>
  SPARC_DEVICE void groups(const typename Base::HeldOperand& left, float unit, typename Base::TextSums& z,
                           const F& f) const {
    group_chunks<false>([&](const auto& compute) { for_both<Way::kBack>(compute); }, left, unit, z, f);
  }
  // The same in a stream that goes on with the pair `following`. On the way the means, if they are asked for.
  template <class F>
  SPARC_DEVICE void groups_before(const PairWork& following, const typename Base::HeldOperand& left,
                                  float unit, typename Base::TextSums& z, const F& f) const {
    // the sums of one side cost less than the registers of a second loop
    if (kSides == 1 || this->args.pooled_patches != nullptr || this->args.pooled_tokens != nullptr) {
      groups_before<true>(following, left, unit, z, f);
    } else {
      groups_before<false>(following, left, unit, z, f);
    }
  }

 private:
  template <bool kPool, class F>
  SPARC_DEVICE void groups_before(const PairWork& following, const typename Base::HeldOperand& left,
                                  float unit, typename Base::TextSums& z, const F& f) const {
    const auto load = [&](int c, int stage) { this->load(c, stage); };
    const auto load_next = [&](int c, int stage) {
      if (following.pair < this->args.in.pairs) {
        FineGrainedWarpgroupSteps(shared, this->args, streaming, following).load(c, stage);
      }
    };
    group_chunks<kPool>(
        [&](const auto& compute) {
          PanelStream::back(streaming, mirrored(), this->chunks, load, load_next, compute);
        },
        left, unit, z, f);
  }

  SPARC_DEVICE bool mirrored() const { return work.buffer != 0; }
  // compute(c, stage, copy) for every chunk of V and T.
  template <Way kWay, class Compute>
  SPARC_DEVICE void for_both(const Compute& compute) const {
    for_visits<kWay>(both_loader(), [&](int c, int stage) { compute(c, stage, [] {}); });
  }
  SPARC_DEVICE auto both_loader() const {
    return [this](int c, int stage, bool there) {
      if (!there) this->load(c, stage);
    };
  }
  static constexpr int kTurns = Base::kChannels / 16;
  // Sides whose rows a warpgroup adds up for the means: its own where both are as long, else both, since a
  // branch would wait for the products under way.
  static constexpr int kSides = Base::kSteps == kTextSteps ? 1 : 2;

  // Issues the sums over `kSteps` times 16 rows of a chunk, as products with ones: c[0] belongs to channel
  // row(0) of the chunk, c[2] to row(1). Rows beyond the valid ones are zeros.
  template <int kSteps>
  SPARC_DEVICE void add_rows(float (&c)[4], const Panel<E>& rows) const {
    const uint64_t left = rows.operand(0, 0), ones = shared.ones_tile().operand(0, 0);
    SPARC_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      device::warpgroup_multiply_add<E, 8, true, false>(c, Panel<E>::below(left, step * 16), ones);
    }
  }
  // The mean of `count` rows from these sums, in a row of `out` [B, D]; nothing where `out` is null.
  SPARC_DEVICE void store_mean(const float (&sums)[4], int count, int chunk, int64_t item, void* out) const {
    if (out == nullptr || device::lane_index() % 4 != 0) return;
    const int channels = this->args.in.channels;
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int channel = chunk * Base::kChunk + this->row(half);
      if (channel < channels) {
        static_cast<E*>(out)[item * channels + channel] =
            device::from_float<E>(sums[2 * half] / static_cast<float>(count));
      }
    }
  }

  template <bool kPool, class Run, class F>
  SPARC_DEVICE void group_chunks(const Run& run, const typename Base::HeldOperand& left, float unit,
                                 typename Base::TextSums& z, const F& f) const {
    run([&](int chunk, int stage, const auto& copy) {
      const Panel<E> t = shared.text_tile(stage);
      Sums c[kTurns] = {};
      float sums[kSides][4] = {};
      this->times_image(c, left, shared.image_tile(stage));
      if constexpr (kPool) {
        const Panel<E> image = shared.image_tile(stage);
        if constexpr (kSides == 1) {
          add_rows<kTextSteps>(sums[0], this->column_warp == 0 ? image : t);
        } else {
          add_rows<Base::kSteps>(sums[0], image);
          add_rows<kTextSteps>(sums[1], t);
        }
        device::warpgroup_commit();
      }
      copy();
      device::warpgroup_wait<kPool ? 1 : 0>();
      device::warpgroup_hold(accumulators(c));
      typename Products::A high[kTurns], low[kTurns];
      SPARC_UNROLL
      for (int turn = 0; turn < kTurns; ++turn) {
        if (kIsFloat16<E>) {
          SPARC_UNROLL
          for (int i = 0; i < 8; ++i) c[turn][i / 4][i % 4] *= unit;
        }
        high[turn] = Products::as_operand(c[turn]);
        low[turn] = Products::rest_as_operand(c[turn]);
      }
      const uint64_t text = t.operand(0, this->first_channel());
      device::warpgroup_fence();
      SPARC_UNROLL
      for (int turn = 0; turn < kTurns; ++turn) {
        const uint64_t b = Panel<E>::beside(text, 16 * turn);
        device::warpgroup_multiply_add<E, kPairTextRows, false>(accumulators(z), high[turn].r, b);
        device::warpgroup_multiply_add<E, kPairTextRows, false>(accumulators(z), low[turn].r, b);
      }
      device::warpgroup_commit();
      f(c, chunk, this->first_channel());
      if constexpr (kPool) {
        device::warpgroup_wait<1>();
        for (float (&of_side)[4] : sums) device::warpgroup_hold(of_side);
        if (this->column_warp == 0) {
          store_mean(sums[0], this->p, chunk, work.image, this->args.pooled_patches);
        } else {
          store_mean(sums[kSides - 1], this->n, chunk, work.text, this->args.pooled_tokens);
        }
      }
    });
    device::warpgroup_hold(accumulators(z));
  }
};

}  // namespace sparc
