// The rows of a pair as operands of matrix products, compiled once per instruction set.
#pragma once

#include "common/operands.h"
#include "pairs/valid_rows.h"

namespace sparc {
namespace SPARC_ISA {

// Sizes of a pair once the masks are applied, and the padded ones of its buffers.
template <class E>
struct PaddedSizes {
  int64_t n, p, d;  // valid rows of the text, of the image, channels
  int64_t lp, dp;   // rows of the text, and units of the channels, padded to the granule, with zeros
  int64_t np;       // rows of the text padded to whole units
  int64_t du, pu;   // units along the channels, along the rows of the image
  PaddedSizes(int64_t text_rows, int64_t image_rows, int64_t channels)
      : n(text_rows),
        p(image_rows),
        d(channels),
        lp(round_up(n, kGranule<typename E::Acc>)),
        dp(round_up(d, kGranule<typename E::Acc> * E::kPack)),
        np(round_up(n, E::kPack)),
        du(dp / E::kPack),
        pu(ceil_div(p, E::kPack)) {}
};

// The valid rows one after another, [count, ld], with zeros from column d to ld.
template <class In, class Elem>
void gather_rows(const ValidRows& rows, int64_t d, Elem* out, int64_t ld) {
  const In* data = static_cast<const In*>(rows.data);
  for (int64_t i = 0; i < rows.count; ++i) {
    convert_row(data + rows.index[i] * rows.row_stride, rows.column_stride, d, out + i * ld);
    for (int64_t x = d; x < ld; ++x) out[i * ld + x] = Elem{};
  }
}

// The rows of an image: in place where the products can read them there, else gathered.
template <class E>
struct ImageOperand {
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  Elem* copy;               // [p, dp]
  Unit* packed;             // [pu, dp], only where a unit holds two elements
  Matrix<const Elem> rows;  // [p, ld], ld a multiple of a unit

  ImageOperand(Arena& arena, const PaddedSizes<E>& s)
      : copy(arena.take<Elem>(s.p * s.dp)), packed(arena.take<Unit>(E::kPack > 1 ? s.pu * s.dp : 0)) {}

  template <class In>
  void set(const ValidRows& image, const PaddedSizes<E>& s) {
    if constexpr (sizeof(In) == sizeof(Elem)) {
      // Vector loads run up to dp, so a row must end there; a unit is read as one word, so it must lie on its
      // boundary.
      const bool whole_units =
          image.row_stride % E::kPack == 0 && reinterpret_cast<uintptr_t>(image.data) % sizeof(Unit) == 0;
      if (image.leading && image.column_stride == 1 && s.dp == s.d && whole_units) {
        rows = {static_cast<const Elem*>(image.data), image.row_stride};
        return;
      }
    }
    rows = {copy, s.dp};
    gather_rows<In>(image, s.d, copy, s.dp);
  }

  // A operand of products along the channels.
  Matrix<const Unit> along_channels() const {
    return {reinterpret_cast<const Unit*>(rows.data), rows.ld / E::kPack};
  }

  // B operand of products along the rows, [pu, dp].
  Matrix<const Unit> along_rows(const PaddedSizes<E>& s) const {
    if constexpr (E::kPack == 1) return rows;
    pack_rows(rows.data, s.p, s.dp, rows.ld, reinterpret_cast<uint32_t*>(packed), s.dp);
    return {packed, s.dp};
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
