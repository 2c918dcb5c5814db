// Scores of all pairs: the tokens of a chunk meet the patches of an image, weigh them, and are compared with
// the weighted sum while all of it is in the cache. Compiled once per instruction set.
#pragma once

#include "attention_pooling/weights.h"

namespace sparc {
namespace SPARC_ISA {

template <class E, class In>
void image_norms(const PooledCall& call, int64_t image, void*) {
  write_norms<typename E::Acc, In>(call.images, image, true);
}

template <class E, class In>
void text_norms(const PooledCall& call, int64_t caption, void*) {
  write_norms<typename E::Acc, In>(call.texts, caption, true);
}

template <class E, class In>
void pack_caption(const PooledCall& call, int64_t caption, void*) {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  const TokenSide& side = call.texts;
  const int64_t stride = padded_units<E>(side) * E::kPack;
  const Acc* norms = static_cast<const Acc*>(side.inverse_norms) + side.start(caption);
  int64_t out = call.tokens.first[caption];
  for (int64_t l = 0; l < side.size(caption); ++l) {
    if (!side.valid(caption, l)) continue;
    const In* row = static_cast<const In*>(side.data) + side.place(caption, l);
    pack_token<E>(side, row, static_cast<Elem*>(call.tokens.rows) + out * stride);
    static_cast<Acc*>(call.tokens.inverse_norms)[out++] = norms[l];
  }
}

// Channels of a result of a product.
template <class E>
int64_t channel_columns(const TokenSide& side) {
  return round_up(side.width, kGranule<typename E::Acc>);
}

// Rows as the second operand of a product that sums over them.
template <class E>
Matrix<const typename E::Unit> along_rows(Matrix<const typename E::Elem> x, int64_t rows, int64_t columns,
                                          typename E::Unit* out) {
  if constexpr (E::kPack == 1) {
    return x;
  } else {
    pack_rows(x.data, rows, columns, x.ld, out, columns);
    return {out, columns};
  }
}

template <class E>
int64_t paired(int64_t rows) {
  return ceil_div(rows, E::kPack);
}

// An image: its patches as operands, and what contexts are made of.
template <class E, class In>
struct PooledImage {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;

  PatchOperand<E, In> patches;
  Columns<Acc> columns;
  Unit* gram;    // [patches, columns]: products of patches; forward: above the diagonal alone, twice
  Unit* values;  // [patches, channels]: the patches as second operand, or null where they are the rows
  int64_t channels;

  PooledImage(const PooledCall& call, Arena& arena, bool with_values) : patches(call.images, arena) {
    const int64_t n = padded_columns<Acc>(call.images), rows = call.images.rows;
    columns = {0, 0, arena.take<Acc>(n), arena.take<Acc>(n), arena.take<Acc>(n)};
    channels = channel_columns<E>(call.images);
    gram = call.gram ? arena.take<Unit>(paired<E>(rows) * n) : nullptr;
    values =
        E::kPack > 1 && (with_values || !call.gram) ? arena.take<Unit>(paired<E>(rows) * channels) : nullptr;
  }

  void set_count(int64_t count) {
    columns.count = patches.count = count;
    columns.columns = patches.columns();
  }

  void pack(const PooledCall& call, int64_t image) {
    patches.pack(call.images, image);
    set_count(patches.count);
    for (int64_t p = 0; p < columns.columns; ++p) {
      const bool there = p < columns.count;
      const Acc norm = !there ? Acc{0} : call.normalize ? patches.inverse_norms[p] : Acc{1};
      columns.scale[p] = call.gram ? norm : there ? Acc{1} : Acc{0};
      columns.column[p] = call.gram ? (there ? Acc{1} : Acc{0}) : norm;
      columns.inverse[p] = there ? 1 / columns.column[p] : Acc{0};
    }
    if constexpr (E::kPack > 1) {
      const int64_t stride = patches.units * E::kPack;
      if (values) pack_rows(patches.rows, columns.count, channels, stride, values, channels);
    }
  }

  // Patches as the second operand of a product that sums over them.
  Matrix<const Unit> value_rows() const {
    if constexpr (E::kPack == 1) return {patches.rows, patches.units};
    return {values, channels};
  }

