// The steps of the forward and the backward pass, compiled once per instruction set. Names follow MATH.md.
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

// ---- Columns and rows as operands ----

// Numbers of the columns from `first` on; padding gets those of a column that takes no part.
template <class E, class In>
void set_column_vectors(const SimilarityCall& call, const CallMemory<E, In>& memory, int64_t first,
                        bool backward) {
  using Acc = typename E::Acc;
  const ColumnVectors<Acc>& cols = memory.cols;
  const SimilaritySide& side = call.cols;
  const int64_t n = side.embeds.count;
  const Acc* stats = static_cast<const Acc*>(side.stats);
  const bool at_once = !call.softplus && one_exponential<Acc>(call);
  for (int64_t j = first; j < first + kTileCols; ++j) {
    const bool real = j < n;
    cols.scale[j] = real && side.scale.data ? read<Acc>(side.scale, j) : Acc{0};
    cols.ids[j] = real && side.ids.data ? read<int64_t>(side.ids, j) : -1;
    cols.words[j] = static_cast<uint32_t>(cols.ids[j]);
    if (!backward) continue;
    cols.inverse_norm[j] = real ? stats[kInverseNorm * n + j] : Acc{0};
    cols.guide_inverse_norm[j] = real ? stats[kGuideInverseNorm * n + j] : Acc{0};
    cols.lse[j] = real ? stats[kLse * n + j] : Acc{0};
    cols.guide_lse[j] = real ? stats[kGuideLse * n + j] : Acc{0};
    const bool empty = !real || cols.lse[j] == -__builtin_inf();
    if (empty) cols.lse[j] = 0;
    for (int k = 0; k < kSimilarityResults; ++k) {
      cols.upstream[k][j] = empty || !side.upstream[k].data ? Acc{0} : read<Acc>(side.upstream[k], j);
    }
    if (at_once) cols.upstream[kLogsumexp][j] *= static_cast<Acc>(__builtin_exp(-cols.lse[j]));
  }
}

template <class E, class In>
void pack_cols(const SimilarityCall& call, int64_t item, void* workspace, bool backward) {
  using Acc = typename E::Acc;
  using Pack = Packing<E, In>;
  const auto memory = CallMemory<E, In>::of(call, backward);
  const auto work = TileMemory<E, In>::of(call, workspace);
  const Needs need = needs_of(call, backward);
  const Pack pack(call.cols.embeds), guide(call.cols.guide);
  const int64_t n = call.cols.embeds.count, first = item * kTileCols;
  for (int64_t j = first; j < first + kTileCols; j += Pack::kWidth) {
    const int64_t real = n > j ? smaller(Pack::kWidth, n - j) : 0;
    if (need.product || need.cols_by_row) pack.gather(j, Pack::kWidth, work.rows);
    if (need.product) {
      pack.along_channels(work.rows, memory.cols_by_channel + j / Pack::kWidth * memory.channel_panel);
    }
    if (need.cols_by_row) {
      pack.along_rows(work.rows, Pack::kWidth, memory.cols_by_row + j / E::kPack * Pack::kWidth,
                      memory.col_panel);
    }
    if (need.guide) {
      guide.gather(j, Pack::kWidth, work.guide_rows);
      guide.along_channels(work.guide_rows, memory.guide_by_channel + j / Pack::kWidth * memory.guide_panel);
    }
    if (backward) continue;
    Acc* stats = static_cast<Acc*>(call.cols.stats);
    pack.inverse_norms(work.rows, Pack::kWidth, memory.cols.inverse_norm + j);
    for (int64_t i = 0; i < real; ++i) stats[kInverseNorm * n + j + i] = memory.cols.inverse_norm[j + i];
    if (!need.guide) continue;
    guide.inverse_norms(work.guide_rows, Pack::kWidth, memory.cols.guide_inverse_norm + j);
    for (int64_t i = 0; i < real; ++i)
      stats[kGuideInverseNorm * n + j + i] = memory.cols.guide_inverse_norm[j + i];
  }
  set_column_vectors(call, memory, first, backward);
}

template <class E, class In>
void pack_cols_forward(const SimilarityCall& call, int64_t item, void* workspace) {
  pack_cols<E, In>(call, item, workspace, false);
}

template <class E, class In>
void pack_cols_backward(const SimilarityCall& call, int64_t item, void* workspace) {
  pack_cols<E, In>(call, item, workspace, true);
}

