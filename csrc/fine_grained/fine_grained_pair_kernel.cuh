// The fine-grained loss on the pair path (pairs/pair_tile.cuh): forward pass. Names follow MATH.md.
//
// Products of size L x P x D: forward 2 (S, C'), backward 6 (S, C', dU, X^T T, U^T Q, X V). Z is C' T^T with
// C' in two halves: it then carries the rounding of U alone, as C' does (docs/performance_log.md).
#pragma once

#include "pairs/pair_tile.cuh"
#include "fine_grained/fine_grained_rows.cuh"

namespace sparc {

// Shared memory of both passes. Matrices of tokens by tokens come and go in one region.
template <class E>
struct FineGrainedShared : PairShared<E> {
  static constexpr int kLogitsPitch = kPairTokens + 4;

  int group_norm, token_norm, row_lse, column_lse, upstream, alpha, beta, restore;  // [64] float each
  int logits;  // Z [64, 64] float; in a backward pass W [64, chunk] E after it
  int grads;   // dZ [64, 64] E
  int x;       // X [64, P] E, where Z, W and dZ stood
  int grads_pitch;

  SPARC_HOST_DEVICE FineGrainedShared(const PairInputs& in, const Streaming& streaming, bool backward)
      : PairShared<E>(in, streaming, backward) {
    Plan<int>& plan = this->plan;
    const int tokens = round_up(at_most(in.tokens, kPairTokens), 16);
    int* const rows[] = {&group_norm, &token_norm, &row_lse, &column_lse, &upstream, &alpha, &beta, &restore};
    for (int* offset : rows) *offset = plan.take(kPairTokens * 4);
    logits = plan.take(tokens * kLogitsPitch * 4);
    grads_pitch = tokens + Tile<E>::kPad;
    grads = x = logits;
    if (!backward) return;
    const int64_t pitch = this->chunk_pitch, w_bytes = tokens * pitch * static_cast<int64_t>(sizeof(E));
    const int64_t logit_bytes = tokens * kLogitsPitch * 4;
    if (w_bytes > logit_bytes) plan.take(w_bytes - logit_bytes);
    grads = plan.take(tokens * grads_pitch * sizeof(E));
    const int64_t x_bytes = tokens * this->weights_pitch * static_cast<int64_t>(sizeof(E)),
                  so_far = plan.used - x;
    if (x_bytes > so_far) plan.take(x_bytes - so_far);
  }

  SPARC_DEVICE device::Shared<float> z(int row, int column) const {
    return device::shared_at<float>(logits) + (row * kLogitsPitch + column);
  }
  SPARC_DEVICE Tile<E> grads_tile() const { return {grads, grads_pitch}; }
  SPARC_DEVICE Tile<E> w_tile() const { return {logits, this->chunk_pitch}; }
  SPARC_DEVICE Tile<E> x_tile() const { return {x, this->weights_pitch}; }
};

// The parts that both passes share, for one pair.
template <class E, int kUnits>
struct FineGrainedPairBase : PairTile<E, kUnits> {
  using Tiles = PairTile<E, kUnits>;
  using Products = typename Tiles::Products;
  using Rows = typename Tiles::Rows;
  using TokenSums =
      Sums[kPairTokens / 16];  // [16, 64]: this warp's rows of Z, over its share of the channels

  const FineGrainedShared<E>& shared;
  const FineGrainedArguments& args;
  const Streaming& streaming;
  PairWork work;
  InputRows<E> patches, tokens;
  int chunks;

  SPARC_DEVICE FineGrainedPairBase(const FineGrainedShared<E>& shared_, const FineGrainedArguments& args_,
                                   const Streaming& streaming_, const PairWork& work_)
      : Tiles(shared_, work_),
        shared(shared_),
        args(args_),
        streaming(streaming_),
        work(work_),
        patches(args_.in.patch_embeds, work_.pair),
        tokens(args_.in.token_embeds, work_.pair),
        chunks((args_.in.channels + streaming_.chunk - 1) / streaming_.chunk) {}

