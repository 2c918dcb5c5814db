// Products of matrices in global memory, of any size and dtype, by one block: 64 x 64 results at a time. What
// is multiplied, and how it lies, is the type of the product: nothing of it is kept in memory.
#pragma once

#include "common/block.cuh"
#include "common/products.cuh"

namespace sparc {

constexpr int kTile = 64;  // rows and columns of results

// Elements of 16 bytes, which are copied together.
template <class E>
constexpr int kPiece = 16 / static_cast<int>(sizeof(E));

// Two neighbouring numbers, which are stored and loaded together.
template <class T>
using Couple = std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>;

template <class T>
SPARC_DEVICE Couple<T> couple_of(const float (&x)[2]) {
  if constexpr (sizeof(T) == 2) {
    return device::pack<T>(x[0], x[1]);
  } else {
    return device::float_to_bits(x[0]) | static_cast<uint64_t>(device::float_to_bits(x[1])) << 32;
  }
}
template <class T>
SPARC_DEVICE void take_apart(Couple<T> couple, float (&x)[2]) {
  SPARC_UNROLL
  for (int i = 0; i < 2; ++i) {
    if constexpr (sizeof(T) == 2) {
      x[i] = device::to_float(T{static_cast<uint16_t>(couple >> 16 * i)});
    } else {
      x[i] = device::bits_to_float(static_cast<uint32_t>(couple >> 32 * i));
    }
  }
}

// A matrix, to be multiplied transposed.
template <class M>
struct Transposed : M {
  static constexpr bool kTransposed = true;

  SPARC_DEVICE explicit Transposed(const M& matrix) : M(matrix) {}
};

// A row of an input: numbers at an even column and, if it is there, the next.
template <class E>
struct InputRow {
  const E* data;
  int64_t column_stride;
  int columns;
  bool wide;

  SPARC_DEVICE void get(int column, float (&x)[2]) const {
    if (wide) return take_apart<E>(*reinterpret_cast<const Couple<E>*>(data + column), x);
    x[0] = device::to_float(data[column * column_stride]);
    x[1] = column + 1 < columns ? device::to_float(data[(column + 1) * column_stride]) : 0.0f;
  }
};

// Rows of a matrix in global memory, [rows, columns], looked up in `index`.
template <class E>
struct GatheredRows {
  using Element = E;
  static constexpr bool kTransposed = false;

  const E* data;
  int64_t row_stride, column_stride;
  int rows, columns;
  bool wide;  // rows of neighbouring columns, in whole pieces, 16-byte aligned, less than 4 GiB apart
  device::Scratch<int> index;

  SPARC_DEVICE Transposed<GatheredRows> transpose() const { return Transposed<GatheredRows>(*this); }
  SPARC_DEVICE bool is_wide() const { return wide; }
  SPARC_DEVICE const E* begin() const { return data; }
  // Which row of the input row `r` is; any, where there is none.
  SPARC_DEVICE int number(int r) const { return r < rows ? static_cast<int>(index[r]) : 0; }
  // A column of that row, where `column` is that of the input's first row; of wide rows.
  SPARC_DEVICE const E* of_row(const E* column, int number) const {
    return device::further(column, number, static_cast<uint32_t>(row_stride) * sizeof(E));
  }
  SPARC_DEVICE E element(int row, int column) const {
    return data[static_cast<int64_t>(index[row]) * row_stride + column * column_stride];
  }
  SPARC_DEVICE float get(int row, int column) const { return device::to_float(element(row, column)); }
  SPARC_DEVICE InputRow<E> operator()(int r) const {
    return {data + static_cast<int64_t>(index[r]) * row_stride, column_stride, columns, wide};
  }
};

// A row of a matrix in scratch: numbers at an even column and the next, which may lie in the padding.
template <class T>
struct ScratchRow {
  device::Scratch<T> data;

