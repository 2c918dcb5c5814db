// Matrix products of any size and dtype by one block, a tile of 64 x 64 results at a time, between matrices
// in global memory.
#pragma once

#include "common/block.cuh"
#include "common/products.cuh"

namespace sparc {

constexpr int kTile = 64;       // rows and columns of results
constexpr int kTileDepth = 32;  // of the operands in shared memory at a time

// A matrix in global memory, [rows, columns], to be multiplied as it lies or transposed; rows are looked up
// in `index` where `gathered`.
template <class E>
struct Operand {
  const E* data;
  int64_t row_stride, column_stride;
  int rows, columns;
  bool wide, gathered, transposed;
  device::Scratch<int> index;

  SPARC_DEVICE Operand transpose() const {
    Operand result = *this;
    result.transposed = !transposed;
    return result;
  }
  SPARC_DEVICE int64_t at(int row) const {
    return (gathered ? static_cast<int64_t>(index[row]) : static_cast<int64_t>(row)) * row_stride;
  }
  SPARC_DEVICE float get(int row, int column) const {
    return device::to_float(data[at(row) + column * column_stride]);
  }
};

// A matrix in this block's scratch, rows `pitch` apart and 16-byte aligned.
template <class T>
struct ScratchMatrix {
  device::Scratch<T> data;
  int rows, columns;
  int64_t pitch;

  SPARC_DEVICE operator Operand<T>() const {
    return {device::address_of(data), pitch, 1, rows, columns, true, false, false, {}};
  }
  SPARC_DEVICE Operand<T> transpose() const { return Operand<T>(*this).transpose(); }

  SPARC_DEVICE device::Scratch<T> row(int r) const { return data + r * pitch; }
  SPARC_DEVICE float get(int row, int column) const {
    return device::to_float(static_cast<T>(data[row * pitch + column]));
  }
  SPARC_DEVICE void operator()(int row, int column, float value) const {
    data[row * pitch + column] = device::from_float<T>(value);
  }
};

// The rows `index[0..)` of a contiguous output.
template <class E>
struct OutputRows {
  E* data;
  device::Scratch<int> index;
  int64_t columns;

  SPARC_DEVICE void operator()(int row, int column, float value) const {
    data[index[row] * columns + column] = device::from_float<E>(value);
  }
};

// a b, or between (a b) + c d.
template <class E>
struct ProductSum {
  struct Term {
    Operand<E> a, b;
  } terms[2];
  int count;
  float between;

  SPARC_DEVICE ProductSum(const Operand<E>& a, const Operand<E>& b)
      : terms{{a, b}, {a, b}}, count(1), between(1.0f) {}
  // c d only where `both`
  SPARC_DEVICE ProductSum(const Operand<E>& a, const Operand<E>& b, float between_, const Operand<E>& c,
                          const Operand<E>& d, bool both = true)
      : terms{{a, b}, {c, d}}, count(both ? 2 : 1), between(between_) {}
  SPARC_DEVICE int rows() const { return terms[0].a.transposed ? terms[0].a.columns : terms[0].a.rows; }
  SPARC_DEVICE int columns() const { return terms[0].b.transposed ? terms[0].b.rows : terms[0].b.columns; }
};

template <class E>
struct TiledLayout {
  static constexpr int kPad = Tile<E>::kPad;
  // of [64, 32] or [32, 64]
  static constexpr int kOperandBytes =
      (kTile * (kTileDepth + kPad) > kTileDepth * (kTile + kPad) ? kTile * (kTileDepth + kPad)
                                                                 : kTileDepth * (kTile + kPad)) *
      static_cast<int>(sizeof(E));
  static constexpr int kCounts = 0, kParts = kWarps * 4, kOperands = 2 * kWarps * 4;
  static constexpr int kBytes = kOperands + 4 * kOperandBytes;

