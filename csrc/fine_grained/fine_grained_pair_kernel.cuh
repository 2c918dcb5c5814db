// The fine-grained loss on the pair path (pairs/pair_tile.cuh): forward pass. Names follow MATH.md.
//
// Products of size L x P x D: forward 2 (S, C'), backward 6 (S, C', dU, X^T T, U^T Q, X V). Z is C' T^T with
// C' in two halves: it then carries the rounding of U alone, as C' does (docs/performance_log.md).
#pragma once

#include "alignment/pair_alignment.cuh"
#include "fine_grained/fine_grained_rows.cuh"

namespace sparc {

// What every layout has for both passes.
struct FineGrainedPlaces {
  static constexpr int kLogitsPitch = kPairTextRows + 4;

  int group_norm, token_norm, row_lse, column_lse, upstream, alpha, beta, restore;  // [64] float each
  int inverse_norm;  // 1 / token_norm in a forward pass, which has no use for `restore`
  int logits;        // Z [64, 64] float

  SPARC_HOST_DEVICE explicit FineGrainedPlaces(Plan<int>& plan) {
    int* const rows[] = {&group_norm, &token_norm, &row_lse, &column_lse, &upstream, &alpha, &beta, &restore};
    for (int* offset : rows) *offset = plan.take(kPairTextRows * 4);
    inverse_norm = restore;
  }

  SPARC_DEVICE device::Shared<float> z(int row, int column) const {
    return device::shared_at<float>(logits) + (row * kLogitsPitch + column);
  }
};

// Shared memory of both passes. Matrices of tokens by tokens come and go in one region.
template <class E, int kChunk>
struct FineGrainedLayout : PairLayout<E, kChunk>, FineGrainedPlaces {
  int grads;  // dZ [64, 64] E; in a backward pass W [64, chunk] E stands before it, where Z stood
  int x;      // X [64, P] E, where Z, W and dZ stood
  int grads_pitch;

  SPARC_HOST_DEVICE FineGrainedLayout(const PairInputs& in, const Streaming& streaming, bool backward)
      : PairLayout<E, kChunk>(in, streaming, backward), FineGrainedPlaces(this->plan) {
    Plan<int>& plan = this->plan;
    const int tokens = round_up(at_most(in.text_rows, kPairTextRows), 16);
    logits = plan.take(tokens * kLogitsPitch * 4);
    grads_pitch = tokens + Tile<E>::kPad;
    grads = x = logits;
    if (!backward) return;
    const int64_t pitch = this->kChunkPitch, w_bytes = tokens * pitch * static_cast<int64_t>(sizeof(E));
    const int64_t logit_bytes = tokens * kLogitsPitch * 4;
    if (w_bytes > logit_bytes) plan.take(w_bytes - logit_bytes);
    grads = plan.take(tokens * grads_pitch * sizeof(E));
    const int64_t x_bytes = tokens * this->weights_pitch * static_cast<int64_t>(sizeof(E)),
                  so_far = plan.used - x;
    if (x_bytes > so_far) plan.take(x_bytes - so_far);
  }

  SPARC_DEVICE Tile<E> grads_tile() const { return {grads, grads_pitch}; }
  SPARC_DEVICE typename PairLayout<E, kChunk>::ChunkTile w_tile() const {
    return typename PairLayout<E, kChunk>::ChunkTile(logits);
  }
  SPARC_DEVICE Tile<E> x_tile() const { return {x, this->weights_pitch}; }
};

// The parts that both passes share, for one pair, whatever its products are made of.
template <class Tile_, class Layout>
struct FineGrainedPairBase : AlignmentPass<Tile_, Layout, FineGrainedArguments> {
  using Base = AlignmentPass<Tile_, Layout, FineGrainedArguments>;
  using E = typename Base::E;
  // [16, 64]: this warp's rows of Z, over its share of the channels
  using TextSums = Sums[kPairTextRows / 16];
  using Base::args;
  using Base::Base;
  using Base::kChunk;
  using Base::shared;
  using Base::work;

  SPARC_DEVICE void load(int c, int stage) const {
    this->load_image(c, stage);
    this->load_text(c, stage);
  }