  SPARC_DEVICE auto at(int column) const {
    return device::scratch_at<Couple<T>>(device::address_of(data + column), 0);
  }
  SPARC_DEVICE void get(int column, float (&x)[2]) const {
    take_apart<T>(static_cast<Couple<T>>(*at(column)), x);
  }
  SPARC_DEVICE void operator()(int column, const float (&x)[2]) const { *at(column) = couple_of<T>(x); }
};

// A matrix in this block's scratch, rows `pitch` apart and 16-byte aligned.
template <class T>
struct ScratchMatrix {
  using Element = T;
  static constexpr bool kTransposed = false;

  device::Scratch<T> data;
  int rows, columns, pitch;

  SPARC_DEVICE Transposed<ScratchMatrix> transpose() const { return Transposed<ScratchMatrix>(*this); }
  SPARC_DEVICE static constexpr bool is_wide() { return true; }
  SPARC_DEVICE const T* begin() const { return device::address_of(data); }
  SPARC_DEVICE static int number(int r) { return r; }
  SPARC_DEVICE const T* of_row(const T* column, int number) const {
    return device::further(column, number, static_cast<uint32_t>(pitch) * sizeof(T));
  }
  SPARC_DEVICE T element(int row, int column) const { return this->row(row)[column]; }
  // Zeros behind the last column of each row, as far as products read: whole pieces.
  SPARC_DEVICE void clear_padding() const {
    const int column = columns + device::thread_index() % 8;
    if (column >= round_up(columns, 8)) return;
    SPARC_NO_UNROLL
    for (int r = device::thread_index() / 8; r < rows; r += kThreads / 8) row(r)[column] = T{};
  }

  SPARC_DEVICE device::Scratch<T> row(int r) const { return data + static_cast<int64_t>(r) * pitch; }
  SPARC_DEVICE float get(int row, int column) const { return device::to_float(element(row, column)); }
  SPARC_DEVICE ScratchRow<T> operator()(int r) const { return {row(r)}; }
};

// The rows `index[0..)` of a contiguous output.
template <class E>
struct OutputRows {
  E* data;
  device::Scratch<int> index;
  int columns;

  struct Row {
    E* data;
    int columns;

    SPARC_DEVICE void operator()(int column, const float (&x)[2]) const {
      if (columns % 2 == 0) {
        *reinterpret_cast<Couple<E>*>(data + column) = couple_of<E>(x);
        return;
      }
      data[column] = device::from_float<E>(x[0]);
      if (column + 1 < columns) data[column + 1] = device::from_float<E>(x[1]);
    }
  };
  SPARC_DEVICE Row operator()(int r) const {
    return {data + static_cast<int64_t>(index[r]) * columns, columns};
  }
};

// a b
template <class A, class B>
struct Product {
  A a;
  B b;

  SPARC_DEVICE int rows() const { return A::kTransposed ? a.columns : a.rows; }
  SPARC_DEVICE int columns() const { return B::kTransposed ? b.rows : b.columns; }
};
template <class A, class B>
Product(A, B) -> Product<A, B>;

// between first + second; without `both`, first.
template <class First, class Second>
struct ProductSum {
  First first;
  float between;
  Second second;
  bool both = true;

  SPARC_DEVICE int rows() const { return first.rows(); }
  SPARC_DEVICE int columns() const { return first.columns(); }
};
template <class First, class Second>
ProductSum(First, float, Second) -> ProductSum<First, Second>;
template <class First, class Second>
ProductSum(First, float, Second, bool) -> ProductSum<First, Second>;

template <class E>
struct TiledLayout {
  static constexpr int kPad = Tile<E>::kPad;
  static constexpr int kDepth = 128 / static_cast<int>(sizeof(E));  // of a tile: 128 bytes of each row
  // of [64, depth] or [depth, 64]
  static constexpr int kOperandBytes =
      (kTile * (kDepth + kPad) > kDepth * (kTile + kPad) ? kTile * (kDepth + kPad)
                                                         : kDepth * (kTile + kPad)) *
      static_cast<int>(sizeof(E));
  static constexpr int kCounts = 0, kParts = kWarps * 4, kOperands = 2 * kWarps * 4;
  static constexpr int kBytes = kOperands + 4 * kOperandBytes;

