// Memory of a call and of a thread. Compiled once per instruction set.
//
// Beyond inputs, results, gradients and kept cosines a call takes
//   forward: one packed copy of the columns (and of the guide's), and sums over the rows of at most
//     kMaxRowParts parts: 2 numbers per column and part, 3 more for soft targets, 1 for targets;
//   backward: packed copies of the columns (two unless the cosines are kept) and of the rows (one), the
//   columns'
//     gradient in the accumulation dtype, and kGradientBytes of G (a chunk of at least kDepthRows rows).
// A thread takes some tiles, O(kTileCols) + O(D).
#pragma once

#include "contrastive/panels.h"

namespace sparc {
namespace SPARC_ISA {

// Numbers between the rows of a tile: one cache line more than its columns, lest a column of it share one
// set.
template <class T>
constexpr int64_t kStride = kTileCols + 64 / sizeof(T);

// exp(-top) sum_k exp(logit_k), and the same sum weighted; of rows or of columns.
template <class Acc>
struct Sums {
  Acc *top = nullptr, *sum = nullptr, *weighted = nullptr;

  Sums from(int64_t i) const { return {top + i, sum + i, weighted ? weighted + i : nullptr}; }
  static Sums take(Arena& arena, int64_t count, bool weighted) {
    return {arena.take<Acc>(count), arena.take<Acc>(count), weighted ? arena.take<Acc>(count) : nullptr};
  }
  void clear(int64_t count, Acc reference) const {
    fill(top, count, reference);
    fill(sum, count, Acc{0});
    if (weighted) fill(weighted, count, Acc{0});
  }
};

// Numbers of the columns, padded to whole tiles.
template <class Acc>
struct ColumnVectors {
  Acc *inverse_norm, *guide_inverse_norm, *scale, *lse, *guide_lse;
  Acc* upstream[kSimilarityResults];
  int64_t* ids;
  uint32_t* words;  // the ids' low words: four bytes to compare instead of eight
};

// Which products and sums a pass needs.
struct Needs {
  bool product, guide, soft, cols_by_row, rows_by_row, col_scales;
};

SPARC_INLINE Needs needs_of(const SimilarityCall& call, bool backward) {
  const bool kept = backward && call.similarities;
  return {!kept,
          call.soft || (call.threshold.data && !kept),
          call.soft,
          backward && call.rows.need_embeds,
          backward && call.cols.need_embeds,
          backward && call.cols.need_scale && call.cols.scale_per_item};
}

template <class E, class In>
struct CallMemory {
  using Acc = typename E::Acc;
  using Unit = typename E::Unit;
  using Pack = Packing<E, In>;

  int64_t padded_cols, part_count;
  ColumnVectors<Acc> cols;
  int64_t channel_panel, guide_panel;  // units of a panel along the channels
  Unit *cols_by_channel, *guide_by_channel;
  // forward, [parts, padded_cols]
  Sums<Acc> lse, soft;
  Acc* target;
  // backward
  int64_t col_panel, row_panel;  // units of a panel along the columns, along the rows
  Unit *cols_by_row, *rows_by_row;
  int64_t gradient_tile;  // units of the chunk of G in one tile of columns
  Unit* gradient;         // [tiles of columns][units along the chunk's rows][kStride]
  Acc* grad_cols;         // [panels of channels][padded_cols][kPanelWidth]
  Acc* row_sums[2];       // [M]: sum of ZR c and of ZC c; softplus: of Z c and of Z
  bool has_col_sums;      // where the columns have a scale each
  Acc* col_sums;          // [tiles of the chunk's rows][padded_cols]: sum of ZC c
  Acc* col_scale_grad;    // [padded_cols]

