// Grouped embeddings and alignment weights on the pair path (pairs/pair_tile.cuh). Names follow MATH.md.
//
// Products of size L x P x D: forward 1 (weights) or 2 (embeddings), backward 3 (weights) or 5 (embeddings:
// S, dC V^T, A^T dC, dS^T T, dS V).
#pragma once

#include "alignment/pair_alignment.cuh"
#include "grouping/grouping_rows.cuh"

namespace sparc {

template <class E, int kChunk>
struct GroupingLayout : PairLayout<E, kChunk> {
  int x;  // dS [64, P] E, in a backward pass

  SPARC_HOST_DEVICE GroupingLayout(const PairInputs& in, const Streaming& streaming, bool backward)
      : PairLayout<E, kChunk>(in, streaming, backward),
        x(backward ? this->plan.take(round_up(at_most(in.text_rows, kPairTextRows), 16) *
                                     this->weights_pitch * static_cast<int64_t>(sizeof(E)))
                   : 0) {}
  SPARC_DEVICE Tile<E> x_tile() const { return {x, this->weights_pitch}; }
};

template <class E, int kStrips, int kChunk>
struct GroupingPairPass
    : AlignmentPass<PairTile<E, kStrips, kChunk>, GroupingLayout<E, kChunk>, GroupingArguments> {
  using Base = AlignmentPass<PairTile<E, kStrips, kChunk>, GroupingLayout<E, kChunk>, GroupingArguments>;
  using RowPair = typename Base::RowPair;
  using Alignments = typename Base::Alignments;
  using Base::args;
  using Base::Base;
  using Base::shared;
  using Base::work;

  // s = rows V^T, for the tokens or the gradients of the embeddings.
  SPARC_DEVICE void against_image(Sums (&s)[kStrips], const InputRows<E>& rows) const {
    const auto both = [&](int c, int stage) {
      this->load_image(c, stage);
      this->load_leading(rows, c, shared.text_tile(stage));
    };
    this->start(both);
    this->for_chunks(both, [&](int, int stage) {
      this->add_products(s, shared.text_tile(stage), shared.image_tile(stage));
    });
  }

  SPARC_DEVICE void forward() const {
    Sums s[kStrips] = {};
    against_image(s, this->text);
    const Alignments aligned = this->align(s);
    device::block_barrier();  // the extrema have been read: the sums take their place
    RowPair mass = {0.0f, 0.0f};
    this->for_each([&](int strip, int half, int i, int column) {
      float u = column < this->p ? aligned.of(i).weight(s[strip][half][i]) : 0.0f;
      // the sum is that of what the product takes
      if (!args.weights) u = device::to_float(device::from_float<E>(u));
      s[strip][half][i] = u;
      mass[i / 2] += u;
    });
    this->sum_across(mass, 0);
    this->for_held_rows(
        [&](int half, int l) { write_stats(args, work.text, l, aligned.rows[half], mass[half]); });
    const RowPair inverse = {1.0f / mass[0], 1.0f / mass[1]};
    if (args.weights) {
      write_output(s, inverse);
    } else {
      this->write_tile(shared.weights_tile(), [&](int strip, int half, int i) { return s[strip][half][i]; });
      device::block_barrier();
      write_groups(inverse);
    }
  }

  // dA [n, p], from the weights' gradient: each lane reads its own.
  SPARC_DEVICE void read_weight_gradient(Sums (&da)[kStrips]) const {
    const device::Shared<int> index = this->image_index();
    const InputRows<E> grads(args.grad, work.text);
    this->for_each([&](int strip, int half, int i, int column) {
      const int row = this->row(i / 2);
      if (row < this->n && column < this->p) {
        const int patch = index[column];
        da[strip][half][i] =
            device::to_float(grads.data[row * grads.row_stride + patch * grads.column_stride]);
      }
    });
  }

  // A into shared memory; of S only what dS needs stays, and 1 / sum U.
  SPARC_DEVICE typename Base::Kept normalize(const Sums (&s)[kStrips], RowPair& inverse) const {
    const Alignments aligned = this->align(s);
    device::block_barrier();  // the extrema have been read: the sums take their place
    RowPair mass = {0.0f, 0.0f};
    this->for_each([&](int strip, int half, int i, int column) {
      if (column < this->p) mass[i / 2] += aligned.of(i).weight(s[strip][half][i]);
    });
    this->sum_across(mass, 0);
    for (int half = 0; half < 2; ++half) inverse[half] = 1.0f / mass[half];
    this->write_tile(shared.weights_tile(), [&](int strip, int half, int i) {
      return aligned.of(i).weight(s[strip][half][i]) * inverse[i / 2];
    });
    return this->keep(s, aligned);
  }

  SPARC_DEVICE void backward() const {
    typename Base::Kept kept;
    RowPair inverse;
    {
      Sums s[kStrips] = {};
      against_image(s, this->text);
      kept = normalize(s, inverse);
    }
    Sums grad[kStrips] = {};
    if (args.weights) {
      read_weight_gradient(grad);
    } else {
      against_image(grad, InputRows<E>(args.grad, work.text));
    }
    // dU = (dA - sum dA A) / sum U. The mean is that of the rounded A, whose sum is not quite 1.
    const Tile<E> a = shared.weights_tile();
    RowPair dot = {0.0f, 0.0f}, total = {0.0f, 0.0f};
    this->for_each([&](int strip, int half, int i, int column) {
      if (this->row(i / 2) >= this->n || column >= this->p) return;
      const float weight = a.get(this->row(i / 2), column);
      dot[i / 2] += weight * grad[strip][half][i];
      total[i / 2] += weight;
    });
    device::block_barrier();  // the mass has been read
    this->sum_across(dot, 0);
    this->sum_across(total, 1);
    for (int half = 0; half < 2; ++half) dot[half] = total[half] > 0.0f ? dot[half] / total[half] : 0.0f;
    device::block_barrier();  // dot and total have been read
    this->for_each([&](int strip, int half, int i, int) {
      float& x = grad[strip][half][i];
      x = this->row(i / 2) < this->n ? (x - dot[i / 2]) * inverse[i / 2] : 0.0f;
    });
    this->similarity_gradient(grad, kept);
    const float x_unit =
        range_unit<E>([&] { return this->largest(grad); }, device::shared_at<float>(shared.parts));
    this->write_tile(shared.x_tile(),
                     [&](int strip, int half, int i) { return grad[strip][half][i] * (1.0f / x_unit); });
    device::block_barrier();
    write_gradients(x_unit);
  }

 private:
  SPARC_DEVICE void write_output(const Sums (&u)[kStrips], const RowPair& inverse) const {
    const int columns = args.in.image_rows;
    const device::Shared<int> index = this->image_index();
    E* const out = rows_of<E>(args.output, work.text, args.in.text_rows, columns);
    if (this->p < columns) {
      const int64_t size = static_cast<int64_t>(this->n) * columns;
      for (int64_t i = device::thread_index(); i < size; i += kThreads) out[i] = E{};
      device::block_barrier();
    }
    this->for_each([&](int strip, int half, int i, int column) {
      const int row = this->row(i / 2);
      if (row < this->n && column < this->p) {
        const int patch = index[column];
        out[static_cast<int64_t>(row) * columns + patch] =
            device::from_float<E>(u[strip][half][i] * inverse[i / 2]);
      }
    });
  }

  SPARC_DEVICE void write_groups(const RowPair& inverse) const {
    const int channels = args.in.channels;
    E* const out = rows_of<E>(args.output, work.text, args.in.text_rows, channels);
    const auto load = [&](int c, int stage) { this->load_image(c, stage); };
    this->start(load);
    typename Base::HeldOperand held;
    this->hold(held, shared.weights_tile());
    this->for_chunks(load, [&](int c, int stage) {
      if (!this->active()) return;
      typename Base::Turns groups;
      this->times_image(groups, held, shared.image_tile(stage));
      RoundedSums<E> rounded[Base::kTurns];
      SPARC_UNROLL
      for (int turn = 0; turn < Base::kTurns; ++turn) {
        SPARC_UNROLL
        for (int e = 0; e < 8; ++e) groups[turn][e / 4][e % 4] *= inverse[e % 4 / 2];
        rounded[turn] = RoundedSums<E>(groups[turn]);
      }
      store_side_by_side<Base::kWhole>(rounded, out, channels, c * kChunk + this->turn_column(0),
                                       [&](int r) { return this->leading_row(r); });
    });
  }

  // dV = dS^T T + A^T dC, dT = dS V, as asked for
  SPARC_DEVICE void write_gradients(float x_unit) const {
    const PairInputs& in = args.in;
    const InputRows<E> grads(args.grad, work.text);
    const bool embeddings = !args.weights;
    const bool of_patches = args.grad_patches != nullptr, of_tokens = args.grad_tokens != nullptr;
    const typename Base::ImageGradient grad_patches = {
        x_unit, embeddings, 1.0f, MeanShare<E>(),
        rows_of<E>(args.grad_patches, work.image, in.image_rows, in.channels)};
    E* const grad_tokens = rows_of<E>(args.grad_tokens, work.text, in.text_rows, in.channels);
    const auto load = [&](int c, int stage) {
      if (of_tokens) this->load_image(c, stage);
      if (of_patches) this->load_leading(this->text, c, shared.text_tile(stage));
      if (of_patches && embeddings) this->load_leading(grads, c, shared.second_tile(stage));
    };
    this->start(load);
    typename Base::HeldOperand held;
    if (of_tokens) this->hold(held, shared.x_tile());
    this->for_chunks(load, [&](int c, int stage) {
      if (of_patches) this->write_image_gradient(grad_patches, shared.x_tile(), c, stage);
      if (!of_tokens || !this->active()) return;
      typename Base::Turns x;
      this->times_image(x, held, shared.image_tile(stage));
      RoundedSums<E> rounded[Base::kTurns];
      SPARC_UNROLL
      for (int turn = 0; turn < Base::kTurns; ++turn) rounded[turn] = RoundedSums<E>(x[turn], x_unit);
      store_side_by_side<Base::kWhole>(rounded, grad_tokens, in.channels, c * kChunk + this->turn_column(0),
                                       [&](int r) { return this->leading_row(r); });
    });
  }
};

template <>
struct PairOp<GroupingArguments> {
  template <class E, int kChunk>
  using Layout = GroupingLayout<E, kChunk>;

  template <class E, int kStrips, int kChunk, bool kBackward>
  SPARC_DEVICE static void run(const GroupingArguments& args, const Streaming& streaming,
                               const Layout<E, kChunk>& shared) {
    for_each_pair<false>(shared, args.in, [&](const PairWork& work) SPARC_INLINE_LAMBDA {
      if (work.image_rows > 0) {
        const GroupingPairPass<E, kStrips, kChunk> pass(shared, args, streaming, work);
        if constexpr (kBackward) {
          pass.backward();
        } else {
          pass.forward();
        }
      }
      fill_grouping<E>(args, work, kBackward);
    });
  }
};

}  // namespace sparc
