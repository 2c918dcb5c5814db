// The fine-grained loss on the pair path: backward pass. W is the derivative of C':
//
//     W = dZ T + Q,  Q = -diag(alpha) C'      dU = W V^T      X = dZ^T U + dS
//     dV = X^T T + U^T Q                      dT = X V - diag(beta) T
//
// V and T are streamed four times: for S, for C' and Z, for W and dU, for the gradients. C', then Q, wait in
// the rows of dT, which the last stream overwrites chunk by chunk behind its own reads, or, where dT is not
// asked for, in scratch of the block.
//
// float16 holds what it can in units: dZ in one that keeps it and W in range, X in that of its largest
// element.
#pragma once

#include "fine_grained/fine_grained_pair_kernel.cuh"

namespace sparc {

template <class E, int kUnits>
struct FineGrainedPairBackward : FineGrainedPairBase<E, kUnits> {
  using Base = FineGrainedPairBase<E, kUnits>;
  using Products = typename Base::Products;
  using Base::Base;
  using Base::shared;

  // 64 registers of operands beside the bits and sums of 256 patches would spill.
  using BackwardRows =
      typename std::conditional<(kUnits < 8), typename Base::HeldRows, typename Base::TileRows>::type;

  using Kept = typename Base::Kept;

  SPARC_DEVICE E* saved_groups() const {  // [valid tokens, D]: C', then Q
    return static_cast<E*>(this->args.saved_groups) +
           saved_slot() * this->args.in.tokens * static_cast<int64_t>(this->args.in.channels);
  }
  SPARC_DEVICE device::Shared<float> row_array(int offset) const { return device::shared_at<float>(offset); }

  SPARC_DEVICE void read_stats() const {
    const int64_t stride = this->args.stats_stride;
    for (int l = device::thread_index(); l < this->n; l += kThreads) {
      const int64_t at = this->result_at(l);
      const float* const stat = this->args.stats + at;
      row_array(shared.group_norm)[l] = stat[kGroupNorm * stride];
      row_array(shared.token_norm)[l] = stat[kTokenNorm * stride];
      row_array(shared.row_lse)[l] = stat[kRowLogSumExp * stride];
      row_array(shared.column_lse)[l] = stat[kColumnLogSumExp * stride];
      const int64_t token = at - this->work.pair * this->args.in.tokens;
      row_array(shared.upstream)[l] =
          this->args.grad_token_loss[this->work.pair * this->args.grad_batch_stride +
                                     token * this->args.grad_stride];
    }
  }

  // U into shared memory; of S only what dS needs stays.
  SPARC_DEVICE Kept align(const Sums (&s)[kUnits]) const {
    typename Base::Rows low, high;
    this->extrema(s, low, high);
    const float sigma = threshold_of(this->args.in.threshold, this->p);
    const RowAlignment rows[2] = {{low[0], high[0], sigma}, {low[1], high[1], sigma}};
    this->write_tile(shared.weights_tile(),
                     [&](int unit, int half, int i) { return rows[i / 2].weight(s[unit][half][i]); });
    return this->keep(s, rows);
  }

