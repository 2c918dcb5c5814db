// The two cross-entropies of a pair over its [tokens, tokens] logits (eq 6), compiled once per instruction
// set.
#pragma once

#include "common/vec.h"

namespace sparc {
namespace SPARC_ISA {

// Per token, [lp] each, 0 in padded lanes; `exclude` is 0 for tokens and -infinity for padded lanes.
template <class T>
struct TokenLogits {
  T *inv_group, *inv_token;  // 1 / |C'_l|, 1 / |t_j|
  T *row_lse, *column_lse;   // rho, gamma
  T* exclude;
  T* a;            // forward: maximum of each column. backward: upstream gradient w / 2
  T* b;            // forward: sum of each column. backward: beta
  T* alpha;        // forward: the losses
  T* mean_cosine;  // forward: of each column, in its softmax; then the derivative of the loss by the scale

  template <class Arena>
  TokenLogits(Arena& arena, int64_t lp)
      : inv_group(arena.template take<T>(lp)),
        inv_token(arena.template take<T>(lp)),
        row_lse(arena.template take<T>(lp)),
        column_lse(arena.template take<T>(lp)),
        exclude(arena.template take<T>(lp)),
        a(arena.template take<T>(lp)),
        b(arena.template take<T>(lp)),
        alpha(arena.template take<T>(lp)),
        mean_cosine(arena.template take<T>(lp)) {}

  void clear(int64_t n, int64_t lp) const {
    for (int64_t l = 0; l < lp; ++l) {
      inv_group[l] = inv_token[l] = row_lse[l] = column_lse[l] = a[l] = b[l] = alpha[l] = mean_cosine[l] = 0;
      exclude[l] = l < n ? T{0} : -static_cast<T>(__builtin_inf());
    }
  }
};

inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }

// z [n, lp] = U S^T becomes the cosines; writes rho, gamma, and for each token its loss (alpha) and the
// loss's derivative by the scale (mean_cosine).
template <class T>
void cross_entropies(T* z, int64_t n, int64_t lp, T scale, const TokenLogits<T>& rows) {
  constexpr int kN = kGranule<T>;
  for (int64_t j = 0; j < lp; ++j) rows.a[j] = -static_cast<T>(__builtin_inf());
  for (int64_t l = 0; l < n; ++l) {
    T* row = z + l * lp;
    Vec<T, kN> best = splat<kN>(-static_cast<T>(__builtin_inf()));
    for (int64_t j = 0; j < lp; j += kN) {
      const Vec<T, kN> cosine = load<kN>(row + j) * (rows.inv_group[l] * load<kN>(rows.inv_token + j));
      const Vec<T, kN> y = cosine * scale + load<kN>(rows.exclude + j), column = load<kN>(rows.a + j);
      best = y > best ? y : best;
      store(rows.a + j, y > column ? y : column);
      store(row + j, cosine);
    }
    const T row_max = max_lanes<T>(best);
    Vec<T, kN> total = {}, along = {};
    for (int64_t j = 0; j < lp; j += kN) {
      const Vec<T, kN> cosine = load<kN>(row + j);
      const Vec<T, kN> weight = exp_vec<kN>(cosine * scale + load<kN>(rows.exclude + j) - row_max);
      total += weight;
      along += weight * cosine;
    }
    const T sum = sum_lanes<T>(total);
    rows.row_lse[l] = row_max + log_of(sum);
    rows.alpha[l] = sum_lanes<T>(along) / sum;
  }
  for (int64_t j = 0; j < lp; j += kN) {
    const Vec<T, kN> column_max = load<kN>(rows.a + j), exclude = load<kN>(rows.exclude + j);
    Vec<T, kN> total = {}, along = {};
    for (int64_t l = 0; l < n; ++l) {
      const Vec<T, kN> cosine = load<kN>(z + l * lp + j);
      const Vec<T, kN> weight = exp_vec<kN>(cosine * scale + exclude - column_max);
      total += weight;
      along += weight * cosine;
    }
    store(rows.b + j, total);
    store(rows.mean_cosine + j, along / total);
  }
  for (int64_t l = 0; l < n; ++l) {
    rows.column_lse[l] = rows.a[l] + log_of(rows.b[l]);
    const T cosine = z[l * lp + l];
    // Rounded as above, not fused into what follows: a caption of one token then has a loss of exactly 0.
    const volatile T y = cosine * scale;
    rows.mean_cosine[l] = (rows.alpha[l] - cosine) / 2 + (rows.mean_cosine[l] - cosine) / 2;
    rows.alpha[l] = (rows.row_lse[l] - y) / 2 + (rows.column_lse[l] - y) / 2;
  }
}

// z [n, lp] = U S^T becomes dZ (0 in padded lanes); fills alpha and beta (rows.b).
template <class T>
void cross_entropies_backward(T* z, int64_t n, int64_t lp, T scale, const TokenLogits<T>& rows) {
  constexpr int kN = kGranule<T>;
  Vec<T, kN> lane;
  for (int i = 0; i < kN; ++i) lane[i] = static_cast<T>(i);
  for (int64_t l = 0; l < n; ++l) {
    T* row = z + l * lp;
    const T half_w = rows.a[l], inv_group = rows.inv_group[l], row_lse = rows.row_lse[l];
    Vec<T, kN> dot = {};
    for (int64_t j = 0; j < lp; j += kN) {
      const Vec<T, kN> inv_token = load<kN>(rows.inv_token + j);
      // as in the forward, to the bit: a caption of one token then has a gradient of exactly 0
      const Vec<T, kN> cosine = load<kN>(row + j) * (inv_group * inv_token);
      const Vec<T, kN> y = cosine * scale + load<kN>(rows.exclude + j);
      Vec<T, kN> dy = exp_vec<kN>(y - row_lse) * half_w +
                      exp_vec<kN>(y - load<kN>(rows.column_lse + j)) * load<kN>(rows.a + j);
      dy = lane == static_cast<T>(l - j) ? dy - 2 * half_w : dy;
      const Vec<T, kN> weighted = cosine * dy;
      dot += weighted;
      store(rows.b + j, load<kN>(rows.b + j) + weighted);
      store(row + j, dy * inv_token * (scale * inv_group));
    }
    rows.alpha[l] = scale * sum_lanes<T>(dot) * inv_group * inv_group;
  }
  for (int64_t j = 0; j < n; ++j) rows.b[j] *= scale * rows.inv_token[j] * rows.inv_token[j];
}

}  // namespace SPARC_ISA
}  // namespace sparc
