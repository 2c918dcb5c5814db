// Matrix products of one warp: fragments of operands in shared memory, and c += a b with float32 sums.
//
// A policy names the dtype of the operands, the depth of one instruction, and how fragments are loaded from a
// tile, as it lies ("rows are m" or "rows are n") or transposed ("rows are k"); offsets come in the tile's
// order. Sums c [16, 8] are laid over the lanes as PTX does for m16n8: lane i holds rows i / 4 and i / 4 + 8,
// columns 2 (i % 4) and the next.
#pragma once

#include <type_traits>

#include "common/device.cuh"

namespace sparc {

// Rows of shared memory; 16 bytes between them keep ldmatrix free of bank conflicts. `Self` tells the offset
// in bytes from the start of the block's shared memory, and the pitch in elements.
template <class E, class Self>
struct TileRows {
  static constexpr int kPad = 16 / sizeof(E);

  SPARC_DEVICE device::Shared<E> at(int row, int column) const {
    return device::shared_at<E>(self().offset) + (row * self().pitch + column);
  }
  // Two elements from an even column on.
  SPARC_DEVICE device::Shared<uint32_t> word_at(int row, int column) const {
    return device::shared_at<uint32_t>(self().offset) + (row * self().pitch + column) / 2;
  }
  // Rows that products over `count` rows read.
  SPARC_DEVICE static int rows_for(int count) { return (count + 15) / 16 * 16; }
  // Elements between rows that lie `rows` apart, a multiple of 16.
  SPARC_DEVICE int rows_apart(int rows) const { return rows * self().pitch; }
  SPARC_DEVICE void set(int row, int column, float value) const {
    *at(row, column) = device::from_float<E>(value);
  }
  SPARC_DEVICE float get(int row, int column) const {
    return device::to_float(static_cast<E>(*at(row, column)));
  }

 private:
  SPARC_DEVICE const Self& self() const { return *static_cast<const Self*>(this); }
};

// With a pitch that is known when it is compiled: rows then cost no instruction.
template <class E, int kPitch = 0>
struct Tile : TileRows<E, Tile<E, kPitch>> {
  static constexpr int pitch = kPitch;
  int offset;

  SPARC_DEVICE explicit Tile(int offset_) : offset(offset_) {}
};

template <class E>
struct Tile<E, 0> : TileRows<E, Tile<E, 0>> {
  int offset, pitch;

  SPARC_DEVICE Tile() {}
  SPARC_DEVICE Tile(int offset_, int pitch_) : offset(offset_), pitch(pitch_) {}
};

using Sums = float[2][4];  // [16, 16]: two neighbouring results of m16n8

// bfloat16 and float16 on the matrix units.
template <class E>
struct HalfProducts {
  using Element = E;
  static constexpr int kDepth = 16;

  struct A {
    uint32_t r[4];
  };
  struct B {  // sixteen columns
    uint32_t r[4];
  };

  // [16, kDepth] at (m, k) of a tile [m, k]
  template <class From>
  SPARC_DEVICE static A load_a(const From& tile, int m, int k) {
    const int i = device::lane_index();
    A a;
    device::load_matrices(a.r, device::address_of(tile.at(m + i % 16, k + i / 16 * 8)));
    return a;
  }
  // the same of a tile [k, m]
  template <class From>
  SPARC_DEVICE static A load_a_transposed(const From& tile, int k, int m) {
    const int i = device::lane_index();
    A a;
    device::load_matrices_transposed(a.r,
                                     device::address_of(tile.at(k + i % 8 + i / 16 * 8, m + i / 8 % 2 * 8)));
    return a;
  }
  // [kDepth, 16] at (k, n) of a tile [n, k]
  template <class From>
  SPARC_DEVICE static B load_b(const From& tile, int n, int k) {
    const int i = device::lane_index();
    B b;
    device::load_matrices(b.r, device::address_of(tile.at(n + i % 8 + i / 16 * 8, k + i / 8 % 2 * 8)));
    return b;
  }
  // the same of a tile [k, n]
  template <class From>
  SPARC_DEVICE static B load_b_transposed(const From& tile, int k, int n) {
    const int i = device::lane_index();
    B b;
    device::load_matrices_transposed(b.r, device::address_of(tile.at(k + i % 16, n + i / 16 * 8)));
    return b;
  }

  SPARC_DEVICE static void multiply_add(Sums& c, const A& a, const B& b) {
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const uint32_t columns[2] = {b.r[2 * half], b.r[2 * half + 1]};
      instruction(c[half], a.r, columns);
    }
  }

  // [16, kDepth] transposed, as a right operand.
  SPARC_DEVICE static B transposed(const A& a) { return {{a.r[0], a.r[2], a.r[1], a.r[3]}}; }

  // Sums [16, 16] as the left operand of a next product, without a way through memory: both are laid over the
  // lanes alike. `rest` takes what rounding leaves.
  SPARC_DEVICE static A as_operand(const Sums& c) {
    return {{device::pack<E>(c[0][0], c[0][1]), device::pack<E>(c[0][2], c[0][3]),
             device::pack<E>(c[1][0], c[1][1]), device::pack<E>(c[1][2], c[1][3])}};
  }
  SPARC_DEVICE static A rest_as_operand(const Sums& c) {
    Sums rest;
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {
      SPARC_UNROLL
      for (int i = 0; i < 4; ++i) {
        rest[half][i] = c[half][i] - device::to_float(device::from_float<E>(c[half][i]));
      }
    }
    return as_operand(rest);
  }

