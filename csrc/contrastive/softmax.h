// Softmaxes over the rows and the columns of a tile: their sums, and the gradient of the cosines. Compiled
// once per instruction set.
#pragma once

#include "contrastive/tile.h"

namespace sparc {
namespace SPARC_ISA {

template <class Acc>
constexpr Acc kLowest = Acc(-1e30);

// exp of logits, 0 where the pair takes no part.
template <class Acc>
SPARC_INLINE Vec<Acc, kLanes<Acc>> exp_of_part(Vec<Acc, kLanes<Acc>> cosines, Vec<Acc, kLanes<Acc>> logits) {
  const Vec<Acc, kLanes<Acc>> zero = {};
  return excluded(cosines) ? zero : exp_vec<kLanes<Acc>>(logits);
}

// Values of a tile, [rows, kStride], kExcluded where a pair takes no part.
template <class Acc>
struct TileValues {
  const Acc* values;
  int64_t rows, width;

  SPARC_INLINE const Acc* row(int64_t r) const { return values + r * kStride<Acc>; }
};

// Rescales sums to a new reference.
template <class Acc>
SPARC_INLINE void raise(const Sums<Acc>& sums, int64_t i, Acc top) {
  const Acc factor = static_cast<Acc>(__builtin_exp(sums.top[i] - top));
  sums.top[i] = top;
  sums.sum[i] *= factor;
  if (sums.weighted) sums.weighted[i] *= factor;
}

// Adds exp(scale_r value) along each row; `weights` is a tile, or null.
template <class Acc>
void add_along_rows(const TileValues<Acc>& tile, const Acc* scale, const Acc* weights,
                    const Sums<Acc>& sums) {
  constexpr int kN = kLanes<Acc>;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const Acc *line = tile.row(r), *weight = weights ? weights + r * kStride<Acc> : nullptr;
    auto most = splat<kN>(kLowest<Acc>);
    for (int64_t j = 0; j < tile.width; j += kN) {
      const auto v = load<kN>(line + j), logits = excluded(v) ? splat<kN>(kLowest<Acc>) : v * scale[r];
      most = logits > most ? logits : most;
    }
    const Acc best = max_lanes<Acc>(most);
    if (best > sums.top[r]) raise(sums, r, best);
    Vec<Acc, kN> total = {}, weighted = {};
    for (int64_t j = 0; j < tile.width; j += kN) {
      const auto v = load<kN>(line + j), e = exp_of_part<Acc>(v, v * scale[r] - sums.top[r]);
      total += e;
      if (weight) weighted += e * load<kN>(weight + j);
    }
    sums.sum[r] += sum_lanes<Acc>(total);
    if (weight) sums.weighted[r] += sum_lanes<Acc>(weighted);
  }
}

// Adds exp(scale_j value) along each column.
template <class Acc>
void add_along_cols(const TileValues<Acc>& tile, const Acc* scale, const Acc* weights,
                    const Sums<Acc>& sums) {
  constexpr int kN = kLanes<Acc>;
  for (int64_t j = 0; j < tile.width; j += kN) {
    const auto s = load<kN>(scale + j), before = load<kN>(sums.top + j);
    auto top = before;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const auto v = load<kN>(tile.row(r) + j), logits = excluded(v) ? splat<kN>(kLowest<Acc>) : v * s;
      top = logits > top ? logits : top;
    }
    const auto factor = exp_vec<kN>(before - top);
    auto total = load<kN>(sums.sum + j) * factor;
    Vec<Acc, kN> weighted = {};
    if (weights) weighted = load<kN>(sums.weighted + j) * factor;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const auto v = load<kN>(tile.row(r) + j), e = exp_of_part<Acc>(v, v * s - top);
      total += e;
      if (weights) weighted += e * load<kN>(weights + r * kStride<Acc> + j);
    }
    store(sums.top + j, top);
    store(sums.sum + j, total);
    if (weights) store(sums.weighted + j, weighted);
  }
}

// Adds exp(scale value) along both at once: one scale for all, so small that the reference can be 0.
template <class Acc>
void add_along_both(const TileValues<Acc>& tile, Acc scale, Acc* row_sums, Acc* col_sums) {
  constexpr int kN = kLanes<Acc>;
  for (int64_t r = 0; r < tile.rows; ++r) {
    Vec<Acc, kN> total = {};
    for (int64_t j = 0; j < tile.width; j += kN) {
      const auto v = load<kN>(tile.row(r) + j), e = exp_of_part<Acc>(v, v * scale);
      total += e;
      store(col_sums + j, load<kN>(col_sums + j) + e);
    }
    row_sums[r] += sum_lanes<Acc>(total);
  }
}

// Whether one exp serves both directions.
template <class Acc>
bool one_exponential(const SimilarityCall& call) {
  if (call.rows.scale_per_item || call.cols.scale_per_item) return false;
  const Acc scale = read<Acc>(call.rows.scale, 0);
  return scale == read<Acc>(call.cols.scale, 0) && scale <= Acc(kLargestPlainScale) &&
         scale >= -Acc(kLargestPlainScale);
}

