// The operands of small matrix products: what they are made of and how they are laid out. Compiled once per
// instruction set.
//
// An engine says what the products run on. MultiplyAddEngine<T> computes in T, bfloat16 inputs converted to
// float32; Bf16Engine multiplies bfloat16, two at a time, and adds in float32.
#pragma once

#include "common/gemm.h"

namespace sparc {
namespace SPARC_ISA {

template <class T>
struct MultiplyAddEngine {
  using Ops = MultiplyAdd<T>;
  using Acc = T;
  using Elem = T;  // element of an operand
  using Unit = T;
  static constexpr int kPack = 1;  // elements in a unit
};

#if defined(SPARC_HAS_BF16_DOT)
struct Bf16Engine {
  using Ops = Bf16Dot;
  using Acc = float;
  using Elem = Bf16;
  using Unit = uint32_t;
  static constexpr int kPack = 2;
};
#endif

// Hands out parts of one block of memory; without a block it only adds up what they need.
class Arena {
 public:
  explicit Arena(void* block) : block_(static_cast<char*>(block)) {}
  template <class T>
  T* take(int64_t count) {
    constexpr size_t kLine = 64;
    used_ = (used_ + kLine - 1) / kLine * kLine;
    T* part = block_ ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    used_ += static_cast<size_t>(count) * sizeof(T);
    return part;
  }
  size_t used() const { return used_; }

 private:
  char* block_;
  size_t used_ = 0;
};

template <class To, class From>
void convert_row(const From* x, int64_t stride, int64_t count, To* out) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = Convert<To>::from(x[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = Convert<To>::from(x[i * stride]);
  }
}

// Exchange of the off-diagonal kStep x kStep blocks of two rows: the upper or the lower of the two that
// result. Lane numbers are template arguments, since GCC builds a mask that it must fold itself lane by
// lane.
template <bool kLower, int kStep, class V, int... kLane>
SPARC_INLINE V exchange(V upper, V lower, std::integer_sequence<int, kLane...>) {
  constexpr int kN = sizeof...(kLane);
  return __builtin_shufflevector(upper, lower,
                                 (kLower ? (kLane & kStep ? kN + kLane : kLane + kStep)
                                         : (kLane & kStep ? kN + kLane - kStep : kLane))...);
}

// In-register transpose of kN x kN words, blocks of kStep and smaller.
template <int kN, int kStep, class T>
SPARC_INLINE void transpose_block(Vec<T, kN>* rows) {
  if constexpr (kStep > 0) {
    using Lanes = std::make_integer_sequence<int, kN>;
    SPARC_UNROLL for (int i = 0; i < kN; ++i) {
      if (i & kStep) continue;
      const Vec<T, kN> upper = rows[i], lower = rows[i + kStep];
      rows[i] = exchange<false, kStep>(upper, lower, Lanes{});
      rows[i + kStep] = exchange<true, kStep>(upper, lower, Lanes{});
    }
    transpose_block<kN, kStep / 2, T>(rows);
  }
}

// out [columns, ldo] = x [rows, ldx] transposed; columns of `out` from `rows` to `padded` become 0. `columns`
// and `padded` are multiples of the granule. Walks down the rows within one cache line of columns, so that
// both sides are touched line by line.
template <class T>
void transpose(const T* x, int64_t rows, int64_t columns, int64_t ldx, T* out, int64_t ldo, int64_t padded) {
  constexpr int kN = kGranule<T>;
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t line = 0; line < columns; line += kLine) {
    for (int64_t i = 0; i < padded; i += kN) {
      for (int64_t j = line; j < smaller(line + kLine, columns); j += kN) {
        Vec<T, kN> block[kN];
        SPARC_UNROLL for (int r = 0; r < kN; ++r) {
          block[r] = i + r < rows ? load<kN>(x + (i + r) * ldx + j) : Vec<T, kN>{};
        }
        transpose_block<kN, kN / 2, T>(block);
        SPARC_UNROLL for (int r = 0; r < kN; ++r) store(out + (j + r) * ldo + i, block[r]);
      }
    }
  }
}

// One row of units: out[i] = (low[i], high[i]) as bfloat16.
template <class From>
SPARC_INLINE void pack_row(const From* low, const From* high, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = Convert<Bf16>::from(low[i]).bits | static_cast<uint32_t>(Convert<Bf16>::from(high[i]).bits)
                                                    << 16;
  }
}

SPARC_INLINE void pack_row(const Bf16* low, const Bf16* high, int64_t count, uint32_t* out) {
  using Halves = Vec<uint16_t, 16>;
  const Halves first = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const Halves a = load<16>(&low[i].bits), b = load<16>(&high[i].bits);
    store(out + i, __builtin_shuffle(a, b, first));
    store(out + i + 8, __builtin_shuffle(a, b, first + 8));
  }
  for (; i < count; ++i) out[i] = low[i].bits | static_cast<uint32_t>(high[i].bits) << 16;
}

// Units along the rows: out [ceil(rows / 2), columns] of (x[2k], x[2k + 1]), 0 beyond the last row.
template <class From>
void pack_rows(const From* x, int64_t rows, int64_t columns, int64_t ldx, uint32_t* out, int64_t ldo) {
  for (int64_t k = 0; k < rows / 2; ++k)
    pack_row(x + 2 * k * ldx, x + (2 * k + 1) * ldx, columns, out + k * ldo);
  if (rows % 2) {
    const From* last = x + (rows - 1) * ldx;
    for (int64_t i = 0; i < columns; ++i) out[rows / 2 * ldo + i] = Convert<Bf16>::from(last[i]).bits;
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
