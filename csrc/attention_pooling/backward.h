// Gradients of both sides, a block of images and chunks at a time: an image makes the gradients of its
// similarities, takes its own part of them, and leaves them to the captions. Compiled once per instruction
// set.
#pragma once

#include "attention_pooling/forward.h"

namespace sparc {
namespace SPARC_ISA {

// An image of a block, in memory that lasts for the block.
template <class E, class In>
struct ImageState {
  using Acc = typename E::Acc;
  int64_t* count;  // of its valid patches
  PooledImage<E, In> image;
  Acc* sums = nullptr;   // [patches, channels]: of what its patches met
  Acc* outer = nullptr;  // [patches, columns]: of 2 dq E E^T above the diagonal; with the Gram matrix

  ImageState(const PooledCall& call, Arena& arena) : count(arena.take<int64_t>(1)), image(call, arena, true) {
    if (!call.grad_images) return;
    sums = arena.take<Acc>(call.images.rows * image.channels);
    if (call.gram) outer = arena.take<Acc>(call.images.rows * padded_columns<Acc>(call.images));
  }

  // Of the block's image `item`, once it is open.
  static ImageState of(const PooledCall& call, int64_t item) {
    Arena arena(call.image_states + item * call.state_bytes);
    ImageState state(call, arena);
    state.image.set_count(*state.count);
    return state;
  }
};

// What a thread needs beside.
template <class E>
struct BackwardMemory {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;

  PooledTile<E> tile;
  Elem* scaled;           // weights times 2 dq
  Elem* contexts;         // as an operand
  Unit *first, *second;   // operands of products over rows
  Elem* similarity_grad;  // where captions want none

