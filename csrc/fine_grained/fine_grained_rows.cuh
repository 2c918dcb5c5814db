// What both paths of the loss do with one logit, and with the rows that have no result.
#pragma once

#include "common/block.cuh"
#include "fine_grained/fine_grained_cuda.h"

namespace sparc {

SPARC_DEVICE float cosine_of(float z, float inverse_group, float inverse_token) {
  return z * (inverse_group * inverse_token);
}
// Y. Forward and backward agree to the bit: a caption of one token then has a gradient of exactly 0.
SPARC_DEVICE float logit(float cosine, float scale) { return device::product(scale, cosine); }

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
SPARC_DEVICE void fill_results(const FineGrainedArguments& args, int64_t pair, int patches) {
  for (int i = device::thread_index(); i < args.in.tokens; i += kThreads) {
    const bool valid = is_valid(args.in.token_mask, pair, i);
    if (valid && patches > 0) continue;
    const int64_t at = pair * args.in.tokens + i;
    args.token_loss[at] = valid ? device::nan() : 0.0f;
    for (int field = 0; field < kFineGrainedStats; ++field) args.stats[field * args.stats_stride + at] = 0.0f;
    if (valid) args.stats[kScaleDerivative * args.stats_stride + at] = device::nan();
  }
}

// The means of a pair's valid patches and tokens, where they are asked for.
template <class E>
SPARC_DEVICE void write_means(const FineGrainedArguments& args, int64_t pair) {
  const PairInputs& in = args.in;
  write_mean<E>(in.patch_embeds, in.patch_mask, pair, in.patches, in.channels, args.pooled_patches);
  write_mean<E>(in.token_embeds, in.token_mask, pair, in.tokens, in.channels, args.pooled_tokens);
}

// Exact zeros in the gradients of masked rows; NaN for the tokens of an image without a valid patch; what the
// patches of an empty caption's image get is their share of the mean's gradient.
template <class E>
SPARC_DEVICE void fill_gradients(const FineGrainedArguments& args, int64_t pair, int tokens, int patches) {
  const PairInputs& in = args.in;
  const bool computed = tokens > 0 && patches > 0;
  MeanShare<E> share;
  if (!computed && args.grad_pooled_patches != nullptr) {
    share = {args.grad_pooled_patches, pair, in.channels, count_valid(in.patch_mask, pair, in.patches)};
  }
  fill_rows<E>(
      in.patch_mask, pair, in.patches, in.channels, computed,
      [&](int64_t column) { return share.at(column); }, args.grad_patches);
  fill_rows<E>(
      in.token_mask, pair, in.tokens, in.channels, computed, [](int64_t) { return device::nan(); },
      args.grad_tokens);
}

}  // namespace sparc
