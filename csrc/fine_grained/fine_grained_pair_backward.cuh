// The fine-grained loss on the pair path: backward pass, whatever its products are made of. W is the
// derivative of C':
//
//     W = dZ T + Q,  Q = -diag(alpha) C'      dU = W V^T      X = dZ^T U + dS
//     dV = X^T T + U^T Q                      dT = X V - diag(beta) T
//
// V and T are streamed four times: for S, for C' and Z, for W and dU, for the gradients. C', then Q, wait in
// the rows of dT, which the last stream overwrites chunk by chunk behind its own reads, or, where dT is not
// asked for, in scratch of the block.
//
// float16 holds what it can in units: dZ in one that keeps it and W in range, X in its largest element.
#pragma once

#include "fine_grained/fine_grained_pair_kernel.cuh"

namespace sparc {

// What a backward pass does between its products, whatever these are made of.
template <class Steps>
struct FineGrainedBackwardParts : Steps {
  using Base = Steps;
  using E = typename Base::E;
  using Kept = typename Base::Kept;
  using Strips = typename Base::Strips;
  using Base::args;
  using Base::Base;
  using Base::row_array;
  using Base::shared;
  using Base::work;

  SPARC_DEVICE E* saved_groups() const {  // [valid tokens, D]: C', then Q
    return rows_of<E>(args.saved_groups, saved_slot(), args.in.text_rows, args.in.channels);
  }
  // C' or Q, `unit` times these sums of this warp's rows, channels from `first` on.
  template <int kCount>
  SPARC_DEVICE void save_groups(const Sums (&sums)[kCount], float unit, int first) const {
    RoundedSums<E> rounded[kCount];
    SPARC_UNROLL
    for (int i = 0; i < kCount; ++i) rounded[i] = RoundedSums<E>(sums[i], unit);
    store_side_by_side<Base::kWhole>(rounded, saved_groups(), args.in.channels, first,
                                     [&](int r) { return this->leading_row(r); });
  }
  SPARC_DEVICE InputRows<E> saved_rows() const {
    const int channels = args.in.channels;
    const MatrixView view = {args.saved_groups, args.in.text_rows * static_cast<int64_t>(channels), channels,
                             1, channels % 8 == 0};
    return InputRows<E>(view, saved_slot());
  }
  SPARC_DEVICE void load_groups(int c, int stage) const {
    const InputRows<E> rows = saved_rows();
    const typename Base::TextCopies copies(rows, nullptr, this->n);
    copies.load(rows, nullptr, this->n, c * this->kChunk, args.in.channels, shared.second_tile(stage));
  }
  // One chunk for W and dU; `there`: V and T are.
  SPARC_DEVICE void load_for_weights(int c, int stage, bool there = false) const {
    if (!there) this->load(c, stage);
    load_groups(c, stage);
  }
  // c = -diag(alpha) C' for this warp's rows, 16 channels from `column` of the chunk on.
  template <class From>
  SPARC_DEVICE void scale_groups(Sums& c, const From& groups, int column, const float (&alpha)[2]) const {
    const RoundedSums<E> group = held_rows(groups, column);
    SPARC_UNROLL
    for (int e = 0; e < 8; ++e) c[e / 4][e % 4] = -alpha[e % 4 / 2] * group.value(e / 4, e % 4);
  }
  // One chunk for both gradients, as they are asked for.
  SPARC_DEVICE void load_for_gradients(int c, int stage, bool there = false) const {
    if (!there) this->load_text(c, stage);
    if (!there && args.grad_tokens != nullptr) this->load_image(c, stage);
    if (args.grad_patches != nullptr) load_groups(c, stage);
  }

