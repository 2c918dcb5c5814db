// The iterations of one pair, on similarities [p, lp] of its patches with its tokens. Compiled once per
// instruction set. Names follow MATH.md.
//
// Steps are done in linear scale, where one costs two multiply-adds an entry and no exponential, for as long
// as that is exact: K = exp(t S + f + g) is made from the potentials (logarithms) at some step, later ones
// take it times factors u [n] of the tokens and v [p] of the patches. An entry that ran below kTiny counts as
// 0; whatever it was grew by at most max u max v since, so as long as that product stays below kLimit all
// such entries together are less than a rounding of any sum they are missing from. Beyond, K is made anew
// from the potentials, which know what the entries really are; and where that does not carry one step (small
// beta), the step is done in logarithms.
#pragma once

#include "common/operands.h"

namespace sparc {
namespace SPARC_ISA {

template <class Acc>
constexpr Acc kTiny = Acc(1e-37);
template <>
constexpr double kTiny<double> = 1e-300;
template <class Acc>
constexpr Acc kLimit = Acc(1e24);
template <>
constexpr double kLimit<double> = 1e240;
// Of S / beta: beyond, no attempt at a linear step is made.
constexpr int kMostRange = 40;
// Logarithm of a factor that is 0, far enough from overflow to be added to.
constexpr float kNothing = -1e30f;

struct TransportSizes {
  int64_t n, p, lp;  // valid tokens, valid patches, tokens padded to the granule
};

struct TransportSchedule {
  double beta;
  int64_t iterations;
  bool proximal;
};

// t of the kernel exp(t S) of a step.
inline double steepness(const TransportSchedule& schedule, int64_t step) {
  return (schedule.proximal ? static_cast<double>(step) : 1.0) / schedule.beta;
}

SPARC_INLINE float log_of(float x) { return __builtin_logf(x); }
SPARC_INLINE double log_of(double x) { return __builtin_log(x); }
SPARC_INLINE float exp_of(float x) { return __builtin_expf(x); }
SPARC_INLINE double exp_of(double x) { return __builtin_exp(x); }

template <class Acc>
struct TransportBuffers {
  TransportSizes s;
  const Acc* similarities;  // [p, lp], 0 in the padding
  Acc* kernel;              // [p, lp] K
  Acc* factor;  // [p, lp] exp((S - max S) / beta), by which K of a proximal step differs from the last's
  Acc *f, *f_before;     // [lp] logarithms of the tokens' scalings, of the last step and the one before
  Acc *u, *u_before;     // [lp] the same as factors since K was made
  Acc *start, *sums;     // [lp]
  Acc *g, *v;            // [p] the same of the patches: logarithms, factors
  Acc *kept_u, *kept_v;  // [lp], [p] u_before and v before a step that may not be exact

  static constexpr int kN = kGranule<Acc>;
  using V = Vec<Acc, kN>;

  // False where a similarity is not finite.
  bool range(Acc& least, Acc& most) const {
    V low = splat<kN>(similarities[0]), high = low, rest = {};
    for (int64_t i = 0; i < s.p; ++i) {
      for (int64_t l = 0; l < s.lp; l += kN) {
        const V x = load<kN>(similarities + i * s.lp + l);
        low = x < low ? x : low;  // with the zeros of the padding: a wider range does no harm
        high = x > high ? x : high;
        rest += x - x;
      }
    }
    least = -max_lanes<Acc>(-low);
    most = max_lanes<Acc>(high);
    return sum_lanes<Acc>(rest) == 0;
  }

  // exp(t S + g + f), in the order in which f was found, so that rows sum to 1 / n whatever the size of the
  // terms.
  SPARC_INLINE V plan(Acc t, int64_t i, int64_t l) const {
    return exp_vec<kN>((load<kN>(similarities + i * s.lp + l) * t + g[i]) + load<kN>(f + l));
  }

