// Cosines of a tile of pairs, and who takes part. Compiled once per instruction set.
#pragma once

#include "contrastive/memory.h"

namespace sparc {
namespace SPARC_ISA {

template <class Acc>
constexpr Acc kExcludedCosine = static_cast<Acc>(kExcluded);

// Lanes of pairs that take no part. NaN does: it has to reach the results.
template <class V>
SPARC_INLINE auto excluded(V cosines) {
  return cosines <= V{} + kExcluded / 2;
}

// Rows [row, row + rows) and columns [col, col + cols); `width` is `cols` in whole panels, and what is beyond
// `cols` takes no part.
struct TileRange {
  int64_t row, rows, col, cols, width;
};

template <class E, class In>
struct SimilarityTile : TileRange {
  using Acc = typename E::Acc;
  using Unit = typename E::Unit;
  using Pack = Packing<E, In>;
  static constexpr int64_t kN = kLanes<Acc>;

  const SimilarityCall& call;
  const CallMemory<E, In>& memory;
  const TileMemory<E, In>& work;

  // Rows of the tile as operand of the products, and 1 / norm, which an earlier pass may have found.
  void begin_rows(int64_t first, int64_t count, const Needs& need, bool known_norms) {
    row = first;
    rows = count;
    set_rows(call.rows.embeds, need.product, kInverseNorm, work.rows, work.inverse_norm, known_norms);
    if (need.guide) {
      set_rows(call.rows.guide, true, kGuideInverseNorm, work.guide_rows, work.guide_inverse_norm,
               known_norms);
    }
    for (int64_t r = 0; r < rows; ++r) work.scale[r] = read<Acc>(call.rows.scale, row + r);
  }

  // The cosines of columns [first, ...), kExcluded where a pair takes no part; and the guide's.
  void compute(int64_t first, const Needs& need) {
    col = first;
    cols = smaller(kTileCols, call.cols.embeds.count - col);
    width = round_up(cols, Pack::kWidth);
    if (need.product) {
      multiply(work.rows, call.rows.embeds, memory.cols_by_channel, memory.channel_panel, work.cosines);
      normalise(work.cosines, work.inverse_norm, memory.cols.inverse_norm);
    } else {
      load_kept();
    }
    if (need.guide) {
      multiply(work.guide_rows, call.rows.guide, memory.guide_by_channel, memory.guide_panel,
               work.guide_cosines);
      normalise(work.guide_cosines, work.guide_inverse_norm, memory.cols.guide_inverse_norm);
    }
    if (need.product) exclude();
    if (need.soft) exclude_guide();
  }

  void keep() const {
    Acc* kept = static_cast<Acc*>(call.similarities);
    for (int64_t r = 0; r < rows; ++r) {
      const Acc* from = work.cosines + r * kStride<Acc>;
      Acc* to = kept + (row + r) * call.cols.embeds.count + col;
      for (int64_t j = 0; j < cols; ++j) to[j] = from[j];
    }
  }

  // Sets work.flags to the targets of a row; false where it has none, and flags are all 0.
  bool find_targets(int64_t r) const {
    Acc* flags = work.flags;
    fill(flags, width, Acc{0});
    const int64_t id = read<int64_t>(call.rows.ids, row + r);
    if (!has_word(id)) return false;
    const Acc* cosines = work.cosines + r * kStride<Acc>;
    for (int64_t j = 0; j < width; ++j) {
      const bool part = !(cosines[j] <= kExcludedCosine<Acc> / 2);
      flags[j] = memory.cols.ids[col + j] == id && part ? Acc{1} : Acc{0};
    }
    return true;
  }

 private:
  void set_rows(const EmbedView& embeds, bool operand, SimilarityStat stat, typename E::Elem* gathered,
                Acc* inverse_norm, bool known) {
    const Pack pack(embeds);
    if (operand) pack.gather(row, rows, gathered);
    Acc* kept = static_cast<Acc*>(call.rows.stats) + stat * call.rows.embeds.count + row;
    if (!known) pack.inverse_norms(gathered, rows, kept);
    for (int64_t r = 0; r < rows; ++r) inverse_norm[r] = kept[r];
  }