  CallMemory(const SimilarityCall& call, bool backward, Arena& arena) {
    const Needs need = needs_of(call, backward);
    const int64_t m = call.rows.embeds.count, n = call.cols.embeds.count;
    padded_cols = round_up(n, kTileCols);
    part_count = backward ? 0 : call.parts;
    cols.inverse_norm = arena.take<Acc>(padded_cols);
    cols.guide_inverse_norm = arena.take<Acc>(padded_cols);
    cols.scale = arena.take<Acc>(padded_cols);
    cols.lse = arena.take<Acc>(padded_cols);
    cols.guide_lse = arena.take<Acc>(padded_cols);
    for (Acc*& upstream : cols.upstream) upstream = arena.take<Acc>(padded_cols);
    cols.ids = arena.take<int64_t>(padded_cols);
    cols.words = arena.take<uint32_t>(padded_cols);

    const int64_t col_panels = padded_cols / Pack::kWidth;
    channel_panel = Pack::channel_panel(call.cols.embeds);
    guide_panel = Pack::channel_panel(call.cols.guide);
    cols_by_channel = arena.take<Unit>(need.product ? col_panels * channel_panel : 0);
    guide_by_channel = arena.take<Unit>(need.guide ? col_panels * guide_panel : 0);
    if (!backward) {
      const int64_t sums = part_count * padded_cols;
      lse = Sums<Acc>::take(arena, sums, false);
      soft = Sums<Acc>::take(arena, need.soft ? sums : 0, need.soft);
      target = arena.take<Acc>(call.targets ? sums : 0);
      return;
    }
    const int64_t channels = Pack::padded_width(call.cols.embeds), channel_panels = channels / Pack::kWidth;
    col_panel = Pack::row_units(n) * Pack::kWidth;
    row_panel = Pack::row_units(m) * Pack::kWidth;
    cols_by_row = arena.take<Unit>(need.cols_by_row ? channel_panels * col_panel : 0);
    rows_by_row = arena.take<Unit>(need.rows_by_row ? channel_panels * row_panel : 0);
    gradient_tile = call.chunk / E::kPack * kStride<Unit>;
    gradient = arena.take<Unit>(need.rows_by_row ? padded_cols / kTileCols * gradient_tile : 0);
    grad_cols = arena.take<Acc>(need.rows_by_row ? padded_cols * channels : 0);
    for (Acc*& sums : row_sums) sums = arena.take<Acc>(m);
    col_sums = need.col_scales ? arena.take<Acc>(call.chunk / kTileRows * padded_cols) : nullptr;
    has_col_sums = need.col_scales;
    col_scale_grad = arena.take<Acc>(need.col_scales ? padded_cols : 0);
  }

  static CallMemory of(const SimilarityCall& call, bool backward) {
    Arena arena(call.memory);
    return CallMemory(call, backward, arena);
  }
  static size_t bytes(const SimilarityCall& call, bool backward) {
    Arena arena(nullptr);
    CallMemory(call, backward, arena);
    return arena.used();
  }
};

// Working memory of a thread: a tile and what belongs to its rows.
template <class E, class In>
struct TileMemory {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Pack = Packing<E, In>;
  static constexpr int64_t kGathered = kTileRows > Pack::kWidth ? kTileRows : Pack::kWidth;

  Elem *rows, *guide_rows;       // gathered rows of the tile, or of the columns while they are packed
  Acc *cosines, *guide_cosines;  // [kTileRows, kStride]
  Acc* gradient;                 // [kTileRows, kStride]: G
  Elem* gradient_elems;          // [kTileRows, kStride]: G as operand, only where its type differs
  Acc* grad_rows;                // [kTileRows, channels]
  Acc* embedding;                // [channels]: one, as numbers
  Acc *inverse_norm, *guide_inverse_norm, *scale;  // [kTileRows]
  Sums<Acc> lse, soft;                             // [kTileRows]
  Acc* target;                                     // [kTileRows]
  Acc* flags;                                      // [kTileCols]: 1 where the pair is a target, else 0
  Acc* guide_scale;                                // [kTileCols]

  TileMemory(const SimilarityCall& call, Arena& arena) {
    const int64_t channels = Pack::padded_width(call.rows.embeds);
    const int64_t guide_channels = Pack::padded_width(call.rows.guide);
    constexpr int64_t kTile = kTileRows * kStride<Acc>;
    rows = arena.take<Elem>(kGathered * channels);
    guide_rows = arena.take<Elem>(kGathered * guide_channels);
    cosines = arena.take<Acc>(kTile);
    guide_cosines = arena.take<Acc>(call.soft || call.threshold.data ? kTile : 0);
    gradient = arena.take<Acc>(kTile);
    gradient_elems = arena.take<Elem>(E::kPack > 1 ? kTileRows * kStride<Elem> : 0);
    grad_rows = arena.take<Acc>(kTileRows * channels);
    embedding = arena.take<Acc>(channels);
    inverse_norm = arena.take<Acc>(kTileRows);
    guide_inverse_norm = arena.take<Acc>(kTileRows);
    scale = arena.take<Acc>(kTileRows);
    lse = Sums<Acc>::take(arena, kTileRows, false);
    soft = Sums<Acc>::take(arena, kTileRows, true);
    target = arena.take<Acc>(kTileRows);
    flags = arena.take<Acc>(kTileCols);
    guide_scale = arena.take<Acc>(kTileCols);
  }

  static TileMemory of(const SimilarityCall& call, void* workspace) {
    Arena arena(workspace);
    TileMemory memory(call, arena);
    fill(memory.flags, kTileCols, Acc{0});
    fill(memory.guide_scale, kTileCols, static_cast<Acc>(call.guide_scale));
    return memory;
  }
  static size_t bytes(const SimilarityCall& call) {
    Arena arena(nullptr);
    TileMemory(call, arena);
    return arena.used();
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
