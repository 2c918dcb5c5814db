// Products of the size of a batch, over operands packed into panels. Compiled once per instruction set.
//
// The B operand of a product lies in panels as wide as a register tile, each contiguous along the
// contraction: a panel's part streams through L1 while the rows of A stay in L2, and no two steps touch
// distant pages.
#pragma once

#include "common/operands.h"
#include "common/rows.h"
#include "contrastive/contrastive.h"

namespace sparc {
namespace SPARC_ISA {

template <class Acc>
constexpr int64_t kPanelWidth = kPanelGranules<Acc> * kGranule<Acc>;

// Units of a panel that are worked on at a time: 128 KB of it.
constexpr int64_t kDepth = 512;

template <class T>
SPARC_INLINE T read(VectorView vector, int64_t i) {
  return static_cast<const T*>(vector.data)[i * vector.stride];
}

template <class T>
void fill(T* out, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) out[i] = value;
}

// C [m, width of a panel] (+)= A times `k` units of a panel.
template <class E, ALayout kLayout>
void panel_product(int64_t m, int64_t k, Matrix<const typename E::Unit> a, const typename E::Unit* panel,
                   Matrix<typename E::Acc> c, bool accumulate) {
  constexpr int64_t kWidth = kPanelWidth<typename E::Acc>;
  const EvenParts strips(m, kMaxRows);
  int64_t done = 0;
  do {  // once even for k = 0, which clears C
    const Matrix<const typename E::Unit> b{panel + done * kWidth, kWidth};
    const auto part = kLayout == ALayout::kRows ? a.from(0, done) : a.from(done, 0);
    for (int64_t i = 0, row = 0; i < strips.parts; row += strips.size(i++)) {
      tile_of_rows<typename E::Ops, kMaxVectors, 0, kLayout>(strips.size(i), smaller(kDepth, k - done),
                                                             rows_of_a<kLayout>(part, row), b, c.from(row, 0),
                                                             {accumulate || done > 0});
    }
  } while ((done += kDepth) < k);
}

// Embeddings in the layouts of the products.
template <class E, class In>
struct Packing {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  static constexpr int64_t kWidth = kPanelWidth<Acc>;

  EmbedView embeds;
  int64_t ld;  // elements of a gathered row: whole panels, so also whole units

  explicit Packing(const EmbedView& view) : embeds(view), ld(padded_width(view)) {}

  static int64_t padded_width(const EmbedView& view) { return round_up(view.width, kWidth); }
  static int64_t channel_units(const EmbedView& view) { return ceil_div(view.width, E::kPack); }
  // Units of a panel along the channels, and its size, with room for whole vectors of a transpose.
  static int64_t channel_panel(const EmbedView& view) { return padded_width(view) / E::kPack * kWidth; }
  // Units along `count` rows.
  static int64_t row_units(int64_t count) { return round_up(count, kTileCols) / E::kPack; }

  // Rows [first, first + count) as elements, 0 beyond the last row and the last channel.
  void gather(int64_t first, int64_t count, Elem* out) const {
    const In* data = static_cast<const In*>(embeds.data);
    const int64_t present = smaller(count, embeds.count > first ? embeds.count - first : 0);
    for (int64_t i = 0; i < present; ++i) {
      convert_row(data + (first + i) * embeds.row_stride, embeds.column_stride, embeds.width, out + i * ld);
      fill(out + i * ld + embeds.width, ld - embeds.width, Elem{});
    }
    fill(out + present * ld, (count - present) * ld, Elem{});
  }

  // 1 / norm of gathered rows.
  void inverse_norms(const Elem* rows, int64_t count, Acc* out) const {
    for (int64_t i = 0; i < count; ++i) {
      Vec<Acc, kLanes<Acc>> sums = {};
      for (int64_t x = 0; x < ld; x += kLanes<Acc>) {
        Acc values[kLanes<Acc>];
        for (int lane = 0; lane < kLanes<Acc>; ++lane) values[lane] = to_acc(rows[i * ld + x + lane]);
        const auto v = load<kLanes<Acc>>(values);
        sums += v * v;
      }
      out[i] = inverse_of_norm(sum_lanes<Acc>(sums));
    }
  }

  // A panel for products along the channels: [channel units, kWidth], from kWidth gathered rows.
  void along_channels(const Elem* rows, Unit* panel) const {
    transpose(reinterpret_cast<const Unit*>(rows), kWidth, ld / E::kPack, ld / E::kPack, panel, kWidth,
              kWidth);
  }

  // The part of `count` gathered rows (an even number) in the panels for products along the rows, one per
  // kWidth channels, [units, kWidth], `panel_size` apart.
  void along_rows(const Elem* rows, int64_t count, Unit* panels, int64_t panel_size) const {
    for (int64_t x = 0; x < ld; x += kWidth, panels += panel_size) {
      if constexpr (E::kPack == 1) {
        for (int64_t i = 0; i < count; ++i) {
          for (int64_t y = 0; y < kWidth; ++y) panels[i * kWidth + y] = rows[i * ld + x + y];
        }
      } else {
        pack_rows(rows + x, count, kWidth, ld, panels, kWidth);
      }
    }
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