  void multiply(const typename E::Elem* a, const EmbedView& embeds, const Unit* panels, int64_t panel_size,
                Acc* out) const {
    const int64_t ld = Pack::padded_width(embeds) / E::kPack;
    for (int64_t x = 0; x < width; x += Pack::kWidth) {
      panel_product<E, ALayout::kRows>(
          rows, Pack::channel_units(embeds), {reinterpret_cast<const Unit*>(a), ld},
          panels + (col + x) / Pack::kWidth * panel_size, {out + x, kStride<Acc>}, false);
    }
  }

  void normalise(Acc* products, const Acc* of_rows, const Acc* of_cols) const {
    for (int64_t r = 0; r < rows; ++r) {
      Acc* line = products + r * kStride<Acc>;
      for (int64_t j = 0; j < width; j += kN) {
        store(line + j, load<kN>(line + j) * of_rows[r] * load<kN>(of_cols + col + j));
      }
      fill(line + cols, width - cols, kExcludedCosine<Acc>);
    }
  }

  void load_kept() const {
    const Acc* kept = static_cast<const Acc*>(call.similarities);
    for (int64_t r = 0; r < rows; ++r) {
      const Acc* from = kept + (row + r) * call.cols.embeds.count + col;
      Acc* to = work.cosines + r * kStride<Acc>;
      for (int64_t j = 0; j < cols; ++j) to[j] = from[j];
      fill(to + cols, width - cols, kExcludedCosine<Acc>);
    }
  }

  // Whether a column's id may be `id`: most rows meet none in a tile, and then nothing else is looked at.
  bool has_word(int64_t id) const {
    const uint32_t word = static_cast<uint32_t>(id);
    const uint32_t* words = memory.cols.words + col;
    uint32_t found = 0;
    for (int64_t j = 0; j < width; ++j) found |= static_cast<uint32_t>(words[j] == word);
    return found != 0;
  }

  void exclude_id(Acc* line, int64_t id) const {
    for (int64_t j = 0; j < width; ++j) {
      if (memory.cols.ids[col + j] == id) line[j] = kExcludedCosine<Acc>;
    }
  }

  void exclude() const {
    const bool padding = call.cols.ids.data && has_word(-1);
    for (int64_t r = 0; r < rows; ++r) {
      Acc* line = work.cosines + r * kStride<Acc>;
      if (call.rows.ids.data) {
        const int64_t id = read<int64_t>(call.rows.ids, row + r);
        if (id == -1) fill(line, width, kExcludedCosine<Acc>);
        if (padding) exclude_id(line, -1);
        if (!call.targets && has_word(id)) exclude_id(line, id);
      }
      if (call.indptr.data) exclude_pairs(line, row + r);
      if (call.threshold.data) {
        const Acc threshold = read<Acc>(call.threshold, row + r);
        const Acc* guide = work.guide_cosines + r * kStride<Acc>;
        for (int64_t j = 0; j < width; ++j) line[j] = guide[j] > threshold ? kExcludedCosine<Acc> : line[j];
      }
    }
  }

  // Looks at all pairs of the row: a tile costs D products per column, a pair one comparison per tile.
  void exclude_pairs(Acc* line, int64_t i) const {
    const auto inside = [this](int64_t at) { return at < 0 ? 0 : smaller(at, call.pairs); };
    const int64_t last = inside(read<int64_t>(call.indptr, i + 1));
    for (int64_t at = inside(read<int64_t>(call.indptr, i)); at < last; ++at) {
      const int64_t j = read<int64_t>(call.indices, at);
      if (j >= col && j < col + cols) line[j - col] = kExcludedCosine<Acc>;
    }
  }

  void exclude_guide() const {
    for (int64_t r = 0; r < rows; ++r) {
      Acc* guide = work.guide_cosines + r * kStride<Acc>;
      const Acc* line = work.cosines + r * kStride<Acc>;
      for (int64_t j = 0; j < width; ++j) {
        guide[j] = line[j] <= kExcludedCosine<Acc> / 2 ? kExcludedCosine<Acc> : guide[j];
      }
    }
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
