// Small matrix products, compiled once per instruction set.
//
// Why not the BLAS: the operands of one work item fit in L2, are reused by its next product, and at these
// sizes a register tile that reads them in place runs at 95 % and more of the multiply-add peak, where
// batched calls reach 60 % (measured on Zen 4 through torch.bmm, docs/performance_log.md). It also keeps
// results independent of the number of threads.
//
// Operands are matrices of "units": one number for the multiply-add, two bfloat16 numbers that are neighbours
// along the contraction for the bfloat16 dot product. C[m, n] (+)= sum_k A(m, k) . B(k, n).
#pragma once

#include "common/vec.h"

namespace sparc {
namespace SPARC_ISA {

template <class T>
struct MultiplyAdd {
  using Unit = T;
  using Acc = T;
  template <int N>
  static SPARC_INLINE Vec<Acc, N> mac(Vec<Acc, N> c, Unit a, Vec<Unit, N> b) {
    return splat<N>(a) * b + c;
  }
};

#if defined(SPARC_HAS_BF16_DOT)
struct Bf16Dot {
  using Unit = uint32_t;  // elements 2k (low half) and 2k + 1
  using Acc = float;
  template <int N>
  static SPARC_INLINE Vec<Acc, N> mac(Vec<Acc, N> c, Unit a, Vec<Unit, N> b) {
    if constexpr (N == 16) {
      return (Vec<Acc, N>)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)),
                                           (__m512bh)b);
    } else {
      static_assert(N == 8);
      return (Vec<Acc, N>)_mm256_dpbf16_ps((__m256)c, (__m256bh)_mm256_set1_epi32(static_cast<int>(a)),
                                           (__m256bh)b);
    }
  }
};
#endif

// Rows of numbers, `ld` apart.
template <class T>
struct Matrix {
  T* data;
  int64_t ld;

  Matrix from(int64_t row, int64_t column) const { return {data + row * ld + column, ld}; }
  operator Matrix<const T>() const { return {data, ld}; }
};

// How A lies in memory: A(m, k) is in row m or in row k.
enum class ALayout { kRows, kColumns };

template <ALayout kLayout, class T>
Matrix<T> rows_of_a(Matrix<T> a, int64_t m) {
  return kLayout == ALayout::kRows ? a.from(m, 0) : a.from(0, m);
}

// What a product is added to: nothing, what C holds, or one row for all rows of C.
template <class Acc>
struct Start {
  bool accumulate = false;
  const Acc* row = nullptr;  // [N], padded as C is

  Start from(int64_t column) const { return {accumulate, row ? row + column : nullptr}; }
};

// A register tile of kRows x (kFull full registers + kHalf half registers).
template <class Ops, int kRows, int kFull, int kHalf, ALayout kLayout>
__attribute__((noinline)) void tile(int64_t k_units, Matrix<const typename Ops::Unit> a_rows,
                                    Matrix<const typename Ops::Unit> b_rows, Matrix<typename Ops::Acc> c,
                                    Start<typename Ops::Acc> start) {
  using Acc = typename Ops::Acc;
  using Unit = typename Ops::Unit;
  const Unit *a = a_rows.data, *b = b_rows.data;
  constexpr int kN = kLanes<Acc>;
  constexpr int kN2 = kN / 2;
  Vec<Acc, kN> full[kRows][kFull + 1] = {};
  Vec<Acc, kN2> half[kRows] = {};
  const Unit* row[kRows];
  SPARC_UNROLL for (int r = 0; r < kRows; ++r) row[r] = a + r * a_rows.ld;
  if (start.row) {
    SPARC_UNROLL for (int r = 0; r < kRows; ++r) {
      SPARC_UNROLL for (int v = 0; v < kFull; ++v) full[r][v] = load<kN>(start.row + v * kN);
      if (kHalf) half[r] = load<kN2>(start.row + kFull * kN);
    }
  }

  for (int64_t k = 0; k < k_units; ++k) {
    Vec<Unit, kN> b_full[kFull + 1];
    Vec<Unit, kN2> b_half;
    SPARC_UNROLL for (int v = 0; v < kFull; ++v) b_full[v] = load<kN>(b + v * kN);
    if (kHalf) b_half = load<kN2>(b + kFull * kN);
    SPARC_UNROLL for (int r = 0; r < kRows; ++r) {
      const Unit unit = kLayout == ALayout::kRows ? row[r][k] : a[r];
      SPARC_UNROLL for (int v = 0; v < kFull; ++v) {
        full[r][v] = Ops::template mac<kN>(full[r][v], unit, b_full[v]);
      }
      if (kHalf) half[r] = Ops::template mac<kN2>(half[r], unit, b_half);
    }
    b += b_rows.ld;
    if (kLayout == ALayout::kColumns) a += a_rows.ld;
  }

  SPARC_UNROLL for (int r = 0; r < kRows; ++r) {
    Acc* out = c.data + r * c.ld;
    SPARC_UNROLL for (int v = 0; v < kFull; ++v) {
      Acc* p = out + v * kN;
      store(p, start.accumulate ? load<kN>(p) + full[r][v] : full[r][v]);
    }
    if (kHalf) {
      Acc* p = out + kFull * kN;
      store(p, start.accumulate ? load<kN2>(p) + half[r] : half[r]);
    }
  }
}