// What the gradient of a row's cosines is made of.
template <class Acc>
struct GradientRow {
  const Acc *cosines, *guide;  // guide: null without soft targets
  const Acc* flags;            // null where no pair of the row is a target
  Acc* out;                    // G
  int64_t width;
  Acc scale, inverse_norm, lse, guide_lse, guide_scale;
  Acc upstream[kSimilarityResults];
  ColumnVectors<Acc> cols;  // from the tile's first column on
  Acc* col_sums;            // where the columns have a scale each: sum of ZC c, else null
  Acc sums[3];              // sum of ZR c and of ZC c; softplus: of Z c, of Z and of softplus(y z)

  SPARC_INLINE void count_scale_gradients(Vec<Acc, kLanes<Acc>>& of_row, Vec<Acc, kLanes<Acc>>& of_col,
                                          Vec<Acc, kLanes<Acc>> row_part, Vec<Acc, kLanes<Acc>> col_part,
                                          int64_t j) const {
    of_row += row_part;
    of_col += col_part;
    if (col_sums) store(col_sums + j, load<kLanes<Acc>>(col_sums + j) + col_part);
  }
};

// One exp for both directions: upstream gradients come multiplied by exp(-lse).
template <class Acc>
void softmax_gradient_at_once(GradientRow<Acc>& row) {
  constexpr int kN = kLanes<Acc>;
  Vec<Acc, kN> of_row = {}, of_col = {};
  const Acc factor = row.scale * row.inverse_norm, of_this_row = row.upstream[kLogsumexp];
  for (int64_t j = 0; j < row.width; j += kN) {
    const auto c = load<kN>(row.cosines + j), e = exp_of_part<Acc>(c, c * row.scale);
    const auto of_this_col = load<kN>(row.cols.upstream[kLogsumexp] + j);
    store(row.out + j, e * (of_this_col + of_this_row) * (load<kN>(row.cols.inverse_norm + j) * factor));
    of_row += e * c;
    of_col += e * c * of_this_col;
  }
  row.sums[0] += of_this_row * sum_lanes<Acc>(of_row);
  row.sums[1] += sum_lanes<Acc>(of_col);
}

// An exp per direction that has an upstream gradient.
template <bool kRows, bool kCols, class Acc>
void softmax_gradient(GradientRow<Acc>& row) {
  constexpr int kN = kLanes<Acc>;
  Vec<Acc, kN> of_row = {}, of_col = {};
  for (int64_t j = 0; j < row.width; j += kN) {
    const auto c = load<kN>(row.cosines + j), s = load<kN>(row.cols.scale + j);
    Vec<Acc, kN> zr = {}, zc = {};
    if (kRows) zr = exp_of_part<Acc>(c, c * row.scale - row.lse) * row.upstream[kLogsumexp];
    if (kCols) {
      zc = exp_of_part<Acc>(c, c * s - load<kN>(row.cols.lse + j)) *
           load<kN>(row.cols.upstream[kLogsumexp] + j);
    }
    store(row.out + j, (zr * row.scale + zc * s) * (load<kN>(row.cols.inverse_norm + j) * row.inverse_norm));
    row.count_scale_gradients(of_row, of_col, zr * c, zc * c, j);
  }
  row.sums[0] += sum_lanes<Acc>(of_row);
  row.sums[1] += sum_lanes<Acc>(of_col);
}

// Adds what targets (kResult = kTarget) or soft targets (kSoft) put into G.
template <SimilarityResult kResult, class Acc>
void add_target_gradient(GradientRow<Acc>& row) {
  constexpr int kN = kLanes<Acc>;
  Vec<Acc, kN> of_row = {}, of_col = {};
  for (int64_t j = 0; j < row.width; j += kN) {
    const auto c = load<kN>(row.cosines + j), s = load<kN>(row.cols.scale + j);
    Vec<Acc, kN> zr, zc;
    if constexpr (kResult == kTarget) {
      zr = zc = load<kN>(row.flags + j);
    } else {
      const auto q = load<kN>(row.guide + j), logits = q * row.guide_scale;
      zr = exp_of_part<Acc>(q, logits - row.guide_lse);
      zc = exp_of_part<Acc>(q, logits - load<kN>(row.cols.guide_lse + j));
    }
    zr *= row.upstream[kResult];
    zc *= load<kN>(row.cols.upstream[kResult] + j);
    const auto norms = load<kN>(row.cols.inverse_norm + j) * row.inverse_norm;
    store(row.out + j, load<kN>(row.out + j) + (zr * row.scale + zc * s) * norms);
    row.count_scale_gradients(of_row, of_col, zr * c, zc * c, j);
  }
  row.sums[0] += sum_lanes<Acc>(of_row);
  row.sums[1] += sum_lanes<Acc>(of_col);
}

}  // namespace SPARC_ISA
}  // namespace sparc