  // dZ in its unit, alpha and beta in the same; returns the unit.
  SPARC_DEVICE float grad_logits() const {
    const int row = device::thread_index() / 4, part = device::thread_index() % 4, n = this->n;
    const device::Shared<float> token_norm = row_array(shared.token_norm),
                                upstream = row_array(shared.upstream),
                                column_lse = row_array(shared.column_lse);
    const bool valid = row < n;
    const float group_norm = valid ? static_cast<float>(row_array(shared.group_norm)[row]) : 1.0f;
    const float inverse_group = 1.0f / group_norm;
    const LogitRow logits = {inverse_group, *this->args.logit_scale,
                             valid ? static_cast<float>(row_array(shared.row_lse)[row]) : 0.0f,
                             valid ? static_cast<float>(upstream[row]) : 0.0f};
    const auto grad = [&](int j) {
      return logit_gradient<E>(logits, *shared.z(row, j), token_norm[j], column_lse[j], upstream[j],
                               j == row);
    };
    float unit = 1.0f;
    if constexpr (kIsFloat16<E>) {
      float largest = 0.0f, reach = 0.0f;
      if (valid) {
        SPARC_NO_UNROLL
        for (int j = part; j < n; j += 4) {
          const float dz = device::abs(grad(j));
          largest = device::max(largest, dz);
          reach += dz * token_norm[j];
        }
      }
      largest = block_max(reach_unit(largest, quad_sum(reach)), row_array(shared.parts));
      if (largest > 0.0f) unit = largest;
    }
    const Tile<E> dz_tile = shared.grads_tile();
    const float inverse_unit = 1.0f / unit;
    float along_group = 0.0f;
    if (row < round_up(n, 16)) {
      SPARC_NO_UNROLL
      for (int j = part; j < round_up(n, 16); j += 4) {
        const float found = valid && j < n ? grad(j) : 0.0f;
        const E rounded = device::from_float<E>(found * inverse_unit);
        *dz_tile.at(row, j) = rounded;
        // of the rounded dZ: what the products leave along C' and t, alpha and beta take away
        if (valid && j < n) along_group += device::to_float(rounded) * *shared.z(row, j);
      }
    }
    along_group = quad_sum(along_group);
    if (valid && part == 0) row_array(shared.alpha)[row] = along_group * inverse_square(group_norm);
    device::block_barrier();  // dZ is there

    float along_token = 0.0f;
    if (valid) {
      SPARC_NO_UNROLL
      for (int l = part; l < n; l += 4) along_token += dz_tile.get(l, row) * *shared.z(l, row);
    }
    along_token = quad_sum(along_token);
    if (valid && part == 0) {
      const float norm = token_norm[row];
      row_array(shared.beta)[row] = along_token * inverse_square(norm);
      row_array(shared.restore)[row] = without_length<E>(norm) ? unit / norm : unit;
    }
    device::block_barrier();
    return unit;
  }

  // C' into its place, Z into shared memory.
  SPARC_DEVICE void groups_and_logits(float unit) const {
    BackwardRows held;
    this->hold(held, shared.weights_tile());
    typename Base::TokenSums z = {};
    E* const groups = saved_groups();
    const int channels = this->args.in.channels;
    run_stream(
        this->streaming, this->chunks, [&](int c, int stage) { this->load(c, stage); },
        [&](int c, int stage) {
          if (!this->active()) return;
          this->group_chunk(held, stage, unit, z, [&](const Sums& group, int column) {
            store_rounded(RoundedSums<E>(group), groups, channels, c * this->streaming.chunk + column,
                          channels, [&](int r) { return saved_row(r); });
          });
        });
    this->start();
    this->write_logits(z);
  }

  // dU (s, in units of dZ) from W, chunk by chunk; C' becomes Q in units of C'.
  SPARC_DEVICE void grad_weights(Sums (&s)[kUnits], float unit) const {
    E* const groups = saved_groups();
    const int channels = this->args.in.channels;
    const Tile<E> dz = shared.grads_tile(), w_tile = shared.w_tile();
    const device::Shared<uint32_t> w_words = device::shared_at<uint32_t>(w_tile.offset);
    float alpha[2];
    for (int half = 0; half < 2; ++half) {
      alpha[half] =
          this->row(half) < this->n ? static_cast<float>(row_array(shared.alpha)[this->row(half)]) : 0.0f;
    }
    run_stream(
        this->streaming, this->chunks, [&](int c, int stage) { this->load(c, stage); },
        [&](int c, int stage) {
          if (this->active()) {
            SPARC_NO_UNROLL
            for (int d = 0; d < this->streaming.chunk; d += kChannelStep) {
              const int column = d + this->column_warp * 16, first = c * this->streaming.chunk + column;
              const RoundedSums<E> group =
                  load_rounded(groups, channels, first, channels, [&](int r) { return saved_row(r); });
              Sums w, q;
              SPARC_UNROLL
              for (int e = 0; e < 8; ++e) {
                w[e / 4][e % 4] = -alpha[e % 4 / 2] * group.value(e / 4, e % 4);
                q[e / 4][e % 4] = w[e / 4][e % 4] * unit;
              }
              if (this->args.grad_patches != nullptr) {
                store_rounded(RoundedSums<E>(q), groups, channels, first, channels,
                              [&](int r) { return saved_row(r); });
              }
              SPARC_NO_UNROLL
              for (int j = 0; j < this->n; j += Products::kDepth) {
                Products::multiply_add(w, Products::load_a(dz, this->row0, j),
                                       Products::load_b_transposed(shared.tokens_tile(stage), j, column));
              }
              const RoundedSums<E> rounded(w);
              SPARC_UNROLL
              for (int e = 0; e < 4; ++e) {
                const int at = this->row(e / 2) * w_tile.pitch + column + sum_column(e % 2, 0);
                w_words[at / 2] = rounded.words[e / 2][e % 2];
              }
            }
          }
          device::block_barrier();
          this->add_products(s, w_tile, shared.patches_tile(stage), this->streaming.chunk);
        });
  }

