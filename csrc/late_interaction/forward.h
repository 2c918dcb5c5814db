// Scores of all pairs: the valid tokens of all captions stand one behind the other as rows of a product whose
// columns are the valid patches of an image, and both maxima are taken from it while it is in the cache.
// Compiled once per instruction set.
#pragma once

#include "captions/token_operands.h"
#include "late_interaction/late_interaction.h"
#include "late_interaction/maxima.h"

namespace sparc {
namespace SPARC_ISA {

template <class E, class In>
void image_norms(const LateCall& call, int64_t image, void*) {
  write_norms<typename E::Acc, In>(call.images, image, call.normalize);
}

template <class E, class In>
void pack_caption(const LateCall& call, int64_t caption, void*) {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  const LateSide& side = call.texts;
  const int64_t stride = padded_units<E>(side) * E::kPack;
  int64_t out = call.tokens.first[caption];
  write_norms<Acc, In>(side, caption, call.normalize);
  const Acc* norms = static_cast<const Acc*>(side.inverse_norms) + side.start(caption);
  for (int64_t l = 0; l < side.size(caption); ++l) {
    if (!side.valid(caption, l)) continue;
    const In* row = static_cast<const In*>(side.data) + side.place(caption, l);
    pack_token<E>(side, row, static_cast<Elem*>(call.tokens.rows) + out * stride);
    static_cast<Acc*>(call.tokens.inverse_norms)[out] = norms[l];
    call.tokens.index[out] = static_cast<int32_t>(l);
    ++out;
  }
}

// The memory of a thread, and the valid patches of its image as an operand.
template <class E, class In>
struct ImagePatches : PatchOperand<E, In> {
  using Acc = typename E::Acc;
  using Unit = typename E::Unit;

  BestRows<Acc> best;
  Acc* products;  // [kTokenRows, columns]

  ImagePatches(const LateCall& call, Arena& arena) : PatchOperand<E, In>(call.images, arena) {
    const int64_t columns = padded_columns<Acc>(call.images);
    best = {arena.take<Acc>(columns), arena.take<Index<Acc>>(columns)};
    products = arena.take<Acc>(kTokenRows * columns);
  }

  // `tokens` rows of products of tokens with all patches.
  void multiply_tokens(const LateCall& call, int64_t token, int64_t tokens) {
    const Unit* rows = static_cast<const Unit*>(call.tokens.rows) + token * this->units;
    this->multiply(tokens, channel_units<E>(call.images), {rows, this->units}, products);
  }
};

SPARC_INLINE void put_index(const LateSide& side, int64_t at, int64_t value) {
  if (side.wide) {
    static_cast<int16_t*>(side.best)[at] = static_cast<int16_t>(value);
  } else {
    static_cast<uint8_t*>(side.best)[at] = static_cast<uint8_t>(value);
  }
}

// Every place "none": all bits are set, in one byte and in two.
inline void clear_indices(const LateSide& side, int64_t at, int64_t count) {
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
  const LateSide &images = call.images, &texts = call.texts;
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
        patches.multiply_tokens(call, done, multiplied - done);
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
