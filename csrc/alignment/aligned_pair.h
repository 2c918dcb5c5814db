// What the ops of this family do with a pair: similarities, then alignment weights U of its tokens. Compiled
// once per instruction set. Names follow MATH.md.
#pragma once

#include "alignment/alignment_pair.h"
#include "alignment/softmax.h"
#include "alignment/weights.h"
#include "pairs/pair_buffers.h"

namespace sparc {
namespace SPARC_ISA {

// `Rows`: MinMaxRows or SoftmaxRows.
template <class E, template <class> class Rows = MinMaxRows>
struct AlignedPair : PairBuffers<E> {
  using Acc = typename E::Acc;
  using Base = PairBuffers<E>;
  using Base::s;

  Rows<Acc> align_rows;

  AlignedPair(Arena& arena, const PaddedSizes<E>& sizes) : Base(arena, sizes), align_rows(arena, s.lp) {}

  // S, what the weights need of each row, U (in weights_t). U is rounded where products read it in bfloat16.
  template <class In, bool kRound>
  void align(const AlignmentPair& pair, bool backward) {
    Base::template load<In>(pair.patches, pair.tokens);
    Base::against_image(Base::rows, Base::sim_t, false);
    Base::place_weights(backward);
    weigh_rows<kRound>(pair, align_rows);
  }

  // dU^T in grad_t becomes dS^T.
  void align_backward(const AlignmentPair& pair) { unweigh_rows(pair, align_rows); }

 private:
  template <bool kRound>
  void weigh_rows(const AlignmentPair& pair, const MinMaxRows<Acc>& rows) {
    measure_rows(Base::sim_t, s.p, s.n, s.lp, pair.threshold, rows);
    weigh<kRound>(Base::sim_t, s.p, s.lp, rows, Base::weights_t);
  }
  template <bool kRound>
  void weigh_rows(const AlignmentPair& pair, const SoftmaxRows<Acc>& rows) {  // grad_t is still free
    const Acc scale = static_cast<Acc>(pair.attention_scale);
    exponentiate_rows(Base::sim_t, s.p, s.n, s.lp, scale, rows, Base::grad_t);
    normalise_rows<kRound>(Base::grad_t, s.p, s.lp, rows, Base::weights_t);
  }
  void unweigh_rows(const AlignmentPair&, const MinMaxRows<Acc>& rows) {
    weights_to_similarities(Base::sim_t, s.p, s.lp, rows, Base::grad_t);
  }
  void unweigh_rows(const AlignmentPair& pair, const SoftmaxRows<Acc>& rows) {
    const Acc scale = static_cast<Acc>(pair.attention_scale);
    softmax_to_similarities(Base::weights_t, s.p, s.lp, scale, rows, Base::grad_t);
  }
};

// Bytes of working memory that a pair of at most these sizes needs, 64-byte aligned.
template <class E, class Buffers>
size_t workspace_of(int64_t tokens, int64_t patches, int64_t channels) {
  Arena arena(nullptr);
  Buffers buffers(arena, PaddedSizes<E>(tokens, patches, channels));
  return arena.used();
}

}  // namespace SPARC_ISA
}  // namespace sparc
