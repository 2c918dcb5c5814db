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

// What both passes do between their products, whatever these are made of.
template <class Tile_, class Layout>
struct GroupingPairBase : AlignmentPass<Tile_, Layout, GroupingArguments> {
  using Base = AlignmentPass<Tile_, Layout, GroupingArguments>;
  using E = typename Base::E;
  using RowPair = typename Base::RowPair;
  using Strips = typename Base::Strips;
  using Alignments = typename Base::Alignments;
  using Kept = typename Base::Kept;
  using Base::args;
  using Base::Base;
  using Base::shared;
  using Base::work;

  // S becomes U; returns 1 / sum U.
  SPARC_DEVICE void weigh(Strips& s, RowPair& inverse) const {
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
    for (int half = 0; half < 2; ++half) inverse[half] = 1.0f / mass[half];
  }

  // The weights, from U and 1 / sum U.
  SPARC_DEVICE void write_output(const Strips& u, const RowPair& inverse) const {
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

  // Sums of this warp's rows, each row in units of its factor, into a result [L, D] from channel `first` on.
  template <int kCount>
  SPARC_DEVICE void store_rows(void* out, const Sums (&sums)[kCount], const RowPair& factor,
                               int first) const {
    const int channels = args.in.channels;
    RoundedSums<E> rounded[kCount];
    SPARC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      Sums sum;
      SPARC_UNROLL
      for (int e = 0; e < 8; ++e) sum[e / 4][e % 4] = sums[i][e / 4][e % 4] * factor[e % 4 / 2];
      rounded[i] = RoundedSums<E>(sum);
    }
    store_side_by_side<Base::kWhole>(rounded, rows_of<E>(out, work.text, args.in.text_rows, channels),
                                     channels, first, [&](int r) { return this->leading_row(r); });
  }

  SPARC_DEVICE InputRows<E> grad_rows() const { return InputRows<E>(args.grad, work.text); }

  // dA [n, p], from the weights' gradient: each lane reads its own.
  SPARC_DEVICE void read_weight_gradient(Strips& da) const {
    const device::Shared<int> index = this->image_index();
    const InputRows<E> grads = grad_rows();
    this->for_each([&](int strip, int half, int i, int column) {
      const int row = this->row(i / 2);
      if (row < this->n && column < this->p) {
        const int patch = index[column];
        da[strip][half][i] =
            device::to_float(grads.data[row * grads.row_stride + patch * grads.column_stride]);
      }
    });
  }

  // S becomes A as products take it, in shared memory, too; of S only what dS needs stays, and 1 / sum U.
  SPARC_DEVICE Kept normalize(Strips& s, RowPair& inverse) const {
    const Alignments aligned = this->align(s);
    device::block_barrier();  // the extrema have been read: the sums take their place
    const Kept kept = this->keep(s, aligned);
    RowPair mass = {0.0f, 0.0f};
    this->for_each([&](int strip, int half, int i, int column) {
      float& u = s[strip][half][i];
      u = column < this->p ? aligned.of(i).weight(u) : 0.0f;
      mass[i / 2] += u;
    });
    this->sum_across(mass, 0);
    for (int half = 0; half < 2; ++half) inverse[half] = 1.0f / mass[half];
    this->for_each([&](int strip, int half, int i, int) {
      float& a = s[strip][half][i];
      a = device::to_float(device::from_float<E>(a * inverse[i / 2]));
    });
    this->write_tile(shared.weights_tile(), [&](int strip, int half, int i) { return s[strip][half][i]; });
    return kept;
  }

