// Steps that lay the columns and the rows out for a pass. Compiled once per instruction set.
#pragma once

#include "contrastive/softmax.h"

namespace sparc {
namespace SPARC_ISA {

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
    if (backward && !call.one_sweep) continue;
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

}  // namespace SPARC_ISA
}  // namespace sparc