  BackwardMemory(const PooledCall& call, Arena& arena) : tile(call, arena) {
    const int64_t rows = kChunkRows > call.tokens.most_rows ? kChunkRows : call.tokens.most_rows;
    const int64_t columns = padded_columns<Acc>(call.images);
    const int64_t row = padded_units<E>(call.images) * E::kPack, widest = columns > row ? columns : row;
    scaled = arena.take<Elem>(rows * columns);
    similarity_grad = call.grad_texts ? nullptr : arena.take<Elem>(rows * columns);
    contexts = call.gram ? nullptr : arena.take<Elem>(rows * row);
    first = E::kPack > 1 ? arena.take<Unit>(paired<E>(rows) * widest) : nullptr;
    second = E::kPack > 1 ? arena.take<Unit>(paired<E>(rows) * widest) : nullptr;
  }
};

// Where a chunk's pairs begin.
template <class E>
int64_t pair_row(TokenChunk chunk, int64_t item) {
  return chunk.first / E::kPack + item;
}

// A chunk's tokens as the second operand of a product that sums over them.
template <class E, class In>
void pack_pairs(const PooledCall& call, int64_t item, void*) {
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  const TokenChunk chunk = call.tokens.chunks[item];
  const int64_t stride = padded_units<E>(call.texts) * E::kPack, channels = channel_columns<E>(call.texts);
  if constexpr (E::kPack > 1) {
    // Chunks may have an odd number of rows: each has a row of its own to spare.
    pack_rows(static_cast<const Elem*>(call.tokens.rows) + chunk.first * stride, chunk.last - chunk.first,
              channels, stride, static_cast<Unit*>(call.tokens.pairs) + pair_row<E>(chunk, item) * channels,
              channels);
  }
}

template <class E>
Matrix<const typename E::Unit> chunk_pairs(const PooledCall& call, int64_t item) {
  using Unit = typename E::Unit;
  const TokenChunk chunk = call.tokens.chunks[item];
  const int64_t units = padded_units<E>(call.texts), channels = channel_columns<E>(call.texts);
  if constexpr (E::kPack == 1)
    return {static_cast<const Unit*>(call.tokens.rows) + chunk.first * units, units};
  return {static_cast<const Unit*>(call.tokens.pairs) + pair_row<E>(chunk, item) * channels, channels};
}

// Where the similarity gradients of a block's image, and of the block's token, begin.
template <class E>
typename E::Elem* similarity_grads(const PooledCall& call, int64_t image, int64_t token) {
  const PooledBlock& block = call.block;
  const TokenChunk* chunks = call.tokens.chunks;
  const int64_t begin = chunks[block.chunk].first, tokens = chunks[block.last_chunk - 1].last - begin;
  return static_cast<typename E::Elem*>(call.similarity_grads) +
         (image * tokens + token - begin) * padded_columns<typename E::Acc>(call.images);
}

template <class E>
typename E::Acc* along_norms(const PooledCall& call, int64_t image, int64_t token) {
  const PooledBlock& block = call.block;
  const TokenChunk* chunks = call.tokens.chunks;
  const int64_t begin = chunks[block.chunk].first, tokens = chunks[block.last_chunk - 1].last - begin;
  return static_cast<typename E::Acc*>(call.along) + image * tokens + token - begin;
}

template <class E, class In>
void open_image(const PooledCall& call, int64_t item, void* workspace) {
  Arena arena(workspace), lasting(call.image_states + item * call.state_bytes);
  BackwardMemory<E> memory(call, arena);
  ImageState<E, In> state(call, lasting);
  state.image.pack(call, call.block.image + item);
  const int64_t count = *state.count = state.image.columns.count;
  if (call.gram && count) {
    state.image.multiply_patches(call, false, memory.tile.products, memory.tile.weights);
  }
  if (!state.sums) return;
  for (int64_t k = 0; k < count * state.image.channels; ++k) state.sums[k] = 0;
  for (int64_t k = 0; state.outer && k < count * state.image.columns.columns; ++k) state.outer[k] = 0;
}

// Contexts of a weighed chunk compared, and their products with all patches made.
template <class E, class In>
void compare_for_gradient(const PooledCall& call, const PooledImage<E, In>& image, BackwardMemory<E>& memory,
                          int64_t count) {
  using Unit = typename E::Unit;
  PooledTile<E>& tile = memory.tile;
  const int64_t width = image.columns.columns, units = image.patches.units;
  if (image.gram) {
    gemm<typename E::Ops, ALayout::kRows>(count, width, paired<E>(image.columns.count),
                                          tile.weight_units(width), {image.gram, width},
                                          {tile.products, width});
  } else {
    tile.make_contexts(image, count);
    const int64_t stride = units * E::kPack;
    for (int64_t r = 0; r < count; ++r) {
      convert_row(tile.contexts + r * image.channels, 1, image.channels, memory.contexts + r * stride);
      for (int64_t d = image.channels; d < stride; ++d) memory.contexts[r * stride + d] = {};
    }
    image.patches.multiply(count, channel_units<E>(call.images),
                           {reinterpret_cast<const Unit*>(memory.contexts), units}, tile.products);
  }
  for (int64_t r = 0; r < count; ++r) {
    compare(image.gram ? weighted_sum(tile.weights + r * width, tile.products + r * width, width)
                       : tile.square_of_context(r, image.channels),
            tile.rows[r]);
  }
}

// Of the cosine of a token of the pair, which is the caption's last result but the pooling.
template <class Acc>
Acc gradient_of_cosine(const PooledCall& call, int64_t pair, int64_t tokens, Acc cosine) {
  const Acc upstream = static_cast<const Acc*>(call.upstream)[pair];
  if (call.average) return upstream / static_cast<Acc>(tokens);
  const Acc kappa = static_cast<Acc>(call.pooling_scale), level = static_cast<const Acc*>(call.levels)[pair];
  return upstream * kappa * static_cast<Acc>(__builtin_exp(kappa * cosine - level));
}

// The gradient of the chunk's products with an image, into `grads`.
template <AttentionWeights kWeights, class E, class In>
void gradient_of_chunk(const PooledCall& call, int64_t item, const PooledImage<E, In>& image,
                       BackwardMemory<E>& memory, TokenChunk chunk, typename E::Elem* grads) {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  PooledTile<E>& tile = memory.tile;
  const int64_t width = image.columns.columns, first_pair = (call.block.image + item) * call.captions();
  const Acc tau = static_cast<Acc>(call.attention_scale);
  Acc* along = call.along ? along_norms<E>(call, item, chunk.first) : nullptr;
  const auto row_of = [&](int64_t r) {
    const int64_t at = r * width;
    return GradientRow<Acc, Elem>{tile.similarities + at,
                                  tile.weights + at,
                                  tile.products + at,
                                  tile.words ? tile.words + at : nullptr,
                                  grads + at,
                                  memory.scaled + at};
  };
  tile.each_caption(call, chunk, [&](int64_t caption, int64_t first, int64_t last) {
    const int64_t tokens = call.tokens.first[caption + 1] - call.tokens.first[caption];
    for (int64_t r = first; r < last; ++r) {
      TokenRow<Acc>& row = tile.rows[r];
      const Acc k = gradient_of_cosine(call, first_pair + caption, tokens, row.cosine);
      pull(k, row);
      if (along) along[r] = k * row.cosine;
      gradient_row<kWeights>(image.columns, tau, row, row_of(r));
    }
    if constexpr (kWeights == AttentionWeights::kWordsSoftmax) {
      gradient_through_words(image.columns, last - first, tile.rows + first, row_of(first));
    }
  });
}

// What the patches of an image get from a chunk.
template <class E, class In>
void add_to_image(const PooledCall& call, int64_t item, ImageState<E, In>& state, BackwardMemory<E>& memory,
                  const typename E::Elem* grads) {
  using Ops = typename E::Ops;
  const PooledImage<E, In>& image = state.image;
  const TokenChunk chunk = call.tokens.chunks[item];
  const int64_t rows = chunk.last - chunk.first, depth = paired<E>(rows);
  const int64_t width = image.columns.columns, count = image.columns.count;
  gemm<Ops, ALayout::kColumns>(count, image.channels, depth,
                               along_rows<E>({grads, width}, rows, width, memory.first),
                               chunk_pairs<E>(call, item), {state.sums, image.channels}, {true});
  const auto scaled = along_rows<E>({memory.scaled, width}, rows, width, memory.first);
  if (state.outer) {
    const auto weights = along_rows<E>({memory.tile.weights, width}, rows, width, memory.second);
    image.patches.each_panel([&](int64_t first, int64_t columns) {
      gemm<Ops, ALayout::kColumns>(smaller(count, first + columns), columns, depth, scaled,
                                   weights.from(0, first), {state.outer + first, width}, {true});
    });
    return;
  }
  const int64_t stride = image.patches.units * E::kPack;
  const auto contexts = along_rows<E>({memory.contexts, stride}, rows, image.channels, memory.second);
  gemm<Ops, ALayout::kColumns>(count, image.channels, depth, scaled, contexts, {state.sums, image.channels},
                               {true});
}

template <class E, class In>
void image_sums(const PooledCall& call, int64_t item, void* workspace) {
  Arena arena(workspace);
  BackwardMemory<E> memory(call, arena);
  ImageState<E, In> state = ImageState<E, In>::of(call, item);
  if (*state.count == 0) return;
  for (int64_t c = call.block.chunk; c < call.block.last_chunk; ++c) {
    const TokenChunk chunk = call.tokens.chunks[c];
    typename E::Elem* grads =
        call.similarity_grads ? similarity_grads<E>(call, item, chunk.first) : memory.similarity_grad;
    memory.tile.weigh(call, state.image, chunk);
    compare_for_gradient(call, state.image, memory, chunk.last - chunk.first);
    if (call.weights == AttentionWeights::kSoftmax) {
      gradient_of_chunk<AttentionWeights::kSoftmax>(call, item, state.image, memory, chunk, grads);
    } else if (call.weights == AttentionWeights::kSigmoid) {
      gradient_of_chunk<AttentionWeights::kSigmoid>(call, item, state.image, memory, chunk, grads);
    } else {
      gradient_of_chunk<AttentionWeights::kWordsSoftmax>(call, item, state.image, memory, chunk, grads);
    }
    if (state.sums) add_to_image(call, c, state, memory, grads);
  }
}

template <class E, class In>
void text_sums(const PooledCall& call, int64_t item, void*) {
  using Acc = typename E::Acc;
  using Unit = typename E::Unit;
  const TokenChunk chunk = call.tokens.chunks[call.block.chunk + item];
  const int64_t count = chunk.last - chunk.first, channels = channel_columns<E>(call.texts);
  Acc* sums = static_cast<Acc*>(call.text_sums) + chunk.first * channels;
  for (int64_t i = 0; i < call.block.images; ++i) {
    const ImageState<E, In> state = ImageState<E, In>::of(call, i);
    if (*state.count == 0) continue;
    const int64_t width = state.image.columns.columns;
    const auto* grads = reinterpret_cast<const Unit*>(similarity_grads<E>(call, i, chunk.first));
    gemm<typename E::Ops, ALayout::kRows>(count, channels, paired<E>(*state.count), {grads, width / E::kPack},
                                          state.image.value_rows(), {sums, channels}, {true});
    if (!call.along) continue;
    const Acc* along = along_norms<E>(call, i, chunk.first);
    Acc* total = static_cast<Acc*>(call.text_along) + chunk.first;
    for (int64_t r = 0; r < count; ++r) total[r] += along[r];
  }
}

// The gradient of a row from `sum`, which has its inverse norm already, less `along` of the row itself.
template <class Acc, class In>
void finish_row(const TokenSide& side, const In* row, const Acc* sum, Acc along, In* out) {
  for (int64_t d = 0; d < side.width; ++d) {
    out[d] = Convert<In>::from(static_cast<Acc>(sum[d] - along * to_acc(row[d])));
  }
}

// Of a row, whose norm is part of the similarities: how much of it comes off.
template <class Acc, class In>
Acc part_along(const TokenSide& side, const In* row, const Acc* sum, Acc norm) {
  if (norm >= Acc(kInverseOfZero)) return 0;  // a norm below the least one counts as a constant
  Acc along = 0;
  for (int64_t d = 0; d < side.width; ++d) along += to_acc(row[d]) * sum[d];
  return along * norm * norm;
}

template <class In>
void clear_row(const TokenSide& side, In* out) {
  for (int64_t d = 0; d < side.width; ++d) out[d] = In{};
}

// What contexts give to the patches, from products of weights: with the Gram matrix.
template <class E, class In>
void add_outer(ImageState<E, In>& state, typename E::Elem* block) {
  using Elem = typename E::Elem;
  using Unit = typename E::Unit;
  const PooledImage<E, In>& image = state.image;
  const Columns<typename E::Acc>& columns = image.columns;
  const int64_t width = columns.columns, count = columns.count;
  for (int64_t first = 0; first < count; first += kChunkRows) {
    const int64_t rows = smaller(kChunkRows, count - first);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first + r;
      for (int64_t p = 0; p < width; ++p) {
        const int64_t at = p < row ? p * width + row : row * width + p;
        block[r * width + p] =
            p < count ? Convert<Elem>::from(state.outer[at] * (columns.scale[row] * columns.scale[p]))
                      : Elem{};
      }
    }
    gemm<typename E::Ops, ALayout::kRows>(
        rows, image.channels, paired<E>(count), {reinterpret_cast<const Unit*>(block), width / E::kPack},
        image.value_rows(), {state.sums + first * image.channels, image.channels}, {true});
  }
}

template <class E, class In>
void close_image(const PooledCall& call, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  Arena arena(workspace);
  BackwardMemory<E> memory(call, arena);
  ImageState<E, In> state = ImageState<E, In>::of(call, item);
  const PooledImage<E, In>& image = state.image;
  const TokenSide& side = call.images;
  const int64_t index = call.block.image + item;
  if (state.outer) add_outer(state, memory.tile.weights);
  In* out = static_cast<In*>(call.grad_images) + side.start(index) * side.width;
  int64_t p = 0;
  for (int64_t r = 0; r < side.rows; ++r, out += side.width) {
    if (!side.valid(index, r)) {
      clear_row(side, out);
      continue;
    }
    const In* row = static_cast<const In*>(side.data) + side.place(index, r);
    const Acc* sum = state.sums + p * image.channels;
    const Acc along = call.normalize ? part_along(side, row, sum, image.patches.inverse_norms[p]) : Acc{0};
    finish_row(side, row, sum, along, out);
    ++p;
  }
}

template <class E, class In>
void close_caption(const PooledCall& call, int64_t caption, void*) {
  using Acc = typename E::Acc;
  const TokenSide& side = call.texts;
  int64_t token = call.tokens.first[caption];
  In* out = static_cast<In*>(call.grad_texts) + side.start(caption) * side.width;
  for (int64_t r = 0; r < side.size(caption); ++r, out += side.width) {
    if (!side.valid(caption, r)) {
      clear_row(side, out);
      continue;
    }
    const In* row = static_cast<const In*>(side.data) + side.place(caption, r);
    const Acc* sum = static_cast<const Acc*>(call.text_sums) + token * channel_columns<E>(side);
    const Acc norm = static_cast<const Acc*>(call.tokens.inverse_norms)[token];
    Acc along = 0;
    if (call.normalize) {
      along = part_along(side, row, sum, norm);
    } else if (!(norm >= Acc(kInverseOfZero))) {
      along = static_cast<const Acc*>(call.text_along)[token] * norm * norm;
    }
    finish_row(side, row, sum, along, out);
    ++token;
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
