// Maxima of a tile of similarities, along both of its sides. Compiled once per instruction set.
#pragma once

#include "common/vec.h"

namespace sparc {
namespace SPARC_ISA {

template <class Acc>
struct IndexOf;
template <>
struct IndexOf<float> {
  using type = int32_t;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <class Acc>
using Index = typename IndexOf<Acc>::type;

template <class Acc>
struct Best {
  Acc value;
  Index<Acc> index;
};

// The best row so far for every column of the tile.
template <class Acc>
struct BestRows {
  Acc* values;
  Index<Acc>* indices;

  void clear(int64_t columns) const {
    for (int64_t x = 0; x < columns; ++x) values[x] = -static_cast<Acc>(__builtin_inf());
    for (int64_t x = 0; x < columns; ++x) indices[x] = 0;
  }
};

template <int N, class Acc>
SPARC_INLINE Vec<Index<Acc>, N> counting() {
  Vec<Index<Acc>, N> lanes;
  for (int i = 0; i < N; ++i) lanes[i] = i;
  return lanes;
}

// Whether a candidate takes the place of the best: if it is larger, or the first NaN.
template <class V>
SPARC_INLINE auto takes(V candidate, V best) {
  return ~(candidate <= best) & (best == best);
}

// Of the lanes, the largest or else a NaN; of several the one of lowest index.
template <int N, class Acc>
SPARC_INLINE Best<Acc> best_lane(Vec<Acc, N> values, Vec<Index<Acc>, N> indices) {
  Best<Acc> best = {values[0], indices[0]};
  for (int i = 1; i < N; ++i) {
    const Acc value = values[i];
    const bool nan = value != value, best_nan = best.value != best.value;
    const bool larger = best_nan ? false : nan || value > best.value;
    const bool same = best_nan ? nan : value == best.value;
    if (larger || (same && indices[i] < best.index)) best = {value, indices[i]};
  }
  return best;
}

// One row of the tile: products that become similarities by the inverse norms of the columns and of the row.
// Gives the best column, and brings the best rows up to date with this one, of index `row`.
template <class Acc, bool kOfRow, bool kOfColumns>
SPARC_INLINE Best<Acc> best_of_row(const Acc* products, const Acc* column_norms, Acc row_norm,
                                   int64_t columns, Index<Acc> row, const BestRows<Acc>& rows) {
  constexpr int N = kGranule<Acc>;
  using Indices = Vec<Index<Acc>, N>;
  const Vec<Acc, N> lowest = splat<N>(-static_cast<Acc>(__builtin_inf()));
  const Index<Acc> last = static_cast<Index<Acc>>(columns - 1);
  Vec<Acc, N> best = lowest;
  Indices index = counting<N, Acc>(), best_index = index;
  for (int64_t x = 0; x < columns; x += N, index += N) {
    Vec<Acc, N> s = load<N>(products + x) * load<N>(column_norms + x) * row_norm;
    s = index <= last ? s : lowest;
    if constexpr (kOfRow) {
      const auto better = takes(s, best);
      best = better ? s : best;
      best_index = better ? index : best_index;
    }
    if constexpr (kOfColumns) {
      const Vec<Acc, N> old = load<N>(rows.values + x);
      const auto better = takes(s, old);
      store(rows.values + x, better ? s : old);
      store(rows.indices + x, better ? splat<N>(row) : load<N>(rows.indices + x));
    }
  }
  if constexpr (!kOfRow) return {};
  return best_lane<N, Acc>(best, best_index);
}

}  // namespace SPARC_ISA
}  // namespace sparc
