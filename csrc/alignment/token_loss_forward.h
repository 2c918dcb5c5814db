// The per-token loss of one pair, forward, and what the backward shares with it, compiled once per
// instruction set. `Rows` says how similarities become weights (weights.h). Names follow MATH.md.
#pragma once

#include "alignment/aligned_pair.h"
#include "alignment/logits.h"
#include "alignment/token_loss.h"
#include "pairs/row_mean.h"

namespace sparc {
namespace SPARC_ISA {

constexpr double kSmallestNorm = 1e-12;  // as in F.normalize

template <class E, template <class> class Rows>
struct TokenLossBuffers : AlignedPair<E, Rows> {
  using Acc = typename E::Acc;
  using Base = AlignedPair<E, Rows>;
  using Base::s;

  Acc* mixed_t;                    // [p, lp] = U^T dZ
  Acc *z, *z_t;                    // [n, lp]
  Acc *patch_share, *token_share;  // [dp]: of the gradients of the pooled embeddings
  TokenLogits<Acc> logits;

  TokenLossBuffers(Arena& arena, const PaddedSizes<E>& sizes)
      : Base(arena, sizes),
        mixed_t(arena.take<Acc>(s.p * s.lp)),
        z(arena.take<Acc>(s.lp * s.lp)),
        z_t(arena.take<Acc>(s.lp * s.lp)),
        patch_share(arena.take<Acc>(s.dp)),
        token_share(arena.take<Acc>(s.dp)),
        logits(arena, s.lp) {}

  // Everything up to Z = U S^T, of the same rounded U as C'.
  template <class In>
  void compare(const TokenLossPair& pair, bool backward) {
    Base::template align<In, Base::kPacked>(pair, backward);
    logits.clear(s.n, s.lp);
    gemm<MultiplyAdd<Acc>, ALayout::kColumns>(s.n, s.lp, s.p, Base::weights_t, {Base::sim_t, s.lp},
                                              {z, s.lp});
  }

  void group() { Base::times_image(Base::weights_t); }  // product = C' = U V
};

template <class T, class X>
T clamped_norm(const X* x, int64_t count) {
  constexpr int kN = kGranule<T>;
  Vec<T, kN> total = {};
  for (int64_t i = 0; i < count; i += kN) {
    Vec<T, kN> v;
    for (int lane = 0; lane < kN; ++lane) v[lane] = to_acc(x[i + lane]);
    total += v * v;
  }
  const T length = static_cast<T>(__builtin_sqrt(sum_lanes<T>(total)));
  return length < static_cast<T>(kSmallestNorm) ? static_cast<T>(kSmallestNorm) : length;
}

template <class E, template <class> class Rows, class In>
void token_loss_forward(const TokenLossPair& pair, void* workspace) {
  using Acc = typename E::Acc;
  Acc* loss = static_cast<Acc*>(pair.token_loss);
  Acc* stats = static_cast<Acc*>(pair.stats);
  const int64_t n = pair.tokens.count, stride = pair.stats_stride;
  const int32_t* index = pair.tokens.index;
  fill(loss, pair.all_tokens, Acc{0});
  for (int i = 0; i < kTokenLossStats; ++i) fill(stats + i * stride, pair.all_tokens, Acc{0});
  // An empty caption's image is pooled as well. Here V comes from DRAM; the products then find it in the
  // cache.
  if (pair.pooled_patches) {
    mean_of_rows<Acc>(pair.patches, pair.channels, static_cast<In*>(pair.pooled_patches));
  }
  if (pair.pooled_tokens) {
    mean_of_rows<Acc>(pair.tokens, pair.channels, static_cast<In*>(pair.pooled_tokens));
  }
  if (n == 0) return;
  if (pair.patches.count == 0) {
    for (int64_t l = 0; Rows<Acc>::kNanWithoutPatches && l < n; ++l) {
      loss[index[l]] = stats[kScaleDerivative * stride + index[l]] = static_cast<Acc>(__builtin_nan(""));
    }
    return;
  }
  Arena arena(workspace);
  TokenLossBuffers<E, Rows> w(arena, PaddedSizes<E>(n, pair.patches.count, pair.channels));
  w.template compare<In>(pair, false);
  w.group();
  const TokenLogits<Acc>& logits = w.logits;
  for (int64_t l = 0; l < n; ++l) {
    const Acc group_norm = clamped_norm<Acc>(w.product + l * w.s.dp, w.s.dp);
    const Acc token_norm = clamped_norm<Acc>(w.rows + l * w.s.dp, w.s.dp);
    logits.inv_group[l] = 1 / group_norm;
    logits.inv_token[l] = 1 / token_norm;
    Acc* stat = stats + index[l];
    stat[kGroupNorm * stride] = group_norm;
    stat[kTokenNorm * stride] = token_norm;
  }
  cross_entropies(w.z, n, w.s.lp, static_cast<Acc>(pair.logit_scale), logits);
  for (int64_t l = 0; l < n; ++l) {
    Acc* stat = stats + index[l];
    stat[kFirstOfRow * stride] = w.align_rows.first_statistic()[l];
    stat[kSecondOfRow * stride] = w.align_rows.second_statistic()[l];
    stat[kRowLogSumExp * stride] = logits.row_lse[l];
    stat[kColumnLogSumExp * stride] = logits.column_lse[l];
    stat[kScaleDerivative * stride] = logits.mean_cosine[l];
    loss[index[l]] = logits.alpha[l];
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
