// The fine-grained loss on the tiled path (pairs/tiled_pair.cuh). Names follow MATH.md.
//
//     W = dZ T - diag(alpha) C'    dU = W V^T    dV = dS^T T + U^T W    dT = dS V + dZ^T C' - diag(beta) T
#pragma once

#include "alignment/tiled_alignment.cuh"
#include "fine_grained/fine_grained_rows.cuh"

namespace sparc {

template <class E>
struct FineGrainedScratch : AlignmentScratch<E> {
  int64_t groups, groups_rest;     // C' [L, D] E, and what rounding left of it (half precision)
  int64_t logits;                  // Z, then Y [L, L] float
  int64_t group_norm, token_norm;  // [L] float
  // Backward
  int64_t grads, grad_groups;                                   // dZ [L, L], W [L, D] E
  int64_t row_lse, column_lse, upstream, alpha, beta, restore;  // [L] float; alpha and beta negated

  SPARC_HOST_DEVICE FineGrainedScratch(const PairInputs& in, bool backward)
      : AlignmentScratch<E>(in, backward) {
    const int rows = in.text_rows, last = backward ? rows : 0;
    groups = this->template take<E>(rows, this->channels_pitch);
    groups_rest = this->template take<E>(sizeof(E) == 2 ? rows : 0, this->channels_pitch);
    logits = this->template take<float>(rows, this->text_pitch);
    group_norm = this->template take<float>(rows, 1);
    token_norm = this->template take<float>(rows, 1);
    grads = this->template take<E>(last, this->text_pitch);
    // Z no longer needs the rest by then
    grad_groups = sizeof(E) == 2 ? groups_rest : this->template take<E>(last, this->channels_pitch);
    int64_t* const arrays[] = {&row_lse, &column_lse, &upstream, &alpha, &beta, &restore};
    for (int64_t* offset : arrays) *offset = this->template take<float>(last, 1);
  }
};

template <class Products>
struct FineGrainedTiled
    : TiledAlignment<Products, FineGrainedScratch<typename Products::Element>, FineGrainedArguments> {
  using E = typename Products::Element;
  using Base = TiledAlignment<Products, FineGrainedScratch<E>, FineGrainedArguments>;
  using Base::args;
  using Base::Base;
  using Base::n;
  using Base::plan;
  using Base::row_array;
  static constexpr bool kHalf = sizeof(E) == 2;

  SPARC_DEVICE ScratchMatrix<float> z() const {
    return this->template matrix<float>(plan.logits, n, n, plan.text_pitch);
  }
  SPARC_DEVICE ScratchMatrix<E> dz() const {
    return this->template matrix<E>(plan.grads, n, n, plan.text_pitch);
  }
  // [L, D] of scratch: C', its rest, or W
  SPARC_DEVICE ScratchMatrix<E> groups(int64_t which) const {
    return this->template matrix<E>(which, n, this->in.channels, plan.channels_pitch);
  }
  SPARC_DEVICE int64_t result_at(int l) const {
    return this->work.text * this->in.text_rows + this->text_index()[l];
  }

  SPARC_DEVICE static float rounding_error(float x) { return x - device::to_float(device::from_float<E>(x)); }

  // S, U, C' and Z; `keep` is called with each row's alignment.
  template <class Keep>
  SPARC_DEVICE void compare(const Keep& keep) const {
    groups(plan.groups).clear_padding();
    if (kHalf) groups(plan.groups_rest).clear_padding();
    this->align([&](int l, const RowAlignment& row, device::Scratch<float> s) {
      const device::Scratch<E> u = this->u().row(l);
      this->for_columns([&](int i) { u[i] = device::from_float<E>(row.weight(s[i])); });
      keep(l, row);
    });
    const float unit = group_unit<E>(this->p);
    this->multiply(Product{this->u(), this->image()}, [&](int l) {
      const auto c = groups(plan.groups)(l), rest = groups(plan.groups_rest)(l);
      return [=](int d, const float (&sums)[2]) {
        const float group[2] = {sums[0] * unit, sums[1] * unit};
        c(d, group);
        if (kHalf) rest(d, {rounding_error(group[0]), rounding_error(group[1])});
      };
    });
    const Product whole{groups(plan.groups), this->text().transpose()};
    if constexpr (kHalf) {
      const Product rest{groups(plan.groups_rest), this->text().transpose()};
      this->multiply(ProductSum{whole, 1.0f, rest}, z());
    } else {
      this->multiply(whole, z());
    }
  }

  SPARC_DEVICE float cosine_at(int l, int j) const {
    return cosine_of(z().get(l, j), 1.0f / row_array(plan.group_norm)[l],
                     1.0f / row_array(plan.token_norm)[j]);
  }

  // |C'| and |t|, clamped.
  SPARC_DEVICE void norms() const {
    const GatheredRows<E> t = this->text();
    this->for_rows([&](int l) {
      float group = 0.0f, token = 0.0f;
      for (int d = device::lane_index(); d < this->in.channels; d += 32) {
        float c = groups(plan.groups).get(l, d);
        if constexpr (kHalf) c += groups(plan.groups_rest).get(l, d);
        const float x = t.get(l, d);
        group += c * c;
        token += x * x;
      }
      group = warp_sum(group);
      token = warp_sum(token);
      if (device::lane_index() == 0) {
        row_array(plan.group_norm)[l] = clamped_norm(group);
        row_array(plan.token_norm)[l] = clamped_norm(token);
      }
    });
    device::block_barrier();
  }

  SPARC_DEVICE void forward() const {
    const int64_t stride = args.stats_stride;
    compare([&](int l, const RowAlignment& row) {
      if (device::lane_index() == 0) {
        args.stats[kFirstOfRow * stride + result_at(l)] = row.low;
        args.stats[kSecondOfRow * stride + result_at(l)] = row.high;
      }
    });
    norms();
    const float scale = *args.logit_scale;
    this->for_rows([&](int l) {
      const int lane = device::lane_index();
      float top = -device::infinity();
      for (int j = lane; j < n; j += 32) top = device::max(top, logit(cosine_at(l, j), scale));
      const Softmax row = softmax(
          warp_max(top), scale, lane, 32, n, [&](int j) { return cosine_at(l, j); },
          [](float x) { return warp_sum(x); });
      if (lane == 0) {
        args.stats[kRowLogSumExp * stride + result_at(l)] = row.lse;
        args.stats[kScaleDerivative * stride + result_at(l)] = row.cosine;
      }
    });
    device::block_barrier();
    for (int j = device::thread_index(); j < n; j += kThreads) {
      float top = -device::infinity();
      for (int l = 0; l < n; ++l) top = device::max(top, logit(cosine_at(l, j), scale));
      const Softmax column =
          softmax(top, scale, 0, 1, n, [&](int l) { return cosine_at(l, j); }, [](float x) { return x; });
      const float cosine = cosine_at(j, j), diagonal = logit(cosine, scale);
      float* const stat = args.stats + result_at(j);
      stat[kColumnLogSumExp * stride] = column.lse;
      stat[kGroupNorm * stride] = row_array(plan.group_norm)[j];
      stat[kTokenNorm * stride] = row_array(plan.token_norm)[j];
      stat[kScaleDerivative * stride] =
          0.5f * (stat[kScaleDerivative * stride] - cosine) + 0.5f * (column.cosine - cosine);
      args.token_loss[result_at(j)] =
          0.5f * (stat[kRowLogSumExp * stride] - diagonal) + 0.5f * (column.lse - diagonal);
    }
  }

  SPARC_DEVICE LogitRow logit_row(int l) const {
    return {1.0f / row_array(plan.group_norm)[l], *args.logit_scale, row_array(plan.row_lse)[l],
            row_array(plan.upstream)[l]};
  }
  SPARC_DEVICE float grad_logit(const LogitRow& row, int l, int j) const {
    return logit_gradient<E>(row, z().get(l, j), row_array(plan.token_norm)[j], row_array(plan.column_lse)[j],
                             row_array(plan.upstream)[j], j == l);
  }

  // dZ in its unit, -alpha, -beta; returns the unit.
  SPARC_DEVICE float grad_logits() const {
    const float unit = range_unit<E>(
        [&] {
          float largest = 0.0f;
          this->for_rows([&](int l) {
            const LogitRow row = logit_row(l);
            float reach = 0.0f;
            for (int j = device::lane_index(); j < n; j += 32) {
              const float dz = device::abs(grad_logit(row, l, j));
              largest = device::max(largest, dz);
              reach += dz * row_array(plan.token_norm)[j];
            }
            largest = reach_unit(largest, warp_sum(reach));
          });
          return largest;
        },
        this->parts());
    dz().clear_padding();
    this->for_rows([&](int l) {
      const LogitRow row = logit_row(l);
      const device::Scratch<E> dz_row = dz().row(l);
      float along = 0.0f;
      for (int j = device::lane_index(); j < n; j += 32) {
        const E rounded = device::from_float<E>(grad_logit(row, l, j) * (1.0f / unit));
        dz_row[j] = rounded;
        along += device::to_float(rounded) * z().get(l, j);
      }
      along = warp_sum(along);
      if (device::lane_index() == 0)
        row_array(plan.alpha)[l] = -along * inverse_square(row_array(plan.group_norm)[l]);
    });
    device::block_barrier();  // dZ is there
    for (int j = device::thread_index(); j < n; j += kThreads) {
      float along = 0.0f;
      for (int l = 0; l < n; ++l) along += dz().get(l, j) * z().get(l, j);
      const float norm = row_array(plan.token_norm)[j];
      row_array(plan.beta)[j] = -along * inverse_square(norm);
      row_array(plan.restore)[j] = without_length<E>(norm) ? unit / norm : unit;
    }
    device::block_barrier();
    return unit;
  }

  SPARC_DEVICE void backward() const {
    const int channels = this->in.channels;
    const float c_unit = group_unit<E>(this->p);
    read_stats(*this, plan);
    device::block_barrier();
    compare([](int, const RowAlignment&) {});
    const float unit = grad_logits();
    const GatheredRows<E> t = this->text();
    const ScratchMatrix<E> dz = this->dz(), c = groups(plan.groups), w = groups(plan.grad_groups),
                           ds = this->ds();

    w.clear_padding();
    this->multiply(Product{dz, t}, [&](int l) {
      const float alpha = row_array(plan.alpha)[l];
      return [alpha, from = c(l), to = w(l)](int d, const float (&sums)[2]) {
        float x[2];
        from.get(d, x);
        to(d, {sums[0] + alpha * x[0], sums[1] + alpha * x[1]});
      };
    });
    this->against_image(w, this->du());  // dU without the unit of C'
    const float s_unit = this->align_backward();

    if (args.grad_patches != nullptr) {
      const MeanShare<E> share(args.grad_pooled_patches, this->work.image, channels, this->p);
      const OutputRows<E> out = this->image_output(args.grad_patches);
      const float scale = unit * c_unit;
      const ProductSum sum{Product{ds.transpose(), t}, s_unit, Product{this->u().transpose(), w}};
      this->multiply(sum, [&](int i) {
        return [=, to = out(i)](int d, const float (&sums)[2]) {
          float added[2];
          share.two_at(d, added);
          to(d, {sums[0] * scale + added[0], sums[1] * scale + added[1]});
        };
      });
    }
    if (args.grad_tokens != nullptr) {
      const MeanShare<E> share(args.grad_pooled_tokens, this->work.text, channels, n);
      const OutputRows<E> out = this->text_output(args.grad_tokens);
      const ProductSum sum{Product{ds, this->image()}, s_unit * c_unit, Product{dz.transpose(), c}};
      this->multiply(sum, [&](int l) {
        const float beta = row_array(plan.beta)[l], restore = row_array(plan.restore)[l];
        return [=, from = t(l), to = out(l)](int d, const float (&sums)[2]) {
          float x[2], added[2];
          from.get(d, x);
          share.two_at(d, added);
          to(d, {(sums[0] + beta * x[0]) * restore + added[0], (sums[1] + beta * x[1]) * restore + added[1]});
        };
      });
    }
  }
};

template <>
struct TiledOp<FineGrainedArguments> {
  template <class E>
  using Layout = FineGrainedScratch<E>;

  template <class Products, bool kBackward>
  SPARC_DEVICE static void run(const FineGrainedArguments& args, const TiledMemory& memory,
                               const FineGrainedScratch<typename Products::Element>& plan) {
    using E = typename Products::Element;
    const auto pass = [&](unsigned char* base, const PairWork& work) SPARC_INLINE_LAMBDA {
      const FineGrainedTiled<Products> tiled(plan, args, base, work);
      if (kBackward) {
        if (work.image_rows > 0) tiled.backward();
        fill_gradients<E>(args, work);
      } else {
        if (work.image_rows > 0) tiled.forward();
        fill_results(args, work.text, work.image_rows);
        write_means<E>(args, work.image, work.text);
      }
    };
    for_each_tiled_pair<E, true>(plan, args.in, memory, pass);
  }
};

}  // namespace sparc