  // K of the potentials.
  void make_kernel(Acc t) {
    for (int64_t i = 0; i < s.p; ++i) {
      for (int64_t l = 0; l < s.lp; l += kN) {
        store(kernel + i * s.lp + l, plan(t, i, l));
      }
    }
  }

  void make_factor(Acc t, Acc most) {
    for (int64_t i = 0; i < s.p * s.lp; i += kN) {
      store(factor + i, exp_vec<kN>((load<kN>(similarities + i) - most) * t));
    }
  }

  // v = 1 / (m K start), and K^T v into `sums`, some patches at a time.
  template <int kRows, bool kProximal>
  void scale_rows(int64_t i, Acc& most) {
    Acc* const rows = kernel + i * s.lp;
    const Acc* const factors = factor + i * s.lp;
    V total[kRows] = {};
    for (int64_t l = 0; l < s.lp; l += kN) {
      const V from = load<kN>(start + l);
      SPARC_UNROLL for (int r = 0; r < kRows; ++r) {
        V x = load<kN>(rows + r * s.lp + l);
        if constexpr (kProximal) {
          x *= load<kN>(factors + r * s.lp + l);
          x = x < kTiny<Acc> ? V{} : x;  // numbers below the normal range would take a hundred times as long
          store(rows + r * s.lp + l, x);
        }
        total[r] += x * from;
      }
    }
    Acc scale[kRows];
    SPARC_UNROLL for (int r = 0; r < kRows; ++r) {
      scale[r] = v[i + r] = 1 / (static_cast<Acc>(s.p) * sum_lanes<Acc>(total[r]));
      most = scale[r] > most ? scale[r] : most;
    }
    for (int64_t l = 0; l < s.lp; l += kN) {
      V sum = load<kN>(sums + l);
      SPARC_UNROLL for (int r = 0; r < kRows; ++r) sum += scale[r] * load<kN>(rows + r * s.lp + l);
      store(sums + l, sum);
    }
  }

  // One step on K; false where it may not be exact, and u and v are then as they were.
  template <bool kProximal>
  bool linear_step() {
    Acc top = 0;
    for (int64_t l = 0; l < s.n; ++l) {
      start[l] = kProximal ? u[l] * (u[l] / u_before[l]) : u[l];
      top = start[l] > top ? start[l] : top;
      kept_u[l] = u_before[l];
    }
    for (int64_t i = 0; i < s.p; ++i) kept_v[i] = v[i];
    for (int64_t l = 0; l < s.n; ++l) start[l] /= top;  // a common factor changes nothing but the range
    for (int64_t l = s.n; l < s.lp; ++l) start[l] = 0;
    for (int64_t l = 0; l < s.lp; ++l) sums[l] = 0;
    Acc most_v = 0, most_u = 0, total_u = 0;
    int64_t i = 0;
    for (; i + 4 <= s.p; i += 4) scale_rows<4, kProximal>(i, most_v);
    for (; i < s.p; ++i) scale_rows<1, kProximal>(i, most_v);
    for (int64_t l = 0; l < s.n; ++l) {
      u_before[l] = u[l];
      u[l] = 1 / (static_cast<Acc>(s.n) * sums[l]);
      total_u += u[l];  // NaN of a product of 0 and infinity reaches every u
      most_u = u[l] > most_u ? u[l] : most_u;
    }
    if (most_v < kLimit<Acc> && total_u < kLimit<Acc> && most_u * most_v < kLimit<Acc>) return true;
    for (int64_t l = 0; l < s.n; ++l) {
      u[l] = u_before[l];
      u_before[l] = kept_u[l];
    }
    for (int64_t x = 0; x < s.p; ++x) v[x] = kept_v[x];
    return false;
  }

