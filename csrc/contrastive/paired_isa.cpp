// Cosines of row i and column i, and their gradients: one walk over both rows each way, as memory is what
// they take.
#include "common/rows.h"
#include "contrastive/paired.h"
#include "contrastive/panels.h"

namespace sparc {
namespace SPARC_ISA {

// Row i with its numbers side by side: where it lies, or in `scratch`.
template <class In>
SPARC_INLINE const In* row_of(const EmbedView& embeds, int64_t i, In* scratch) {
  const In* row = static_cast<const In*>(embeds.data) + i * embeds.row_stride;
  if (embeds.column_stride == 1) return row;
  convert_row(row, embeds.column_stride, embeds.width, scratch);
  return scratch;
}

template <class Acc>
struct PairSums {
  Acc xx, yy, xy;
};

template <class Acc, class In>
SPARC_INLINE PairSums<Acc> pair_sums(const In* x, const In* y, int64_t width) {
  constexpr int kN = kLanes<Acc>;
  constexpr int kChains = 2;  // independent sums: additions follow one another more slowly than loads do
  Vec<Acc, kN> xx[kChains] = {}, yy[kChains] = {}, xy[kChains] = {};
  int64_t d = 0;
  for (; d + kChains * kN <= width; d += kChains * kN) {
    SPARC_UNROLL for (int chain = 0; chain < kChains; ++chain) {
      const auto a = load_numbers<kN>(x + d + chain * kN), b = load_numbers<kN>(y + d + chain * kN);
      xx[chain] += a * a;
      yy[chain] += b * b;
      xy[chain] += a * b;
    }
  }
  PairSums<Acc> sums = {sum_lanes<Acc>(xx[0] + xx[1]), sum_lanes<Acc>(yy[0] + yy[1]),
                        sum_lanes<Acc>(xy[0] + xy[1])};
  for (; d < width; ++d) {
    const Acc a = to_acc(x[d]), b = to_acc(y[d]);
    sums.xx += a * a;
    sums.yy += b * b;
    sums.xy += a * b;
  }
  return sums;
}

// out = p other - q own
template <class Acc, class In>
SPARC_INLINE void combine(const In* own, const In* other, Acc q, Acc p, int64_t width, In* out) {
  constexpr int kN = kLanes<Acc>;
  int64_t d = 0;
  for (; d + kN <= width; d += kN) {
    store_numbers<kN>(out + d, p * load_numbers<kN>(other + d) - q * load_numbers<kN>(own + d));
  }
  for (; d < width; ++d) out[d] = Convert<In>::from(p * to_acc(other[d]) - q * to_acc(own[d]));
}

template <class E, class In>
void paired_forward(const PairedCall& call, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  const int64_t m = call.rows.count, width = call.rows.width;
  In* scratch = static_cast<In*>(workspace);
  Acc* stats = static_cast<Acc*>(call.stats);
  for (int64_t i = item * kPairedRows; i < smaller(m, (item + 1) * kPairedRows); ++i) {
    const In *x = row_of(call.rows, i, scratch), *y = row_of(call.cols, i, scratch + width);
    const PairSums<Acc> sums = pair_sums<Acc>(x, y, width);
    const Acc a = inverse_of_norm(sums.xx), b = inverse_of_norm(sums.yy), cosine = sums.xy * a * b;
    static_cast<Acc*>(call.cosines)[i] = cosine;
    stats[kRowInverseNorm * m + i] = a;
    stats[kColInverseNorm * m + i] = b;
    stats[kPairCosine * m + i] = cosine;
  }
}

template <class E, class In>
void paired_backward(const PairedCall& call, int64_t item, void* workspace) {
  using Acc = typename E::Acc;
  const int64_t m = call.rows.count, width = call.rows.width;
  In* scratch = static_cast<In*>(workspace);
  const Acc* stats = static_cast<const Acc*>(call.stats);
  for (int64_t i = item * kPairedRows; i < smaller(m, (item + 1) * kPairedRows); ++i) {
    const In *x = row_of(call.rows, i, scratch), *y = row_of(call.cols, i, scratch + width);
    const Acc grad = read<Acc>(call.upstream, i);
    const Acc a = stats[kRowInverseNorm * m + i], b = stats[kColInverseNorm * m + i];
    const Acc across = grad * a * b, along = grad * stats[kPairCosine * m + i];
    // A norm below the least one counts as a constant.
    const Acc along_x = a < Acc(kInverseOfZero) ? along * a * a : Acc{0};
    const Acc along_y = b < Acc(kInverseOfZero) ? along * b * b : Acc{0};
    if (call.grad_rows) combine(x, y, along_x, across, width, static_cast<In*>(call.grad_rows) + i * width);
    if (call.grad_cols) combine(y, x, along_y, across, width, static_cast<In*>(call.grad_cols) + i * width);
  }
}

template <class E, class In>
PairedKernel paired_kernel() {
  PairedKernel kernel = {};
  kernel.thread_bytes = [](const PairedCall& call) {
    return 2 * static_cast<size_t>(call.rows.width) * sizeof(In);
  };
  kernel.forward = &paired_forward<E, In>;
  kernel.backward = &paired_backward<E, In>;
  return kernel;
}

}  // namespace SPARC_ISA

SPARC_KERNELS(PairedKernel, paired_kernel)

}  // namespace sparc
