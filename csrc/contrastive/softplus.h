// The softplus op on a tile: row sums, and the gradient of the cosines. Compiled once per instruction set.
#pragma once

#include "contrastive/softmax.h"

namespace sparc {
namespace SPARC_ISA {

// log(1 + u) for u in [0, 1] as 2 atanh(u / (2 + u)): exact to the last bits for the smallest u too.
template <int N>
SPARC_INLINE Vec<float, N> log1p_vec(Vec<float, N> u) {
  const Vec<float, N> w = u / (u + 2.0f), x = w * w;  // x <= 1/9: the first term left out is below 2e-9
  Vec<float, N> poly = x * (1.0f / 15) + 1.0f / 13;
  poly = poly * x + 1.0f / 11;
  poly = poly * x + 1.0f / 9;
  poly = poly * x + 1.0f / 7;
  poly = poly * x + 1.0f / 5;
  poly = poly * x + 1.0f / 3;
  return (w + w * x * poly) * 2.0f;
}

template <int N>
SPARC_INLINE Vec<double, N> log1p_vec(Vec<double, N> u) {
  for (int i = 0; i < N; ++i) u[i] = __builtin_log1p(u[i]);
  return u;
}

// y z of a pair, y = -1 for a target and 1 otherwise.
template <class Acc>
struct SignedLogits {
  Acc scale, bias;
  const Acc* flags;

  template <int N>
  SPARC_INLINE Vec<Acc, N> sign(int64_t j) const {
    return 1 - 2 * load<N>(flags + j);
  }
  template <int N>
  SPARC_INLINE Vec<Acc, N> at(Vec<Acc, N> cosines, int64_t j) const {
    return (cosines * scale + bias) * sign<N>(j);
  }
};

// softplus(z), where u = exp(-|z|).
template <class Acc, int N = kLanes<Acc>>
SPARC_INLINE Vec<Acc, N> softplus_vec(Vec<Acc, N> z, Vec<Acc, N> u) {
  return (z < Vec<Acc, N>{} ? Vec<Acc, N>{} : z) + log1p_vec<N>(u);
}

// Sum of softplus(y z) over the pairs of a row that take part.
template <class Acc>
Acc softplus_sum(const Acc* cosines, int64_t width, const SignedLogits<Acc>& logits) {
  constexpr int kN = kLanes<Acc>;
  const Vec<Acc, kN> zero = {};
  Vec<Acc, kN> total = {};
  for (int64_t j = 0; j < width; j += kN) {
    const auto c = load<kN>(cosines + j), z = logits.template at<kN>(c, j);
    const auto value = softplus_vec<Acc>(z, exp_vec<kN>(z > zero ? -z : z));
    total += excluded(c) ? zero : value;
  }
  return sum_lanes<Acc>(total);
}

// G of a row; sums of Z c, of Z, and where wanted of softplus(y z). Upstream is that of the row's sum.
template <bool kSum, class Acc>
void softplus_gradient(GradientRow<Acc>& row, const SignedLogits<Acc>& logits) {
  constexpr int kN = kLanes<Acc>;
  const Vec<Acc, kN> zero = {};
  Vec<Acc, kN> by_cosine = {}, total = {}, values = {};
  for (int64_t j = 0; j < row.width; j += kN) {
    const auto c = load<kN>(row.cosines + j), z = logits.template at<kN>(c, j);
    const auto u = exp_vec<kN>(z > zero ? -z : z);
    const auto sigmoid = (z < zero ? u : splat<kN>(Acc{1})) / (u + 1);
    const auto part = excluded(c) ? zero : sigmoid * logits.template sign<kN>(j) * row.upstream[kLogsumexp];
    const auto norms = load<kN>(row.cols.inverse_norm + j) * row.inverse_norm;
    store(row.out + j, part * norms * row.scale);
    by_cosine += part * c;
    total += part;
    if constexpr (kSum) values += excluded(c) ? zero : softplus_vec<Acc>(z, u);
  }
  row.sums[0] += sum_lanes<Acc>(by_cosine);
  row.sums[1] += sum_lanes<Acc>(total);
  row.sums[2] += sum_lanes<Acc>(values);
}

}  // namespace SPARC_ISA
}  // namespace sparc