  // Of one of the two rows that this lane holds.
  SPARC_DEVICE float of_row(int offset, int half) const {
    return this->row(half) < this->n ? static_cast<float>(row_array(offset)[this->row(half)]) : 0.0f;
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
    const LogitRow logits = {inverse_group, *args.logit_scale,
                             valid ? static_cast<float>(row_array(shared.row_lse)[row]) : 0.0f,
                             valid ? static_cast<float>(upstream[row]) : 0.0f};
    const auto grad = [&](int j) {
      return logit_gradient<E>(logits, *shared.z(row, j), token_norm[j], column_lse[j], upstream[j],
                               j == row);
    };
    const float unit = range_unit<E>(
        [&] {
          float largest = 0.0f, reach = 0.0f;
          if (valid) {
            SPARC_NO_UNROLL
            for (int j = part; j < n; j += 4) {
              const float dz = device::abs(grad(j));
              largest = device::max(largest, dz);
              reach += dz * token_norm[j];
            }
          }
          return reach_unit(largest, quad_sum(reach));
        },
        row_array(shared.parts));
    const auto dz_tile = shared.grads_tile();
    const float inverse_unit = 1.0f / unit;
    float along_group = 0.0f;
    const int filled = dz_tile.rows_for(n);
    if (row < filled) {
      SPARC_UNROLL_FOUR_TIMES
      for (int i = 0; i < filled / 4; ++i) {
        const int j = part + 4 * i;
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
      SPARC_UNROLL_FOUR_TIMES
      for (int l = part; l < n; l += 4) along_token += dz_tile.get(l, row) * *shared.z(l, row);
    }
    along_token = quad_sum(along_token);
    if (valid && part == 0) {
      const float norm = token_norm[row];
      row_array(shared.beta)[row] = along_token * inverse_square(norm);
      row_array(shared.restore)[row] = without_length<E>(norm) ? unit / norm : unit;
    }
    this->publish();
    return unit;
  }

  // C' into its place, and what this warp adds to Z; `held`: U.
  template <class Held>
  SPARC_DEVICE void save_groups_of(const Held& held, float unit, typename Base::TextSums& z) const {
    this->groups(held, unit, z, [&](const auto& groups, int c, int column) {
      save_groups(groups, 1.0f, c * this->kChunk + column);
    });
  }

  // dU becomes X = dZ^T U + dS, both without the unit of C', of which add_products() adds the first; returns
  // the unit that X is written in.
  template <class AddProducts>
  SPARC_DEVICE float mix(Strips& s, const Kept& kept, const AddProducts& add_products) const {
    this->similarity_gradient(s, kept);
    add_products();
    const float x_unit = range_unit<E>([&] { return this->largest(s); }, row_array(shared.parts));
    if constexpr (!kIsFloat16<E>) {
      device::block_barrier();  // dZ has been read: X takes its place
    }
    const float inverse = 1.0f / x_unit;
    this->write_tile(shared.x_tile(),
                     [&](int strip, int half, int i) { return s[strip][half][i] * inverse; });
    this->publish();
    return x_unit;
  }

  // What rows of the gradients are made of beside products, for the rows of this lane; x_unit: what X was
  // divided by, unit: what dZ was.
  SPARC_DEVICE typename Base::ImageGradient image_gradient(float x_unit, float unit) const {
    const PairInputs& in = args.in;
    return {x_unit, true, unit, MeanShare<E>(args.grad_pooled_patches, work.image, in.channels, this->p),
            rows_of<E>(args.grad_patches, work.image, in.image_rows, in.channels)};
  }
  struct TextGradient {
    float x_unit, beta[2], restore[2];
    MeanShare<E> share;
    E* out;
  };
  SPARC_DEVICE TextGradient text_gradient(float x_unit) const {
    const PairInputs& in = args.in;
    return {x_unit,
            {of_row(shared.beta, 0), of_row(shared.beta, 1)},
            {of_row(shared.restore, 0), of_row(shared.restore, 1)},
            MeanShare<E>(args.grad_pooled_tokens, work.text, in.channels, this->n),
            rows_of<E>(args.grad_tokens, work.text, in.text_rows, in.channels)};
  }
  // dT from x = X V: this warp's rows, its channels from `column` on of chunk c, whose tokens are in t;
  // share: grad.share, or where it has been put.
  template <class Share, int kCount, class From>
  SPARC_DEVICE void store_text_gradient(const TextGradient& grad, const Share& share, const Sums (&x)[kCount],
                                        const From& t, int c, int column) const {
    const int first = c * this->kChunk + column;
    const device::Shared<int> token_index = this->text_index();
    RoundedSums<E> rounded[kCount];
    SPARC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const RoundedSums<E> token = held_rows(t, column + 16 * i);
      Sums sum;
      SPARC_UNROLL
      for (int e = 0; e < 8; ++e) {
        const int half = e % 4 / 2;
        sum[e / 4][e % 4] = (x[i][e / 4][e % 4] * grad.x_unit - grad.beta[half] * token.value(e / 4, e % 4)) *
                            grad.restore[half];
      }
      if (share.is_there()) {
        SPARC_UNROLL
        for (int half = 0; half < 2; ++half) {
          float each[2];
          share.template two_at<Base::kWhole>(first + 16 * i + sum_column(half, 0), each);
          SPARC_UNROLL
          for (int e = 0; e < 4; ++e) sum[half][e] += each[e % 2];
        }
      }
      rounded[i] = RoundedSums<E>(sum);
    }
    store_side_by_side<Base::kWhole>(rounded, grad.out, args.in.channels, first, [&](int r) -> int64_t {
      return this->row0 + r < this->n ? static_cast<int>(token_index[this->row0 + r]) : -1;
    });
  }
  // This lane's numbers of a tile of 16-bit elements with a row for every token: 16 columns from `column` on.
  template <class From>
  SPARC_DEVICE RoundedSums<E> held_rows(const From& tile, int column) const {
    RoundedSums<E> found;
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const device::Shared<uint32_t> words = tile.word_at(this->row(0), column + sum_column(half, 0));
      SPARC_UNROLL
      for (int r = 0; r < 2; ++r) found.words[r][half] = words[tile.rows_apart(8 * r) / 2];
    }
    return found;
  }