template <class E, class In>
void pack_rows_backward(const SimilarityCall& call, int64_t item, void* workspace) {
  using Pack = Packing<E, In>;
  const auto memory = CallMemory<E, In>::of(call, true);
  const auto work = TileMemory<E, In>::of(call, workspace);
  const Pack pack(call.rows.embeds);
  for (int64_t i = item * kTileCols; i < (item + 1) * kTileCols; i += Pack::kWidth) {
    pack.gather(i, Pack::kWidth, work.rows);
    pack.along_rows(work.rows, Pack::kWidth, memory.rows_by_row + i / E::kPack * Pack::kWidth,
                    memory.row_panel);
  }
}

// ---- Forward ----

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

// ---- Backward ----

template <class E, class In>
GradientRow<typename E::Acc> gradient_row(const SimilarityTile<E, In>& tile, int64_t r, bool at_once) {
  using Acc = typename E::Acc;
  const SimilarityCall& call = tile.call;
  const auto& memory = tile.memory;
  const auto& work = tile.work;
  const int64_t i = tile.row + r, m = call.rows.embeds.count;
  const Acc* stats = static_cast<const Acc*>(call.rows.stats);
  GradientRow<Acc> row = {};
  row.cosines = work.cosines + r * kStride<Acc>;
  row.guide = work.guide_cosines + r * kStride<Acc>;
  row.out = work.gradient + r * kStride<Acc>;
  row.width = tile.width;
  row.scale = work.scale[r];
  row.inverse_norm = work.inverse_norm[r];
  row.lse = stats[kLse * m + i];
  row.guide_lse = stats[kGuideLse * m + i];
  row.guide_scale = static_cast<Acc>(call.guide_scale);
  const bool empty = row.lse == -__builtin_inf();
  if (empty) row.lse = 0;
  for (int k = 0; k < kSimilarityResults; ++k) {
    row.upstream[k] = empty || !call.rows.upstream[k].data ? Acc{0} : read<Acc>(call.rows.upstream[k], i);
  }
  if (at_once) row.upstream[kLogsumexp] *= static_cast<Acc>(__builtin_exp(-row.lse));
  row.cols = memory.cols;
  for (Acc** numbers :
       {&row.cols.inverse_norm, &row.cols.scale, &row.cols.lse, &row.cols.guide_lse,
        &row.cols.upstream[kLogsumexp], &row.cols.upstream[kTarget], &row.cols.upstream[kSoft]}) {
    *numbers += tile.col;
  }
  if (memory.has_col_sums) {
    row.col_sums = memory.col_sums + (tile.row - call.first) / kTileRows * memory.padded_cols + tile.col;
  }
  return row;
}

template <class E, class In>
void tile_gradient(const SimilarityTile<E, In>& tile) {
  using Acc = typename E::Acc;
  const SimilarityCall& call = tile.call;
  const bool at_once = !call.softplus && one_exponential<Acc>(call);
  const bool of_rows = call.rows.upstream[kLogsumexp].data, of_cols = call.cols.upstream[kLogsumexp].data;
  for (int64_t r = 0; r < tile.rows; ++r) {
    GradientRow<Acc> row = gradient_row(tile, r, at_once);
    const bool targets = call.targets && tile.find_targets(r);
    row.flags = tile.work.flags;
    if (call.softplus) {
      softplus_gradient(row, SignedLogits<Acc>{row.scale, static_cast<Acc>(call.bias), row.flags});
    } else if (at_once) {
      softmax_gradient_at_once(row);
    } else if (of_rows && of_cols) {
      softmax_gradient<true, true>(row);
    } else if (of_cols) {
      softmax_gradient<false, true>(row);
    } else {
      softmax_gradient<true, false>(row);
    }
    if (!call.softplus && targets) add_target_gradient<kTarget>(row);
    if (call.soft) add_target_gradient<kSoft>(row);
    for (int k = 0; k < 2; ++k) tile.memory.row_sums[k][tile.row + r] += row.sums[k];
  }
}

