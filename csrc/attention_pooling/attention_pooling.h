// Cosines of tokens with the patches that they attend to, of all pairs of images and captions: what a call of
// the op is made of, as the kernels of every instruction set take it. The mathematics is in
// sparc_kernels/ops/attention_pooling/MATH.md.
//
// A pass is a sequence of steps; the items of a step are independent of one another and can run on any
// thread. Valid tokens of all captions stand one behind the other and are taken a chunk at a time; every sum
// runs in an order that the sizes give, so the results do not depend on the number of threads.
#pragma once

#include "captions/token_side.h"
#include "common/kernel_set.h"

namespace sparc {

// Tokens of a chunk, unless one caption alone has more: whole register tiles, and of three captions of 32.
constexpr int64_t kChunkRows = 96;

enum class AttentionWeights { kSoftmax, kSigmoid, kWordsSoftmax };

// Of the backward pass: images whose operands and sums are held together, and the most bytes of similarity
// gradients that are passed from the images' step to the captions'.
constexpr int64_t kImagesAtOnce = 32;
constexpr int64_t kSimilarityBytes = int64_t{64} << 20;

// Some tokens in a row: of whole captions where the weights look at a caption's words together.
struct TokenChunk {
  int64_t first, last;
};

// Valid tokens of all captions, one behind the other, as operands.
struct PooledTokens {
  void* rows = nullptr;              // [tokens, padded channels] Elem
  void* pairs = nullptr;             // backward: by chunk, rows as the second operand of a product, or null
  void* inverse_norms = nullptr;     // Acc
  const int64_t* first = nullptr;    // [captions + 1]
  const int32_t* caption = nullptr;  // of each
  const TokenChunk* chunks = nullptr;
  int64_t n_chunks = 0, most_rows = 0;  // of a chunk
};

// A block of the backward pass: images and chunks.
struct PooledBlock {
  int64_t image = 0, images = 0, chunk = 0, last_chunk = 0;
};

struct PooledCall {
  TokenSide images, texts;
  bool normalize = true, average = true, sink = false;
  AttentionWeights weights = AttentionWeights::kSoftmax;
  double attention_scale = 1, pooling_scale = 1;
  bool gram = true;  // the context's norm from products of patches, or from the context
  PooledTokens tokens;
  void* scores = nullptr;  // [images, captions] Acc
  void* levels = nullptr;  // the same, or null where they are means
  int64_t captions_at_once = 1;

  const void* upstream = nullptr;                      // backward: [images, captions] Acc
  void *grad_images = nullptr, *grad_texts = nullptr;  // [rows of the side, width] In, or null
  PooledBlock block;
  char* image_states = nullptr;  // of a block's images
  int64_t state_bytes = 0;
  void* similarity_grads = nullptr;  // [images, tokens, columns] Elem of a block
  void* along = nullptr;             // [images, tokens] Acc of a block: what a token's norm gets
  void* text_sums = nullptr;         // [tokens, channels] Acc
  void* text_along = nullptr;        // [tokens] Acc

  int64_t captions() const { return texts.items; }
  int64_t n_tokens() const { return tokens.first[texts.items]; }
};

using PooledStep = void (*)(const PooledCall& call, int64_t item, void* workspace);

struct PooledKernel {
  int64_t (*token_bytes)(const PooledCall& call);  // of a packed token
  int64_t (*pair_bytes)(const PooledCall& call);   // of a token in `pairs`, 0 where they are the rows
  size_t (*forward_bytes)(const PooledCall& call);
  size_t (*state_bytes)(const PooledCall& call);      // of an image in the backward pass
  size_t (*backward_bytes)(const PooledCall& call);   // of a thread
  int64_t (*gradient_bytes)(const PooledCall& call);  // of a token in `similarity_grads`
  int64_t (*sum_bytes)(const PooledCall& call);       // of a token in `text_sums`
  PooledStep image_norms, text_norms, pack_caption;   // item: an image; a caption
  PooledStep pack_pairs;                              // item: a chunk
  PooledStep scores;                                  // item: an image and some captions
  // Backward, for each block:
  PooledStep open_image;  // item: an image of the block
  PooledStep image_sums;  // item: an image of the block, with the block's chunks
  PooledStep text_sums;   // item: a chunk of the block, with the block's images
  PooledStep close_image;
  PooledStep close_caption;  // item: a caption, at the end
};

}  // namespace sparc
