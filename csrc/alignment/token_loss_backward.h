// The per-token loss of one pair, backward, compiled once per instruction set; token_loss_forward.h has the
// forward.
#pragma once

#include "alignment/token_loss_forward.h"

namespace sparc {
namespace SPARC_ISA {

// dZ, alpha, beta from the saved norms and log-sum-exps.
template <class E, template <class> class Rows>
void logits_backward(TokenLossBuffers<E, Rows>& w, const TokenLossPair& pair) {
  using Acc = typename E::Acc;
  const TokenLogits<Acc>& logits = w.logits;
  for (int64_t l = 0; l < w.s.n; ++l) {
    const int64_t row = pair.tokens.index[l];
    const Acc* stat = static_cast<const Acc*>(pair.stats) + row;
    logits.inv_group[l] = 1 / stat[kGroupNorm * pair.stats_stride];
    logits.inv_token[l] = 1 / stat[kTokenNorm * pair.stats_stride];
    logits.row_lse[l] = stat[kRowLogSumExp * pair.stats_stride];
    logits.column_lse[l] = stat[kColumnLogSumExp * pair.stats_stride];
    logits.a[l] = static_cast<const Acc*>(pair.grad_token_loss)[row * pair.grad_stride] / 2;
  }
  cross_entropies_backward(w.z, w.s.n, w.s.lp, static_cast<Acc>(pair.logit_scale), logits);
  const Acc clamped = 1 / static_cast<Acc>(kSmallestNorm);
  for (int64_t l = 0; l < w.s.n; ++l) {  // a clamped norm is a constant
    if (logits.inv_group[l] == clamped) logits.alpha[l] = 0;
    if (logits.inv_token[l] == clamped) logits.b[l] = 0;
  }
}

// Q = -alpha C'
template <class E, template <class> class Rows>
void scale_groups(TokenLossBuffers<E, Rows>& w) {
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
template <class E, template <class> class Rows>
void mix_gradients(TokenLossBuffers<E, Rows>& w, const TokenLossPair& pair) {
  using Plain = MultiplyAdd<typename E::Acc>;
  const PaddedSizes<E>& s = w.s;
  gemm<Plain, ALayout::kRows>(s.p, s.lp, s.n, w.weights_t, {w.z, s.lp}, {w.mixed_t, s.lp});
  // dU^T = S^T dZ^T - V C'^T diag(alpha)
  transpose(w.z, s.n, s.lp, s.lp, w.z_t, s.lp, s.lp);
  gemm<Plain, ALayout::kRows>(s.p, s.lp, s.n, {w.sim_t, s.lp}, {w.z_t, s.lp}, {w.grad_t, s.lp});
  w.against_image(w.second_rows(), w.grad_t, true);
  w.align_backward(pair);
  for (int64_t i = 0; i < s.p * s.lp; ++i) w.grad_t[i] += w.mixed_t[i];
}

// dT = X V - diag(beta) T, and the tokens' share of the pooled gradient
template <class E, template <class> class Rows, class In>
void write_token_gradient(TokenLossBuffers<E, Rows>& w, const TokenLossPair& pair) {
  const PaddedSizes<E>& s = w.s;
  w.times_image({w.grad_t, s.lp});
  for (int64_t l = 0; l < s.n; ++l) {
    const typename E::Elem* token = w.rows + l * s.dp;
    In* out = static_cast<In*>(pair.grad_tokens) + pair.tokens.index[l] * s.d;
    for (int64_t x = 0; x < s.d; ++x) {
      const typename E::Acc own = w.product[l * s.dp + x] - w.logits.b[l] * to_acc(token[x]);
      out[x] = Convert<In>::from(own + w.token_share[x]);
    }
  }
}

// The gradients of masked rows, and of pairs that have no loss: false where nothing else is to be computed.
template <class E, template <class> class Rows, class In>
bool begin_backward(const TokenLossPair& pair) {
  using Acc = typename E::Acc;
  const int64_t n = pair.tokens.count, p = pair.patches.count, d = pair.channels;
  In* const grad_patches = static_cast<In*>(pair.grad_patches);
  In* const grad_tokens = static_cast<In*>(pair.grad_tokens);
  if (grad_tokens && n < pair.all_tokens) fill(grad_tokens, pair.all_tokens * d, In{});
  if (grad_patches && (p < pair.all_patches || n == 0)) fill(grad_patches, pair.all_patches * d, In{});
  if (n > 0 && p > 0) return true;
  const In* const pooled = static_cast<const In*>(pair.grad_pooled_patches);
  if (grad_patches && pooled) {  // an empty caption: its image may be pooled all the same
    for (int64_t i = 0; i < p; ++i) {
      In* const row = grad_patches + pair.patches.index[i] * d;
      for (int64_t x = 0; x < d; ++x) row[x] = Convert<In>::from(to_acc(pooled[x]) / static_cast<Acc>(p));
    }
  }
  if (grad_tokens) {  // an image without a valid patch
    const In value =
        Convert<In>::from(Rows<Acc>::kNanWithoutPatches ? static_cast<Acc>(__builtin_nan("")) : 0);
    for (int64_t l = 0; l < n; ++l) fill(grad_tokens + pair.tokens.index[l] * d, d, value);
  }
  return false;
}

template <class E, template <class> class Rows, class In>
void token_loss_backward(const TokenLossPair& pair, void* workspace) {
  if (!begin_backward<E, Rows, In>(pair)) return;
  const int64_t n = pair.tokens.count, p = pair.patches.count, d = pair.channels;
  Arena arena(workspace);
  TokenLossBuffers<E, Rows> w(arena, PaddedSizes<E>(n, p, d));
  w.template compare<In>(pair, true);
  logits_backward(w, pair);
  w.group();
  scale_groups(w);
  mix_gradients(w, pair);
  if (pair.grad_patches) {
    share_of_mean(static_cast<const In*>(pair.grad_pooled_patches), p, d, w.s.dp, w.patch_share);
    w.template write_image_gradient<In>(pair.patches, pair.grad_patches, true,
                                        pair.grad_pooled_patches ? w.patch_share : nullptr);
  }
  if (pair.grad_tokens) {
    share_of_mean(static_cast<const In*>(pair.grad_pooled_tokens), n, d, w.s.dp, w.token_share);
    write_token_gradient<E, Rows, In>(w, pair);
  }
}

template <class Kernel, class E, template <class> class Rows, class In>
Kernel token_loss_kernel() {
  return {{&workspace_of<E, TokenLossBuffers<E, Rows>>, &token_loss_forward<E, Rows, In>,
           &token_loss_backward<E, Rows, In>}};
}

}  // namespace SPARC_ISA
}  // namespace sparc