  SPARC_DEVICE device::Shared<float> row_array(int offset) const { return device::shared_at<float>(offset); }

  // Row of the [B, L] results for token `row` of the gathered ones.
  SPARC_DEVICE int64_t result_at(int row) const {
    return work.text * args.in.text_rows + this->text_index()[row];
  }

  // The mean of `count` gathered rows, `chunk` of its channels: 8 of them to a warp.
  template <class From>
  SPARC_DEVICE void pool(const From& rows, int count, int first, int64_t item, void* out) const {
    const int lane = device::lane_index(), column = device::warp_index() * 8 + lane % 8;
    if (out == nullptr || device::warp_index() * 8 >= kChunk) return;
    float total = 0.0f;
    SPARC_NO_UNROLL
    for (int row = lane / 8; row < count; row += 4) total += rows.get(row, column);
    total += device::shuffle_xor(total, 8);
    total += device::shuffle_xor(total, 16);
    if (lane < 8 && first + column < args.in.channels) {
      static_cast<E*>(out)[item * args.in.channels + first + column] =
          device::from_float<E>(total / static_cast<float>(count));
    }
  }

  SPARC_DEVICE void pool_chunk(int c, int stage) const {
    pool(shared.image_tile(stage), this->p, c * kChunk, work.image, args.pooled_patches);
    pool(shared.text_tile(stage), this->n, c * kChunk, work.text, args.pooled_tokens);
  }

  // Z of both column warps together, in shared memory.
  SPARC_DEVICE void write_logits(const TextSums& z) const {
    for (int c = 0; c < kColumnWarps; ++c) {
      if (this->column_warp == c && this->active()) {
        SPARC_UNROLL
        for (int j = 0; j < kPairTextRows / 16; ++j) {
          if (j * 16 >= this->n) continue;
          SPARC_UNROLL
          for (int e = 0; e < 8; ++e) {
            const device::Shared<float> at =
                shared.z(this->row(e % 4 / 2), j * 16 + sum_column(e / 4, e % 4));
            *at = c == 0 ? z[j][e / 4][e % 4] : *at + z[j][e / 4][e % 4];
          }
        }
      }
      device::block_barrier();
    }
  }
};

// Its products by single warps.
template <class E, int kStrips, int kChunk>
struct FineGrainedPairSteps
    : FineGrainedPairBase<PairTile<E, kStrips, kChunk>, FineGrainedLayout<E, kChunk>> {
  using Base = FineGrainedPairBase<PairTile<E, kStrips, kChunk>, FineGrainedLayout<E, kChunk>>;
  using Products = typename Base::Products;
  using Base::Base;
  using Base::kTurns;
  using Base::shared;
  static constexpr bool kGoesOn = false;  // its stream, from one loop over chunks to the next

  SPARC_DEVICE void start_both() const {
    this->start([&](int c, int stage) { this->load(c, stage); });
  }
  SPARC_DEVICE void start_both_again() const { start_both(); }  // from L2
  // compute(c, stage) for every chunk of V and T.
  template <class Compute>
  SPARC_DEVICE void for_both(const Compute& compute) const {
    this->for_chunks([&](int c, int stage) { this->load(c, stage); }, compute);
  }

  // s = S; square = this thread's share of |t|^2 of row thread / 4. On the way the means, if `kForward`, and
  // these squares: the diagonal of T T^T, by the warps that may have a strip less.
  template <bool kForward>
  SPARC_DEVICE void similarities(Sums (&s)[kStrips], float& square) const {
    Sums squares = {};
    this->for_both([&](int c, int stage) {
      this->add_products(s, shared.text_tile(stage), shared.image_tile(stage), [&](const auto& a) {
        if (kForward && this->column_warp == kColumnWarps - 1) {
          Products::multiply_add(squares, a, Products::transposed(a));
        }
      });
      if (kForward) this->pool_chunk(c, stage);
    });
    square = 0.0f;
    if constexpr (kForward) {
      const device::Shared<float> of_rows = this->row_array(shared.token_norm);
      if (this->column_warp == kColumnWarps - 1) {
        for_diagonal(squares, [&](int row, float value) { of_rows[this->row0 + row] = value; });
      }
      device::block_barrier();
      if (device::thread_index() % 4 == 0) square = of_rows[device::thread_index() / 4];
    }
  }

  // The groups of a chunk in C' units: f(c, column) with this warp's [16, 16] at `column`. Adds to z what
  // these channels give to C' T^T.
  template <class Left, class F>
  SPARC_DEVICE void group_chunk(const Left& left, int stage, float unit, typename Base::TextSums& z,
                                const F& f) const {
    const auto t = shared.text_tile(stage);
    typename Base::Turns c;
    this->times_image(c, left, shared.image_tile(stage));
    SPARC_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      if constexpr (kIsFloat16<E>) {  // 1 in others
        SPARC_UNROLL
        for (int i = 0; i < 8; ++i) c[turn][i / 4][i % 4] *= unit;
      }
      const typename Products::A high = Products::as_operand(c[turn]),
                                 low = Products::rest_as_operand(c[turn]);
      SPARC_UNROLL
      for (int j = 0; j < kPairTextRows / 16; ++j) {
        if (j * 16 < this->n) {
          const typename Products::B b = Products::load_b(t, j * 16, this->turn_column(turn));
          Products::multiply_add(z[j], high, b);
          Products::multiply_add(z[j], low, b);
        }
      }
    }
    f(c, this->turn_column(0));
  }

