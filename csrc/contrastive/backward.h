// Steps of the backward pass, compiled once per instruction set. Names follow MATH.md.
#pragma once

#include "contrastive/operands.h"
#include "contrastive/softplus.h"

namespace sparc {
namespace SPARC_ISA {

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
      const SignedLogits<Acc> logits{row.scale, static_cast<Acc>(call.bias), row.flags};
      if (call.one_sweep) {
        softplus_gradient<true>(row, logits);
        static_cast<Acc*>(call.rows.results[kLogsumexp])[tile.row + r] += row.sums[2];
      } else {
        softplus_gradient<false>(row, logits);
      }
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

// The gradient of an embedding from its row of W, padded to whole panels: what lies along the embedding drops
// out.
template <class E, class In>
void write_gradient(const EmbedView& embeds, int64_t i, typename E::Acc inverse_norm,
                    typename E::Acc* gradient, const TileMemory<E, In>& work, In* out) {
  using Acc = typename E::Acc;
  constexpr int kN = kLanes<Acc>;
  if (inverse_norm < Acc(kInverseOfZero)) {
    const int64_t padded = Packing<E, In>::padded_width(embeds);
    convert_row(static_cast<const In*>(embeds.data) + i * embeds.row_stride, embeds.column_stride,
                embeds.width, work.embedding);
    fill(work.embedding + embeds.width, padded - embeds.width, Acc{0});
    Vec<Acc, kN> products = {};
    for (int64_t x = 0; x < padded; x += kN)
      products += load<kN>(work.embedding + x) * load<kN>(gradient + x);
    const Acc along = sum_lanes<Acc>(products) * inverse_norm * inverse_norm;
    for (int64_t x = 0; x < embeds.width; ++x) gradient[x] -= work.embedding[x] * along;
  }
  convert_row(gradient, 1, embeds.width, out);
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
  tile.begin_rows(row, smaller(kTileRows, call.last - row), need, !call.one_sweep);
  for (Acc* sums : memory.row_sums) fill(sums + row, tile.rows, Acc{0});
  if (call.one_sweep) fill(static_cast<Acc*>(call.rows.results[kLogsumexp]) + row, tile.rows, Acc{0});
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
    write_gradient(call.rows.embeds, row + r, work.inverse_norm[r], work.grad_rows + r * channels, work,
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
  // the panels of a tile one after another: they read the same part of G
  const int64_t channels = call.cols.need_embeds ? Pack::padded_width(call.cols.embeds) : 0;
  const int64_t panels = channels ? channels / Pack::kWidth : 1;
  const int64_t col = item / panels * kTileCols, panel = item % panels;
  const int64_t n = call.cols.embeds.count, cols = smaller(kTileCols, n - col);
  if (memory.has_col_sums && panel == 0) {
    for (int64_t j = col; j < col + cols; ++j) {
      Acc total = call.first ? memory.col_scale_grad[j] : Acc{0};
      const int64_t row_tiles = ceil_div(call.last - call.first, kTileRows);
      for (int64_t i = 0; i < row_tiles; ++i) total += memory.col_sums[i * memory.padded_cols + j];
      memory.col_scale_grad[j] = total;
    }
  }
  if (channels == 0) return;
  const Matrix<Acc> out{memory.grad_cols + (panel * memory.padded_cols + col) * Pack::kWidth, Pack::kWidth};
  const typename E::Unit* rows = memory.rows_by_row + panel * memory.row_panel;
  for (int64_t row = call.first; row < call.last; row += kDepthRows) {
    const int64_t units = ceil_div(smaller(kDepthRows, call.last - row), E::kPack);
    const Matrix<const typename E::Unit> gradient{
        memory.gradient + col / kTileCols * memory.gradient_tile +
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
  const int64_t width = call.cols.embeds.width, channels = Pack::padded_width(call.cols.embeds);
  const int64_t last = smaller((item + 1) * kTileCols, call.cols.embeds.count);
  for (int64_t j = item * kTileCols; j < last; ++j) {
    for (int64_t x = 0; x < channels; x += Pack::kWidth) {
      const Acc* panel = memory.grad_cols + x * memory.padded_cols + j * Pack::kWidth;
      for (int64_t y = 0; y < Pack::kWidth; ++y) work.grad_rows[x + y] = panel[y];
    }
    if (call.rows.embeds.count == 0) fill(work.grad_rows, channels, Acc{0});
    write_gradient(call.cols.embeds, j, memory.cols.inverse_norm[j], work.grad_rows, work,
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

template <class Acc>
double weighted_total(const SimilarityCall& call) {
  double found = 0;
  for (int64_t i = 0; i < call.rows.embeds.count; ++i) {
    found += static_cast<double>(read<Acc>(call.rows.upstream[kLogsumexp], i)) *
             static_cast<const Acc*>(call.rows.results[kLogsumexp])[i];
  }
  return found;
}

// Products in the accumulation type, rounded once.
template <class Acc, class In>
void scale_values(const void* values, int64_t count, double factor, void* out) {
  const Acc by = static_cast<Acc>(factor);
  for (int64_t i = 0; i < count; ++i) {
    static_cast<In*>(out)[i] = Convert<In>::from(Convert<Acc>::from(static_cast<const In*>(values)[i]) * by);
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