// Tile sizes: as many accumulators as the registers hold beside a row of B and one broadcast. 6 x 4 registers
// of 32, or 6 x 2 of 16, keep both multiply-add ports busy while a step loads only one row of B and six
// scalars.
constexpr int kMaxVectors = SPARC_VECTOR_REGISTERS == 32 ? 4 : 2;
constexpr int kMaxRows = 6;

template <class Ops, int kFull, int kHalf, ALayout kLayout, int kRows = kMaxRows>
void tile_of_rows(int64_t rows, int64_t k, Matrix<const typename Ops::Unit> a,
                  Matrix<const typename Ops::Unit> b, Matrix<typename Ops::Acc> c,
                  Start<typename Ops::Acc> start) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile_of_rows<Ops, kFull, kHalf, kLayout, kRows - 1>(rows, k, a, b, c, start);
  }
  tile<Ops, kRows, kFull, kHalf, kLayout>(k, a, b, c, start);
}

template <class Acc>
constexpr int kGranulesInRegister = kLanes<Acc> / kGranule<Acc>;
template <class Acc>
constexpr int kPanelGranules = kMaxVectors * kGranulesInRegister<Acc>;

// The tile for a panel of `granules` granules of columns.
template <class Ops, ALayout kLayout, int kGranules = kPanelGranules<typename Ops::Acc>>
auto tile_for(int64_t granules) {
  if constexpr (kGranules > 1) {
    if (granules < kGranules) return tile_for<Ops, kLayout, kGranules - 1>(granules);
  }
  constexpr int kInRegister = kGranulesInRegister<typename Ops::Acc>;
  return &tile_of_rows<Ops, kGranules / kInRegister, kGranules % kInRegister, kLayout>;
}

// Splits `total` into the fewest parts of at most `most`, as even as can be: a last part of one row or one
// register would leave the multiply-add ports waiting.
struct EvenParts {
  int64_t parts, base, longer;
  EvenParts(int64_t total, int64_t most)
      : parts(ceil_div(total, most)), base(parts ? total / parts : 0), longer(parts ? total % parts : 0) {}
  int64_t size(int64_t i) const { return base + (i < longer ? 1 : 0); }
};

// C [M, N] = start + A B. N is a multiple of the granule (rows of B and C are padded to it).
template <class Ops, ALayout kLayout>
void gemm(int64_t m, int64_t n, int64_t k, Matrix<const typename Ops::Unit> a,
          Matrix<const typename Ops::Unit> b, Matrix<typename Ops::Acc> c,
          Start<typename Ops::Acc> start = {}) {
  using Acc = typename Ops::Acc;
  const EvenParts panels(n / kGranule<Acc>, kPanelGranules<Acc>), blocks(m, kMaxRows);
  for (int64_t i = 0, column = 0; i < panels.parts; ++i) {
    const auto run = tile_for<Ops, kLayout>(panels.size(i));
    for (int64_t j = 0, row = 0; j < blocks.parts; row += blocks.size(j++)) {
      run(blocks.size(j), k, rows_of_a<kLayout>(a, row), b.from(0, column), c.from(row, column),
          start.from(column));
    }
    column += panels.size(i) * kGranule<Acc>;
  }
}

// Where a product in the embeddings' dtype goes: row m of the product to row `index[m]` (or m) of `rows`.
template <class Store>
struct RowSink {
  Matrix<Store> rows;
  const int32_t* index;  // nullptr: rows stay in place
};

// Start and product as the embeddings' dtype, in chosen rows, N of any size (rows of B are padded): tiles
// that do not fit the output as they are go through a buffer in L1.
template <class Ops, ALayout kLayout, class Store>
void gemm_to_rows(int64_t m, int64_t n, int64_t k, Matrix<const typename Ops::Unit> a,
                  Matrix<const typename Ops::Unit> b, RowSink<Store> sink, Start<typename Ops::Acc> start) {
  using Acc = typename Ops::Acc;
  if constexpr (sizeof(Store) == sizeof(Acc)) {
    if (!sink.index && n % kGranule<Acc> == 0) {
      return gemm<Ops, kLayout>(m, n, k, a, b, sink.rows, start);
    }
  }
  constexpr int64_t kStride = kPanelGranules<Acc> * kGranule<Acc>;
  alignas(64) Acc buffer[kMaxRows * kStride];
  const EvenParts panels(ceil_div(n, kGranule<Acc>), kPanelGranules<Acc>), blocks(m, kMaxRows);
  for (int64_t i = 0, column = 0; i < panels.parts; ++i) {
    const auto run = tile_for<Ops, kLayout>(panels.size(i));
    const int64_t columns = smaller(n - column, panels.size(i) * kGranule<Acc>);
    for (int64_t j = 0, row = 0; j < blocks.parts; row += blocks.size(j++)) {
      const int64_t rows = blocks.size(j);
      run(rows, k, rows_of_a<kLayout>(a, row), b.from(0, column), {buffer, kStride}, start.from(column));
      for (int64_t r = 0; r < rows; ++r) {
        Store* out = sink.rows.from(sink.index ? sink.index[row + r] : row + r, column).data;
        for (int64_t x = 0; x < columns; ++x) out[x] = Convert<Store>::from(buffer[r * kStride + x]);
      }
    }
    column += panels.size(i) * kGranule<Acc>;
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