  SPARC_DEVICE void load_patches(int c, int stage) const {
    const device::Shared<int> index = device::shared_at<int>(shared.patch_index[work.buffer]);
    load_rows(patches, &index, work.patches, c * streaming.chunk, streaming.chunk, args.in.channels,
              shared.patches_tile(stage));
  }
  SPARC_DEVICE void load_tokens(int c, int stage) const {
    const device::Shared<int> index = device::shared_at<int>(shared.token_index[work.buffer]);
    load_rows(tokens, &index, work.tokens, c * streaming.chunk, streaming.chunk, args.in.channels,
              shared.tokens_tile(stage));
  }
  SPARC_DEVICE void load(int c, int stage) const {
    load_patches(c, stage);
    load_tokens(c, stage);
  }
  SPARC_DEVICE void start() const {
    start_stream(streaming, chunks, [&](int c, int stage) { load(c, stage); });
  }

  // Row of the [B, L] results for token `row` of the gathered ones.
  SPARC_DEVICE int64_t result_at(int row) const {
    return work.pair * args.in.tokens + device::shared_at<int>(shared.token_index[work.buffer])[row];
  }

  // The mean of `count` gathered rows, `chunk` of its channels: 8 of them to a warp.
  SPARC_DEVICE void pool(const Tile<E>& rows, int count, int first, void* out) const {
    const int lane = device::lane_index(), column = device::warp_index() * 8 + lane % 8;
    if (out == nullptr || device::warp_index() * 8 >= streaming.chunk) return;
    float total = 0.0f;
    SPARC_NO_UNROLL
    for (int row = lane / 8; row < count; row += 4) total += rows.get(row, column);
    total += device::shuffle_xor(total, 8);
    total += device::shuffle_xor(total, 16);
    if (lane < 8 && first + column < args.in.channels) {
      static_cast<E*>(out)[work.pair * args.in.channels + first + column] =
          device::from_float<E>(total / static_cast<float>(count));
    }
  }

  // s = S; square = this thread's share of |t|^2 of row thread / 4. On the way the means, if `kPool`.
  template <bool kPool>
  SPARC_DEVICE void similarities(Sums (&s)[kUnits], float& square) const {
    const int row = device::thread_index() / 4, part = device::thread_index() % 4;
    square = 0.0f;
    run_stream(
        streaming, chunks, [&](int c, int stage) { load(c, stage); },
        [&](int c, int stage) {
          const Tile<E> t = shared.tokens_tile(stage);
          this->add_products(s, t, shared.patches_tile(stage), streaming.chunk);
          if (kPool) {
            pool(shared.patches_tile(stage), this->p, c * streaming.chunk, args.pooled_patches);
            pool(t, this->n, c * streaming.chunk, args.pooled_tokens);
          }
          if (row >= this->n) return;
          SPARC_NO_UNROLL
          for (int d = part; d < streaming.chunk; d += 4) {
            const float x = t.get(row, d);
            square += x * x;
          }
        });
  }

  // The groups of a chunk, 32 channels at a time, in C' units: f(c, column) with this warp's [16, 16] at
  // `column`. Adds to z what these channels give to C' T^T.
  template <class LeftRows, class F>
  SPARC_DEVICE void group_chunk(const LeftRows& rows, int stage, float unit, TokenSums& z, const F& f) const {
    const Tile<E> v = shared.patches_tile(stage), t = shared.tokens_tile(stage);
    SPARC_NO_UNROLL
    for (int d = 0; d < streaming.chunk; d += kChannelStep) {
      const int column = d + this->column_warp * 16;
      Sums c;
      this->times_patches(c, rows, v, column);
      SPARC_UNROLL
      for (int i = 0; i < 8; ++i) c[i / 4][i % 4] *= unit;
      const typename Products::A high = Products::as_operand(c), low = Products::rest_as_operand(c);
      SPARC_UNROLL
      for (int j = 0; j < kPairTokens / 16; ++j) {
        if (j * 16 < this->n) {
          const typename Products::B b = Products::load_b(t, j * 16, column);
          Products::multiply_add(z[j], high, b);
          Products::multiply_add(z[j], low, b);
        }
      }
      f(c, column);
    }
  }

