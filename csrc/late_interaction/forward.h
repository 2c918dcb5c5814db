// Scores of all pairs: the valid tokens of all captions stand one behind the other as rows of a product whose
// columns are the valid patches of an image, and both maxima are taken from it while it is in the cache.
// Compiled once per instruction set.
#pragma once

#include "common/operands.h"
#include "common/rows.h"
#include "late_interaction/late_interaction.h"
#include "late_interaction/maxima.h"

namespace sparc {
namespace SPARC_ISA {

template <class E>
int64_t channel_units(const TokenSide& side) {
  return ceil_div(side.width, E::kPack);
}

// Units of a packed row: whole vectors of a transpose.
template <class E>
int64_t padded_units(const TokenSide& side) {
  return round_up(channel_units<E>(side), kGranule<typename E::Unit>);
}

template <class Acc>
int64_t padded_columns(const TokenSide& images) {
  return round_up(images.rows, kGranule<Acc>);
}

template <class Acc, class In>
Acc inverse_norm(const TokenSide& side, const In* row, bool normalize) {
  constexpr int kN = kGranule<Acc>;
  if (!normalize) return 1;
  Vec<Acc, kN> squares = {};
  int64_t d = 0;
  for (; d + kN <= side.width; d += kN) {
    const Vec<Acc, kN> x = load_numbers<kN>(row + d);
    squares += x * x;
  }
  Acc rest = 0;
  for (; d < side.width; ++d) rest += to_acc(row[d]) * to_acc(row[d]);
  return inverse_of_norm(sum_lanes<Acc>(squares) + rest);
}

// A valid row as elements of an operand, 0 beyond the last channel.
template <class E, class In>
void pack_token(const TokenSide& side, const In* row, typename E::Elem* out) {
  using Elem = typename E::Elem;
  convert_row<Elem>(row, 1, side.width, out);
  for (int64_t d = side.width; d < padded_units<E>(side) * E::kPack; ++d) out[d] = Elem{};
}

template <class E, class In>
void image_norms(const LateCall& call, int64_t image, void*) {
  using Acc = typename E::Acc;
  const TokenSide& side = call.images;
  Acc* norms = static_cast<Acc*>(side.inverse_norms) + side.start(image);
  for (int64_t p = 0; p < side.rows; ++p) {
    const In* row = static_cast<const In*>(side.data) + side.place(image, p);
    norms[p] = side.valid(image, p) ? inverse_norm<Acc>(side, row, call.normalize) : Acc{0};
  }
}

template <class E, class In>
void pack_caption(const LateCall& call, int64_t caption, void*) {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  const TokenSide& side = call.texts;
  const int64_t stride = padded_units<E>(side) * E::kPack;
  int64_t out = call.tokens.first[caption];
  Acc* norms = static_cast<Acc*>(side.inverse_norms) + side.start(caption);
  for (int64_t l = 0; l < side.size(caption); ++l) {
    norms[l] = 0;
    if (!side.valid(caption, l)) continue;
    const In* row = static_cast<const In*>(side.data) + side.place(caption, l);
    norms[l] = inverse_norm<Acc>(side, row, call.normalize);
    pack_token<E>(side, row, static_cast<Elem*>(call.tokens.rows) + out * stride);
    static_cast<Acc*>(call.tokens.inverse_norms)[out] = norms[l];
    call.tokens.index[out] = static_cast<int32_t>(l);
    ++out;
  }
}

// The memory of a thread, and the valid patches of its image as an operand.
template <class E, class In>
struct ImagePatches {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;

  int64_t count = 0;  // valid patches
  int32_t* index;     // [count]: where they were
  Acc* inverse_norms;
  BestRows<Acc> best;
  Acc* products;  // [kTokenRows, columns]
  Elem* rows;
  Unit* panels;  // one behind the other, [channels, columns of the panel] each

  ImagePatches(const LateCall& call, Arena& arena) {
    const int64_t columns = padded_columns<Acc>(call.images), units = padded_units<E>(call.images);
    index = arena.take<int32_t>(call.images.rows);
    inverse_norms = arena.take<Acc>(columns);
    best = {arena.take<Acc>(columns), arena.take<Index<Acc>>(columns)};
    products = arena.take<Acc>(kTokenRows * columns);
    rows = arena.take<Elem>(call.images.rows * units * E::kPack);
    panels = arena.take<Unit>(columns * units);
  }

  void pack(const TokenSide& side, int64_t image) {
    const int64_t units = padded_units<E>(side);
    const Acc* norms = static_cast<const Acc*>(side.inverse_norms) + side.start(image);
    count = 0;
    for (int64_t p = 0; p < side.rows; ++p) {
      if (!side.valid(image, p)) continue;
      pack_token<E>(side, static_cast<const In*>(side.data) + side.place(image, p),
                    rows + count * units * E::kPack);
      inverse_norms[count] = norms[p];
      index[count++] = static_cast<int32_t>(p);
    }
    for (int64_t p = count; p < round_up(count, kGranule<Acc>); ++p) inverse_norms[p] = 0;
    each_panel([&](int64_t first, int64_t width) {
      transpose(reinterpret_cast<const Unit*>(rows) + first * units, smaller(width, count - first), units,
                units, panels + first * units, width, width);
    });
  }