  // `kAcross`: the depth goes over the rows.
  template <bool kAcross>
  SPARC_DEVICE static auto operand(int stage, int which) {
    return Tile<E, (kAcross ? kTile : kDepth) + kPad>(kOperands + (2 * stage + which) * kOperandBytes);
  }
};

// An operand's tiles one after another along the depth, from row or column `first` of the product on: they
// lie in shared memory as in global memory, [64, depth] or, `kAcross`, [depth, 64], with zeros where the
// operand ends. A thread copies the same piece of each.
template <class M, bool kAcross>
class OperandStream {
  using E = typename M::Element;
  static constexpr int kDepth = TiledLayout<E>::kDepth;
  static constexpr int kRows = kAcross ? kDepth : kTile, kColumns = kAcross ? kTile : kDepth;
  static constexpr int kPieces = kColumns / kPiece<E>, kStep = kThreads / kPieces, kCopies = kRows / kStep;
  static_assert(kThreads % kPieces == 0 && kRows % kStep == 0, "every thread has as many copies");

 public:
  SPARC_DEVICE OperandStream(const M& from, int first)
      : from_(from),
        first_(first),
        row_(device::thread_index() / kPieces),
        column_(device::thread_index() % kPieces * kPiece<E>) {
    SPARC_UNROLL
    for (int i = 0; i < kCopies; ++i) {
      const int row = row_ + i * kStep;
      if (kAcross) {
        number_[i] = from.number(row);
        source_[i] = from.begin() + (first + column_);
        end_[i] = first + column_ < from.columns ? from.rows - row : 0;
      } else {
        source_[i] = from.of_row(from.begin() + column_, from.number(first + row));
        end_[i] = first + row < from.rows ? from.columns - column_ : 0;
      }
    }
  }

  // The tile at `depth`; called for one after another, from 0 on.
  template <class To>
  SPARC_DEVICE void load(int depth, const To& to) {
    if (!from_.is_wide()) return load_elements(depth, to);
    E* const target = device::address_of(to.at(row_, column_));
    SPARC_UNROLL
    for (int i = 0; i < kCopies; ++i) {
      const E* const source = kAcross ? from_.of_row(source_[i], number_[i]) : source_[i] + depth;
      device::copy_async_if(depth < end_[i], target + to.rows_apart(i * kStep), source);
      // asked for long before it is used
      if (kAcross) number_[i] = from_.number(depth + kDepth + row_ + i * kStep);
    }
  }

 private:
  template <class To>
  SPARC_DEVICE void load_elements(int depth, const To& to) const {
    const int row0 = kAcross ? depth : first_, column0 = kAcross ? first_ : depth;
    const int column = device::thread_index() % kColumns;
    SPARC_NO_UNROLL
    for (int row = device::thread_index() / kColumns; row < kRows; row += kThreads / kColumns) {
      E value{};
      if (row0 + row < from_.rows && column0 + column < from_.columns) {
        value = from_.element(row0 + row, column0 + column);
      }
      *to.at(row, column) = value;
    }
  }

  const M& from_;
  int first_, row_, column_;
  const E* source_[kCopies];
  int number_[kCopies];  // of the next tile's row
  int end_[kCopies];     // the first depth at which this thread's piece is not there
};

// So much depth of a tile is written out; all of it would be 180 KB of code in float32.
template <class Products>
constexpr int kDepthWritten = sizeof(typename Products::Element) == 2 ? 64 : 8;

// c [16, 32] += the product of tiles, from row `m` and column `n` of theirs.
template <class Products, bool kAcrossA, bool kAcrossB, class TileA, class TileB>
SPARC_DEVICE void multiply_tiles(const TileA& a, const TileB& b, int m, int n, Sums (&c)[2]) {
  using Layout = TiledLayout<typename Products::Element>;
  constexpr int kWritten = kDepthWritten<Products>;
  static_assert(Layout::kDepth % kWritten == 0 && kWritten % Products::kDepth == 0, "no part is left over");
  SPARC_NO_UNROLL
  for (int k0 = 0; k0 < Layout::kDepth; k0 += kWritten) {
    SPARC_UNROLL
    for (int step = 0; step < kWritten; step += Products::kDepth) {
      const int k = k0 + step;
      typename Products::A left;
      if constexpr (kAcrossA) {
        left = Products::load_a_transposed(a, k, m);
      } else {
        left = Products::load_a(a, m, k);
      }
      SPARC_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int at = n + 16 * half;
        if constexpr (kAcrossB) {
          Products::multiply_add(c[half], left, Products::load_b_transposed(b, k, at));
        } else {
          Products::multiply_add(c[half], left, Products::load_b(b, at, k));
        }
      }
    }
  }
}

