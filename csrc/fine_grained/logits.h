// The two cross-entropies of a pair over its [tokens, tokens] logits (eq 6), compiled once per instruction
// set.
#pragma once

#include "common/vec.h"

namespace sparc {
namespace SPARC_ISA {

// Per token, [lp] each, 0 in padded lanes; `exclude` is 0 for tokens and -infinity for padded lanes.
template <class T>
struct LogitRows {
  T *inv_group, *inv_token;  // 1 / |C'_l|, 1 / |t_j|
  T *row_lse, *column_lse;   // rho, gamma
  T* exclude;
  T* a;  // forward: maximum of each column. backward: upstream gradient w / 2
  T* b;  // forward: sum of each column. backward: beta
  T* alpha;

  template <class Arena>
  LogitRows(Arena& arena, int64_t lp)
      : inv_group(arena.template take<T>(lp)),
        inv_token(arena.template take<T>(lp)),
        row_lse(arena.template take<T>(lp)),
        column_lse(arena.template take<T>(lp)),
        exclude(arena.template take<T>(lp)),
        a(arena.template take<T>(lp)),
        b(arena.template take<T>(lp)),
        alpha(arena.template take<T>(lp)) {}

  void clear(int64_t n, int64_t lp) const {
    for (int64_t l = 0; l < lp; ++l) {
      inv_group[l] = inv_token[l] = row_lse[l] = column_lse[l] = a[l] = b[l] = alpha[l] = 0;
      exclude[l] = l < n ? T{0} : -static_cast<T>(__builtin_inf());
    }
  }
};

inline float log_of(float x) { return __builtin_logf(x); }
inline double log_of(double x) { return __builtin_log(x); }

// z [n, lp] = U S^T becomes the logits Y; writes rho, gamma and loss_l (all [n]).
template <class T>
void cross_entropies(T* z, int64_t n, int64_t lp, T scale, const LogitRows<T>& rows, T* loss) {
  constexpr int kN = kGranule<T>;
  for (int64_t j = 0; j < lp; ++j) rows.a[j] = -static_cast<T>(__builtin_inf());
  for (int64_t l = 0; l < n; ++l) {
    T* y = z + l * lp;
    const T factor = scale * rows.inv_group[l];
    Vec<T, kN> best = splat<kN>(-static_cast<T>(__builtin_inf()));
    for (int64_t j = 0; j < lp; j += kN) {
      const Vec<T, kN> v =
          load<kN>(y + j) * (factor * load<kN>(rows.inv_token + j)) + load<kN>(rows.exclude + j);
      const Vec<T, kN> column = load<kN>(rows.a + j);
      best = v > best ? v : best;
      store(rows.a + j, v > column ? v : column);
      store(y + j, v);
    }
    const T row_max = max_lanes<T>(best);
    Vec<T, kN> total = {};
    for (int64_t j = 0; j < lp; j += kN) total += exp_vec<kN>(load<kN>(y + j) - row_max);
    rows.row_lse[l] = row_max + log_of(sum_lanes<T>(total));
  }
  for (int64_t j = 0; j < lp; j += kN) {
    const Vec<T, kN> column_max = load<kN>(rows.a + j);
    Vec<T, kN> total = {};
    for (int64_t l = 0; l < n; ++l) total += exp_vec<kN>(load<kN>(z + l * lp + j) - column_max);
    store(rows.b + j, total);
  }
  for (int64_t l = 0; l < n; ++l) {
    rows.column_lse[l] = rows.a[l] + log_of(rows.b[l]);
    const T diagonal = z[l * lp + l];
    loss[l] = (rows.row_lse[l] - diagonal) / 2 + (rows.column_lse[l] - diagonal) / 2;
  }
}

// z [n, lp] = U S^T becomes dZ (0 in padded lanes); fills alpha and beta (rows.b); returns the derivative of
// the scale.
template <class T>
T cross_entropies_backward(T* z, int64_t n, int64_t lp, T scale, const LogitRows<T>& rows) {
  constexpr int kN = kGranule<T>;
  Vec<T, kN> lane;
  for (int i = 0; i < kN; ++i) lane[i] = static_cast<T>(i);
  T grad_scale = 0;
  for (int64_t l = 0; l < n; ++l) {
    T* y = z + l * lp;
    const T half_w = rows.a[l], inv_group = rows.inv_group[l], row_lse = rows.row_lse[l],
            factor = scale * inv_group;
    Vec<T, kN> dot = {};
    for (int64_t j = 0; j < lp; j += kN) {
      const Vec<T, kN> inv_token = load<kN>(rows.inv_token + j);
      const Vec<T, kN> raw = load<kN>(y + j), cosine = raw * (inv_group * inv_token);
      // as in the forward, to the bit: a caption of one token then has a gradient of exactly 0
      const Vec<T, kN> logit = raw * (factor * inv_token) + load<kN>(rows.exclude + j);
      Vec<T, kN> dy = exp_vec<kN>(logit - row_lse) * half_w +
                      exp_vec<kN>(logit - load<kN>(rows.column_lse + j)) * load<kN>(rows.a + j);
      dy = lane == static_cast<T>(l - j) ? dy - 2 * half_w : dy;
      const Vec<T, kN> weighted = cosine * dy;
      dot += weighted;
      store(rows.b + j, load<kN>(rows.b + j) + weighted);
      store(y + j, dy * inv_token * factor);
    }
    const T row_dot = sum_lanes<T>(dot);
    grad_scale += row_dot;
    rows.alpha[l] = scale * row_dot * inv_group * inv_group;
  }
  for (int64_t j = 0; j < n; ++j) rows.b[j] *= scale * rows.inv_token[j] * rows.inv_token[j];
  return grad_scale;
}

}  // namespace SPARC_ISA
}  // namespace sparc
