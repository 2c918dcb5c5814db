// What both paths of the loss do with one logit, and with the rows that have no result.
#pragma once

#include "fine_grained/fine_grained_cuda.h"
#include "pairs/pair_work.cuh"

namespace sparc {

SPARC_DEVICE float cosine_of(float z, float inverse_group, float inverse_token) {
  return z * (inverse_group * inverse_token);
}
// Y. Forward and backward agree to the bit: a caption of one token then has a gradient of exactly 0.
SPARC_DEVICE float logit(float cosine, float scale) { return device::product(scale, cosine); }

struct Softmax {
  float lse, cosine;  // log sum exp, and the mean of the cosines
};

// From the largest logit, and the sums of exp(logit - top) and of these times the cosines.
SPARC_DEVICE Softmax softmax(float top, float total, float along) {
  return {top + device::log(total), along / total};
}

// Of a row or column whose cosines are at cosine_at(i), i < n, and whose largest logit is `top`: this lane
// takes `first` and every `step`th from there on, sum(x) adds up over the lanes that share them.
template <class CosineAt, class Sum>
SPARC_DEVICE Softmax softmax(float top, float scale, int first, int step, int n, const CosineAt& cosine_at,
                             const Sum& sum) {
  float total = 0.0f, along = 0.0f;
  SPARC_NO_UNROLL
  for (int i = first; i < n; i += step) {
    const float cosine = cosine_at(i), weight = device::exp(logit(cosine, scale) - top);
    total += weight;
    along += weight * cosine;
  }
  total = sum(total);
  return softmax(top, total, sum(along));
}

// What the forward pass left of the gathered rows of a pass, and their upstream gradients, to `places`.
template <class Pass, class Places>
SPARC_DEVICE void read_stats(const Pass& pass, const Places& places) {
  const FineGrainedArguments& args = pass.args;
  const int64_t stride = args.stats_stride;
  SPARC_NO_UNROLL
  for (int l = device::thread_index(); l < pass.n; l += kThreads) {
    const int64_t at = pass.result_at(l), token = at - pass.work.text * args.in.text_rows;
    const float* const stat = args.stats + at;
    pass.row_array(places.group_norm)[l] = stat[kGroupNorm * stride];
    pass.row_array(places.token_norm)[l] = stat[kTokenNorm * stride];
    pass.row_array(places.row_lse)[l] = stat[kRowLogSumExp * stride];
    pass.row_array(places.column_lse)[l] = stat[kColumnLogSumExp * stride];
    pass.row_array(places.upstream)[l] =
        args.grad_token_loss[pass.work.text * args.grad_batch_stride + token * args.grad_stride];
  }
}

// What a row of logits shares in a backward pass.
struct LogitRow {
  float inverse_group;  // 1 / |C'_l|
  float scale;
  float lse, upstream;  // rho_l, w_l
};

// In float16 a token without a length would set the unit of all others (1 / |t| = 1e12). The product dZ T
// multiplies it with zeros, so its column goes without 1 / |t|, and its row of dT is given it back.
template <class E>
SPARC_DEVICE bool without_length(float token_norm) {
  return kIsFloat16<E> && token_norm <= kSmallestNorm;
}

// dZ_lj
template <class E>
SPARC_DEVICE float logit_gradient(const LogitRow& row, float z, float token_norm, float column_lse,
                                  float column_upstream, bool diagonal) {
  const float inverse = 1.0f / token_norm, y = logit(cosine_of(z, row.inverse_group, inverse), row.scale);
  float dy =
      0.5f * row.upstream * device::exp(y - row.lse) + 0.5f * column_upstream * device::exp(y - column_lse);
  if (diagonal) dy -= row.upstream;
  return dy * (row.scale * row.inverse_group * (without_length<E>(token_norm) ? 1.0f : inverse));
}

// The unit in which float16 holds dZ and W = dZ T: the largest |dZ|, or what keeps the sums of `reach` =
// sum_j |dZ_lj| |t_j| far from its limit.
SPARC_DEVICE float reach_unit(float largest, float reach) {
  return device::max(largest, reach * (1.0f / 16384.0f));
}

// token_loss and stats of a pair's tokens without a result: 0 at padding, NaN where the image has no valid
// patch.
SPARC_DEVICE void fill_results(const FineGrainedArguments& args, int64_t text, int patches) {
  SPARC_NO_UNROLL
  for (int i = device::thread_index(); i < args.in.text_rows; i += kThreads) {
    const bool valid = is_valid(args.in.text_mask, text, i);
    if (valid && patches > 0) continue;
    const int64_t at = text * args.in.text_rows + i;
    args.token_loss[at] = valid ? device::nan() : 0.0f;
    for (int field = 0; field < kTokenLossStats; ++field) args.stats[field * args.stats_stride + at] = 0.0f;
    if (valid) args.stats[kScaleDerivative * args.stats_stride + at] = device::nan();
  }
}

// The means of a pair's valid patches and tokens, where they are asked for.
template <class E>
SPARC_DEVICE void write_means(const FineGrainedArguments& args, int64_t image, int64_t text) {
  const PairInputs& in = args.in;
  write_mean<E>(in.image_embeds, in.image_mask, image, in.image_rows, in.channels, args.pooled_patches);
  write_mean<E>(in.text_embeds, in.text_mask, text, in.text_rows, in.channels, args.pooled_tokens);
}

// Exact zeros in the gradients of masked rows; NaN for the tokens of an image without a valid patch; what the
// patches of an empty caption's image get is their share of the mean's gradient.
template <class E>
SPARC_DEVICE void fill_gradients(const FineGrainedArguments& args, const PairWork& work) {
  const PairInputs& in = args.in;
  const bool computed = work.text_rows > 0 && work.image_rows > 0;
  MeanShare<E> share;
  if (!computed && args.grad_pooled_patches != nullptr) {
    share = {args.grad_pooled_patches, work.image, in.channels,
             count_valid(in.image_mask, work.image, in.image_rows)};
  }
  fill_rows<E>(
      in.image_mask, work.image, in.image_rows, in.channels, computed,
      [&](int64_t column) { return share.at(column); }, args.grad_patches);
  fill_rows<E>(
      in.text_mask, work.text, in.text_rows, in.channels, computed, [](int64_t) { return device::nan(); },
      args.grad_tokens);
}

}  // namespace sparc
