// Backward of one pair, compiled once per instruction set; see fine_grained_pair.h.
#pragma once

#include "fine_grained/fine_grained_pair.h"

namespace sparc {
namespace SPARC_ISA {

// dZ, alpha, beta from the saved norms and log-sum-exps; returns the derivative of the scale.
template <class E>
typename E::Acc logits_backward(FineGrainedWork<E>& w, const FineGrainedPair& pair) {
  using Acc = typename E::Acc;
  const LogitRows<Acc>& logits = w.logits;
  for (int64_t l = 0; l < w.s.n; ++l) {
    const int64_t row = pair.tokens.index[l];
    const Acc* stat = static_cast<const Acc*>(pair.stats) + row;
    logits.inv_group[l] = 1 / stat[kGroupNorm * pair.stats_stride];
    logits.inv_token[l] = 1 / stat[kTokenNorm * pair.stats_stride];
    logits.row_lse[l] = stat[kRowLogSumExp * pair.stats_stride];
    logits.column_lse[l] = stat[kColumnLogSumExp * pair.stats_stride];
    logits.a[l] = static_cast<const Acc*>(pair.grad_token_loss)[row * pair.grad_stride] / 2;
  }
  const Acc grad_scale =
      cross_entropies_backward(w.z, w.s.n, w.s.lp, static_cast<Acc>(pair.logit_scale), logits);
  const Acc clamped = 1 / static_cast<Acc>(kSmallestNorm);
  for (int64_t l = 0; l < w.s.n; ++l) {  // a clamped norm is a constant
    if (logits.inv_group[l] == clamped) logits.alpha[l] = 0;
    if (logits.inv_token[l] == clamped) logits.b[l] = 0;
  }
  return grad_scale;
}

// Q = -alpha C'
template <class E>
void scale_groups(FineGrainedWork<E>& w) {
  typename E::Elem* q = w.second_rows();
  for (int64_t l = 0; l < w.s.n; ++l) {
    const typename E::Acc factor = -w.logits.alpha[l];
    for (int64_t i = l * w.s.dp; i < (l + 1) * w.s.dp; ++i) {
      q[i] = Convert<typename E::Elem>::from(factor * w.product[i]);
    }
  }
  w.clear_second_padding();
}

// X^T = U^T dZ + dS^T [p, lp], in w.grad_t.
template <class E>
void mix_gradients(FineGrainedWork<E>& w) {
  using Plain = MultiplyAdd<typename E::Acc>;
  const Sizes<E>& s = w.s;
  gemm<Plain, ALayout::kRows>(s.p, s.lp, s.n, w.weights_t, w.weights_ld, w.z, s.lp, w.mixed_t, s.lp);
  // dU^T = S^T dZ^T - V C'^T diag(alpha)
  transpose(w.z, s.n, s.lp, s.lp, w.z_t, s.lp, s.lp);
  gemm<Plain, ALayout::kRows>(s.p, s.lp, s.n, w.sim_t, s.lp, w.z_t, s.lp, w.grad_t, s.lp);
  w.against_patches(w.second_rows(), w.grad_t, true);
  weights_to_similarities(w.sim_t, s.p, s.lp, w.align_rows, w.grad_t);
  for (int64_t i = 0; i < s.p * s.lp; ++i) w.grad_t[i] += w.mixed_t[i];
}

// dT = X V - diag(beta) T
template <class E, class In>
void write_token_gradient(FineGrainedWork<E>& w, const FineGrainedPair& pair) {
  const Sizes<E>& s = w.s;
  w.times_patches(w.grad_t, s.lp);
  for (int64_t l = 0; l < s.n; ++l) {
    const typename E::Elem* token = w.rows + l * s.dp;
    In* out = static_cast<In*>(pair.grad_tokens) + pair.tokens.index[l] * s.d;
    for (int64_t x = 0; x < s.d; ++x) {
      out[x] = Convert<In>::from(w.product[l * s.dp + x] - w.logits.b[l] * to_acc(token[x]));
    }
  }
}

template <class E, class In>
void fine_grained_backward(const FineGrainedPair& pair, void* workspace) {
  using Acc = typename E::Acc;
  const int64_t n = pair.tokens.count, p = pair.patches.count, d = pair.channels;
  In* grad_patches = static_cast<In*>(pair.grad_patches);
  In* grad_tokens = static_cast<In*>(pair.grad_tokens);
  Acc* grad_scale = static_cast<Acc*>(pair.grad_logit_scale);
  *grad_scale = 0;
  if (n < pair.all_tokens) fill(grad_tokens, pair.all_tokens * d, In{});
  if (p < pair.all_patches || n == 0) fill(grad_patches, pair.all_patches * d, In{});
  if (n == 0) return;
  if (p == 0) {
    *grad_scale = static_cast<Acc>(__builtin_nan(""));
    for (int64_t l = 0; l < n; ++l)
      fill(grad_tokens + pair.tokens.index[l] * d, d, Convert<In>::from(*grad_scale));
    return;
  }
  Arena arena(workspace);
  FineGrainedWork<E> w(arena, Sizes<E>(n, p, d));
  w.template compare<In>(pair, true);
  *grad_scale = logits_backward(w, pair);
  w.group();
  scale_groups(w);
  mix_gradients(w);
  w.write_patch_gradient(pair.patches, grad_patches, true);
  write_token_gradient<E, In>(w, pair);
}

template <class E>
size_t fine_grained_workspace(int64_t tokens, int64_t patches, int64_t channels) {
  Arena arena(nullptr);
  FineGrainedWork<E> work(arena, Sizes<E>(tokens, patches, channels));
  return arena.used();
}

template <class E, class In>
FineGrainedKernel fine_grained_kernel() {
  return {&fine_grained_workspace<E>, &fine_grained_forward<E, In>, &fine_grained_backward<E, In>};
}

}  // namespace SPARC_ISA
}  // namespace sparc