 private:
  SPARC_DEVICE static void instruction(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (std::is_same<E, BFloat16>::value) {
      device::multiply_add_bf16(c, a, b);
    } else {
      device::multiply_add_f16(c, a, b);
    }
  }
};

// Operands of float32, element by element: Layout::gather_a(get) and gather_b(get) ask get(row or column,
// depth) for those that a lane holds.
template <class Layout>
struct GatheredOperands {
  using Element = float;

  template <class From>
  SPARC_DEVICE static auto load_a(const From& tile, int m, int k) {
    return Layout::gather_a([&](int row, int depth) -> float { return *tile.at(m + row, k + depth); });
  }
  template <class From>
  SPARC_DEVICE static auto load_a_transposed(const From& tile, int k, int m) {
    return Layout::gather_a([&](int row, int depth) -> float { return *tile.at(k + depth, m + row); });
  }
  template <class From>
  SPARC_DEVICE static auto load_b(const From& tile, int n, int k) {
    return Layout::gather_b([&](int column, int depth) -> float { return *tile.at(n + column, k + depth); });
  }
  template <class From>
  SPARC_DEVICE static auto load_b_transposed(const From& tile, int k, int n) {
    return Layout::gather_b([&](int column, int depth) -> float { return *tile.at(k + depth, n + column); });
  }
};

// float32 in three products of tf32: the rounded operands, and each of them with what rounding the other
// leaves. About 2^-21 of relative error per product, and float32 sums.
struct Tf32Products : GatheredOperands<Tf32Products> {
  static constexpr int kDepth = 8;

  struct A {
    uint32_t big[4], small[4];
  };
  struct B {
    uint32_t big[2][2], small[2][2];
  };

  template <class Get>
  SPARC_DEVICE static A gather_a(const Get& get) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    A a;
    SPARC_UNROLL
    for (int i = 0; i < 4; ++i) split(get(g + i % 2 * 8, t + i / 2 * 4), a.big[i], a.small[i]);
    return a;
  }
  template <class Get>
  SPARC_DEVICE static B gather_b(const Get& get) {
    const int g = device::lane_index() / 4, t = device::lane_index() % 4;
    B b;
    SPARC_UNROLL
    for (int i = 0; i < 4; ++i) {
      split(get(g + i / 2 * 8, t + i % 2 * 4), b.big[i / 2][i % 2], b.small[i / 2][i % 2]);
    }
    return b;
  }

  SPARC_DEVICE static void multiply_add(Sums& c, const A& a, const B& b) {
    SPARC_UNROLL
    for (int half = 0; half < 2; ++half) {  // small terms first
      device::multiply_add_tf32(c[half], a.small, b.big[half]);
      device::multiply_add_tf32(c[half], a.big, b.small[half]);
      device::multiply_add_tf32(c[half], a.big, b.big[half]);
    }
  }

 private:
  SPARC_DEVICE static void split(float x, uint32_t& big, uint32_t& small) {
    big = device::round_to_tf32(x);
    small = device::round_to_tf32(x - device::bits_to_float(big));
  }
};

// float32 in plain fused multiply-adds, each lane on the four columns and two rows whose sums it holds.
struct Float32Products : GatheredOperands<Float32Products> {
  static constexpr int kDepth = 4;

  struct A {
    float x[2][kDepth];  // rows g and g + 8
  };
  struct B {
    float x[4][kDepth];  // columns 2 t, 2 t + 1, and both + 8
  };

  SPARC_DEVICE static void multiply_add(Sums& c, const A& a, const B& b) {
    SPARC_UNROLL
    for (int depth = 0; depth < kDepth; ++depth) {
      SPARC_UNROLL
      for (int i = 0; i < 8; ++i) {
        float& sum = c[i / 4][i % 4];
        sum = device::fused_multiply_add(a.x[i % 4 / 2][depth], b.x[i / 4 * 2 + i % 2][depth], sum);
      }
    }
  }

  template <class Get>
  SPARC_DEVICE static A gather_a(const Get& get) {
    const int g = device::lane_index() / 4;
    A a;
    SPARC_UNROLL
    for (int i = 0; i < 2 * kDepth; ++i) a.x[i / kDepth][i % kDepth] = get(g + i / kDepth * 8, i % kDepth);
    return a;
  }
  template <class Get>
  SPARC_DEVICE static B gather_b(const Get& get) {
    const int t = device::lane_index() % 4;
    B b;
    SPARC_UNROLL
    for (int i = 0; i < 4 * kDepth; ++i) {
      const int column = i / kDepth;
      b.x[column][i % kDepth] = get(2 * t + column % 2 + column / 2 * 8, i % kDepth);
    }
    return b;
  }
};

// Calls f(row, value) in the lanes that hold the diagonal of sums [16, 16].
template <class F>
SPARC_DEVICE void for_diagonal(const Sums& c, const F& f) {
  const int g = device::lane_index() / 4;
  if (device::lane_index() % 4 != g / 2) return;
  f(g, g % 2 == 0 ? c[0][0] : c[0][1]);
  f(g + 8, g % 2 == 0 ? c[1][2] : c[1][3]);
}

// The rows and columns of the sums c[half][i] that this lane holds, within [16, 16].
SPARC_DEVICE int sum_row(int i) { return device::lane_index() / 4 + i / 2 * 8; }
SPARC_DEVICE int sum_column(int half, int i) { return half * 8 + device::lane_index() % 4 * 2 + i % 2; }

}  // namespace sparc