  // dU becomes X = dZ^T U + dS, both without the unit of C'; returns the unit that X is written in.
  SPARC_DEVICE float mix(Sums (&s)[kUnits], const Kept& kept) const {
    this->similarity_gradient(s, kept);
    if (this->active()) {
      SPARC_NO_UNROLL
      for (int l = 0; l < this->n; l += Products::kDepth) {
        const typename Products::A a = Products::load_a_transposed(shared.grads_tile(), l, this->row0);
        SPARC_UNROLL
        for (int tile = 0; tile < kUnits; ++tile) {
          if (this->unit_column(tile) < this->p) {
            Products::multiply_add(
                s[tile], a, Products::load_b_transposed(shared.weights_tile(), l, this->unit_column(tile)));
          }
        }
      }
    }
    float x_unit = 1.0f;
    if constexpr (kIsFloat16<E>) {
      const float largest = block_max(this->largest(s), row_array(shared.parts));
      if (largest > 0.0f) x_unit = largest;
    } else {
      device::block_barrier();  // dZ has been read: X takes its place
    }
    const float inverse = 1.0f / x_unit;
    this->write_tile(shared.x_tile(), [&](int tile, int half, int i) { return s[tile][half][i] * inverse; });
    device::block_barrier();
    return x_unit;
  }

