// What the ops of this family do with a pair: similarities, then alignment weights U of its tokens. Compiled
// once per instruction set. Names follow MATH.md.
#pragma once

#include "alignment/alignment_pair.h"
#include "alignment/weights.h"
#include "pairs/pair_buffers.h"

namespace sparc {
namespace SPARC_ISA {

template <class E>
struct AlignedPair : PairBuffers<E> {
  using Acc = typename E::Acc;
  using Base = PairBuffers<E>;
  using Base::s;

  RowAlignments<Acc> align_rows;

  AlignedPair(Arena& arena, const PaddedSizes<E>& sizes) : Base(arena, sizes), align_rows(arena, s.lp) {}

  // S, m, M, the cut, U (in weights_t). U is rounded where products read it in bfloat16.
  template <class In, bool kRound>
  void align(const AlignmentPair& pair, bool backward) {
    Base::template load<In>(pair.patches, pair.tokens);
    Base::against_image(Base::rows, Base::sim_t, false);
    measure_rows(Base::sim_t, s.p, s.n, s.lp, pair.threshold, align_rows);
    Base::place_weights(backward);
    weigh<kRound>(Base::sim_t, s.p, s.lp, align_rows, Base::weights_t);
  }

  // dU^T in grad_t becomes dS^T.
  void align_backward() { weights_to_similarities(Base::sim_t, s.p, s.lp, align_rows, Base::grad_t); }
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