  // dA becomes X = dS in a unit, in shared memory; returns that unit. a(strip, half, i, column): the rounded
  // A.
  template <class Weight>
  SPARC_DEVICE float mix(Strips& grad, const Kept& kept, const RowPair& inverse, const Weight& a) const {
    // dU = (dA - sum dA A) / sum U. The mean is that of the rounded A, whose sum is not quite 1.
    RowPair dot = {0.0f, 0.0f}, total = {0.0f, 0.0f};
    this->for_each([&](int strip, int half, int i, int column) {
      if (this->row(i / 2) >= this->n || column >= this->p) return;
      const float weight = a(strip, half, i, column);
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
    return x_unit;
  }

  // dV = dS^T T + A^T dC, of weights the first of both alone.
  SPARC_DEVICE typename Base::ImageGradient image_gradient(float x_unit) const {
    return {x_unit, !args.weights, 1.0f, MeanShare<E>(),
            rows_of<E>(args.grad_patches, work.image, args.in.image_rows, args.in.channels)};
  }
};

// Its products by single warps.
template <class E, int kStrips, int kChunk>
struct GroupingPairPass : GroupingPairBase<PairTile<E, kStrips, kChunk>, GroupingLayout<E, kChunk>> {
  using Base = GroupingPairBase<PairTile<E, kStrips, kChunk>, GroupingLayout<E, kChunk>>;
  using RowPair = typename Base::RowPair;
  using Base::args;
  using Base::Base;
  using Base::shared;

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
    RowPair inverse;
    this->weigh(s, inverse);
    if (args.weights) {
      this->write_output(s, inverse);
    } else {
      this->write_tile(shared.weights_tile(), [&](int strip, int half, int i) { return s[strip][half][i]; });
      device::block_barrier();
      write_groups(inverse);
    }
  }

  SPARC_DEVICE void backward() const {
    typename Base::Kept kept;
    RowPair inverse;
    {
      Sums s[kStrips] = {};
      against_image(s, this->text);
      kept = this->normalize(s, inverse);
    }
    Sums grad[kStrips] = {};
    if (args.weights) {
      this->read_weight_gradient(grad);
    } else {
      against_image(grad, this->grad_rows());
    }
    // beside S there were no registers for dA: A is read where this thread has written it
    const Tile<E> a = shared.weights_tile();
    const float x_unit = this->mix(
        grad, kept, inverse, [&](int, int, int i, int column) { return a.get(this->row(i / 2), column); });
    device::block_barrier();
    write_gradients(x_unit);
  }

 private:
  SPARC_DEVICE void write_groups(const RowPair& inverse) const {
    const auto load = [&](int c, int stage) { this->load_image(c, stage); };
    this->start(load);
    typename Base::HeldOperand held;
    this->hold(held, shared.weights_tile());
    this->for_chunks(load, [&](int c, int stage) {
      if (!this->active()) return;
      typename Base::Turns groups;
      this->times_image(groups, held, shared.image_tile(stage));
      this->store_rows(args.output, groups, inverse, c * kChunk + this->turn_column(0));
    });
  }

  // dV and dT = dS V, as asked for
  SPARC_DEVICE void write_gradients(float x_unit) const {
    const InputRows<E> grads = this->grad_rows();
    const bool of_patches = args.grad_patches != nullptr, of_tokens = args.grad_tokens != nullptr;
    const typename Base::ImageGradient grad_patches = this->image_gradient(x_unit);
    const RowPair unit = {x_unit, x_unit};
    const auto load = [&](int c, int stage) {
      if (of_tokens) this->load_image(c, stage);
      if (of_patches) this->load_leading(this->text, c, shared.text_tile(stage));
      if (of_patches && !args.weights) this->load_leading(grads, c, shared.second_tile(stage));
    };
    this->start(load);
    typename Base::HeldOperand held;
    if (of_tokens) this->hold(held, shared.x_tile());
    this->for_chunks(load, [&](int c, int stage) {
      if (of_patches) this->write_image_gradient(grad_patches, shared.x_tile(), c, stage);
      if (!of_tokens || !this->active()) return;
      typename Base::Turns x;
      this->times_image(x, held, shared.image_tile(stage));
      this->store_rows(args.grad_tokens, x, unit, c * kChunk + this->turn_column(0));
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
