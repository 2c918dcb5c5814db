// Steps of the forward pass, compiled once per instruction set. Names follow MATH.md.
#pragma once

#include "contrastive/operands.h"
#include "contrastive/softplus.h"

namespace sparc {
namespace SPARC_ISA {

template <class Acc>
Acc lowest_if(bool maximum) {
  return maximum ? kLowest<Acc> : Acc{0};
}

template <class Acc>
Acc log_of(Acc top, Acc sum) {
  return sum == 0 ? static_cast<Acc>(-__builtin_inf()) : top + static_cast<Acc>(__builtin_log(sum));
}

template <class E, class In>
void add_targets(const SimilarityTile<E, In>& tile, typename E::Acc* col_target) {
  using Acc = typename E::Acc;
  const Acc* scale = tile.memory.cols.scale + tile.col;
  for (int64_t r = 0; r < tile.rows; ++r) {
    if (!tile.find_targets(r)) continue;
    const Acc *line = tile.work.cosines + r * kStride<Acc>, *flags = tile.work.flags;
    Acc total = 0;
    for (int64_t j = 0; j < tile.width; ++j) {
      total += flags[j] * line[j];
      col_target[j] += flags[j] * line[j] * scale[j];
    }
    tile.work.target[r] += total * tile.work.scale[r];
  }
}

template <class E, class In>
void add_softplus(const SimilarityTile<E, In>& tile) {
  using Acc = typename E::Acc;
  for (int64_t r = 0; r < tile.rows; ++r) {
    if (tile.call.targets) tile.find_targets(r);
    const SignedLogits<Acc> logits{tile.work.scale[r], static_cast<Acc>(tile.call.bias), tile.work.flags};
    tile.work.lse.sum[r] += softplus_sum(tile.work.cosines + r * kStride<Acc>, tile.width, logits);
  }
}

template <class E, class In>
void add_tile(const SimilarityTile<E, In>& tile, int64_t part, bool at_once) {
  using Acc = typename E::Acc;
  const auto& work = tile.work;
  const auto& memory = tile.memory;
  if (tile.call.softplus) return add_softplus(tile);
  const int64_t at = part * memory.padded_cols + tile.col;
  const TileValues<Acc> cosines{work.cosines, tile.rows, tile.width};
  const bool by_rows = tile.call.rows.results[kLogsumexp], by_cols = tile.call.cols.results[kLogsumexp];
  if (at_once) {
    add_along_both(cosines, work.scale[0], work.lse.sum, memory.lse.sum + at);
  } else {
    if (by_rows) add_along_rows<Acc>(cosines, work.scale, nullptr, work.lse);
    if (by_cols) add_along_cols<Acc>(cosines, memory.cols.scale + tile.col, nullptr, memory.lse.from(at));
  }
  if (tile.call.soft) {
    const TileValues<Acc> guide{work.guide_cosines, tile.rows, tile.width};
    fill(work.guide_scale, kTileCols, static_cast<Acc>(tile.call.guide_scale));
    if (by_rows) add_along_rows<Acc>(guide, work.guide_scale, work.cosines, work.soft);
    if (by_cols) add_along_cols<Acc>(guide, work.guide_scale, work.cosines, memory.soft.from(at));
  }
  if (tile.call.targets) add_targets(tile, memory.target + at);
}

template <class Acc>
void set_result(const SimilaritySide& side, SimilarityResult result, int64_t i, Acc value) {
  if (side.results[result]) static_cast<Acc*>(side.results[result])[i] = value;
}

// Results of an item from its sums.
template <class Acc>
void write_results(const SimilaritySide& side, int64_t i, int64_t at, Acc scale, const Sums<Acc>& lse,
                   const Sums<Acc>* soft, const Acc* target) {
  Acc* stats = static_cast<Acc*>(side.stats);
  const Acc found = log_of(lse.top[at], lse.sum[at]);
  stats[kLse * side.embeds.count + i] = found;
  set_result(side, kLogsumexp, i, found);
  if (target) set_result(side, kTarget, i, target[at]);
  if (!soft) return;
  stats[kGuideLse * side.embeds.count + i] = log_of(soft->top[at], soft->sum[at]);
  set_result(side, kSoft, i, soft->sum[at] == 0 ? Acc{0} : scale * soft->weighted[at] / soft->sum[at]);
}

template <class E, class In>
void forward_rows(const SimilarityCall& call, int64_t part, void* workspace) {
  using Acc = typename E::Acc;
  const auto memory = CallMemory<E, In>::of(call, false);
  const auto work = TileMemory<E, In>::of(call, workspace);
  const Needs need = needs_of(call, false);
  const bool by_rows = call.rows.results[kLogsumexp], by_cols = call.cols.results[kLogsumexp];
  const bool at_once = call.softplus || (by_rows && by_cols && one_exponential<Acc>(call));
  const int64_t m = call.rows.embeds.count, n = call.cols.embeds.count, sums = part * memory.padded_cols;
  if (by_cols) {
    memory.lse.from(sums).clear(memory.padded_cols, lowest_if<Acc>(!at_once));
    if (call.soft) memory.soft.from(sums).clear(memory.padded_cols, kLowest<Acc>);
  }
  if (call.targets) fill(memory.target + sums, memory.padded_cols, Acc{0});

  const int64_t tiles = ceil_div(m, kTileRows);
  const int64_t last = smaller(m, (part + 1) * tiles / call.parts * kTileRows);
  SimilarityTile<E, In> tile{{}, call, memory, work};
  for (int64_t row = part * tiles / call.parts * kTileRows; row < last; row += kTileRows) {
    tile.begin_rows(row, smaller(kTileRows, last - row), need, false);
    work.lse.clear(tile.rows, lowest_if<Acc>(!at_once));
    work.soft.clear(tile.rows, kLowest<Acc>);
    fill(work.target, tile.rows, Acc{0});
    for (int64_t col = 0; col < n; col += kTileCols) {
      tile.compute(col, need);
      if (call.similarities) tile.keep();
      add_tile(tile, part, at_once);
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      if (call.softplus) {
        set_result(call.rows, kLogsumexp, row + r, work.lse.sum[r]);
      } else if (by_rows) {
        write_results(call.rows, row + r, r, work.scale[r], work.lse, call.soft ? &work.soft : nullptr,
                      call.targets ? work.target : nullptr);
      }
    }
  }
}

// Sums of the parts become those of the first one, in the order of the parts.
template <class Acc>
void merge_sums(const Sums<Acc>& sums, int64_t parts, int64_t padded_cols, int64_t j) {
  Acc top = kLowest<Acc>, sum = 0, weighted = 0;
  for (int64_t i = 0; i < parts; ++i) {
    if (sums.top[i * padded_cols + j] > top) top = sums.top[i * padded_cols + j];
  }
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t at = i * padded_cols + j;
    const Acc factor = static_cast<Acc>(__builtin_exp(sums.top[at] - top));
    sum += sums.sum[at] * factor;
    if (sums.weighted) weighted += sums.weighted[at] * factor;
  }
  sums.top[j] = top;
  sums.sum[j] = sum;
  if (sums.weighted) sums.weighted[j] = weighted;
}

template <class E, class In>
void merge_columns(const SimilarityCall& call, int64_t item, void*) {
  const auto memory = CallMemory<E, In>::of(call, false);
  const int64_t parts = memory.part_count, padded = memory.padded_cols;
  const int64_t last = smaller((item + 1) * kTileCols, call.cols.embeds.count);
  for (int64_t j = item * kTileCols; j < last; ++j) {
    merge_sums(memory.lse, parts, padded, j);
    if (call.soft) merge_sums(memory.soft, parts, padded, j);
    if (call.targets) {
      for (int64_t i = 1; i < parts; ++i) memory.target[j] += memory.target[i * padded + j];
    }
    write_results(call.cols, j, j, memory.cols.scale[j], memory.lse, call.soft ? &memory.soft : nullptr,
                  call.targets ? memory.target : nullptr);
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
