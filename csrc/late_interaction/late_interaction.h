// Maxima over the tokens of all pairs of images and captions: what a call of the op is made of, as the
// kernels of every instruction set take it. The mathematics is in sparc_kernels/ops/late_interaction/MATH.md.
//
// A pass is a sequence of steps; the items of a step are independent of one another and can run on any
// thread. A pair of an image and a caption is the business of one item, and every sum runs in an order that
// the sizes give, so the results do not depend on the number of threads.
#pragma once

#include "captions/token_side.h"
#include "common/kernel_set.h"

namespace sparc {

// Token rows that meet the patches of an image in one product: whole register tiles.
constexpr int64_t kTokenRows = 48;
// Numbers of a gradient that an item of the backward pass holds, unless it has one image or caption alone:
// 256 KB in float32.
constexpr int64_t kGradientNumbers = int64_t{1} << 16;
// Items of the other side whose rows meet in the registers.
constexpr int64_t kGroup = 4;

// A side with its part in the maxima.
struct LateSide : TokenSide {
  const double* weights = nullptr;  // [items]: of a row's maximum in the score
  void* scores = nullptr;           // forward: [images, captions] Acc, or null
  void* best = nullptr;             // index into the other side for each pair and row, or null
  bool wide = false;                // two bytes an index
  const void* upstream = nullptr;   // backward: of the scores, [images, captions] Acc, or null
  void* grad = nullptr;             // [total, width] In, or null
};

// Valid tokens of all captions, one behind the other, as operands; made by the first step.
struct PackedTokens {
  void* rows = nullptr;            // [first[captions], padded channels] Elem
  void* inverse_norms = nullptr;   // Acc
  int32_t* index = nullptr;        // within the caption
  const int64_t* first = nullptr;  // [captions + 1]
};

struct LateCall {
  LateSide images, texts;
  bool normalize = true, average = true;
  PackedTokens tokens;           // forward
  int64_t captions_at_once = 1;  // forward: of an item of the last step
};

using LateStep = void (*)(const LateCall& call, int64_t item, void* workspace);

struct LateKernel {
  int64_t (*token_bytes)(const LateCall& call);   // of a packed token
  size_t (*score_bytes)(const LateCall& call);    // of the workspace of `scores`
  size_t (*gradient_bytes)(const LateSide& own);  // of that of `gradient`
  LateStep image_norms;                           // item: an image
  LateStep pack_caption;                          // item: a caption
  LateStep scores;                                // item: an image and some captions
  LateStep image_gradient, text_gradient;         // item: items_at_once() of the side
};

// Items of a side whose gradients are computed together.
inline int64_t items_at_once(const LateSide& own) {
  const int64_t numbers = own.rows * own.width;
  const int64_t fit = kGradientNumbers / (numbers > 0 ? numbers : 1);
  return fit > 1 ? fit : 1;
}

}  // namespace sparc
