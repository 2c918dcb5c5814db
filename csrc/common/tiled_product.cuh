// The tiled path: one block works on one pair of any size and dtype, a tile of 64 x 64 results at a time,
// with S, U and what else is between in scratch memory of its own (not of the pair: it does not grow with the
// batch). Serves what the pair path cannot hold in registers: long captions, many patches, float32.
#pragma once

#include "common/block.cuh"

namespace sparc {

constexpr int kTile = 64;       // rows and columns of results
constexpr int kTileDepth = 32;  // of the operands in shared memory at a time

// A matrix in global memory, [rows, columns]; rows are looked up in `index` where `gathered`.
template <class E>
struct Operand {
  const E* data;
  int64_t row_stride, column_stride;
  int rows, columns;
  bool wide, gathered;
  device::Scratch<int> index;

  SPARC_DEVICE int64_t at(int row) const {
    return (gathered ? static_cast<int64_t>(index[row]) : static_cast<int64_t>(row)) * row_stride;
  }
  SPARC_DEVICE float get(int row, int column) const {
    return device::to_float(data[at(row) + column * column_stride]);
  }
};

// a b of a product: a is stored [m, depth] or, transposed, [depth, m]; b [n, depth] or, transposed, [depth,
// n].
template <class E>
struct Term {
  Operand<E> a, b;
  bool a_transposed, b_transposed;
};

// out = row_scale (scale sum + row_factor init) + share, where sum = between (first term) + second term. What
// is null counts as 1 (factors), as absent (init, rest, the second term, share).
template <class E>
struct Product {
  int m, n;
  Term<E> terms[2];
  int count;
  float between, scale;
  bool with_init, init_is_stored, with_row_scale;
  Operand<E> init;               // of an input, or
  device::Scratch<E> init_data;  // [m, init_pitch] of scratch
  int64_t init_pitch;
  device::Scratch<float> row_factor, row_scale;
  MeanShare<E> share;

  // One of these is written. `rest` takes what rounding to `rounded` leaves.
  bool to_sums, to_rounded, with_rest, to_rows;
  device::Scratch<float> sums;       // [m, pitch]
  device::Scratch<E> rounded, rest;  // [m, pitch]
  E* rows;                           // [?, pitch], row r to row_index[r]
  device::Scratch<int> row_index;
  int64_t pitch;

