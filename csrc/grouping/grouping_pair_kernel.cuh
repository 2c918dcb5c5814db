// Grouped embeddings and alignment weights on the pair path (pairs/pair_tile.cuh). Names follow MATH.md.
//
// Products of size L x P x D: forward 1 (weights) or 2 (embeddings), backward 3 (weights) or 5 (embeddings:
// S, dC V^T, A^T dC, dS^T T, dS V).
#pragma once

#include "pairs/pair_tile.cuh"
#include "grouping/grouping_cuda.h"

namespace sparc {

template <class E>
struct GroupingShared : PairShared<E> {
  int x;  // dS [64, P] E, in a backward pass

  SPARC_HOST_DEVICE GroupingShared(const PairInputs& in, const Streaming& streaming, bool backward)
      : PairShared<E>(in, streaming, backward),
        x(backward ? this->plan.take(round_up(at_most(in.tokens, kPairTokens), 16) * this->weights_pitch *
                                     static_cast<int64_t>(sizeof(E)))
                   : 0) {}
  SPARC_DEVICE Tile<E> x_tile() const { return {x, this->weights_pitch}; }
};

template <class E, int kUnits>
struct GroupingPairPass : PairTile<E, kUnits> {
  using Base = PairTile<E, kUnits>;
  using Rows = typename Base::Rows;

  const GroupingShared<E>& shared;
  const GroupingArguments& args;
  const Streaming& streaming;
  PairWork work;
  InputRows<E> patches, tokens, grads;
  int chunks;

  SPARC_DEVICE GroupingPairPass(const GroupingShared<E>& shared_, const GroupingArguments& args_,
                                const Streaming& streaming_, const PairWork& work_)
      : Base(shared_, work_),
        shared(shared_),
        args(args_),
        streaming(streaming_),
        work(work_),
        patches(args_.in.patch_embeds, work_.pair),
        tokens(args_.in.token_embeds, work_.pair),
        grads(args_.grad, work_.pair),
        chunks((args_.in.channels + streaming_.chunk - 1) / streaming_.chunk) {}

  SPARC_DEVICE void load(const InputRows<E>& rows, const Tile<E>& to, int c) const {
    load_rows<E>(rows, nullptr, this->n, c * streaming.chunk, streaming.chunk, args.in.channels, to);
  }
  SPARC_DEVICE void load_patches(int c, int stage) const {
    const device::Shared<int> index = device::shared_at<int>(shared.patch_index[0]);
    load_rows(patches, &index, this->p, c * streaming.chunk, streaming.chunk, args.in.channels,
              shared.patches_tile(stage));
  }

  // s = rows V^T, for the tokens or the gradients of the embeddings.
  SPARC_DEVICE void against_patches(Sums (&s)[kUnits], const InputRows<E>& rows) const {
    const auto both = [&](int c, int stage) {
      load_patches(c, stage);
      load(rows, shared.tokens_tile(stage), c);
    };
    start_stream(streaming, chunks, both);
    run_stream(streaming, chunks, both, [&](int, int stage) {
      this->add_products(s, shared.tokens_tile(stage), shared.patches_tile(stage), streaming.chunk);
    });
  }

  SPARC_DEVICE void forward() const {
    Sums s[kUnits] = {};
    against_patches(s, tokens);
    Rows low, high, mass = {0.0f, 0.0f};
    this->extrema(s, low, high);
    const float sigma = threshold_of(args.in.threshold, this->p);
    const RowAlignment rows[2] = {{low[0], high[0], sigma}, {low[1], high[1], sigma}};
    device::block_barrier();  // the extrema have been read: the sums take their place
    this->for_each([&](int unit, int half, int i, int column) {
      float u = column < this->p ? rows[i / 2].weight(s[unit][half][i]) : 0.0f;
      // the sum is that of what the product takes
      if (!args.weights) u = device::to_float(device::from_float<E>(u));
      s[unit][half][i] = u;
      mass[i / 2] += u;
    });
    this->sum_across(mass, 0);
    write_stats(low, high, mass);
    const float inverse[2] = {1.0f / mass[0], 1.0f / mass[1]};
    if (args.weights) {
      write_weights(s, inverse);
    } else {
      this->write_tile(shared.weights_tile(), [&](int unit, int half, int i) { return s[unit][half][i]; });
      device::block_barrier();
      write_groups(inverse);
    }
  }

  // dA [n, p], from the weights' gradient: each lane reads its own.
  SPARC_DEVICE void read_weight_gradient(Sums (&da)[kUnits]) const {
    const device::Shared<int> index = device::shared_at<int>(shared.patch_index[0]);
    this->for_each([&](int unit, int half, int i, int column) {
      const int row = this->row(i / 2);
      if (row < this->n && column < this->p) {
        const int patch = index[column];
        da[unit][half][i] =
            device::to_float(grads.data[row * grads.row_stride + patch * grads.column_stride]);
      }
    });
  }