  // The groups of all chunks, as group_chunk gives them: f(c, chunk, column).
  template <class Left, class F>
  SPARC_DEVICE void groups(const Left& left, float unit, typename Base::TextSums& z, const F& f) const {
    this->for_both([&](int chunk, int stage) {
      if (!this->active()) return;
      group_chunk(left, stage, unit, z, [&](const auto& c, int column) { f(c, chunk, column); });
    });
  }
};

// `Steps`: a FineGrainedPairBase with its products.
template <class Steps>
struct FineGrainedPairForward : Steps {
  using Base = Steps;
  using E = typename Base::E;
  using Base::args;
  using Base::Base;
  using Base::shared;

  // Everything up to Z, the norms and the extrema of the rows; next() gives the pair to go on with, and is
  // called when the stages are free or, in a stream that goes on, when they are about to be.
  template <class Next>
  SPARC_DEVICE PairWork compare(const Next& next) const {
    typename Base::Strips s = {};
    float square;
    this->template similarities<true>(s, square);
    this->start_both_again();

    const typename Base::Alignments aligned = this->align(s);
    this->write_weights(s, aligned);
    square = quad_sum(square);
    const int row = device::thread_index() / 4;
    if (device::thread_index() % 4 == 0 && row < this->n) {
      const float norm = clamped_norm(square);
      this->row_array(shared.token_norm)[row] = norm;
      this->row_array(shared.inverse_norm)[row] = 1.0f / norm;
    }
    this->for_held_rows([&](int half, int l) {
      float* const stat = args.stats + this->result_at(l);
      stat[kFirstOfRow * args.stats_stride] = aligned.rows[half].low;
      stat[kSecondOfRow * args.stats_stride] = aligned.rows[half].high;
    });
    device::block_barrier();

    typename Base::HeldOperand held;
    this->hold(held, shared.weights_tile());
    typename Base::TextSums z = {};
    typename Base::RowPair group_square = {0.0f, 0.0f};
    const float unit = group_unit<E>(this->p);
    const auto add_squares = [&](const auto& sums, int, int) {
      for (const Sums& c : sums) {
        SPARC_UNROLL
        for (int e = 0; e < 8; ++e) group_square[e % 4 / 2] += c[e / 4][e % 4] * c[e / 4][e % 4];
      }
    };
    PairWork following;
    if constexpr (Base::kGoesOn) {
      following = next();
      this->groups_before(following, held, unit, z, add_squares);
    } else {
      this->groups(held, unit, z, add_squares);
      following = next();
    }
    this->sum_across(group_square, 0);
    if (device::lane_index() % 4 == 0 && this->column_warp == 0 && this->active()) {
      for (int half = 0; half < 2; ++half) {
        this->row_array(shared.group_norm)[this->row(half)] = clamped_norm(group_square[half]);
      }
    }
    this->write_logits(z);
    return following;
  }

