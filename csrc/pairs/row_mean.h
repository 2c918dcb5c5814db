// The mean of the valid rows of an image or a text, and its derivative, compiled once per instruction set.
#pragma once

#include "common/vec.h"
#include "pairs/valid_rows.h"

namespace sparc {
namespace SPARC_ISA {

template <int N>
SPARC_INLINE Vec<float, N> load_as_acc(const Bf16* p) {
  const auto bits = __builtin_convertvector(load<N>(&p->bits), Vec<uint32_t, N>);
  return bit_cast<Vec<float, N>>(bits << 16);
}
template <int N>
SPARC_INLINE Vec<float, N> load_as_acc(const float* p) {
  return load<N>(p);
}
template <int N>
SPARC_INLINE Vec<double, N> load_as_acc(const double* p) {
  return load<N>(p);
}

// out [d] = mean of the rows, 0 if there is none.
template <class Acc, class In>
void mean_of_rows(const ValidRows& rows, int64_t d, In* out) {
  constexpr int kN = kGranule<Acc>;
  constexpr int kParts = 64 / sizeof(In) / kN;  // a cache line of every row at a time
  const In* const data = static_cast<const In*>(rows.data);
  const Acc scale = rows.count > 0 ? Acc{1} / static_cast<Acc>(rows.count) : Acc{0};
  int64_t x = 0;
  for (; rows.column_stride == 1 && x + kParts * kN <= d; x += kParts * kN) {
    Vec<Acc, kN> total[kParts] = {};
    for (int64_t i = 0; i < rows.count; ++i) {
      const In* const row = data + rows.index[i] * rows.row_stride + x;
      SPARC_UNROLL for (int part = 0; part < kParts; ++part) total[part] += load_as_acc<kN>(row + part * kN);
    }
    for (int part = 0; part < kParts; ++part) {
      for (int i = 0; i < kN; ++i) out[x + part * kN + i] = Convert<In>::from(total[part][i] * scale);
    }
  }
  for (; x < d; ++x) {
    Acc total = 0;
    for (int64_t i = 0; i < rows.count; ++i) {
      total += to_acc(data[rows.index[i] * rows.row_stride + x * rows.column_stride]);
    }
    out[x] = Convert<In>::from(total * scale);
  }
}

// What a gradient [d] of the mean gives to each of `count` rows: share [padded], 0 beyond d and for a null
// gradient.
template <class Acc, class In>
void share_of_mean(const In* grad, int64_t count, int64_t d, int64_t padded, Acc* share) {
  const Acc scale = count > 0 ? Acc{1} / static_cast<Acc>(count) : Acc{0};
  for (int64_t x = 0; x < padded; ++x) share[x] = grad && x < d ? to_acc(grad[x]) * scale : Acc{0};
}

}  // namespace SPARC_ISA
}  // namespace sparc