  SPARC_DEVICE Product(int m_, int n_)
      : m(m_),
        n(n_),
        count(0),
        between(1.0f),
        scale(1.0f),
        with_init(false),
        init_is_stored(false),
        with_row_scale(false),
        init_pitch(0),
        to_sums(false),
        to_rounded(false),
        with_rest(false),
        to_rows(false),
        rows(nullptr),
        pitch(0) {}
  SPARC_DEVICE Product& add(const Operand<E>& a, bool a_transposed, const Operand<E>& b, bool b_transposed) {
    terms[count++] = {a, b, a_transposed, b_transposed};
    return *this;
  }
};

template <class E>
struct TiledShared {
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
  constexpr int kUnit = 16 / sizeof(E);
  if (from.wide) {
    const int units = columns / kUnit;
    SPARC_NO_UNROLL
    for (int i = device::thread_index(); i < rows * units; i += kThreads) {
      const int row = i / units, column = i % units * kUnit;
      int left = row0 + row < from.rows ? from.columns - column0 - column : 0;
      left = left < 0 ? 0 : (left > kUnit ? kUnit : left);
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

template <class Products>
SPARC_DEVICE_NOINLINE void load_term(const Term<typename Products::Element>& term, int m0, int n0, int k0,
                                     int stage) {
  using E = typename Products::Element;
  const Tile<E> a = TiledShared<E>::operand(stage, 0, term.a_transposed),
                b = TiledShared<E>::operand(stage, 1, term.b_transposed);
  load_operand(term.a, term.a_transposed ? k0 : m0, term.a_transposed ? m0 : k0,
               term.a_transposed ? kTileDepth : kTile, term.a_transposed ? kTile : kTileDepth, a);
  load_operand(term.b, term.b_transposed ? k0 : n0, term.b_transposed ? n0 : k0,
               term.b_transposed ? kTileDepth : kTile, term.b_transposed ? kTile : kTileDepth, b);
  device::copy_async_commit();
}

// c [16, 32] of this warp += the term's tile at (m0, n0).
template <class Products>
SPARC_DEVICE void add_term(Sums (&c)[2], const Term<typename Products::Element>& term, int m0, int n0) {
  using E = typename Products::Element;
  const int row = device::warp_index() % 4 * 16, column = device::warp_index() / 4 * 32;
  const int depth = term.a_transposed ? term.a.rows : term.a.columns;
  const int chunks = (depth + kTileDepth - 1) / kTileDepth;
  load_term<Products>(term, m0, n0, 0, 0);
  SPARC_NO_UNROLL
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const int stage = chunk % 2;
    device::copy_async_wait<0>();
    device::block_barrier();
    if (chunk + 1 < chunks) load_term<Products>(term, m0, n0, (chunk + 1) * kTileDepth, 1 - stage);
    const Tile<E> a = TiledShared<E>::operand(stage, 0, term.a_transposed),
                  b = TiledShared<E>::operand(stage, 1, term.b_transposed);
    SPARC_UNROLL
    for (int k = 0; k < kTileDepth; k += Products::kDepth) {
      const typename Products::A left =
          term.a_transposed ? Products::load_a_transposed(a, k, row) : Products::load_a(a, row, k);
      SPARC_UNROLL
      for (int unit = 0; unit < 2; ++unit) {
        const int n = column + 16 * unit;
        Products::multiply_add(
            c[unit], left,
            term.b_transposed ? Products::load_b_transposed(b, k, n) : Products::load_b(b, n, k));
      }
    }
  }
  device::block_barrier();  // the stages are free
}

template <class E>
SPARC_DEVICE void store_product(const Product<E>& product, int row, int column, float sum) {
  float value = sum * product.scale;
  if (product.with_init) {
    const float init =
        product.init_is_stored
            ? device::to_float(static_cast<E>(product.init_data[row * product.init_pitch + column]))
            : product.init.get(row, column);
    value += static_cast<float>(product.row_factor[row]) * init;
  }
  if (product.with_row_scale) value *= product.row_scale[row];
  value += product.share.at(column);
  if (product.to_sums) {
    product.sums[row * product.pitch + column] = value;
  } else if (product.to_rounded) {
    const E rounded = device::from_float<E>(value);
    product.rounded[row * product.pitch + column] = rounded;
    if (product.with_rest) {
      product.rest[row * product.pitch + column] = device::from_float<E>(value - device::to_float(rounded));
    }
  } else {
    product.rows[product.row_index[row] * product.pitch + column] = device::from_float<E>(value);
  }
}

// All of a product. What it reads was written before a barrier; what it writes can be read when it returns.
template <class Products>
SPARC_DEVICE_NOINLINE void multiply(const Product<typename Products::Element>& product) {
  const int row = device::warp_index() % 4 * 16, column = device::warp_index() / 4 * 32;
  for (int m0 = 0; m0 < product.m; m0 += kTile) {
    for (int n0 = 0; n0 < product.n; n0 += kTile) {
      Sums c[2] = {};
      for (int i = 0; i < product.count; ++i) {
        if (i == 1) {
          SPARC_UNROLL
          for (int e = 0; e < 16; ++e) c[e / 8][e / 4 % 2][e % 4] *= product.between;
        }
        add_term<Products>(c, product.terms[i], m0, n0);
      }
      SPARC_UNROLL
      for (int e = 0; e < 16; ++e) {
        const int r = m0 + row + sum_row(e % 4), at = n0 + column + e / 8 * 16 + sum_column(e / 4 % 2, e % 4);
        if (r < product.m && at < product.n) store_product(product, r, at, c[e / 8][e / 4 % 2][e % 4]);
      }
    }
  }
  device::block_barrier();
}

// Scratch that both ops use.
template <class E>
struct TiledScratch {
  Plan<int64_t> plan;
  int64_t patches_pitch, channels_pitch, tokens_pitch;             // elements, rows 16-byte aligned
  int64_t token_index, patch_index, low, high;                     // [L] int, [P] int, [L] float
  int64_t similarities, weights, grad_weights, grad_similarities;  // S, U, dU, dS: [L, P] float, E, float, E

  SPARC_HOST_DEVICE TiledScratch(const PairInputs& in, bool backward) {
    patches_pitch = round_up(in.patches, 8);
    channels_pitch = round_up(in.channels, 8);
    tokens_pitch = round_up(in.tokens, 8);
    token_index = plan.take(in.tokens * 4);
    patch_index = plan.take(in.patches * 4);
    low = plan.take(in.tokens * 4);
    high = plan.take(in.tokens * 4);
    const int64_t matrix = in.tokens * patches_pitch;
    similarities = plan.take(matrix * 4);
    weights = plan.take(matrix * static_cast<int64_t>(sizeof(E)));
    grad_weights = grad_similarities = 0;
    if (!backward) return;
    grad_weights = plan.take(matrix * 4);
    grad_similarities = plan.take(matrix * static_cast<int64_t>(sizeof(E)));
  }
};

// One pair on the tiled path.
template <class Products_>
struct TiledPair {
  using Products = Products_;
  using E = typename Products::Element;

  const TiledScratch<E>& plan;
  const PairInputs& in;
  unsigned char* base;  // of this block's scratch
  int64_t pair;
  int n, p;  // valid tokens and patches

  template <class T>
  SPARC_DEVICE device::Scratch<T> scratch(int64_t offset) const {
    return device::scratch_at<T>(base, static_cast<size_t>(offset));
  }
  template <class T>
  SPARC_DEVICE device::Scratch<T> row_of(int64_t matrix, int64_t row, int64_t pitch) const {
    return scratch<T>(matrix) + row * pitch;
  }

  // [rows, columns] of scratch
  SPARC_DEVICE Operand<E> stored(int64_t matrix, int rows, int columns, int64_t pitch) const {
    return {device::address_of(scratch<E>(matrix)), pitch, 1, rows, columns, true, false, {}};
  }
  // the gathered rows of an input
  SPARC_DEVICE Operand<E> gathered(const MatrixView& view, int64_t index, int rows) const {
    return {static_cast<const E*>(view.data) + pair * view.batch_stride,
            view.row_stride,
            view.column_stride,
            rows,
            in.channels,
            view.wide,
            true,
            scratch<int>(index)};
  }
  SPARC_DEVICE Operand<E> patches() const { return gathered(in.patch_embeds, plan.patch_index, p); }
  SPARC_DEVICE Operand<E> tokens() const { return gathered(in.token_embeds, plan.token_index, n); }
  SPARC_DEVICE Operand<E> weights() const { return stored(plan.weights, n, p, plan.patches_pitch); }
  SPARC_DEVICE Operand<E> grad_similarities() const {
    return stored(plan.grad_similarities, n, p, plan.patches_pitch);
  }

  SPARC_DEVICE void similarities(const Operand<E>& rows, int64_t to) const {
    Product<E> s(n, p);
    s.add(rows, false, patches(), false);
    s.to_sums = true;
    s.sums = scratch<float>(to);
    s.pitch = plan.patches_pitch;
    multiply<Products>(s);
  }

  SPARC_DEVICE float sigma() const { return threshold_of(in.threshold, p); }
  SPARC_DEVICE RowAlignment row_alignment(int l) const {
    return {scratch<float>(plan.low)[l], scratch<float>(plan.high)[l], sigma()};
  }

  // Calls f(row) for the rows of this warp.
  template <class F>
  SPARC_DEVICE void for_rows(const F& f) const {
    SPARC_NO_UNROLL
    for (int l = device::warp_index(); l < n; l += kWarps) f(l);
  }
  // Calls f(patch) for the patches of this lane.
  template <class F>
  SPARC_DEVICE void for_patches(const F& f) const {
    for (int i = device::lane_index(); i < p; i += 32) f(i);
  }

  // m and M of each row; f(row, alignment, row of S) then does what is to be done with it.
  template <class F>
  SPARC_DEVICE void align(const F& f) const {
    for_rows([&](int l) {
      const device::Scratch<float> s = row_of<float>(plan.similarities, l, plan.patches_pitch);
      float low = device::infinity(), high = -device::infinity();
      for_patches([&](int i) {
        low = device::min(low, s[i]);
        high = device::max(high, s[i]);
      });
      low = warp_min(low);
      high = warp_max(high);
      if (device::lane_index() == 0) {
        scratch<float>(plan.low)[l] = low;
        scratch<float>(plan.high)[l] = high;
      }
      f(l, RowAlignment(low, high, sigma()), s);
    });
    device::block_barrier();
  }

  // dS from dU: kept entries over the range, and minus their sum at the minima. Written in a unit (float16:
  // its largest element), which is returned.
  SPARC_DEVICE float align_backward() const {
    float largest = 0.0f;
    for_rows([&](int l) {
      const RowAlignment row = row_alignment(l);
      const device::Scratch<float> s = row_of<float>(plan.similarities, l, plan.patches_pitch),
                                   du = row_of<float>(plan.grad_weights, l, plan.patches_pitch);
      float total = 0.0f, ties = 0.0f;
      for_patches([&](int i) {
        if (row.kept(s[i])) total += du[i];
        if (s[i] == row.low) ties += 1.0f;
      });
      const float share = warp_sum(total) / device::max(warp_sum(ties), 1.0f);
      for_patches([&](int i) {
        const float kept = row.kept(s[i]) ? static_cast<float>(du[i]) : 0.0f;
        const float ds = (kept - (s[i] == row.low ? share : 0.0f)) * row.inverse_range;
        du[i] = ds;
        largest = device::max(largest, device::abs(ds));
      });
    });
    float unit = 1.0f;
    if constexpr (kIsFloat16<E>) {
      largest = block_max(largest, device::shared_at<float>(TiledShared<E>::kParts));
      if (largest > 0.0f) unit = largest;
    }
    for_rows([&](int l) {
      const device::Scratch<float> ds = row_of<float>(plan.grad_weights, l, plan.patches_pitch);
      const device::Scratch<E> out = row_of<E>(plan.grad_similarities, l, plan.patches_pitch);
      for_patches([&](int i) { out[i] = device::from_float<E>(ds[i] * (1.0f / unit)); });
    });
    device::block_barrier();
    return unit;
  }
};

}  // namespace sparc
