// Tokens and patches as operands of products. Compiled once per instruction set.
#pragma once

#include "captions/token_side.h"
#include "common/operands.h"
#include "common/rows.h"

namespace sparc {
namespace SPARC_ISA {

template <class E>
int64_t channel_units(const TokenSide& side) {
  return ceil_div(side.width, E::kPack);
}

// Units of a packed row: whole vectors of a transpose.
template <class E>
int64_t padded_units(const TokenSide& side) {
  return round_up(channel_units<E>(side), kGranule<typename E::Unit>);
}

template <class Acc>
int64_t padded_columns(const TokenSide& images) {
  return round_up(images.rows, kGranule<Acc>);
}

template <class Acc, class In>
Acc inverse_norm(const TokenSide& side, const In* row) {
  constexpr int kN = kGranule<Acc>;
  Vec<Acc, kN> squares = {};
  int64_t d = 0;
  for (; d + kN <= side.width; d += kN) {
    const Vec<Acc, kN> x = load_numbers<kN>(row + d);
    squares += x * x;
  }
  Acc rest = 0;
  for (; d < side.width; ++d) rest += to_acc(row[d]) * to_acc(row[d]);
  return inverse_of_norm(sum_lanes<Acc>(squares) + rest);
}

// Of an item's rows, 0 where they are not valid; 1 of the others unless `normalize`.
template <class Acc, class In>
void write_norms(const TokenSide& side, int64_t item, bool normalize) {
  Acc* norms = static_cast<Acc*>(side.inverse_norms) + side.start(item);
  for (int64_t r = 0; r < side.size(item); ++r) {
    const In* row = static_cast<const In*>(side.data) + side.place(item, r);
    norms[r] = !side.valid(item, r) ? Acc{0} : normalize ? inverse_norm<Acc>(side, row) : Acc{1};
  }
}

// A valid row as elements of an operand, 0 beyond the last channel.
template <class E, class In>
void pack_token(const TokenSide& side, const In* row, typename E::Elem* out) {
  using Elem = typename E::Elem;
  convert_row<Elem>(row, 1, side.width, out);
  for (int64_t d = side.width; d < padded_units<E>(side) * E::kPack; ++d) out[d] = Elem{};
}

// The valid patches of an image as an operand.
template <class E, class In>
struct PatchOperand {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;

  int64_t count = 0;   // valid patches
  int64_t units;       // of a packed row
  int32_t* index;      // [count]: where they were
  Acc* inverse_norms;  // [columns], 0 beyond the last patch
  Elem* rows;
  Unit* panels;  // one behind the other, [channels, columns of the panel] each

  PatchOperand(const TokenSide& images, Arena& arena) : units(padded_units<E>(images)) {
    const int64_t columns = padded_columns<Acc>(images);
    index = arena.take<int32_t>(images.rows);
    inverse_norms = arena.take<Acc>(columns);
    rows = arena.take<Elem>(images.rows * units * E::kPack);
    panels = arena.take<Unit>(columns * units);
  }

  int64_t columns() const { return round_up(count, kGranule<Acc>); }

  void pack(const TokenSide& side, int64_t image) {
    const Acc* norms = static_cast<const Acc*>(side.inverse_norms) + side.start(image);
    count = 0;
    for (int64_t p = 0; p < side.rows; ++p) {
      if (!side.valid(image, p)) continue;
      pack_token<E>(side, static_cast<const In*>(side.data) + side.place(image, p),
                    rows + count * units * E::kPack);
      inverse_norms[count] = norms[p];
      index[count++] = static_cast<int32_t>(p);
    }
    for (int64_t p = count; p < columns(); ++p) inverse_norms[p] = 0;
    each_panel([&](int64_t first, int64_t width) {
      transpose(reinterpret_cast<const Unit*>(rows) + first * units, smaller(width, count - first), units,
                units, panels + first * units, width, width);
    });
  }

  // Products of `rows` rows of `channels` units with all patches.
  void multiply(int64_t rows, int64_t channels, Matrix<const Unit> a, Acc* products) const {
    each_panel([&](int64_t first, int64_t width) {
      gemm<typename E::Ops, ALayout::kRows>(rows, width, channels, a, {panels + first * units, width},
                                            {products + first, columns()});
    });
  }

  // work(first column, columns) for each panel.
  template <class F>
  void each_panel(const F& work) const {
    const EvenParts parts(ceil_div(count, kGranule<Acc>), kPanelGranules<Acc>);
    for (int64_t i = 0, first = 0; i < parts.parts; ++i) {
      const int64_t width = parts.size(i) * kGranule<Acc>;
      work(first, width);
      first += width;
    }
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
