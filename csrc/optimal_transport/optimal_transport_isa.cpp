// Forward and backward of one pair, compiled once per instruction set. Names follow MATH.md.
#include "common/rows.h"
#include "optimal_transport/iterations.h"
#include "optimal_transport/optimal_transport.h"
#include "pairs/pair_buffers.h"

namespace sparc {
namespace SPARC_ISA {

template <class Acc, class Elem>
Acc inverse_norm(const Elem* row, int64_t width) {
  constexpr int kN = kGranule<Acc>;
  Vec<Acc, kN> total = {};
  for (int64_t x = 0; x < width; x += kN) {
    const Vec<Acc, kN> part = load_numbers<kN>(row + x);
    total += part * part;
  }
  return inverse_of_norm(sum_lanes<Acc>(total));
}

template <class E>
struct PairTransport : PairBuffers<E> {
  using Acc = typename E::Acc;
  using Elem = typename E::Elem;
  using Base = PairBuffers<E>;
  using Base::s;
  static constexpr int kN = kGranule<Acc>;

  Acc *token_inverse, *patch_inverse;  // [lp], 0 in the padding; [p]
  TransportBuffers<Acc> iterations;
  Acc *token_share, *patch_share;  // [lp], [p] sum of W S
  Acc* image_product;              // [p, dp]

  PairTransport(Arena& arena, const PaddedSizes<E>& sizes)
      : Base(arena, sizes),
        token_inverse(arena.take<Acc>(s.lp)),
        patch_inverse(arena.take<Acc>(s.p)),
        iterations(),
        token_share(arena.take<Acc>(s.lp)),
        patch_share(arena.take<Acc>(s.p)),
        image_product(arena.take<Acc>(s.p * s.dp)) {
    iterations.s = {s.n, s.p, s.lp};
    iterations.similarities = Base::sim_t;
    iterations.kernel = Base::grad_t;
    iterations.factor = Base::factors;
    for (Acc** each : {&iterations.f, &iterations.f_before, &iterations.u, &iterations.u_before,
                       &iterations.start, &iterations.sums, &iterations.kept_u}) {
      *each = arena.take<Acc>(s.lp);
    }
    for (Acc** each : {&iterations.g, &iterations.v, &iterations.kept_v}) *each = arena.take<Acc>(s.p);
  }

  // S [p, lp], 0 in the padding.
  template <class In>
  void measure(const TransportPair& pair) {
    Base::template load<In>(pair.patches, pair.tokens);
    Base::against_image(Base::rows, Base::sim_t, false);
    fill(token_inverse, s.lp, Acc{0});
    for (int64_t l = 0; l < s.n; ++l) {
      token_inverse[l] = inverse_norm<Acc>(Base::rows + l * s.dp, s.dp);
    }
    for (int64_t i = 0; i < s.p; ++i) {
      patch_inverse[i] = inverse_norm<Acc>(Base::image.rows.data + i * Base::image.rows.ld, s.dp);
      Acc* const row = Base::sim_t + i * s.lp;
      for (int64_t l = 0; l < s.lp; l += kN) {
        store(row + l, load<kN>(row + l) * (load<kN>(token_inverse + l) * patch_inverse[i]));
      }
    }
  }

  // What a gradient of a row leaves when what goes along the row itself is taken out.
  template <class In>
  void write_row(const Acc* product, const Elem* row, Acc share, Acc inverse, In* out) const {
    const Acc along = inverse < Acc(kInverseOfZero) ? share * inverse * inverse : Acc(0);
    for (int64_t x = 0; x < s.d; ++x) out[x] = Convert<In>::from(product[x] - along * to_acc(row[x]));
  }

  template <class In>
  void write_token_gradient(In* out, const ValidRows& tokens) {
    Base::times_image({Base::grad_t, s.lp});
    for (int64_t l = 0; l < s.n; ++l) {
      write_row(Base::product + l * s.dp, Base::rows + l * s.dp, token_share[l], token_inverse[l],
                out + tokens.index[l] * s.d);
    }
  }