  // dV and dT, as asked for. x_unit: what X was divided by, unit: what dZ was.
  SPARC_DEVICE void write_gradients(float x_unit, float unit) const {
    const FineGrainedArguments& args = this->args;
    const int channels = args.in.channels, chunk = this->streaming.chunk;
    const int64_t batch = this->work.pair;
    const bool of_patches = args.grad_patches != nullptr, of_tokens = args.grad_tokens != nullptr;
    E* const grad_patches =
        static_cast<E*>(args.grad_patches) + batch * args.in.patches * static_cast<int64_t>(channels);
    E* const grad_tokens =
        static_cast<E*>(args.grad_tokens) + batch * args.in.tokens * static_cast<int64_t>(channels);
    const MeanShare<E> patch_share(args.grad_pooled_patches, batch, channels, this->p);
    const MeanShare<E> token_share(args.grad_pooled_tokens, batch, channels, this->n);
    const device::Shared<int> patch_index = device::shared_at<int>(shared.patch_index[this->work.buffer]);
    const device::Shared<int> token_index = device::shared_at<int>(shared.token_index[this->work.buffer]);
    const auto load = [&](int c, int stage) {
      this->load_tokens(c, stage);
      if (of_tokens) this->load_patches(c, stage);
      if (of_patches) load_groups(c, stage);
    };
    start_stream(this->streaming, this->chunks, load);
    BackwardRows held;
    if (of_tokens) this->hold(held, shared.x_tile());
    float beta[2], restore[2];
    for (int half = 0; half < 2; ++half) {
      const int l = this->row(half);
      beta[half] = l < this->n ? static_cast<float>(row_array(shared.beta)[l]) : 0.0f;
      restore[half] = l < this->n ? static_cast<float>(row_array(shared.restore)[l]) : 0.0f;
    }
    run_stream(this->streaming, this->chunks, load, [&](int c, int stage) {
      const Tile<E> v = shared.patches_tile(stage), t = shared.tokens_tile(stage);
      if (of_patches) {
        this->write_patch_gradient(
            shared.x_tile(), x_unit, t, true, shared.second_tile(stage), unit, patch_share, chunk,
            grad_patches, channels, c * chunk,
            [&](int r) -> int64_t { return r < this->p ? static_cast<int>(patch_index[r]) : -1; });
      }
      if (!of_tokens || !this->active()) return;
      SPARC_NO_UNROLL
      for (int d = 0; d < chunk; d += kChannelStep) {
        const int column = d + this->column_warp * 16;
        Sums x;
        this->times_patches(x, held, v, column);
        SPARC_UNROLL
        for (int e = 0; e < 8; ++e) {
          const int half = e % 4 / 2;
          const float token =
              this->row(half) < this->n ? t.get(this->row(half), column + sum_column(e / 4, e % 4)) : 0.0f;
          x[e / 4][e % 4] = (x[e / 4][e % 4] * x_unit - beta[half] * token) * restore[half] +
                            token_share.at(c * chunk + column + sum_column(e / 4, e % 4));
        }
        store_rounded(RoundedSums<E>(x), grad_tokens, channels, c * chunk + column, channels,
                      [&](int r) -> int64_t {
                        return this->row0 + r < this->n ? static_cast<int>(token_index[this->row0 + r]) : -1;
                      });
      }
    });
  }

  SPARC_DEVICE void run() const {
    Kept kept;
    {
      Sums s[kUnits] = {};
      this->start();
      read_stats();
      float unused;
      this->template similarities<false>(s, unused);
      this->start();
      kept = align(s);
      device::block_barrier();
    }
    const float c_unit = group_unit<E>(this->p);
    groups_and_logits(c_unit);
    const float unit = grad_logits();
    Sums s[kUnits] = {};
    grad_weights(s, c_unit);
    const float x_unit = mix(s, kept) * c_unit;
    write_gradients(x_unit, unit);
  }

 private:
  SPARC_DEVICE int64_t saved_row(int r) const { return this->row0 + r < this->n ? this->row0 + r : -1; }

  SPARC_DEVICE int64_t saved_slot() const {
    return this->args.grad_tokens != nullptr ? this->work.pair : device::block_index();
  }

  SPARC_DEVICE void load_groups(int c, int stage) const {
    const MatrixView view = {this->args.saved_groups,
                             this->args.in.tokens * static_cast<int64_t>(this->args.in.channels),
                             this->args.in.channels, 1, this->args.in.channels % 8 == 0};
    load_rows(InputRows<E>(view, saved_slot()), nullptr, this->n, c * this->streaming.chunk,
              this->streaming.chunk, this->args.in.channels, shared.second_tile(stage));
  }
};

template <class E, int kUnits>
SPARC_DEVICE void fine_grained_pair_backward(const FineGrainedArguments& args, const Streaming& streaming,
                                             const FineGrainedShared<E>& shared) {
  int64_t pair = device::block_index();
  while (pair < args.in.pairs) {
    const PairWork work = next_work(shared, args.in, pair, 0, [&](const PairWork& empty) {
      fill_gradients<E>(args, empty.pair, empty.tokens, empty.patches);
    });
    if (work.pair >= args.in.pairs) break;
    FineGrainedPairBackward<E, kUnits>(shared, args, streaming, work).run();
    device::block_barrier();  // the rows of Q have been read: masked rows of dT lie among them
    fill_gradients<E>(args, work.pair, work.tokens, work.patches);
    pair = work.pair + device::block_count();
  }
}

}  // namespace sparc