  // `count` rows of products of tokens with all patches.
  void multiply(const LateCall& call, int64_t token, int64_t tokens) {
    const int64_t units = padded_units<E>(call.images), columns = round_up(count, kGranule<Acc>);
    const Matrix<const Unit> a = {static_cast<const Unit*>(call.tokens.rows) + token * units, units};
    each_panel([&](int64_t first, int64_t width) {
      gemm<typename E::Ops, ALayout::kRows>(tokens, width, channel_units<E>(call.images), a,
                                            {panels + first * units, width}, {products + first, columns});
    });
  }

 private:
  template <class F>
  void each_panel(const F& work) const {
    const EvenParts parts(ceil_div(count, kGranule<Acc>), kPanelGranules<Acc>);
    for (int64_t i = 0, first = 0; i < parts.parts; ++i) {
      const int64_t width = parts.size(i) * kGranule<Acc>;
      work(first, width);
      first += width;
    }
  }
};

SPARC_INLINE void put_index(const TokenSide& side, int64_t at, int64_t value) {
  if (side.wide) {
    static_cast<int16_t*>(side.best)[at] = static_cast<int16_t>(value);
  } else {
    static_cast<uint8_t*>(side.best)[at] = static_cast<uint8_t>(value);
  }
}

// Every place "none": all bits are set, in one byte and in two.
inline void clear_indices(const TokenSide& side, int64_t at, int64_t count) {
  const int64_t bytes = side.wide ? 2 : 1;
  if (side.best) __builtin_memset(static_cast<char*>(side.best) + at * bytes, 0xFF, count * bytes);
}

// The score of an image with a caption that has been met, from the best token of each patch.
template <class E, class In>
typename E::Acc image_score(const LateCall& call, const ImagePatches<E, In>& patches, int64_t at,
                            const int32_t* token_index) {
  using Acc = typename E::Acc;
  Acc total = 0;
  for (int64_t p = 0; p < patches.count; ++p) {
    total += patches.best.values[p];
    if (call.images.best) put_index(call.images, at + patches.index[p], token_index[patches.best.indices[p]]);
  }
  return total;
}

template <class E, class In, bool kByImage, bool kByText>
void scores_of_some(const LateCall& call, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  Arena arena(workspace);
  ImagePatches<E, In> patches(call, arena);
  const TokenSide &images = call.images, &texts = call.texts;
  const PackedTokens& tokens = call.tokens;
  const int64_t captions = texts.items, parts = ceil_div(captions, call.captions_at_once);
  const int64_t image = item / parts, begin = item % parts * call.captions_at_once;
  const int64_t end = smaller(captions, begin + call.captions_at_once);
  const Acc* norms = static_cast<const Acc*>(tokens.inverse_norms);
  patches.pack(images, image);
  int64_t multiplied = tokens.first[begin], done = multiplied;  // tokens up to here; products from `done` on
  for (int64_t j = begin; j < end; ++j) {
    const int64_t pair = image * captions + j;
    const int64_t image_at = pair * images.rows, text_at = image * texts.total + texts.start(j);
    if (kByImage) clear_indices(images, image_at, images.rows);
    if (kByText) clear_indices(texts, text_at, texts.size(j));
    if (kByImage) patches.best.clear(round_up(patches.count, kGranule<Acc>));
    const int64_t first = tokens.first[j], last = tokens.first[j + 1];
    Acc text_total = 0, image_total = 0;
    for (int64_t t = first; t < last && patches.count > 0; ++t) {
      if (t == multiplied) {
        done = t;
        multiplied = smaller(tokens.first[end], t + kTokenRows);
        patches.multiply(call, done, multiplied - done);
      }
      const Acc* row = patches.products + (t - done) * round_up(patches.count, kGranule<Acc>);
      const Best<Acc> best =
          best_of_row<Acc, kByText, kByImage>(row, patches.inverse_norms, norms[t], patches.count,
                                              static_cast<Index<Acc>>(t - first), patches.best);
      if (!kByText) continue;
      text_total += best.value;
      if (texts.best) put_index(texts, text_at + tokens.index[t], patches.index[best.index]);
    }
    if (kByText) {
      static_cast<Acc*>(texts.scores)[pair] = text_total * static_cast<Acc>(texts.weights[j]);
    }
    if (!kByImage) continue;
    if (last > first) image_total = image_score(call, patches, image_at, tokens.index + first);
    static_cast<Acc*>(images.scores)[pair] = image_total * static_cast<Acc>(images.weights[image]);
  }
}

template <class E, class In>
void scores(const LateCall& call, int64_t item, void* workspace) {
  if (!call.images.scores) return scores_of_some<E, In, false, true>(call, item, workspace);
  if (!call.texts.scores) return scores_of_some<E, In, true, false>(call, item, workspace);
  scores_of_some<E, In, true, true>(call, item, workspace);
}

}  // namespace SPARC_ISA
}  // namespace sparc