// G of a tile as operand of G Y (by rows) and of G^T X (units along the rows).
template <class E, class In>
Matrix<const typename E::Unit> store_gradient(const SimilarityTile<E, In>& tile) {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  const auto& memory = tile.memory;
  const auto& work = tile.work;
  constexpr int64_t kLine = kStride<Unit>;
  Unit* to = nullptr;
  if (tile.call.cols.need_embeds) {
    to = memory.gradient + tile.col / kTileCols * memory.gradient_tile +
         (tile.row - tile.call.first) / E::kPack * kLine;
  }
  if constexpr (E::kPack == 1) {
    for (int64_t r = 0; to && r < tile.rows; ++r) {
      for (int64_t j = 0; j < tile.width; ++j) to[r * kLine + j] = work.gradient[r * kLine + j];
    }
    return {work.gradient, kLine};
  } else {
    const int64_t rows = round_up(tile.rows, E::kPack);
    fill(work.gradient + tile.rows * kStride<Acc>, (rows - tile.rows) * kStride<Acc>, Acc{0});
    for (int64_t r = 0; r < rows; ++r) {
      Elem* out = work.gradient_elems + r * kStride<Elem>;
      const Acc* from = work.gradient + r * kStride<Acc>;
      for (int64_t j = 0; j < tile.width; ++j) out[j] = Convert<Elem>::from(from[j]);
    }
    if (to) pack_rows(work.gradient_elems, rows, tile.width, kStride<Elem>, to, kLine);
    return {reinterpret_cast<const Unit*>(work.gradient_elems), kStride<Elem> / E::kPack};
  }
}

// The gradient of an embedding from that of its normalised form: what is along the embedding drops out.
template <class Acc, class In>
void write_gradient(const EmbedView& embeds, int64_t i, Acc inverse_norm, Acc* gradient, In* out) {
  const In* x = static_cast<const In*>(embeds.data) + i * embeds.row_stride;
  if (inverse_norm < Acc(kInverseOfZero)) {
    Acc dot = 0;
    for (int64_t d = 0; d < embeds.width; ++d) dot += to_acc(x[d * embeds.column_stride]) * gradient[d];
    dot *= inverse_norm * inverse_norm;
    for (int64_t d = 0; d < embeds.width; ++d) gradient[d] -= to_acc(x[d * embeds.column_stride]) * dot;
  }
  for (int64_t d = 0; d < embeds.width; ++d) out[d] = Convert<In>::from(gradient[d]);
}

template <class E, class In>
void gradient_rows(const SimilarityCall& call, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  using Pack = Packing<E, In>;
  const auto memory = CallMemory<E, In>::of(call, true);
  const auto work = TileMemory<E, In>::of(call, workspace);
  const Needs need = needs_of(call, true);
  const int64_t row = call.first + item * kTileRows, channels = Pack::padded_width(call.rows.embeds);
  SimilarityTile<E, In> tile{{}, call, memory, work};
  tile.begin_rows(row, smaller(kTileRows, call.last - row), need, true);
  for (Acc* sums : memory.row_sums) fill(sums + row, tile.rows, Acc{0});
  if (memory.has_col_sums) fill(memory.col_sums + item * memory.padded_cols, memory.padded_cols, Acc{0});
  if (call.cols.embeds.count == 0) fill(work.grad_rows, tile.rows * channels, Acc{0});
  for (int64_t col = 0; col < call.cols.embeds.count; col += kTileCols) {
    tile.compute(col, need);
    tile_gradient(tile);
    const auto gradient = store_gradient(tile);
    if (!need.cols_by_row) continue;
    for (int64_t x = 0; x < channels; x += Pack::kWidth) {
      panel_product<E, ALayout::kRows>(
          tile.rows, tile.width / E::kPack, gradient,
          memory.cols_by_row + x / Pack::kWidth * memory.col_panel + col / E::kPack * Pack::kWidth,
          {work.grad_rows + x, channels}, col > 0);
    }
  }
  if (!need.cols_by_row) return;
  In* out = static_cast<In*>(call.rows.grad_embeds);
  for (int64_t r = 0; r < tile.rows; ++r) {
    write_gradient<Acc, In>(call.rows.embeds, row + r, work.inverse_norm[r], work.grad_rows + r * channels,
                            out + (row + r) * call.rows.embeds.width);
  }
}

