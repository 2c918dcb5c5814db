// What both paths of the loss do with one logit, and with the rows that have no result.
#pragma once

#include "common/block.cuh"
#include "fine_grained/fine_grained_cuda.h"

namespace sparc {

// Y from Z. Forward and backward agree to the bit: a caption of one token then has a gradient of exactly 0.
SPARC_DEVICE float logit(float z, float factor, float inverse_token_norm) {
  return z * (factor * inverse_token_norm);
}

// What a row of logits shares in a backward pass.
struct LogitRow {
  float inverse_group;  // 1 / |C'_l|
  float factor;         // scale / |C'_l|
  float lse, upstream;  // rho_l, w_l
};

struct LogitGradient {
  float dz, cosine;  // dZ_lj, and cos dY, whose sum is the derivative of the scale
};

// In float16 a token without a length would set the unit of all others (1 / |t| = 1e12). The product dZ T
// multiplies it with zeros, so its column goes without 1 / |t|, and its row of dT is given it back.
template <class E>
SPARC_DEVICE bool without_length(float token_norm) {
  return kIsFloat16<E> && token_norm <= kSmallestNorm;
}

template <class E>
SPARC_DEVICE LogitGradient logit_gradient(const LogitRow& row, float z, float token_norm, float column_lse,
                                          float column_upstream, bool diagonal) {
  const float inverse = 1.0f / token_norm, y = logit(z, row.factor, inverse);
  float dy =
      0.5f * row.upstream * device::exp(y - row.lse) + 0.5f * column_upstream * device::exp(y - column_lse);
  if (diagonal) dy -= row.upstream;
  return {dy * (row.factor * (without_length<E>(token_norm) ? 1.0f : inverse)),
          z * (row.inverse_group * inverse) * dy};
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
  }
}

// Exact zeros in the gradients of masked rows; NaN for the tokens of an image without a valid patch.
template <class E>
SPARC_DEVICE void fill_gradients(const FineGrainedArguments& args, int64_t pair, int tokens, int patches) {
  const bool computed = tokens > 0 && patches > 0;
  const float otherwise = tokens > 0 && patches == 0 ? device::nan() : 0.0f;
  fill_rows<E>(args.in.patch_mask, pair, args.in.patches, args.in.channels, computed, 0.0f,
               args.grad_patches);
  fill_rows<E>(args.in.token_mask, pair, args.in.tokens, args.in.channels, computed, otherwise,
               args.grad_tokens);
  if (!computed && device::thread_index() == 0) args.grad_logit_scale[pair] = otherwise;
}

}  // namespace sparc