  // Z of both column warps together, in shared memory.
  SPARC_DEVICE void write_logits(const TokenSums& z) const {
    for (int c = 0; c < kColumnWarps; ++c) {
      if (this->column_warp == c && this->active()) {
        SPARC_UNROLL
        for (int j = 0; j < kPairTokens / 16; ++j) {
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

template <class E, int kUnits>
struct FineGrainedPairForward : FineGrainedPairBase<E, kUnits> {
  using Base = FineGrainedPairBase<E, kUnits>;
  using Base::Base;

  // Everything up to Z, the norms and the extrema of the rows; `prefetch` is called when the stages are free.
  template <class Prefetch>
  SPARC_DEVICE void compare(const Prefetch& prefetch) const {
    const FineGrainedShared<E>& shared = this->shared;
    Sums s[kUnits] = {};
    float square;
    this->template similarities<true>(s, square);
    this->start();  // V and T once more, from L2

    typename Base::Rows low, high;
    this->extrema(s, low, high);
    const float sigma = threshold_of(this->args.in.threshold, this->p);
    const RowAlignment rows[2] = {{low[0], high[0], sigma}, {low[1], high[1], sigma}};
    this->write_tile(shared.weights_tile(),
                     [&](int unit, int half, int i) { return rows[i / 2].weight(s[unit][half][i]); });
    square = quad_sum(square);
    const int row = device::thread_index() / 4;
    if (device::thread_index() % 4 == 0 && row < this->n) {
      device::shared_at<float>(shared.token_norm)[row] = clamped_norm(square);
    }
    if (device::lane_index() % 4 == 0 && this->column_warp == 0) {
      for (int half = 0; half < 2; ++half) {
        if (this->row(half) < this->n) {
          float* const stat = this->args.stats + this->result_at(this->row(half));
          stat[kRowMin * this->args.stats_stride] = low[half];
          stat[kRowMax * this->args.stats_stride] = high[half];
        }
      }
    }
    device::block_barrier();

    typename Base::HeldRows held;
    this->hold(held, shared.weights_tile());
    typename Base::TokenSums z = {};
    typename Base::Rows group_square = {0.0f, 0.0f};
    const float unit = group_unit<E>(this->p);
    run_stream(
        this->streaming, this->chunks, [&](int c, int stage) { this->load(c, stage); },
        [&](int, int stage) {
          if (!this->active()) return;
          this->group_chunk(held, stage, unit, z, [&](const Sums& c, int) {
            SPARC_UNROLL
            for (int e = 0; e < 8; ++e) group_square[e % 4 / 2] += c[e / 4][e % 4] * c[e / 4][e % 4];
          });
        });
    prefetch();
    this->across_columns(group_square, shared.partial[0], [](float a, float b) { return a + b; });
    if (device::lane_index() % 4 == 0 && this->column_warp == 0 && this->active()) {
      for (int half = 0; half < 2; ++half) {
        device::shared_at<float>(shared.group_norm)[this->row(half)] = clamped_norm(group_square[half]);
      }
    }
    this->write_logits(z);
  }

  // Both cross-entropies (eq 6) and their derivatives by the scale: thread i does row i / 4, then column i
  // / 4.
  SPARC_DEVICE void cross_entropies() const {
    const FineGrainedShared<E>& shared = this->shared;
    const int row = device::thread_index() / 4, part = device::thread_index() % 4, n = this->n;
    const device::Shared<float> token_norm = device::shared_at<float>(shared.token_norm);
    const float scale = *this->args.logit_scale;
    float group_norm = 0.0f, top = -device::infinity();
    if (row < n) {
      group_norm = device::shared_at<float>(shared.group_norm)[row];
      const float inverse_group = 1.0f / group_norm;
      SPARC_NO_UNROLL
      for (int j = part; j < n; j += 4) {
        const device::Shared<float> z = shared.z(row, j);
        const float cosine = cosine_of(*z, inverse_group, 1.0f / token_norm[j]);
        *z = cosine;
        top = device::max(top, logit(cosine, scale));
      }
    }
    const Softmax along_row = softmax(quad_max(top), [&](int j) { return shared.z(row, j); });
    device::block_barrier();

    top = -device::infinity();
    if (row < n) {
      SPARC_NO_UNROLL
      for (int l = part; l < n; l += 4) top = device::max(top, logit(*shared.z(l, row), scale));
    }
    const Softmax along_column = softmax(quad_max(top), [&](int l) { return shared.z(l, row); });
    if (row < n && part == 0) {
      const float cosine = *shared.z(row, row), diagonal = logit(cosine, scale);
      const int64_t at = this->result_at(row), stride = this->args.stats_stride;
      this->args.token_loss[at] = 0.5f * (along_row.lse - diagonal) + 0.5f * (along_column.lse - diagonal);
      float* const stat = this->args.stats + at;
      stat[kGroupNorm * stride] = group_norm;
      stat[kTokenNorm * stride] = token_norm[row];
      stat[kRowLogSumExp * stride] = along_row.lse;
      stat[kColumnLogSumExp * stride] = along_column.lse;
      stat[kScaleDerivative * stride] =
          0.5f * (along_row.cosine - cosine) + 0.5f * (along_column.cosine - cosine);
    }
  }

 private:
  struct Softmax {
    float lse, cosine;  // log sum exp, and the mean of the cosines
  };

  // Of a row or column, whose cosines are at cosine_at(i), four lanes together.
  template <class CosineAt>
  SPARC_DEVICE Softmax softmax(float top, const CosineAt& cosine_at) const {
    const float scale = *this->args.logit_scale;
    float total = 0.0f, along = 0.0f;
    if (device::thread_index() / 4 < this->n) {
      SPARC_NO_UNROLL
      for (int i = device::thread_index() % 4; i < this->n; i += 4) {
        const float cosine = *cosine_at(i), weight = device::exp(logit(cosine, scale) - top);
        total += weight;
        along += weight * cosine;
      }
    }
    total = quad_sum(total);
    return {top + device::log(total), quad_sum(along) / total};
  }
};

// The next pair from `pair` on, in steps of the grid, that has a valid token and a valid patch, and not too
// many. Those that lack one are answered by `trivial(work)`.
template <class E, class Trivial>
SPARC_DEVICE PairWork next_work(const PairShared<E>& shared, const PairInputs& in, int64_t pair, int buffer,
                                const Trivial& trivial) {
  PairWork work = {pair, 0, 0, buffer};
  const device::Shared<int> counts = device::shared_at<int>(shared.counts);
  for (; work.pair < in.pairs; work.pair += device::block_count()) {
    work.tokens = list_valid(in.token_mask, work.pair, in.tokens,
                             device::shared_at<int>(shared.token_index[buffer]), counts);
    work.patches = 0;
    if (work.tokens > 0) {
      work.patches = list_valid(in.patch_mask, work.pair, in.patches,
                                device::shared_at<int>(shared.patch_index[buffer]), counts);
    }
    if (!pair_path_holds(work.tokens, work.patches)) continue;  // the tiled launch serves it
    if (work.patches > 0) break;
    trivial(work);
  }
  return work;
}

template <class E, int kUnits>
SPARC_DEVICE void fine_grained_pair_forward(const FineGrainedArguments& args, const Streaming& streaming,
                                            const FineGrainedShared<E>& shared) {
  const auto next = [&](int64_t pair, int buffer) {
    return next_work(shared, args.in, pair, buffer, [&](const PairWork& work) {
      fill_results(args, work.pair, work.patches);
      write_means<E>(args, work.pair);
    });
  };
  using Pass = FineGrainedPairForward<E, kUnits>;
  PairWork work = next(device::block_index(), 0);
  if (work.pair < args.in.pairs) Pass(shared, args, streaming, work).start();
  while (work.pair < args.in.pairs) {
    const Pass pass(shared, args, streaming, work);
    PairWork following;
    pass.compare([&] {
      following = next(work.pair + device::block_count(), 1 - work.buffer);
      if (following.pair < args.in.pairs) Pass(shared, args, streaming, following).start();
    });
    pass.cross_entropies();
    fill_results(args, work.pair, work.patches);
    work = following;
  }
}

}  // namespace sparc