// W2 += G^T X of the chunk, for a tile of columns and a panel of channels; the first panel's item also adds
// the sums of the columns' scales.
template <class E, class In>
void gradient_transposed(const SimilarityCall& call, int64_t item, void*) {
  using Acc = typename E::Acc;
  using Pack = Packing<E, In>;
  const auto memory = CallMemory<E, In>::of(call, true);
  const int64_t tiles = memory.padded_cols / kTileCols, col = item % tiles * kTileCols, panel = item / tiles;
  const int64_t n = call.cols.embeds.count, cols = smaller(kTileCols, n - col);
  if (memory.has_col_sums && panel == 0) {
    for (int64_t j = col; j < col + cols; ++j) {
      Acc total = call.first ? memory.col_scale_grad[j] : Acc{0};
      const int64_t row_tiles = ceil_div(call.last - call.first, kTileRows);
      for (int64_t i = 0; i < row_tiles; ++i) total += memory.col_sums[i * memory.padded_cols + j];
      memory.col_scale_grad[j] = total;
    }
  }
  if (!call.cols.need_embeds || panel * Pack::kWidth >= Pack::padded_width(call.cols.embeds)) return;
  const Matrix<Acc> out{memory.grad_cols + (panel * memory.padded_cols + col) * Pack::kWidth, Pack::kWidth};
  const typename E::Unit* rows = memory.rows_by_row + panel * memory.row_panel;
  for (int64_t row = call.first; row < call.last; row += kDepthRows) {
    const int64_t units = ceil_div(smaller(kDepthRows, call.last - row), E::kPack);
    const Matrix<const typename E::Unit> gradient{
        memory.gradient + item % tiles * memory.gradient_tile +
            (row - call.first) / E::kPack * kStride<typename E::Unit>,
        kStride<typename E::Unit>};
    panel_product<E, ALayout::kColumns>(cols, units, gradient, rows + row / E::kPack * Pack::kWidth, out,
                                        row > 0);
  }
}

template <class E, class In>
void finish_columns(const SimilarityCall& call, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  using Pack = Packing<E, In>;
  const auto memory = CallMemory<E, In>::of(call, true);
  const auto work = TileMemory<E, In>::of(call, workspace);
  const int64_t width = call.cols.embeds.width;
  const int64_t last = smaller((item + 1) * kTileCols, call.cols.embeds.count);
  for (int64_t j = item * kTileCols; j < last; ++j) {
    for (int64_t x = 0; x < width; ++x) {
      const int64_t panel = x / Pack::kWidth * memory.padded_cols * Pack::kWidth;
      work.grad_rows[x] =
          call.rows.embeds.count ? memory.grad_cols[panel + j * Pack::kWidth + x % Pack::kWidth] : Acc{0};
    }
    write_gradient<Acc, In>(call.cols.embeds, j, memory.cols.inverse_norm[j], work.grad_rows,
                            static_cast<In*>(call.cols.grad_embeds) + j * width);
  }
}

template <class E, class In>
void finish_scales(const SimilarityCall& call) {
  using Acc = typename E::Acc;
  const auto memory = CallMemory<E, In>::of(call, true);
  const int64_t m = call.rows.embeds.count;
  const auto total = [m](const Acc* sums) {
    double found = 0;
    for (int64_t i = 0; i < m; ++i) found += sums[i];
    return static_cast<Acc>(found);
  };
  if (Acc* out = static_cast<Acc*>(call.rows.grad_scale)) {
    if (!call.rows.scale_per_item) *out = total(memory.row_sums[0]);
    for (int64_t i = 0; call.rows.scale_per_item && i < m; ++i) out[i] = memory.row_sums[0][i];
  }
  if (Acc* out = static_cast<Acc*>(call.cols.grad_scale)) {
    if (!call.cols.scale_per_item) *out = total(memory.row_sums[1]);
    for (int64_t j = 0; call.cols.scale_per_item && j < call.cols.embeds.count; ++j) {
      out[j] = m ? memory.col_scale_grad[j] : Acc{0};
    }
  }
  if (call.grad_bias) *static_cast<Acc*>(call.grad_bias) = total(memory.row_sums[1]);
}

template <class E, class In>
SimilarityKernel similarity_kernel() {
  SimilarityKernel kernel = {};
  kernel.forward_bytes = [](const SimilarityCall& call) { return CallMemory<E, In>::bytes(call, false); };
  kernel.backward_bytes = [](const SimilarityCall& call) { return CallMemory<E, In>::bytes(call, true); };
  kernel.thread_bytes = &TileMemory<E, In>::bytes;
  kernel.panel_width = kPanelWidth<typename E::Acc>;
  kernel.gradient_bytes = sizeof(typename E::Elem);
  kernel.pack_cols_forward = &pack_cols_forward<E, In>;
  kernel.forward = &forward_rows<E, In>;
  kernel.merge = &merge_columns<E, In>;
  kernel.pack_cols_backward = &pack_cols_backward<E, In>;
  kernel.pack_rows = &pack_rows_backward<E, In>;
  kernel.gradient = &gradient_rows<E, In>;
  kernel.transposed = &gradient_transposed<E, In>;
  kernel.finish = &finish_columns<E, In>;
  kernel.finish_scales = &finish_scales<E, In>;
  return kernel;
}

}  // namespace SPARC_ISA

SPARC_KERNELS(SimilarityKernel, similarity_kernel)

}  // namespace sparc