 private:
  SPARC_DEVICE int64_t saved_slot() const {
    return args.grad_tokens != nullptr ? work.text : device::block_index();
  }
};

// `Gradients`: FineGrainedBackwardParts with its products.
template <class Gradients>
struct FineGrainedPairBackward : Gradients {
  using Base = Gradients;
  using E = typename Base::E;
  using Base::Base;
  using Base::shared;

  SPARC_DEVICE void backward() const {
    typename Base::Kept kept;
    {
      typename Base::Strips s = {};
      this->start_both();
      read_stats(*this, shared);
      float unused;
      this->template similarities<false>(s, unused);
      this->start_both_again();
      const typename Base::Alignments aligned = this->align(s);
      this->write_weights(s, aligned);
      kept = this->keep(s, aligned);  // of S only what dS needs stays
      this->publish();
    }
    const float c_unit = group_unit<E>(this->p);
    {
      typename Base::Held held;
      this->hold(held, shared.weights_tile());
      typename Base::TextSums z = {};
      this->save_groups_of(held, c_unit, z);
      this->start_weights();
      this->write_logits(z);
    }
    const float unit = this->grad_logits();
    typename Base::Strips s = {};
    this->grad_weights(s, c_unit);
    this->start_gradients();
    const float x_unit = this->mix(s, kept, [&] { this->add_mixed(s); }) * c_unit;
    this->write_gradients(x_unit, unit);
  }
};

// All pairs of this block, backward, by `Pass`, a FineGrainedPairBackward.
template <class Pass, class Layout>
SPARC_DEVICE void run_backward(const FineGrainedArguments& args, const Streaming& streaming,
                               const Layout& shared) {
  for_each_pair<true>(shared, args.in, [&](const PairWork& work) SPARC_INLINE_LAMBDA {
    if (work.image_rows > 0) {
      Pass(shared, args, streaming, work).backward();
      device::block_barrier();  // the rows of Q have been read: masked rows of dT lie among them
    }
    fill_gradients<typename Pass::E>(args, work);
  });
}

}  // namespace sparc
