// The products of a pair: rows V of its image [p, d] against rows T of its text [n, d], weighted sums of V,
// and the gradients that leave. Compiled once per instruction set. A suffix _t marks a matrix stored
// transposed, [image rows, text rows].
#pragma once

#include "pairs/operands.h"

namespace sparc {
namespace SPARC_ISA {

template <class T>
void fill(T* out, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
}

// Working memory of one pair.
template <class E>
struct PairBuffers {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  using Ops = typename E::Ops;
  static constexpr bool kPacked = E::kPack > 1;

  PaddedSizes<E> s;
  ImageOperand<E> image;
  Matrix<const Unit> image_units;  // along the rows
  // T, and below it a second matrix Q of its shape, so that dV = X^T T + W^T Q is one product over the rows
  // of both.
  Elem* rows;             // [2 np, dp]
  Unit* row_units;        // [np, dp], only where a unit holds two elements
  Unit* channels_t;       // [du, lp]: T or Q along the channels
  Acc* product;           // [n, dp]; shares the memory of Q where their types agree
  Acc* sim_t;             // [p, lp] = S^T = V T^T
  Acc* factors;           // [p, 2 n]: X^T and W^T side by side; the forward pass uses it as W^T [p, lp]
  Elem* factor_elems;     // [p, 2 np]: the same as operand, only where its type differs
  Matrix<Acc> weights_t;  // W^T, in `factors`
  Unit* weight_units;  // [pu, lp]: W or X along the rows of the image, only where a unit holds two elements
  Acc* grad_t;         // [p, lp]: dW^T, then dS^T, then X^T

  PairBuffers(Arena& arena, const PaddedSizes<E>& sizes)
      : s(sizes),
        image(arena, s),
        rows(arena.take<Elem>(2 * s.np * s.dp)),
        row_units(arena.take<Unit>(kPacked ? s.np * s.dp : 0)),
        channels_t(arena.take<Unit>(s.du * s.lp)),
        product(kPacked ? arena.take<Acc>(s.n * s.dp) : reinterpret_cast<Acc*>(rows) + s.n * s.dp),
        sim_t(arena.take<Acc>(s.p * s.lp)),
        factors(arena.take<Acc>(s.p * 2 * s.lp + kGranule<Acc>)),
        factor_elems(arena.take<Elem>(kPacked ? s.p * 2 * s.np : 0)),
        weight_units(arena.take<Unit>(kPacked ? s.pu * s.lp : 0)),
        grad_t(arena.take<Acc>(s.p * s.lp)) {}

  template <class In>
  void load(const ValidRows& image_rows, const ValidRows& text_rows) {
    image.template set<In>(image_rows, s);
    gather_rows<In>(text_rows, s.d, rows, s.dp);
    fill(rows + s.n * s.dp, (s.np - s.n) * s.dp, Elem{});
    image_units = image.along_rows(s);
  }

  Elem* second_rows() { return rows + s.np * s.dp; }
  void clear_second_padding() { fill(second_rows() + s.n * s.dp, (s.np - s.n) * s.dp, Elem{}); }

  // Where W goes. The backward pass leaves room for X beside it.
  void place_weights(bool beside_x) {
    const bool side_by_side = beside_x && !kPacked;
    weights_t = {side_by_side ? factors + s.n : factors, side_by_side ? 2 * s.n : s.lp};
  }

  // out_t [p, lp] (+)= V X^T for the rows X = `rows` or `second_rows()`.
  void against_image(const Elem* x, Acc* out_t, bool accumulate) {
    transpose(reinterpret_cast<const Unit*>(x), s.n, s.du, s.du, channels_t, s.lp, s.lp);
    gemm<Ops, ALayout::kRows>(s.p, s.lp, s.du, image.along_channels(), {channels_t, s.lp}, {out_t, s.lp},
                              {accumulate});
  }

  // product = x V
  void times_image(Matrix<const Acc> x_t) {
    if constexpr (kPacked) {
      pack_rows(x_t.data, s.p, s.n, x_t.ld, weight_units, s.lp);
      gemm<Ops, ALayout::kColumns>(s.n, s.dp, s.pu, {weight_units, s.lp}, image_units, {product, s.dp});
    } else {
      gemm<Ops, ALayout::kColumns>(s.n, s.dp, s.pu, x_t, image_units, {product, s.dp});
    }
  }

  // dV = start + X^T T + W^T Q with X^T = grad_t, or without Q. `start` [dp] is one row for all rows of the
  // image, or null.
  template <class In>
  void write_image_gradient(const ValidRows& image_rows, void* grad, bool with_second, const Acc* start) {
    const RowSink<In> sink = {{static_cast<In*>(grad), s.d}, image_rows.leading ? nullptr : image_rows.index};
    const int64_t parts = with_second ? 2 : 1;
    if constexpr (kPacked) {
      const int64_t ld = parts * s.np;
      for (int64_t i = 0; i < s.p; ++i) {
        Elem* out = factor_elems + i * ld;
        if (s.np > s.n) out[s.n] = out[ld - 1] = {};
        convert_row(grad_t + i * s.lp, 1, s.n, out);
        if (with_second) convert_row(weights_t.data + i * weights_t.ld, 1, s.n, out + s.np);
      }
      pack_rows(rows, parts * s.np, s.dp, s.dp, row_units, s.dp);
      gemm_to_rows<Ops, ALayout::kRows>(s.p, s.d, ld / 2,
                                        {reinterpret_cast<const Unit*>(factor_elems), ld / 2},
                                        {row_units, s.dp}, sink, {false, start});
    } else if (with_second) {
      for (int64_t i = 0; i < s.p; ++i) convert_row(grad_t + i * s.lp, 1, s.n, factors + i * 2 * s.n);
      gemm_to_rows<Ops, ALayout::kRows>(s.p, s.d, 2 * s.n, {factors, 2 * s.n}, {rows, s.dp}, sink,
                                        {false, start});
    } else {
      gemm_to_rows<Ops, ALayout::kRows>(s.p, s.d, s.n, {grad_t, s.lp}, {rows, s.dp}, sink, {false, start});
    }
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