// c [16, 32] of this warp += the product's tile at (m0, n0).
template <class Products, class A, class B>
SPARC_DEVICE void accumulate(const Product<A, B>& product, int m0, int n0, Sums (&c)[2]) {
  using Layout = TiledLayout<typename Products::Element>;
  constexpr bool kAcrossA = A::kTransposed, kAcrossB = !B::kTransposed;
  const int row = device::warp_index() % 4 * 16, column = device::warp_index() / 4 * 32;
  OperandStream<A, kAcrossA> stream_a(product.a, m0);
  OperandStream<B, kAcrossB> stream_b(product.b, n0);
  const int depth = kAcrossA ? product.a.rows : product.a.columns;
  int stage = 1;
  // the tiles at `k0`, those behind them under way
  SPARC_NO_UNROLL
  for (int k0 = -Layout::kDepth; k0 < depth; k0 += Layout::kDepth) {
    const int next = k0 + Layout::kDepth;
    device::copy_async_wait<0>();
    device::block_barrier();
    if (next < depth) {
      stream_a.load(next, Layout::template operand<kAcrossA>(1 - stage, 0));
      stream_b.load(next, Layout::template operand<kAcrossB>(1 - stage, 1));
      device::copy_async_commit();
    }
    if (k0 >= 0) {
      const auto a = Layout::template operand<kAcrossA>(stage, 0);
      const auto b = Layout::template operand<kAcrossB>(stage, 1);
      multiply_tiles<Products, kAcrossA, kAcrossB>(a, b, row, column, c);
    }
    stage = 1 - stage;
  }
}

template <class Products, class First, class Second>
SPARC_DEVICE void accumulate(const ProductSum<First, Second>& sum, int m0, int n0, Sums (&c)[2]) {
  accumulate<Products>(sum.first, m0, n0, c);
  if (!sum.both) return;
  SPARC_UNROLL
  for (int e = 0; e < 16; ++e) c[e / 8][e / 4 % 2][e % 4] *= sum.between;
  accumulate<Products>(sum.second, m0, n0, c);
}

// All of a product or a sum of two, as store(row)(column, numbers): that at an even column and the next, 0
// where there is none. What it reads was written before a barrier; what `store` writes can be read when it
// returns.
template <class Products, class Terms, class Store>
SPARC_DEVICE void multiply(const Terms& terms, const Store& store) {
  const int row = device::warp_index() % 4 * 16, column = device::warp_index() / 4 * 32;
  const int rows = terms.rows(), columns = terms.columns();
  SPARC_NO_UNROLL
  for (int m0 = 0; m0 < rows; m0 += kTile) {
    SPARC_NO_UNROLL
    for (int n0 = 0; n0 < columns; n0 += kTile) {
      Sums c[2] = {};
      accumulate<Products>(terms, m0, n0, c);
      SPARC_UNROLL
      for (int side = 0; side < 2; ++side) {
        const int r = m0 + row + sum_row(2 * side);
        if (r >= rows) continue;
        const auto put = store(r);
        SPARC_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int at = n0 + column + e / 2 * 16 + sum_column(e % 2, 0);
          const float (&found)[4] = c[e / 2][e % 2];
          if (at < columns) put(at, {found[2 * side], found[2 * side + 1]});
        }
      }
    }
  }
  device::block_barrier();
}

}  // namespace sparc
