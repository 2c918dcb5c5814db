// The end of a tile of products by warpgroups: sums over softplus and what its gradient needs, as
// whole_softplus of sparc_kernels/ops/contrastive/triton_whole.py makes them, by other instructions.
#pragma once

#include "common/warpgroup.cuh"

namespace sparc {

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;
constexpr float kLargestFloat16 = 65504.0f;

// Columns lie in a block's panels in another order, in which a thread has eight neighbours of each 32: 16
// bytes of G's row. The accumulators give it two of each eight.
SPARC_DEVICE int column_at(int place) {
  return (place & ~31) | (place >> 1 & 3) * 8 | (place >> 3 & 3) * 2 | (place & 1);
}

// Four neighbouring columns' inverse norms, and eight numbers of a row of G.
struct alignas(16) FourFactors {
  float of[4];
};
struct alignas(16) EightNumbers {
  uint32_t words[4];
};

// log2(1 + p), exact for small p: p times triton_whole.py's polynomial of log(1 + u) / u on [0, 1] there.
SPARC_DEVICE float log2_of_product(float p) {
  const float u = device::min(p, 1.0f);
  float poly = device::fused_multiply_add(u, 0.005232705734670162f, -0.029505284503102303f);
  poly = device::fused_multiply_add(poly, u, 0.07822602987289429f);
  poly = device::fused_multiply_add(poly, u, -0.1366325169801712f);
  poly = device::fused_multiply_add(poly, u, 0.19106009602546692f);
  poly = device::fused_multiply_add(poly, u, -0.24842983484268188f);
  poly = device::fused_multiply_add(poly, u, 0.3331909775733948f);
  poly = device::fused_multiply_add(poly, u, -0.4999949336051941f);
  poly = device::fused_multiply_add(poly, u, 0.9999999403953552f);
  return p < 1.0f ? poly * u * kLog2E : device::fast_log2(1.0f + p);
}

// What a thread knows of its two rows of a tile, eight apart.
struct TwoRows {
  int row[2];
  float inverse[2], weight[2];
  float scale, bias, power;
};
// What is made of it: numbers that a raw product is multiplied with, beside the column's inverse norm, for
// the logit and for G; the bias. To the base 2, as logits are.
struct RowFactors {
  float logit[2], gradient[2], bias;

  SPARC_DEVICE explicit RowFactors(const TwoRows& rows) : bias(rows.bias * kLog2E) {
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      logit[r] = rows.inverse[r] * (rows.scale * kLog2E);
      gradient[r] = rows.inverse[r] * rows.scale * rows.weight[r] * rows.power;
    }
  }
};

// Sums over a thread's columns of those rows. The product of all 1 + 2^z, less 1, so that small numbers stay;
// s, the sigmoid; s times the cosine over the row's inverse norm.
struct TileSums {
  float product[2] = {0.0f, 0.0f}, values[2] = {0.0f, 0.0f}, sigmoids[2] = {0.0f, 0.0f},
        slopes[2] = {0.0f, 0.0f};

  // Whether no product has left float32. NaN is not: it is told apart where all is computed with care.
  SPARC_DEVICE bool within() const {
    constexpr float kMost = 0x1p120f;
    return (product[0] < kMost) & (product[1] < kMost);
  }
  // Of log2(1 + 2^z).
  SPARC_DEVICE float value(int r) const { return values[r] + log2_of_product(product[r]); }
};

// Adds a pair: its sigmoid. 2^z and their product may leave float32.
SPARC_DEVICE float add_pair(TileSums& sums, int r, float z) {
  const float w = device::fast_exp2(z), grown = 1.0f + w;
  sums.product[r] = device::fused_multiply_add(sums.product[r], grown, w);
  return device::product(w, device::fast_reciprocal(grown));
}
// The same of u = 2^-|z|, which never leaves it; z may be -infinity.
SPARC_DEVICE float add_pair_with_care(TileSums& sums, int r, float z) {
  const float u = device::fast_exp2(-device::abs(z)), grown = 1.0f + u;
  sums.product[r] = device::fused_multiply_add(sums.product[r], grown, u);
  sums.values[r] += device::max(z, 0.0f);
  return device::product(z < 0.0f ? u : 1.0f, device::fast_reciprocal(grown));
}

template <class E>
SPARC_DEVICE float within_range(float g) {
  if constexpr (kIsFloat16<E>) return device::min(device::max(g, -kLargestFloat16), kLargestFloat16);
  return g;
}

// All of a thread's pairs of a tile. Where kCareful, partners(r, column) is asked which of eight columns from
// that one on take part, a bit each; store(r, column, eight numbers) stores what these have of G.
template <class E, int kN, bool kCareful, class Partners, class Store>
SPARC_DEVICE TileSums end_of_tile(const float (&c)[kN / 2], const RowFactors& rows,
                                  device::Shared<FourFactors> factors, const Partners& partners,
                                  const Store& store) {
  TileSums sums;
  const int quad = device::lane_index() & 3;
  SPARC_UNROLL
  for (int group = 0; group < kN / 32; ++group) {
    const int column = group * 32 + quad * 8;
    const FourFactors four[2] = {factors[column / 4], factors[column / 4 + 1]};
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      EightNumbers eight;
      const uint32_t part = kCareful ? partners(r, device::made_here(column)) : 0;
      SPARC_UNROLL
      for (int word = 0; word < 4; ++word) {
        float g[2];
        SPARC_UNROLL
        for (int i = 0; i < 2; ++i) {
          const float x = c[16 * group + 4 * word + 2 * r + i], factor = four[word / 2].of[word % 2 * 2 + i];
          float z = device::fused_multiply_add(device::product(x, factor), rows.logit[r], rows.bias);
          float s;
          if constexpr (kCareful) {
            if ((part >> (2 * word + i) & 1) == 0) z = -device::infinity();
            s = add_pair_with_care(sums, r, z);
          } else {
            s = add_pair(sums, r, z);
          }
          sums.sigmoids[r] += s;
          const float scaled = device::product(s, factor);
          sums.slopes[r] = device::fused_multiply_add(scaled, x, sums.slopes[r]);
          g[i] = within_range<E>(device::product(scaled, rows.gradient[r]));
        }
        eight.words[word] = device::pack<E>(g[0], g[1]);
      }
      store(r, column, eight);
    }
  }
  return sums;
}

}  // namespace sparc
