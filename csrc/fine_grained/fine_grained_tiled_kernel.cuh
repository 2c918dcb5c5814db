// The fine-grained loss on the tiled path (common/tiled_product.cuh), forward and backward. Names follow
// MATH.md.
//
//     W = dZ T - diag(alpha) C'    dU = W V^T    dV = dS^T T + U^T W    dT = dS V + dZ^T C' - diag(beta) T
#pragma once

#include "common/tiled_product.cuh"
#include "fine_grained/fine_grained_rows.cuh"

namespace sparc {

template <class E>
struct FineGrainedScratch : TiledScratch<E> {
  int64_t groups, groups_rest;     // C' [L, D] E, and what rounding left of it (half precision)
  int64_t logits;                  // Z, then Y [L, L] float
  int64_t group_norm, token_norm;  // [L] float
  // Backward
  int64_t grads, grad_groups;                                   // dZ [L, L], W [L, D] E
  int64_t row_lse, column_lse, upstream, alpha, beta, restore;  // [L] float; alpha and beta negated

  SPARC_HOST_DEVICE FineGrainedScratch(const PairInputs& in, bool backward) : TiledScratch<E>(in, backward) {
    Plan<int64_t>& plan = this->plan;
    const int64_t rows = in.tokens * 4, element = sizeof(E),
                  wide = in.tokens * this->channels_pitch * element;
    groups = plan.take(wide);
    groups_rest = plan.take(sizeof(E) == 2 ? wide : 0);
    logits = plan.take(in.tokens * this->tokens_pitch * 4);
    group_norm = plan.take(rows);
    token_norm = plan.take(rows);
    grads = grad_groups = row_lse = column_lse = upstream = alpha = beta = restore = 0;
    if (!backward) return;
    grads = plan.take(in.tokens * this->tokens_pitch * element);
    grad_groups = sizeof(E) == 2 ? groups_rest : plan.take(wide);  // Z no longer needs the rest by then
    int64_t* const arrays[] = {&row_lse, &column_lse, &upstream, &alpha, &beta, &restore};
    for (int64_t* offset : arrays) *offset = plan.take(rows);
  }
};

template <class Products>
struct FineGrainedTiled : TiledPair<Products> {
  using Base = TiledPair<Products>;
  using E = typename Products::Element;
  static constexpr bool kHalf = sizeof(E) == 2;

  const FineGrainedScratch<E>& plan;
  const FineGrainedArguments& args;

  SPARC_DEVICE FineGrainedTiled(const FineGrainedScratch<E>& plan_, const FineGrainedArguments& args_,
                                unsigned char* base, int64_t pair, int n, int p)
      : Base{plan_, args_.in, base, pair, n, p}, plan(plan_), args(args_) {}

  SPARC_DEVICE device::Scratch<float> z_row(int l) const {
    return this->template row_of<float>(plan.logits, l, plan.tokens_pitch);
  }
  SPARC_DEVICE device::Scratch<float> row_array(int64_t offset) const {
    return this->template scratch<float>(offset);
  }
  SPARC_DEVICE int64_t result_at(int l) const {
    return this->pair * this->in.tokens + this->template scratch<int>(plan.token_index)[l];
  }
  SPARC_DEVICE Operand<E> groups(int64_t which) const {
    return this->stored(which, this->n, this->in.channels, plan.channels_pitch);
  }

