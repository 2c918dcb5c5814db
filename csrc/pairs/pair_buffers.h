// What both ops do with a pair: similarities, alignment weights, products with them, and the gradients that
// leave. Compiled once per instruction set. Names follow MATH.md; a suffix _t marks a matrix stored
// transposed, [patches, tokens].
#pragma once

#include "common/alignment.h"
#include "common/operands.h"

namespace sparc {
namespace SPARC_ISA {

template <class T>
void fill(T* out, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
}

template <class E>
struct PairWork {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  using Ops = typename E::Ops;
  static constexpr bool kPairs = E::kPair > 1;

  Sizes<E> s;
  PatchOperand<E> patches;
  const Unit* patch_units;
  // Tokens, and below them a second matrix Q of their shape (fine_grained: -alpha C', grouping: dC), so that
  // dV = X^T T + U^T Q is one product over the rows of both.
  Elem* rows;          // [2 np, dp]
  Unit* row_units;     // [np, dp], only where a unit holds two elements
  Unit* channels_t;    // [du, lp]: T or Q along the channels
  Acc* product;        // [n, dp]; shares the memory of Q where their types agree
  Acc* sim_t;          // [p, lp] = S^T
  Acc* factors;        // [p, 2 n]: X^T and U^T side by side; the forward pass uses it as U^T [p, lp]
  Elem* factor_elems;  // [p, 2 np]: the same as operand, only where its type differs
  Acc* weights_t;      // U^T, in `factors`
  int64_t weights_ld;
  Unit* weight_units;  // [pu, lp]: U or X along the patches, only where a unit holds two elements
  Acc* grad_t;         // [p, lp]: dU^T, then dS^T, then X^T
  AlignmentRows<Acc> align_rows;

  PairWork(Arena& arena, const Sizes<E>& sizes)
      : s(sizes),
        patches(arena, s),
        rows(arena.take<Elem>(2 * s.np * s.dp)),
        row_units(arena.take<Unit>(kPairs ? s.np * s.dp : 0)),
        channels_t(arena.take<Unit>(s.du * s.lp)),
        product(kPairs ? arena.take<Acc>(s.n * s.dp) : reinterpret_cast<Acc*>(rows) + s.n * s.dp),
        sim_t(arena.take<Acc>(s.p * s.lp)),
        factors(arena.take<Acc>(s.p * 2 * s.lp + kGranule<Acc>)),
        factor_elems(arena.take<Elem>(kPairs ? s.p * 2 * s.np : 0)),
        weight_units(arena.take<Unit>(kPairs ? s.pu * s.lp : 0)),
        grad_t(arena.take<Acc>(s.p * s.lp)),
        align_rows(arena, s.lp) {}

  template <class In>
  void load(const Rows& patch_rows, const Rows& token_rows) {
    patches.template set<In>(patch_rows, s);
    gather_rows<In>(token_rows, s.d, rows, s.dp);
    fill(rows + s.n * s.dp, (s.np - s.n) * s.dp, Elem{});
    patch_units = patches.patch_units(s);
  }

  Elem* second_rows() { return rows + s.np * s.dp; }
  void clear_second_padding() { fill(second_rows() + s.n * s.dp, (s.np - s.n) * s.dp, Elem{}); }

  // out_t [p, lp] (+)= V X^T for the rows X = `rows` or `second_rows()`.
  void against_patches(const Elem* x, Acc* out_t, bool accumulate) {
    transpose(reinterpret_cast<const Unit*>(x), s.n, s.du, s.du, channels_t, s.lp, s.lp);
    gemm<Ops, ALayout::kRows>(s.p, s.lp, s.du, patches.channel_units(), patches.channel_ld(), channels_t,
                              s.lp, out_t, s.lp, {accumulate});
  }

  // S, m, M, the cut, U. The backward pass leaves room for X beside U.
  template <bool kRound>
  void align_tokens(double threshold, bool beside_x) {
    against_patches(rows, sim_t, false);
    measure_rows(sim_t, s.p, s.n, s.lp, threshold, align_rows);
    const bool side_by_side = beside_x && !kPairs;
    weights_t = side_by_side ? factors + s.n : factors;
    weights_ld = side_by_side ? 2 * s.n : s.lp;
    weigh<kRound>(sim_t, s.p, s.lp, align_rows, weights_t, weights_ld);
  }

  // product = x V for x_t [p, ldx]
  void times_patches(const Acc* x_t, int64_t ldx) {
    if constexpr (kPairs) {
      pair_rows(x_t, s.p, s.n, ldx, weight_units, s.lp);
      gemm<Ops, ALayout::kColumns>(s.n, s.dp, s.pu, weight_units, s.lp, patch_units, patches.patch_ld(s),
                                   product, s.dp);
    } else {
      gemm<Ops, ALayout::kColumns>(s.n, s.dp, s.pu, x_t, ldx, patch_units, patches.patch_ld(s), product,
                                   s.dp);
    }
  }

  // dV = start + X^T T + U^T Q with X^T = grad_t, or without Q. `start` [dp] is one row for all patches, or
  // null.
  template <class In>
  void write_patch_gradient(const Rows& patch_rows, In* grad_patches, bool with_second, const Acc* start) {
    const RowSink<In> sink = {grad_patches, s.d, patch_rows.leading ? nullptr : patch_rows.index};
    const int64_t parts = with_second ? 2 : 1;
    if constexpr (kPairs) {
      const int64_t ld = parts * s.np;
      for (int64_t i = 0; i < s.p; ++i) {
        Elem* out = factor_elems + i * ld;
        if (s.np > s.n) out[s.n] = out[ld - 1] = {};
        convert_row(grad_t + i * s.lp, 1, s.n, out);
        if (with_second) convert_row(weights_t + i * weights_ld, 1, s.n, out + s.np);
      }
      pair_rows(rows, parts * s.np, s.dp, s.dp, row_units, s.dp);
      gemm_to_rows<Ops, ALayout::kRows>(s.p, s.d, ld / 2, reinterpret_cast<const Unit*>(factor_elems), ld / 2,
                                        row_units, s.dp, sink, {false, start});
    } else if (with_second) {
      for (int64_t i = 0; i < s.p; ++i) convert_row(grad_t + i * s.lp, 1, s.n, factors + i * 2 * s.n);
      gemm_to_rows<Ops, ALayout::kRows>(s.p, s.d, 2 * s.n, factors, 2 * s.n, rows, s.dp, sink,
                                        {false, start});
    } else {
      gemm_to_rows<Ops, ALayout::kRows>(s.p, s.d, s.n, grad_t, s.lp, rows, s.dp, sink, {false, start});
    }
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