  // Both cross-entropies (eq 6) and their derivatives by the scale: thread i does row, then column, i / 4.
  SPARC_DEVICE void cross_entropies() const {
    const int row = device::thread_index() / 4, part = device::thread_index() % 4, n = this->n;
    const device::Shared<float> inverse_norm = this->row_array(shared.inverse_norm);
    const float scale = *args.logit_scale;
    float group_norm = 1.0f;
    if (row < n) group_norm = this->row_array(shared.group_norm)[row];
    const float inverse_group = 1.0f / group_norm;
    // what a thread has of its row or column: independent of each other, and read once
    constexpr int kEach = kPairTextRows / 4;
    float cosines[kEach];
    const auto softmax_of_held = [&] {
      float top = -device::infinity();
      SPARC_UNROLL
      for (int i = 0; i < kEach; ++i) {
        if (row < n && part + 4 * i < n) top = device::max(top, logit(cosines[i], scale));
      }
      top = quad_max(top);
      float total = 0.0f, along = 0.0f;
      SPARC_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const bool valid = row < n && part + 4 * i < n;
        const float weight = valid ? device::exp(logit(cosines[i], scale) - top) : 0.0f;
        total += weight;
        along += weight * cosines[i];
      }
      return softmax(top, quad_sum(total), quad_sum(along));
    };
    SPARC_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int j = part + 4 * i;
      cosines[i] = 0.0f;
      if (row < n && j < n) {
        cosines[i] = cosine_of(*shared.z(row, j), inverse_group, inverse_norm[j]);
        *shared.z(row, j) = cosines[i];
      }
    }
    const Softmax along_row = softmax_of_held();
    device::block_barrier();
    SPARC_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int l = part + 4 * i;
      cosines[i] = 0.0f;
      if (row < n && l < n) cosines[i] = *shared.z(l, row);
    }
    const Softmax along_column = softmax_of_held();
    if (row < n && part == 0) {
      const float cosine = *shared.z(row, row), diagonal = logit(cosine, scale);
      const int64_t at = this->result_at(row), stride = args.stats_stride;
      args.token_loss[at] = 0.5f * (along_row.lse - diagonal) + 0.5f * (along_column.lse - diagonal);
      float* const stat = args.stats + at;
      stat[kGroupNorm * stride] = group_norm;
      stat[kTokenNorm * stride] = this->row_array(shared.token_norm)[row];
      stat[kRowLogSumExp * stride] = along_row.lse;
      stat[kColumnLogSumExp * stride] = along_column.lse;
      stat[kScaleDerivative * stride] =
          0.5f * (along_row.cosine - cosine) + 0.5f * (along_column.cosine - cosine);
    }
  }
};

// All pairs of this block, forward, by `Pass`, a FineGrainedPairForward.
template <class Pass, class Layout>
SPARC_DEVICE void run_forward(const FineGrainedArguments& args, const Streaming& streaming,
                              const Layout& shared) {
  // the next pair's first chunks are on their way while Z of this one is looked at
  const auto next = [&](int64_t pair, int buffer, bool start) {
    const PairWork work = next_work(shared, args.in, pair, buffer, [&](const PairWork& empty) {
      fill_results(args, empty.text, empty.image_rows);
      write_means<typename Pass::E>(args, empty.image, empty.text);
    });
    if (start && work.pair < args.in.pairs) Pass(shared, args, streaming, work).start_both();
    return work;
  };
  PairWork work = next(device::block_index(), 0, true);
  while (work.pair < args.in.pairs) {
    const Pass pass(shared, args, streaming, work);
    const PairWork following = pass.compare(
        [&] { return next(work.pair + device::block_count(), 1 - work.buffer, !Pass::kGoesOn); });
    pass.cross_entropies();
    fill_results(args, work.text, work.image_rows);
    work = following;
  }
}

}  // namespace sparc
