// Alignment weights by a softmax over the patches, A = softmax_p(scale * S), and back, compiled once per
// instruction set. Matrices are stored as in weights.h.
#pragma once

#include "common/gemm.h"

namespace sparc {
namespace SPARC_ISA {

// Per token, [lp] each; padded lanes have weights 0.
template <class T>
struct SoftmaxRows {
  T* max;      // of the similarities
  T* sum;      // of exp(scale * (s - max))
  T* inverse;  // 1 / sum; 0 in padded lanes

  template <class Arena>
  SoftmaxRows(Arena& arena, int64_t lp)
      : max(arena.template take<T>(lp)),
        sum(arena.template take<T>(lp)),
        inverse(arena.template take<T>(lp)) {}

  static constexpr bool kNanWithoutPatches = false;
  const T* first_statistic() const { return max; }
  const T* second_statistic() const { return sum; }
};

// out [p, lp] = exp(scale * (st - maximum of its column)), and their sums.
template <class T>
void exponentiate_rows(const T* st, int64_t p, int64_t n, int64_t lp, T scale, const SoftmaxRows<T>& rows,
                       T* out) {
  constexpr int kN = kGranule<T>;
  for (int64_t l = 0; l < lp; l += kN) {
    Vec<T, kN> high = load<kN>(st + l);
    for (int64_t i = 1; i < p; ++i) {
      const Vec<T, kN> s = load<kN>(st + i * lp + l);
      high = s > high ? s : high;
    }
    Vec<T, kN> total = {};
    for (int64_t i = 0; i < p; ++i) {
      const Vec<T, kN> weight = exp_vec<kN>((load<kN>(st + i * lp + l) - high) * scale);
      total += weight;
      store(out + i * lp + l, weight);
    }
    store(rows.max + l, high);
    store(rows.sum + l, total);
  }
  for (int64_t l = 0; l < lp; ++l) rows.inverse[l] = l < n ? 1 / rows.sum[l] : T{0};
}

// ut [p, lp] = A^T from exponentials [p, lp]; rounded, and written beyond column n, as by `weigh`.
template <bool kRound, class T>
void normalise_rows(const T* exponentials, int64_t p, int64_t lp, const SoftmaxRows<T>& rows, Matrix<T> ut) {
  constexpr int kN = kGranule<T>;
  for (int64_t l = 0; l < lp; l += kN) {
    const Vec<T, kN> inverse = load<kN>(rows.inverse + l);
    for (int64_t i = 0; i < p; ++i) {
      Vec<T, kN> a = load<kN>(exponentials + i * lp + l) * inverse;
      if constexpr (kRound) a = round_to_bf16<kN>(a);
      store(ut.data + i * ut.ld + l, a);
    }
  }
}

// da [p, lp], the derivative with respect to A^T, becomes the one with respect to S^T. `dot` is 0 but for
// rounding. What stands in lanes beyond column n of `at` is no weight.
template <class T>
void softmax_to_similarities(Matrix<T> at, int64_t p, int64_t lp, T scale, const SoftmaxRows<T>& rows,
                             T* da) {
  constexpr int kN = kGranule<T>;
  for (int64_t l = 0; l < lp; l += kN) {
    const Vec<T, kN> inverse = load<kN>(rows.inverse + l);
    Vec<T, kN> dot = {};
    for (int64_t i = 0; i < p; ++i) dot += load<kN>(at.data + i * at.ld + l) * load<kN>(da + i * lp + l);
    for (int64_t i = 0; i < p; ++i) {
      const Vec<T, kN> ds = load<kN>(at.data + i * at.ld + l) * (load<kN>(da + i * lp + l) - dot) * scale;
      store(da + i * lp + l, inverse == T{0} ? Vec<T, kN>{} : ds);
    }
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