  // A into shared memory; of S only what dS needs stays, and 1 / sum U.
  SPARC_DEVICE typename Base::Kept align(const Sums (&s)[kUnits], Rows& inverse) const {
    Rows low, high, mass = {0.0f, 0.0f};
    this->extrema(s, low, high);
    const float sigma = threshold_of(args.in.threshold, this->p);
    const RowAlignment rows[2] = {{low[0], high[0], sigma}, {low[1], high[1], sigma}};
    device::block_barrier();  // the extrema have been read: the sums take their place
    this->for_each([&](int unit, int half, int i, int column) {
      if (column < this->p) mass[i / 2] += rows[i / 2].weight(s[unit][half][i]);
    });
    this->sum_across(mass, 0);
    for (int half = 0; half < 2; ++half) inverse[half] = 1.0f / mass[half];
    this->write_tile(shared.weights_tile(), [&](int unit, int half, int i) {
      return rows[i / 2].weight(s[unit][half][i]) * inverse[i / 2];
    });
    return this->keep(s, rows);
  }

  SPARC_DEVICE void backward() const {
    typename Base::Kept kept;
    Rows inverse;
    {
      Sums s[kUnits] = {};
      against_patches(s, tokens);
      kept = align(s, inverse);
    }
    Sums grad[kUnits] = {};
    if (args.weights) {
      read_weight_gradient(grad);
    } else {
      against_patches(grad, grads);
    }
    // dU = (dA - sum dA A) / sum U. The mean is that of the rounded A, whose sum is not quite 1.
    const Tile<E> a = shared.weights_tile();
    Rows dot = {0.0f, 0.0f}, total = {0.0f, 0.0f};
    this->for_each([&](int unit, int half, int i, int column) {
      if (this->row(i / 2) >= this->n || column >= this->p) return;
      const float weight = a.get(this->row(i / 2), column);
      dot[i / 2] += weight * grad[unit][half][i];
      total[i / 2] += weight;
    });
    device::block_barrier();  // the mass has been read
    this->sum_across(dot, 0);
    this->sum_across(total, 1);
    for (int half = 0; half < 2; ++half) dot[half] = total[half] > 0.0f ? dot[half] / total[half] : 0.0f;
    device::block_barrier();  // dot and total have been read
    this->for_each([&](int unit, int half, int i, int) {
      float& x = grad[unit][half][i];
      x = this->row(i / 2) < this->n ? (x - dot[i / 2]) * inverse[i / 2] : 0.0f;
    });
    this->similarity_gradient(grad, kept);
    float x_unit = 1.0f;
    if constexpr (kIsFloat16<E>) {
      const float largest = block_max(this->largest(grad), device::shared_at<float>(shared.parts));
      if (largest > 0.0f) x_unit = largest;
    }
    this->write_tile(shared.x_tile(),
                     [&](int unit, int half, int i) { return grad[unit][half][i] * (1.0f / x_unit); });
    device::block_barrier();
    write_gradients(x_unit);
  }

 private:
  SPARC_DEVICE int64_t token_row(int row) const { return row < this->n ? row : -1; }

  SPARC_DEVICE void write_stats(const Rows& low, const Rows& high, const Rows& mass) const {
    if (device::lane_index() % 4 != 0 || this->column_warp != 0) return;
    for (int half = 0; half < 2; ++half) {
      if (this->row(half) >= this->n) continue;
      float* const stat = args.stats + work.pair * args.in.tokens + this->row(half);
      stat[kMinimum * args.stats_stride] = low[half];
      stat[kMaximum * args.stats_stride] = high[half];
      stat[kWeightSum * args.stats_stride] = mass[half];
    }
  }

  SPARC_DEVICE void write_weights(const Sums (&u)[kUnits], const float (&inverse)[2]) const {
    const device::Shared<int> index = device::shared_at<int>(shared.patch_index[0]);
    E* const out =
        static_cast<E*>(args.output) + work.pair * args.in.tokens * static_cast<int64_t>(args.in.patches);
    if (this->p < args.in.patches) {
      const int64_t size = static_cast<int64_t>(this->n) * args.in.patches;
      for (int64_t i = device::thread_index(); i < size; i += kThreads) out[i] = E{};
      device::block_barrier();
    }
    this->for_each([&](int unit, int half, int i, int column) {
      const int row = this->row(i / 2);
      if (row < this->n && column < this->p) {
        const int patch = index[column];
        out[static_cast<int64_t>(row) * args.in.patches + patch] =
            device::from_float<E>(u[unit][half][i] * inverse[i / 2]);
      }
    });
  }