  SPARC_DEVICE static Tile<E> operand(int stage, int which, bool transposed) {
    return {kOperands + (2 * stage + which) * kOperandBytes, (transposed ? kTile : kTileDepth) + kPad};
  }
};

// [rows, columns] from (row0, column0) of an operand into a tile; zeros where it ends.
template <class E>
SPARC_DEVICE void load_operand(const Operand<E>& from, int row0, int column0, int rows, int columns,
                               const Tile<E>& to) {
  constexpr int kPiece = 16 / sizeof(E);
  if (from.wide) {
    const int pieces = columns / kPiece;
    SPARC_NO_UNROLL
    for (int i = device::thread_index(); i < rows * pieces; i += kThreads) {
      const int row = i / pieces, column = i % pieces * kPiece;
      int left = row0 + row < from.rows ? from.columns - column0 - column : 0;
      left = left < 0 ? 0 : (left > kPiece ? kPiece : left);
      const E* source = left > 0 ? from.data + from.at(row0 + row) + column0 + column : from.data;
      device::copy_async(device::address_of(to.at(row, column)), source, left * static_cast<int>(sizeof(E)));
    }
  } else {
    SPARC_NO_UNROLL
    for (int i = device::thread_index(); i < rows * columns; i += kThreads) {
      const int row = i / columns, column = i % columns;
      E value{};
      if (row0 + row < from.rows && column0 + column < from.columns) {
        value = from.data[from.at(row0 + row) + (column0 + column) * from.column_stride];
      }
      *to.at(row, column) = value;
    }
  }
}

// Operand a lies in shared memory as in global memory: [m, depth] or, transposed, [depth, m]; and b [depth,
// n] or, transposed, [n, depth].
template <class E>
SPARC_DEVICE_NOINLINE void load_term(const typename ProductSum<E>::Term& term, int m0, int n0, int k0,
                                     int stage) {
  const bool a = term.a.transposed, b = !term.b.transposed;
  load_operand(term.a, a ? k0 : m0, a ? m0 : k0, a ? kTileDepth : kTile, a ? kTile : kTileDepth,
               TiledLayout<E>::operand(stage, 0, a));
  load_operand(term.b, b ? k0 : n0, b ? n0 : k0, b ? kTileDepth : kTile, b ? kTile : kTileDepth,
               TiledLayout<E>::operand(stage, 1, b));
  device::copy_async_commit();
}

// c [16, 32] of this warp += the term's tile at (m0, n0).
template <class Products>
SPARC_DEVICE void add_term(Sums (&c)[2], const typename ProductSum<typename Products::Element>::Term& term,
                           int m0, int n0) {
  using E = typename Products::Element;
  const int row = device::warp_index() % 4 * 16, column = device::warp_index() / 4 * 32;
  const bool a_across = term.a.transposed, b_across = !term.b.transposed;  // depth goes over rows
  const int depth = a_across ? term.a.rows : term.a.columns;
  const int chunks = (depth + kTileDepth - 1) / kTileDepth;
  load_term<E>(term, m0, n0, 0, 0);
  SPARC_NO_UNROLL
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    device::copy_async_wait<0>();
    device::block_barrier();
    if (chunk + 1 < chunks) load_term<E>(term, m0, n0, (chunk + 1) * kTileDepth, 1 - stage);
    const Tile<E> a = TiledLayout<E>::operand(stage, 0, a_across),
                  b = TiledLayout<E>::operand(stage, 1, b_across);
    SPARC_UNROLL
    for (int k = 0; k < kTileDepth; k += Products::kDepth) {
      const typename Products::A left =
          a_across ? Products::load_a_transposed(a, k, row) : Products::load_a(a, row, k);
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int n = column + 16 * half;
        Products::multiply_add(c[half], left,
                               b_across ? Products::load_b_transposed(b, k, n) : Products::load_b(b, n, k));
      }
    }
  }
  device::block_barrier();  // the stages are free
}

struct WarpSums {
  Sums c[2];  // [16, 32]
};

// This warp's part of the tile at (m0, n0) of a sum of products.
template <class Products>
SPARC_DEVICE_NOINLINE WarpSums accumulate(const ProductSum<typename Products::Element>& sum, int m0, int n0) {
  Sums c[2] = {};
  for (int i = 0; i < sum.count; ++i) {
    if (i == 1) {
      SPARC_UNROLL
      for (int e = 0; e < 16; ++e) c[e / 8][e / 4 % 2][e % 4] *= sum.between;
    }
    add_term<Products>(c, sum.terms[i], m0, n0);
  }
  WarpSums result;
  SPARC_UNROLL
  for (int e = 0; e < 16; ++e) result.c[e / 8][e / 4 % 2][e % 4] = c[e / 8][e / 4 % 2][e % 4];
  return result;
}

// All of a sum of products, as store(row, column, value). What it reads was written before a barrier; what
// `store` writes can be read when it returns.
template <class Products, class Store>
SPARC_DEVICE void multiply(const ProductSum<typename Products::Element>& sum, const Store& store) {
  const int row = device::warp_index() % 4 * 16, column = device::warp_index() / 4 * 32;
  const int rows = sum.rows(), columns = sum.columns();
  SPARC_NO_UNROLL
  for (int m0 = 0; m0 < rows; m0 += kTile) {
    SPARC_NO_UNROLL
    for (int n0 = 0; n0 < columns; n0 += kTile) {
      const WarpSums found = accumulate<Products>(sum, m0, n0);
      SPARC_UNROLL
      for (int e = 0; e < 16; ++e) {
        const int r = m0 + row + sum_row(e % 4), at = n0 + column + e / 8 * 16 + sum_column(e / 4 % 2, e % 4);
        if (r < rows && at < columns) store(r, at, found.c[e / 8][e / 4 % 2][e % 4]);
      }
    }
  }
  device::block_barrier();
}

}  // namespace sparc