  // `block`: [kChunkRows, columns] of scratch; `elements` likewise.
  void multiply_patches(const PooledCall& call, bool above_diagonal, Acc* block, Elem* elements) {
    const int64_t width = columns.columns;
    const Unit* rows = reinterpret_cast<const Unit*>(patches.rows);
    for (int64_t first = 0; first < columns.count; first += kChunkRows) {
      const int64_t count = smaller(kChunkRows, columns.count - first);
      patches.multiply(count, channel_units<E>(call.images), {rows + first * patches.units, patches.units},
                       block);
      Elem* out = E::kPack == 1 ? reinterpret_cast<Elem*>(gram) + first * width : elements;
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t p = 0; p < width; ++p) {
          Acc product = block[r * width + p] * (columns.scale[first + r] * columns.scale[p]);
          if (above_diagonal) product = p > first + r ? 2 * product : p < first + r ? Acc{0} : product;
          out[r * width + p] = Convert<Elem>::from(product);
        }
      }
      along_rows<E>({out, width}, count, width, gram + paired<E>(first) * width);
    }
  }
};

// The tile of a chunk with an image, [rows of the chunk, columns] each.
template <class E>
struct PooledTile {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;

  Acc* similarities;
  Acc* products;
  Acc* words = nullptr;
  Elem* weights;
  Acc* contexts = nullptr;  // [rows, channels]
  TokenRow<Acc>* rows;

  PooledTile(const PooledCall& call, Arena& arena) {
    const int64_t rows_at_once = kChunkRows > call.tokens.most_rows ? kChunkRows : call.tokens.most_rows;
    const int64_t size = rows_at_once * padded_columns<Acc>(call.images);
    similarities = arena.take<Acc>(size);
    products = arena.take<Acc>(size);
    weights = arena.take<Elem>(size);
    if (call.weights == AttentionWeights::kWordsSoftmax) words = arena.take<Acc>(size);
    if (!call.gram) contexts = arena.take<Acc>(rows_at_once * channel_columns<E>(call.images));
    rows = arena.take<TokenRow<Acc>>(rows_at_once);
  }

  template <class In>
  void weigh(const PooledCall& call, const PooledImage<E, In>& image, TokenChunk chunk) {
    const PooledTokens& tokens = call.tokens;
    const Columns<Acc>& columns = image.columns;
    const int64_t count = chunk.last - chunk.first, units = image.patches.units;
    const Acc tau = static_cast<Acc>(call.attention_scale);
    const Acc* norms = static_cast<const Acc*>(tokens.inverse_norms) + chunk.first;
    image.patches.multiply(count, channel_units<E>(call.images),
                           {static_cast<const Unit*>(tokens.rows) + chunk.first * units, units},
                           similarities);
    for (int64_t r = 0; r < count; ++r) {
      rows[r].norm = call.normalize ? norms[r] : Acc{1};
      rows[r].direction = call.normalize ? Acc{1} : norms[r];
      Acc* row = similarities + r * columns.columns;
      const Acc largest = scale_row(columns, rows[r].norm, tau, row);
      if (call.weights == AttentionWeights::kSigmoid) weigh_one<true>(columns, row, row, largest, tau, r);
      if (call.weights != AttentionWeights::kSoftmax) continue;
      weigh_one<false>(columns, row, row, largest, tau, r);
      if (call.sink) rows[r].size += static_cast<Acc>(__builtin_exp(-largest));
    }
    if (!words) return;
    each_caption(call, chunk, [&](int64_t, int64_t first, int64_t last) {
      const int64_t at = first * columns.columns;
      softmax_over_words(columns, last - first, similarities + at, words + at);
    });
    for (int64_t r = 0; r < count; ++r) {
      const Acc* row = words + r * columns.columns;
      const Acc largest = largest_word(columns, row) * tau;
      weigh_one<false>(columns, similarities + r * columns.columns, row, largest, tau, r);
    }
  }

  // Of the chunk's tokens; work(caption, first row, last row).
  template <class F>
  static void each_caption(const PooledCall& call, TokenChunk chunk, const F& work) {
    for (int64_t first = chunk.first; first < chunk.last;) {
      const int64_t caption = call.tokens.caption[first];
      const int64_t last = smaller(call.tokens.first[caption + 1], chunk.last);
      work(caption, first - chunk.first, last - chunk.first);
      first = last;
    }
  }

  template <class In>
  void make_contexts(const PooledImage<E, In>& image, int64_t count) {
    const int64_t width = image.columns.columns;
    gemm<typename E::Ops, ALayout::kRows>(count, image.channels, paired<E>(image.columns.count),
                                          weight_units(width), image.value_rows(),
                                          {contexts, image.channels});
  }

  Matrix<const Unit> weight_units(int64_t width) const {
    return {reinterpret_cast<const Unit*>(weights), width / E::kPack};
  }

  // Square of a context's length.
  Acc square_of_context(int64_t row, int64_t channels) const {
    constexpr int N = kGranule<Acc>;
    Vec<Acc, N> sum = {};
    for (int64_t d = 0; d < channels; d += N) {
      const Vec<Acc, N> x = load<N>(contexts + row * channels + d);
      sum += x * x;
    }
    return sum_lanes<Acc>(sum);
  }