  SPARC_DEVICE void write_groups(const float (&inverse)[2]) const {
    E* const out =
        static_cast<E*>(args.output) + work.pair * args.in.tokens * static_cast<int64_t>(args.in.channels);
    const auto load_v = [&](int c, int stage) { load_patches(c, stage); };
    start_stream(streaming, chunks, load_v);
    typename Base::HeldRows held;
    this->hold(held, shared.weights_tile());
    run_stream(streaming, chunks, load_v, [&](int c, int stage) {
      if (!this->active()) return;
      SPARC_NO_UNROLL
      for (int d = 0; d < streaming.chunk; d += kChannelStep) {
        const int column = d + this->column_warp * 16;
        Sums group;
        this->times_patches(group, held, shared.patches_tile(stage), column);
        SPARC_UNROLL
        for (int e = 0; e < 8; ++e) group[e / 4][e % 4] *= inverse[e % 4 / 2];
        store_rounded(RoundedSums<E>(group), out, args.in.channels, c * streaming.chunk + column,
                      args.in.channels, [&](int r) { return token_row(this->row0 + r); });
      }
    });
  }

  // dV = dS^T T + A^T dC, dT = dS V, as asked for
  SPARC_DEVICE void write_gradients(float x_unit) const {
    const int channels = args.in.channels, chunk = streaming.chunk;
    E* const grad_patches =
        static_cast<E*>(args.grad_patches) + work.pair * args.in.patches * static_cast<int64_t>(channels);
    E* const grad_tokens =
        static_cast<E*>(args.grad_tokens) + work.pair * args.in.tokens * static_cast<int64_t>(channels);
    const device::Shared<int> index = device::shared_at<int>(shared.patch_index[0]);
    const bool embeddings = !args.weights;
    const bool of_patches = args.grad_patches != nullptr, of_tokens = args.grad_tokens != nullptr;
    const auto all = [&](int c, int stage) {
      if (of_tokens) load_patches(c, stage);
      if (of_patches) load(tokens, shared.tokens_tile(stage), c);
      if (of_patches && embeddings) load(grads, shared.second_tile(stage), c);
    };
    start_stream(streaming, chunks, all);
    typename Base::HeldRows held;
    if (of_tokens) this->hold(held, shared.x_tile());
    run_stream(streaming, chunks, all, [&](int c, int stage) {
      if (of_patches) {
        this->write_patch_gradient(
            shared.x_tile(), x_unit, shared.tokens_tile(stage), embeddings, shared.second_tile(stage), 1.0f,
            MeanShare<E>(), chunk, grad_patches, channels, c * chunk,
            [&](int r) -> int64_t { return r < this->p ? static_cast<int>(index[r]) : -1; });
      }
      if (!of_tokens || !this->active()) return;
      SPARC_NO_UNROLL
      for (int d = 0; d < chunk; d += kChannelStep) {
        const int column = d + this->column_warp * 16;
        Sums x;
        this->times_patches(x, held, shared.patches_tile(stage), column);
        store_rounded(RoundedSums<E>(x, x_unit), grad_tokens, channels, c * chunk + column, channels,
                      [&](int r) { return token_row(this->row0 + r); });
      }
    });
  }
};

// The results of an image without a valid patch (NaN), and the gradients of masked patches (0).
template <class E>
SPARC_DEVICE void fill_grouping(const GroupingArguments& args, int64_t pair, int patches, bool backward) {
  const MaskView everything = {nullptr, 0, 0};
  const bool computed = patches > 0;
  const auto nan = [](int64_t) { return device::nan(); };
  if (backward) {
    fill_rows<E>(everything, pair, args.in.tokens, args.in.channels, computed, nan, args.grad_tokens);
    fill_rows<E>(args.in.patch_mask, pair, args.in.patches, args.in.channels, true, nan, args.grad_patches);
    return;
  }
  const int columns = args.weights ? args.in.patches : args.in.channels;
  fill_rows<E>(everything, pair, args.in.tokens, columns, computed, nan, args.output);
  if (computed) return;
  for (int i = device::thread_index(); i < args.in.tokens; i += kThreads) {
    for (int field = 0; field < kGroupingStats; ++field) {
      args.stats[field * args.stats_stride + pair * args.in.tokens + i] = device::nan();
    }
  }
}

template <class E, int kUnits, bool kBackward>
SPARC_DEVICE void grouping_pair(const GroupingArguments& args, const Streaming& streaming,
                                const GroupingShared<E>& shared) {
  for (int64_t pair = device::block_index(); pair < args.in.pairs; pair += device::block_count()) {
    PairWork work = {pair, args.in.tokens, 0, 0};
    work.patches =
        list_valid(args.in.patch_mask, pair, args.in.patches, device::shared_at<int>(shared.patch_index[0]),
                   device::shared_at<int>(shared.counts));
    if (!pair_path_holds(work.tokens, work.patches)) continue;  // the tiled launch serves it
    if (work.patches > 0) {
      const GroupingPairPass<E, kUnits> pass(shared, args, streaming, work);
      if constexpr (kBackward) {
        pass.backward();
      } else {
        pass.forward();
      }
    }
    fill_grouping<E>(args, pair, work.patches, kBackward);
    device::block_barrier();
  }
}

}  // namespace sparc