  // S, U, C' and Z; `keep` is called with each row's alignment.
  template <class Keep>
  SPARC_DEVICE void compare(const Keep& keep) const {
    const int n = this->n, channels = this->in.channels;
    this->similarities(this->tokens(), plan.similarities);
    this->align([&](int l, const RowAlignment& row, device::Scratch<float> s) {
      const device::Scratch<E> u = this->template row_of<E>(plan.weights, l, plan.patches_pitch);
      this->for_patches([&](int i) { u[i] = device::from_float<E>(row.weight(s[i])); });
      keep(l, row);
    });
    Product<E> groups_product(n, channels);
    groups_product.add(this->weights(), false, this->patches(), true);
    groups_product.scale = group_unit<E>(this->p);
    groups_product.to_rounded = true;
    groups_product.with_rest = kHalf;
    groups_product.rounded = this->template scratch<E>(plan.groups);
    groups_product.rest = this->template scratch<E>(plan.groups_rest);
    groups_product.pitch = plan.channels_pitch;
    multiply<Products>(groups_product);

    Product<E> z(n, n);
    z.add(groups(plan.groups), false, this->tokens(), false);
    if (kHalf) z.add(groups(plan.groups_rest), false, this->tokens(), false);
    z.to_sums = true;
    z.sums = this->template scratch<float>(plan.logits);
    z.pitch = plan.tokens_pitch;
    multiply<Products>(z);
  }

  SPARC_DEVICE float cosine_at(int l, int j) const {
    return cosine_of(z_row(l)[j], 1.0f / row_array(plan.group_norm)[l], 1.0f / row_array(plan.token_norm)[j]);
  }