  // One step in logarithms, whatever the range.
  void log_step(Acc t, bool proximal) {
    for (int64_t l = 0; l < s.n; ++l) {
      start[l] = proximal ? 2 * f[l] - f_before[l] : f[l];
      f_before[l] = f[l];
    }
    for (int64_t l = s.n; l < s.lp; ++l) start[l] = kNothing;
    const Acc log_p = log_of(static_cast<Acc>(s.p));
    for (int64_t i = 0; i < s.p; ++i) {
      const Acc* const row = similarities + i * s.lp;
      V top = splat<kN>(Acc(2 * kNothing)), total = {};
      for (int64_t l = 0; l < s.lp; l += kN) {
        const V x = load<kN>(row + l) * t + load<kN>(start + l);
        top = x > top ? x : top;
      }
      const Acc most = max_lanes<Acc>(top);
      for (int64_t l = 0; l < s.lp; l += kN) {
        total += exp_vec<kN>((load<kN>(row + l) * t + load<kN>(start + l)) - most);
      }
      g[i] = -log_p - most - log_of(sum_lanes<Acc>(total));
    }
    log_tokens(t);
  }

  // f of g: the second half of a step.
  void log_tokens(Acc t) {
    const Acc log_n = log_of(static_cast<Acc>(s.n));
    for (int64_t l = 0; l < s.lp; l += kN) {
      V top = splat<kN>(Acc(2 * kNothing)), total = {};
      for (int64_t i = 0; i < s.p; ++i) {
        const V x = load<kN>(similarities + i * s.lp + l) * t + g[i];
        top = x > top ? x : top;
      }
      for (int64_t i = 0; i < s.p; ++i) {
        total += exp_vec<kN>((load<kN>(similarities + i * s.lp + l) * t + g[i]) - top);
      }
      for (int64_t x = l; x < smaller(l + kN, s.n); ++x) f[x] = -log_n - top[x - l] - log_of(total[x - l]);
    }
  }

  // Steps after `step`, until one may not be exact; the potentials are those of the last one then. How many.
  template <bool kProximal>
  int64_t linear_steps(const TransportSchedule& schedule, int64_t step, Acc most) {
    make_kernel(static_cast<Acc>(steepness(schedule, step)));
    for (int64_t l = 0; l < s.n; ++l) {
      u[l] = 1;
      u_before[l] = kProximal ? exp_of(f_before[l] - f[l] - (f_before[0] - f[0])) : Acc(1);
    }
    int64_t done = 0;
    while (step + done < schedule.iterations && linear_step<kProximal>()) ++done;
    if (done == 0) return 0;
    for (int64_t l = 0; l < s.n; ++l) {
      f_before[l] = f[l] + log_of(u_before[l]);
      f[l] += log_of(u[l]);
    }
    const Acc shift = kProximal ? static_cast<Acc>(static_cast<double>(done) / schedule.beta) * most : Acc(0);
    for (int64_t i = 0; i < s.p; ++i) g[i] += log_of(v[i]) - shift;
    return done;
  }

  // f and g of all steps; f is kNothing in the padding. False where a similarity is not finite.
  bool solve(const TransportSchedule& schedule) {
    Acc least, most;
    if (!range(least, most)) return false;
    for (int64_t l = 0; l < s.lp; ++l) f[l] = f_before[l] = l < s.n ? Acc(0) : Acc(kNothing);
    const bool narrow = static_cast<double>(most - least) <= kMostRange * schedule.beta;
    if (narrow && schedule.proximal) make_factor(static_cast<Acc>(1 / schedule.beta), most);
    for (int64_t step = 0; step < schedule.iterations;) {
      int64_t done = 0;
      if (narrow && step > 0) {
        done = schedule.proximal ? linear_steps<true>(schedule, step, most)
                                 : linear_steps<false>(schedule, step, most);
      }
      step += done;
      if (done == 0) log_step(static_cast<Acc>(steepness(schedule, ++step)), schedule.proximal);
    }
    // Factors of many steps leave roundings in f; those of g then are the marginals of the patches alone.
    log_tokens(static_cast<Acc>(steepness(schedule, schedule.iterations)));
    return true;
  }
};

}  // namespace SPARC_ISA
}  // namespace sparc