  template <class In>
  void write_image_gradient(In* out, const ValidRows& patches) {
    if constexpr (Base::kPacked) {
      for (int64_t i = 0; i < s.p; ++i) {
        Elem* const row = Base::factor_elems + i * s.np;
        if (s.np > s.n) row[s.n] = {};
        convert_row(Base::grad_t + i * s.lp, 1, s.n, row);
      }
      pack_rows(Base::rows, s.np, s.dp, s.dp, Base::row_units, s.dp);
      using Unit = typename E::Unit;
      gemm<typename E::Ops, ALayout::kRows>(s.p, s.dp, s.np / 2,
                                            {reinterpret_cast<const Unit*>(Base::factor_elems), s.np / 2},
                                            {Base::row_units, s.dp}, {image_product, s.dp});
    } else {
      gemm<typename E::Ops, ALayout::kRows>(s.p, s.dp, s.n, {Base::grad_t, s.lp}, {Base::rows, s.dp},
                                            {image_product, s.dp});
    }
    for (int64_t i = 0; i < s.p; ++i) {
      write_row(image_product + i * s.dp, Base::image.rows.data + i * Base::image.rows.ld, patch_share[i],
                patch_inverse[i], out + patches.index[i] * s.d);
    }
  }
};

template <class E>
size_t workspace(int64_t tokens, int64_t patches, int64_t channels) {
  Arena arena(nullptr);
  PairTransport<E> buffers(arena, PaddedSizes<E>(tokens, patches, channels));
  return arena.used();
}

template <class Acc>
Acc last_steepness(const TransportPair& pair) {
  return static_cast<Acc>(steepness({pair.beta, pair.iterations, pair.proximal}, pair.iterations));
}

template <class E>
void write_results(const TransportPair& pair, PairTransport<E>& w, bool finite) {
  using Acc = typename E::Acc;
  constexpr int kN = kGranule<Acc>;
  const auto& s = w.s;
  const auto& it = w.iterations;
  const Acc nan = static_cast<Acc>(__builtin_nan("")), t = last_steepness<Acc>(pair);
  Acc *const costs = static_cast<Acc*>(pair.costs), *const out = static_cast<Acc*>(pair.plan);
  Acc* const potentials = static_cast<Acc*>(pair.potentials);
  fill(it.sums, s.lp, Acc{0});
  for (int64_t i = 0; i < s.p; ++i) {
    potentials[pair.all_tokens + pair.patches.index[i]] = finite ? it.g[i] : nan;
    for (int64_t l = 0; l < s.lp; l += kN) {
      const Vec<Acc, kN> plan = finite ? it.plan(t, i, l) : splat<kN>(nan);
      store(it.sums + l, load<kN>(it.sums + l) + (1 - load<kN>(w.sim_t + i * s.lp + l)) * plan);
      if (!out) continue;
      for (int64_t x = l; x < smaller(l + kN, s.n); ++x) {
        out[pair.tokens.index[x] * pair.all_patches + pair.patches.index[i]] = plan[x - l];
      }
    }
  }
  for (int64_t l = 0; l < s.n; ++l) {
    potentials[pair.tokens.index[l]] = finite ? it.f[l] : nan;
    costs[pair.tokens.index[l]] = it.sums[l];
  }
}

template <class E, class In>
void transport_forward(const TransportPair& pair, void* memory) {
  using Acc = typename E::Acc;
  const int64_t n = pair.tokens.count, p = pair.patches.count;
  if (n < pair.all_tokens || p < pair.all_patches) {
    fill(static_cast<Acc*>(pair.costs), pair.all_tokens, Acc{0});
    fill(static_cast<Acc*>(pair.potentials), pair.all_tokens + pair.all_patches, Acc{0});
    if (pair.plan) fill(static_cast<Acc*>(pair.plan), pair.all_tokens * pair.all_patches, Acc{0});
  }
  if (n == 0 || p == 0) return;
  Arena arena(memory);
  PairTransport<E> w(arena, PaddedSizes<E>(n, p, pair.channels));
  w.template measure<In>(pair);
  write_results(pair, w, w.iterations.solve({pair.beta, pair.iterations, pair.proximal}));
}

// Y^T = -W a b in grad_t, and the sums of -W S along both sides, where W = grad_costs times the plan.
template <class E>
void weigh(const TransportPair& pair, PairTransport<E>& w) {
  using Acc = typename E::Acc;
  constexpr int kN = kGranule<Acc>;
  const auto& s = w.s;
  auto& it = w.iterations;
  const Acc* const potentials = static_cast<const Acc*>(pair.potentials);
  const Acc t = last_steepness<Acc>(pair);
  Acc* const upstream = it.start;
  for (int64_t l = 0; l < s.lp; ++l) {
    const int64_t token = l < s.n ? pair.tokens.index[l] : 0;
    it.f[l] = l < s.n ? potentials[token] : Acc(kNothing);
    upstream[l] = l < s.n ? -static_cast<const Acc*>(pair.grad_costs)[token * pair.grad_stride] : Acc(0);
  }
  fill(w.token_share, s.lp, Acc{0});
  for (int64_t i = 0; i < s.p; ++i) {
    it.g[i] = potentials[pair.all_tokens + pair.patches.index[i]];
    Vec<Acc, kN> share = {};
    for (int64_t l = 0; l < s.lp; l += kN) {
      const Vec<Acc, kN> weight = load<kN>(upstream + l) * it.plan(t, i, l);
      const Vec<Acc, kN> part = weight * load<kN>(w.sim_t + i * s.lp + l);
      share += part;
      store(w.token_share + l, load<kN>(w.token_share + l) + part);
      store(w.grad_t + i * s.lp + l, weight * (load<kN>(w.token_inverse + l) * w.patch_inverse[i]));
    }
    w.patch_share[i] = sum_lanes<Acc>(share);
  }
}

template <class E, class In>
void transport_backward(const TransportPair& pair, void* memory) {
  const int64_t n = pair.tokens.count, p = pair.patches.count;
  In *const grad_patches = static_cast<In*>(pair.grad_patches), *const grad_tokens =
                                                                    static_cast<In*>(pair.grad_tokens);
  const bool nothing = n == 0 || p == 0;
  if (grad_patches && (nothing || p < pair.all_patches)) {
    fill(grad_patches, pair.all_patches * pair.channels, In{});
  }
  if (grad_tokens && (nothing || n < pair.all_tokens)) {
    fill(grad_tokens, pair.all_tokens * pair.channels, In{});
  }
  if (nothing) return;
  Arena arena(memory);
  PairTransport<E> w(arena, PaddedSizes<E>(n, p, pair.channels));
  w.template measure<In>(pair);
  weigh(pair, w);
  if (grad_patches) w.write_image_gradient(grad_patches, pair.patches);
  if (grad_tokens) w.write_token_gradient(grad_tokens, pair.tokens);
}

template <class E, class In>
TransportKernel transport_kernel() {
  return {&workspace<E>, &transport_forward<E, In>, &transport_backward<E, In>};
}

}  // namespace SPARC_ISA

SPARC_KERNELS(TransportKernel, transport_kernel)

}  // namespace sparc