  // |C'| and |t|, clamped.
  SPARC_DEVICE void norms() const {
    const Operand<E> t = this->tokens();
    this->for_rows([&](int l) {
      const device::Scratch<E> high = this->template row_of<E>(plan.groups, l, plan.channels_pitch),
                               low = this->template row_of<E>(plan.groups_rest, l, plan.channels_pitch);
      float group = 0.0f, token = 0.0f;
      for (int d = device::lane_index(); d < this->in.channels; d += 32) {
        float c = device::to_float(static_cast<E>(high[d]));
        if constexpr (kHalf) c += device::to_float(static_cast<E>(low[d]));
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
    const int n = this->n;
    const int64_t stride = args.stats_stride;
    compare([&](int l, const RowAlignment& row) {
      if (device::lane_index() == 0) {
        args.stats[kRowMin * stride + result_at(l)] = row.low;
        args.stats[kRowMax * stride + result_at(l)] = row.high;
      }
    });
    norms();
    const float scale = *args.logit_scale;
    this->for_rows([&](int l) {
      float top = -device::infinity(), total = 0.0f, along = 0.0f;
      for (int j = device::lane_index(); j < n; j += 32)
        top = device::max(top, logit(cosine_at(l, j), scale));
      top = warp_max(top);
      for (int j = device::lane_index(); j < n; j += 32) {
        const float cosine = cosine_at(l, j), weight = device::exp(logit(cosine, scale) - top);
        total += weight;
        along += weight * cosine;
      }
      total = warp_sum(total);
      along = warp_sum(along);
      if (device::lane_index() == 0) {
        args.stats[kRowLogSumExp * stride + result_at(l)] = top + device::log(total);
        args.stats[kScaleDerivative * stride + result_at(l)] = along / total;
      }
    });
    device::block_barrier();
    for (int j = device::thread_index(); j < n; j += kThreads) {
      float top = -device::infinity(), total = 0.0f, along = 0.0f;
      for (int l = 0; l < n; ++l) top = device::max(top, logit(cosine_at(l, j), scale));
      for (int l = 0; l < n; ++l) {
        const float cosine = cosine_at(l, j), weight = device::exp(logit(cosine, scale) - top);
        total += weight;
        along += weight * cosine;
      }
      const float column_lse = top + device::log(total), cosine = cosine_at(j, j),
                  diagonal = logit(cosine, scale);
      float* const stat = args.stats + result_at(j);
      stat[kColumnLogSumExp * stride] = column_lse;
      stat[kGroupNorm * stride] = row_array(plan.group_norm)[j];
      stat[kTokenNorm * stride] = row_array(plan.token_norm)[j];
      stat[kScaleDerivative * stride] =
          0.5f * (stat[kScaleDerivative * stride] - cosine) + 0.5f * (along / total - cosine);
      args.token_loss[result_at(j)] =
          0.5f * (stat[kRowLogSumExp * stride] - diagonal) + 0.5f * (column_lse - diagonal);
    }
  }

  SPARC_DEVICE void read_stats() const {
    const int64_t stride = args.stats_stride;
    for (int l = device::thread_index(); l < this->n; l += kThreads) {
      const int64_t at = result_at(l);
      const float* const stat = args.stats + at;
      row_array(plan.group_norm)[l] = stat[kGroupNorm * stride];
      row_array(plan.token_norm)[l] = stat[kTokenNorm * stride];
      row_array(plan.row_lse)[l] = stat[kRowLogSumExp * stride];
      row_array(plan.column_lse)[l] = stat[kColumnLogSumExp * stride];
      const int64_t token = at - this->pair * this->in.tokens;
      row_array(plan.upstream)[l] =
          args.grad_token_loss[this->pair * args.grad_batch_stride + token * args.grad_stride];
    }
    device::block_barrier();
  }

  SPARC_DEVICE LogitRow logit_row(int l) const {
    return {1.0f / row_array(plan.group_norm)[l], *args.logit_scale, row_array(plan.row_lse)[l],
            row_array(plan.upstream)[l]};
  }
  SPARC_DEVICE float grad_logit(const LogitRow& row, int l, int j) const {
    return logit_gradient<E>(row, z_row(l)[j], row_array(plan.token_norm)[j], row_array(plan.column_lse)[j],
                             row_array(plan.upstream)[j], j == l);
  }

  // dZ in its unit, -alpha, -beta; returns the unit.
  SPARC_DEVICE float grad_logits() const {
    const int n = this->n;
    const device::Shared<float> parts = device::shared_at<float>(TiledShared<E>::kParts);
    float unit = 1.0f;
    if constexpr (kIsFloat16<E>) {
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
      largest = block_max(largest, parts);
      if (largest > 0.0f) unit = largest;
    }
    this->for_rows([&](int l) {
      const LogitRow row = logit_row(l);
      const device::Scratch<E> dz_row = this->template row_of<E>(plan.grads, l, plan.tokens_pitch);
      float along = 0.0f;
      for (int j = device::lane_index(); j < n; j += 32) {
        const E rounded = device::from_float<E>(grad_logit(row, l, j) * (1.0f / unit));
        dz_row[j] = rounded;
        along += device::to_float(rounded) * z_row(l)[j];
      }
      along = warp_sum(along);
      if (device::lane_index() == 0)
        row_array(plan.alpha)[l] = -along * inverse_square(row_array(plan.group_norm)[l]);
    });
    device::block_barrier();  // dZ is there
    for (int j = device::thread_index(); j < n; j += kThreads) {
      float along = 0.0f;
      for (int l = 0; l < n; ++l) {
        const E dz = this->template row_of<E>(plan.grads, l, plan.tokens_pitch)[j];
        along += device::to_float(dz) * z_row(l)[j];
      }
      const float norm = row_array(plan.token_norm)[j];
      row_array(plan.beta)[j] = -along * inverse_square(norm);
      row_array(plan.restore)[j] = without_length<E>(norm) ? unit / norm : unit;
    }
    device::block_barrier();
    return unit;
  }

  SPARC_DEVICE void backward() const {
    const int n = this->n, channels = this->in.channels;
    const float c_unit = group_unit<E>(this->p);
    read_stats();
    compare([](int, const RowAlignment&) {});
    const float unit = grad_logits();
    const Operand<E> dz = this->stored(plan.grads, n, n, plan.tokens_pitch),
                     w_stored = groups(plan.grad_groups);

    Product<E> w(n, channels);
    w.add(dz, false, this->tokens(), true);
    w.with_init = w.init_is_stored = true;
    w.init_data = this->template scratch<E>(plan.groups);
    w.init_pitch = plan.channels_pitch;
    w.row_factor = row_array(plan.alpha);
    w.to_rounded = true;
    w.rounded = this->template scratch<E>(plan.grad_groups);
    w.pitch = plan.channels_pitch;
    multiply<Products>(w);

    this->similarities(w_stored, plan.grad_weights);  // dU without the unit of C'
    const float s_unit = this->align_backward();

    if (args.grad_patches != nullptr) write_patch_gradient(w_stored, s_unit, unit * c_unit);
    if (args.grad_tokens != nullptr) write_token_gradient(dz, s_unit * c_unit);
  }

 private:
  SPARC_DEVICE void write_patch_gradient(const Operand<E>& w, float between, float scale) const {
    const int channels = this->in.channels;
    Product<E> grad_patches(this->p, channels);
    grad_patches.add(this->grad_similarities(), true, this->tokens(), true);
    grad_patches.add(this->weights(), true, w, true);
    grad_patches.between = between;
    grad_patches.scale = scale;
    grad_patches.share = {args.grad_pooled_patches, this->pair, channels, this->p};
    grad_patches.to_rows = true;
    grad_patches.rows =
        static_cast<E*>(args.grad_patches) + this->pair * this->in.patches * static_cast<int64_t>(channels);
    grad_patches.row_index = this->template scratch<int>(plan.patch_index);
    grad_patches.pitch = channels;
    multiply<Products>(grad_patches);
  }

  SPARC_DEVICE void write_token_gradient(const Operand<E>& dz, float between) const {
    const int channels = this->in.channels;
    Product<E> grad_tokens(this->n, channels);
    grad_tokens.add(this->grad_similarities(), false, this->patches(), true);
    grad_tokens.add(dz, true, groups(plan.groups), true);
    grad_tokens.between = between;
    grad_tokens.share = {args.grad_pooled_tokens, this->pair, channels, this->n};
    grad_tokens.with_init = true;
    grad_tokens.init = this->tokens();
    grad_tokens.row_factor = row_array(plan.beta);
    grad_tokens.with_row_scale = true;
    grad_tokens.row_scale = row_array(plan.restore);
    grad_tokens.to_rows = true;
    grad_tokens.rows =
        static_cast<E*>(args.grad_tokens) + this->pair * this->in.tokens * static_cast<int64_t>(channels);
    grad_tokens.row_index = this->template scratch<int>(plan.token_index);
    grad_tokens.pitch = channels;
    multiply<Products>(grad_tokens);
  }
};

template <class Products, bool kBackward>
SPARC_DEVICE void fine_grained_tiled(const FineGrainedArguments& args, const TiledMemory& memory) {
  using E = typename Products::Element;
  const FineGrainedScratch<E> plan(args.in, kBackward);
  unsigned char* const base = static_cast<unsigned char*>(memory.base) + device::block_index() * memory.bytes;
  const device::Shared<int> counts = device::shared_at<int>(TiledShared<E>::kCounts);
  for (int64_t pair = device::block_index(); pair < args.in.pairs; pair += device::block_count()) {
    const int n = list_valid(args.in.token_mask, pair, args.in.tokens,
                             device::scratch_at<int>(base, plan.token_index), counts);
    const int p = n == 0 ? 0
                         : list_valid(args.in.patch_mask, pair, args.in.patches,
                                      device::scratch_at<int>(base, plan.patch_index), counts);
    if (memory.beside_pair_path && pair_path_holds(n, p)) continue;
    const FineGrainedTiled<Products> tiled(plan, args, base, pair, n, p);
    if (kBackward) {
      if (p > 0) tiled.backward();
      fill_gradients<E>(args, pair, n, p);
    } else {
      if (p > 0) tiled.forward();
      fill_results(args, pair, p);
      write_means<E>(args, pair);
    }
    device::block_barrier();  // scratch is free for the next pair
  }
}

}  // namespace sparc