 private:
  template <bool kSigmoid>
  void weigh_one(const Columns<Acc>& columns, const Acc* row, const Acc* logits, Acc largest, Acc tau,
                 int64_t r) {
    weigh_row<kSigmoid>(columns, row, logits, tau, largest, weights + r * columns.columns, rows[r]);
  }
};

// Cosines of a weighed chunk, in the forward pass: products with the part of the Gram matrix above its
// diagonal are enough for a quadratic form.
template <class E, class In>
void compare_chunk(const PooledImage<E, In>& image, PooledTile<E>& tile, int64_t count) {
  const int64_t width = image.columns.columns;
  if (!image.gram) {
    tile.make_contexts(image, count);
  } else {
    image.patches.each_panel([&](int64_t first, int64_t columns) {
      const int64_t depth = paired<E>(smaller(image.columns.count, first + columns));
      gemm<typename E::Ops, ALayout::kRows>(count, columns, depth, tile.weight_units(width),
                                            {image.gram + first, width}, {tile.products + first, width});
    });
  }
  for (int64_t r = 0; r < count; ++r) {
    compare(image.gram ? weighted_sum(tile.weights + r * width, tile.products + r * width, width)
                       : tile.square_of_context(r, image.channels),
            tile.rows[r]);
  }
}

// Of a caption, from the cosines of its tokens.
template <class Acc>
Acc pooled(const PooledCall& call, const Acc* cosines, int64_t count) {
  Acc total = 0;
  if (call.average) {
    for (int64_t t = 0; t < count; ++t) total += cosines[t];
    return total / static_cast<Acc>(count);
  }
  const Acc kappa = static_cast<Acc>(call.pooling_scale);
  Acc largest = cosines[0];
  for (int64_t t = 1; t < count; ++t) largest = larger(cosines[t], largest);
  for (int64_t t = 0; t < count; ++t)
    total += static_cast<Acc>(__builtin_exp(kappa * (cosines[t] - largest)));
  return kappa * largest + static_cast<Acc>(__builtin_log(total));
}

template <class E, class In>
struct ForwardMemory {
  using Acc = typename E::Acc;
  PooledImage<E, In> image;
  PooledTile<E> tile;
  Acc* cosines;

  ForwardMemory(const PooledCall& call, Arena& arena) : image(call, arena, false), tile(call, arena) {
    int64_t most = 0;
    for (int64_t j = 0; j < call.captions(); j += call.captions_at_once) {
      const int64_t last = smaller(call.captions(), j + call.captions_at_once);
      const int64_t tokens = call.tokens.first[last] - call.tokens.first[j];
      most = tokens > most ? tokens : most;
    }
    cosines = arena.take<Acc>(most);
  }
};

// Cosines of the tokens from `begin` to `end`, both at a caption's edge.
template <class E, class In>
void cosines_of_tokens(const PooledCall& call, ForwardMemory<E, In>& memory, int64_t begin, int64_t end) {
  for (int64_t c = 0; c < call.tokens.n_chunks; ++c) {
    TokenChunk chunk = call.tokens.chunks[c];
    if (chunk.last <= begin) continue;
    if (chunk.first >= end) break;
    chunk = {chunk.first < begin ? begin : chunk.first, smaller(chunk.last, end)};
    memory.tile.weigh(call, memory.image, chunk);
    compare_chunk(memory.image, memory.tile, chunk.last - chunk.first);
    for (int64_t t = chunk.first; t < chunk.last; ++t) {
      memory.cosines[t - begin] = memory.tile.rows[t - chunk.first].cosine;
    }
  }
}

template <class E, class In>
void scores(const PooledCall& call, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  Arena arena(workspace);
  ForwardMemory<E, In> memory(call, arena);
  const int64_t captions = call.captions(), parts = ceil_div(captions, call.captions_at_once);
  const int64_t image = item / parts, begin = item % parts * call.captions_at_once;
  const int64_t end = smaller(captions, begin + call.captions_at_once);
  const int64_t* first = call.tokens.first;
  memory.image.pack(call, image);
  const bool any = memory.image.columns.count > 0;
  if (any && call.gram) {
    memory.image.multiply_patches(call, true, memory.tile.products, memory.tile.weights);
  }
  if (any) cosines_of_tokens(call, memory, first[begin], first[end]);
  for (int64_t j = begin; j < end; ++j) {
    const int64_t count = any ? first[j + 1] - first[j] : 0, pair = image * captions + j;
    const Acc score = count ? pooled(call, memory.cosines + first[j] - first[begin], count) : Acc{0};
    static_cast<Acc*>(call.scores)[pair] = score;
    if (call.levels) static_cast<Acc*>(call.levels)[pair] = score;
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
