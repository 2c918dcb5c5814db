// Maxima over the tokens of all pairs of images and captions: what a call of the op is made of, as the
// kernels of every instruction set take it. The mathematics is in sparc_kernels/ops/late_interaction/MATH.md.
//
// A pass is a sequence of steps; the items of a step are independent of one another and can run on any
// thread. A pair of an image and a caption is the business of one item, and every sum runs in an order that
// the sizes give, so the results do not depend on the number of threads.
#pragma once

#include "common/kernel_set.h"

namespace sparc {

// Token rows that meet the patches of an image in one product: whole register tiles.
constexpr int64_t kTokenRows = 48;
// Numbers of a gradient that an item of the backward pass holds, unless it has one image or caption alone:
// 256 KB in float32.
constexpr int64_t kGradientNumbers = int64_t{1} << 16;
// Items of the other side whose rows meet in the registers.
constexpr int64_t kGroup = 4;

// The images with their patches, or the captions with their tokens; strides in elements, columns side by
// side. Row r of item i is row start(i) + r of all rows.
struct TokenSide {
  const void* data = nullptr;
  int64_t items = 0, rows = 0;  // rows of an item: all, or the most where they are packed
  int64_t width = 0, item_stride = 0, row_stride = 0;
  const bool* mask = nullptr;  // null: all are valid
  int64_t mask_item_stride = 0, mask_stride = 0;
  const int64_t* offsets = nullptr;  // [items + 1] where packed
  int64_t total = 0;                 // rows of all items
  void* inverse_norms = nullptr;     // [total] Acc
  const double* weights = nullptr;   // [items]: of a row's maximum in the score
  void* scores = nullptr;            // forward: [images, captions] Acc, or null
  void* best = nullptr;              // index into the other side for each pair and row, or null
  bool wide = false;                 // two bytes an index
  const void* upstream = nullptr;    // backward: of the scores, [images, captions] Acc, or null
  void* grad = nullptr;              // [total, width] In, or null

  int64_t start(int64_t i) const { return offsets ? offsets[i] : i * rows; }
  int64_t size(int64_t i) const { return offsets ? offsets[i + 1] - offsets[i] : rows; }
  bool valid(int64_t i, int64_t r) const { return !mask || mask[i * mask_item_stride + r * mask_stride]; }
  int64_t place(int64_t i, int64_t r) const {  // of a row's first element
    return offsets ? (offsets[i] + r) * row_stride : i * item_stride + r * row_stride;
  }
};

// Valid tokens of all captions, one behind the other, as operands; made by the first step.
struct PackedTokens {
  void* rows = nullptr;            // [first[captions], padded channels] Elem
  void* inverse_norms = nullptr;   // Acc
  int32_t* index = nullptr;        // within the caption
  const int64_t* first = nullptr;  // [captions + 1]
};

struct LateCall {
  TokenSide images, texts;
  bool normalize = true, average = true;
  PackedTokens tokens;           // forward
  int64_t captions_at_once = 1;  // forward: of an item of the last step
};

using LateStep = void (*)(const LateCall& call, int64_t item, void* workspace);

struct LateKernel {
  int64_t (*token_bytes)(const LateCall& call);    // of a packed token
  size_t (*score_bytes)(const LateCall& call);     // of the workspace of `scores`
  size_t (*gradient_bytes)(const TokenSide& own);  // of that of `gradient`
  LateStep image_norms;                            // item: an image
  LateStep pack_caption;                           // item: a caption
  LateStep scores;                                 // item: an image and some captions
  LateStep image_gradient, text_gradient;          // item: items_at_once() of the side
};

// Items of a side whose gradients are computed together.
inline int64_t items_at_once(const TokenSide& own) {
  const int64_t numbers = own.rows * own.width;
  const int64_t fit = kGradientNumbers / (numbers > 0 ? numbers : 1);
  return fit > 1 ? fit : 1;
}

}  // namespace sparc
