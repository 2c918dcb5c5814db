// Gradients of one side's rows, from the indices of the maxima: each row takes those of the other side that
// it chose and those that chose it. Compiled once per instruction set.
#pragma once

#include "common/operands.h"
#include "common/rows.h"
#include "late_interaction/late_interaction.h"

namespace sparc {
namespace SPARC_ISA {

// How a pass sees the two sides.
struct Sides {
  const LateSide &own, &other;
  bool of_images;

  static Sides of(const LateCall& call, bool of_images) {
    if (of_images) return {call.images, call.texts, true};
    return {call.texts, call.images, false};
  }
  // Of item x of the own side and item y of the other: their place in [images, captions], and where the
  // indices of the rows of the own, or of the other, item begin.
  int64_t pair(int64_t x, int64_t y) const { return of_images ? x * other.items + y : y * own.items + x; }
  int64_t own_at(int64_t x, int64_t y) const {
    return of_images ? pair(x, y) * own.rows : y * own.total + own.start(x);
  }
  int64_t other_at(int64_t x, int64_t y) const {
    return of_images ? x * other.total + other.start(y) : pair(x, y) * other.rows;
  }
};

// -1 for none.
SPARC_INLINE int64_t index_at(const LateSide& side, int64_t at) {
  if (side.wide) return static_cast<const int16_t*>(side.best)[at];
  const uint8_t index = static_cast<const uint8_t*>(side.best)[at];
  return index == 255 ? -1 : index;
}

template <class Acc>
SPARC_INLINE Acc upstream_of(const LateSide& side, int64_t item, int64_t pair) {
  return static_cast<const Acc*>(side.upstream)[pair] * static_cast<Acc>(side.weights[item]);
}

template <class Acc, class In>
struct Term {
  Acc factor;
  const In* row;
};

// out += the terms, in their order; `kVectors` vectors.
template <int kVectors, class Acc, class In>
SPARC_INLINE void add_part(const Term<Acc, In>* terms, int64_t count, int64_t d, Acc* out) {
  constexpr int kN = kGranule<Acc>;
  Vec<Acc, kN> sums[kVectors];
  SPARC_UNROLL for (int v = 0; v < kVectors; ++v) sums[v] = load<kN>(out + d + v * kN);
  for (int64_t t = 0; t < count; ++t) {
    SPARC_UNROLL for (int v = 0; v < kVectors; ++v) {
      sums[v] += load_numbers<kN>(terms[t].row + d + v * kN) * terms[t].factor;
    }
  }
  SPARC_UNROLL for (int v = 0; v < kVectors; ++v) store(out + d + v * kN, sums[v]);
}

template <class Acc, class In>
SPARC_INLINE void add_terms(const Term<Acc, In>* terms, int64_t count, int64_t width, Acc* out) {
  constexpr int kN = kGranule<Acc>, kMost = 8;
  int64_t d = 0;
  for (; d + kMost * kN <= width; d += kMost * kN) add_part<kMost>(terms, count, d, out);
  for (; d + kN <= width; d += kN) add_part<1>(terms, count, d, out);
  for (; d < width; ++d) {
    for (int64_t t = 0; t < count; ++t) out[d] += to_acc(terms[t].row[d]) * terms[t].factor;
  }
}

// What rows of item x chose among items [first, last) of the other side.
template <class Acc, class In>
void add_chosen(const Sides& sides, int64_t x, int64_t first, int64_t last, Acc* out) {
  const LateSide &own = sides.own, &other = sides.other;
  const Acc* norms = static_cast<const Acc*>(other.inverse_norms);
  const In* data = static_cast<const In*>(other.data);
  for (int64_t r = 0; r < own.size(x); ++r) {
    Term<Acc, In> terms[kGroup];
    int64_t count = 0;
    for (int64_t y = first; y < last; ++y) {
      const int64_t index = index_at(own, sides.own_at(x, y) + r);
      if (index < 0 || index >= other.size(y)) continue;
      const Acc upstream = upstream_of<Acc>(own, x, sides.pair(x, y));
      terms[count++] = {upstream * norms[other.start(y) + index], data + other.place(y, index)};
    }
    add_terms(terms, count, own.width, out + r * own.width);
  }
}

// The rows of item y of the other side, each to the row of item x that it chose.
template <class Acc, class In>
void add_choosers(const Sides& sides, int64_t x, int64_t y, Acc* out) {
  const LateSide &own = sides.own, &other = sides.other;
  const Acc* norms = static_cast<const Acc*>(other.inverse_norms) + other.start(y);
  const In* data = static_cast<const In*>(other.data);
  const Acc upstream = upstream_of<Acc>(other, y, sides.pair(x, y));
  const int64_t at = sides.other_at(x, y);
  for (int64_t q = 0; q < other.size(y); ++q) {
    const int64_t index = index_at(other, at + q);
    if (index < 0 || index >= own.size(x)) continue;
    const Term<Acc, In> term = {upstream * norms[q], data + other.place(y, q)};
    add_terms(&term, 1, own.width, out + index * own.width);
  }
}

// From the sum over what a row met: times its inverse norm, less the part along the row. Rows that are not
// valid have 0.
template <class Acc, class In>
void finish_row(const LateCall& call, const LateSide& side, int64_t item, int64_t r, const Acc* sum,
                In* out) {
  const In* row = static_cast<const In*>(side.data) + side.place(item, r);
  if (!side.valid(item, r)) {
    for (int64_t d = 0; d < side.width; ++d) out[d] = In{};
    return;
  }
  const Acc norm = static_cast<const Acc*>(side.inverse_norms)[side.start(item) + r];
  // A norm below the least one counts as a constant.
  const bool scaled = call.normalize && norm < Acc(kInverseOfZero);
  Acc along = 0;
  if (scaled || (call.normalize && norm != norm)) {
    for (int64_t d = 0; d < side.width; ++d) along += to_acc(row[d]) * sum[d];
    along *= norm * norm;
  }
  for (int64_t d = 0; d < side.width; ++d) {
    out[d] = Convert<In>::from(static_cast<Acc>(norm * (sum[d] - along * to_acc(row[d]))));
  }
}

template <class E, class In>
void gradient(const LateCall& call, bool of_images, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  const Sides sides = Sides::of(call, of_images);
  const LateSide &own = sides.own, &other = sides.other;
  const int64_t begin = item * items_at_once(own), end = smaller(own.items, begin + items_at_once(own));
  Acc* sums = static_cast<Acc*>(workspace);
  const int64_t stride = own.rows * own.width;
  for (int64_t k = 0; k < (end - begin) * stride; ++k) sums[k] = 0;
  for (int64_t first = 0; first < other.items; first += kGroup) {
    const int64_t last = smaller(other.items, first + kGroup);
    if (own.upstream) {
      for (int64_t x = begin; x < end; ++x) {
        add_chosen<Acc, In>(sides, x, first, last, sums + (x - begin) * stride);
      }
    }
    if (!other.upstream) continue;
    for (int64_t y = first; y < last; ++y) {
      for (int64_t x = begin; x < end; ++x) {
        add_choosers<Acc, In>(sides, x, y, sums + (x - begin) * stride);
      }
    }
  }
  for (int64_t x = begin; x < end; ++x) {
    for (int64_t r = 0; r < own.size(x); ++r) {
      finish_row(call, own, x, r, sums + (x - begin) * stride + r * own.width,
                 static_cast<In*>(own.grad) + (own.start(x) + r) * own.width);
    }
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
