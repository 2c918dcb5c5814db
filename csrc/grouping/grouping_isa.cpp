// Forward and backward of one pair, compiled once per instruction set. Names follow MATH.md.
#include "alignment/aligned_pair.h"
#include "grouping/grouping.h"

namespace sparc {
namespace SPARC_ISA {

template <class E>
struct GroupingBuffers : AlignedPair<E> {
  using Acc = typename E::Acc;
  using Base = AlignedPair<E>;
  using Base::s;

  Acc* sum;  // [n] = rowsum(U)
  Acc* dot;  // [n] = rowsum(dA * A)

  GroupingBuffers(Arena& arena, const PaddedSizes<E>& sizes)
      : Base(arena, sizes), sum(arena.take<Acc>(s.n)), dot(arena.take<Acc>(s.n)) {}

  // U and rowsum(U). `kRound` where a product reads U in bfloat16: the weights that it uses then still sum
  // to 1.
  template <class In, bool kRound>
  void align_and_sum(const GroupingPair& pair, bool backward) {
    Base::template align<In, kRound>(pair, backward);
    fill(sum, s.n, Acc{0});
    for (int64_t i = 0; i < s.p; ++i) {
      const Acc* u = Base::weights_t.data + i * Base::weights_t.ld;
      for (int64_t l = 0; l < s.n; ++l) sum[l] += u[l];
    }
  }

  // dA^T in grad_t becomes dS^T, U^T becomes A^T.
  void normalise_backward(const GroupingPair& pair) {
    fill(dot, s.n, Acc{0});
    for (int64_t i = 0; i < s.p; ++i) {
      Acc* a = Base::weights_t.data + i * Base::weights_t.ld;
      const Acc* da = Base::grad_t + i * s.lp;
      for (int64_t l = 0; l < s.n; ++l) {
        a[l] /= sum[l];
        dot[l] += da[l] * a[l];
      }
    }
    for (int64_t i = 0; i < s.p; ++i) {
      Acc* da = Base::grad_t + i * s.lp;
      for (int64_t l = 0; l < s.n; ++l) da[l] = (da[l] - dot[l]) / sum[l];
    }
    Base::align_backward(pair);
  }

  void write_stats(const GroupingPair& pair) const {
    Acc* stats = static_cast<Acc*>(pair.stats);
    for (int64_t l = 0; l < s.n; ++l) {
      stats[kMinimum * pair.stats_stride + l] = Base::align_rows.min[l];
      stats[kMaximum * pair.stats_stride + l] = Base::align_rows.max[l];
      stats[kWeightSum * pair.stats_stride + l] = sum[l];
    }
  }

  template <class In>
  void write_gradients(const GroupingPair& pair, bool with_second) {
    if (pair.grad_patches) {
      Base::template write_image_gradient<In>(pair.patches, pair.grad_patches, with_second, nullptr);
    }
    if (!pair.grad_tokens) return;
    Base::times_image({Base::grad_t, s.lp});  // dT = dS V
    for (int64_t l = 0; l < s.n; ++l) {
      convert_row(Base::product + l * s.dp, 1, s.d, static_cast<In*>(pair.grad_tokens) + l * s.d);
    }
  }
};

// An image without a valid patch: everything that follows from it is NaN.
template <class Acc, class In>
void fill_forward_with_nan(const GroupingPair& pair, int64_t width) {
  const Acc nan = static_cast<Acc>(__builtin_nan(""));
  fill(static_cast<In*>(pair.output), pair.tokens.count * width, Convert<In>::from(nan));
  for (int i = 0; i < kGroupingStats; ++i) {
    fill(static_cast<Acc*>(pair.stats) + i * pair.stats_stride, pair.tokens.count, nan);
  }
}

// False where there is nothing to compute: the gradients are then already filled.
template <class Acc, class In>
bool begin_backward(const GroupingPair& pair) {
  const int64_t n = pair.tokens.count, p = pair.patches.count;
  if (pair.grad_patches && (p < pair.all_patches || n == 0)) {
    fill(static_cast<In*>(pair.grad_patches), pair.all_patches * pair.channels, In{});
  }
  if (pair.grad_tokens && p == 0) {
    fill(static_cast<In*>(pair.grad_tokens), n * pair.channels,
         Convert<In>::from(static_cast<Acc>(__builtin_nan(""))));
  }
  return n > 0 && p > 0;
}

template <class E, class In>
void grouped_embeddings_forward(const GroupingPair& pair, void* workspace) {
  using Acc = typename E::Acc;
  if (pair.patches.count == 0) return fill_forward_with_nan<Acc, In>(pair, pair.channels);
  Arena arena(workspace);
  GroupingBuffers<E> w(arena, PaddedSizes<E>(pair.tokens.count, pair.patches.count, pair.channels));
  w.template align_and_sum<In, E::kPack != 1>(pair, false);
  w.write_stats(pair);
  w.times_image(w.weights_t);
  In* out = static_cast<In*>(pair.output);
  for (int64_t l = 0; l < w.s.n; ++l) {
    for (int64_t x = 0; x < w.s.d; ++x) {
      out[l * w.s.d + x] = Convert<In>::from(w.product[l * w.s.dp + x] / w.sum[l]);
    }
  }
}

template <class E, class In>
void grouped_embeddings_backward(const GroupingPair& pair, void* workspace) {
  if (!begin_backward<typename E::Acc, In>(pair)) return;
  Arena arena(workspace);
  GroupingBuffers<E> w(arena, PaddedSizes<E>(pair.tokens.count, pair.patches.count, pair.channels));
  w.template align_and_sum<In, E::kPack != 1>(pair, true);
  const ValidRows grad = {pair.grad, pair.grad_strides[0], pair.grad_strides[1], pair.tokens.index, w.s.n,
                          true};
  gather_rows<In>(grad, w.s.d, w.second_rows(), w.s.dp);
  w.clear_second_padding();
  w.against_image(w.second_rows(), w.grad_t, false);  // dA = dC V^T
  w.normalise_backward(pair);
  w.template write_gradients<In>(pair, true);
}

template <class E, class In>
void alignment_weights_forward(const GroupingPair& pair, void* workspace) {
  using Acc = typename E::Acc;
  if (pair.patches.count == 0) return fill_forward_with_nan<Acc, In>(pair, pair.all_patches);
  Arena arena(workspace);
  GroupingBuffers<E> w(arena, PaddedSizes<E>(pair.tokens.count, pair.patches.count, pair.channels));
  w.template align_and_sum<In, false>(pair, false);
  w.write_stats(pair);
  In* out = static_cast<In*>(pair.output);
  if (w.s.p < pair.all_patches) fill(out, w.s.n * pair.all_patches, In{});
  for (int64_t l = 0; l < w.s.n; ++l) {
    for (int64_t i = 0; i < w.s.p; ++i) {
      const Acc u = w.weights_t.data[i * w.weights_t.ld + l];
      out[l * pair.all_patches + pair.patches.index[i]] = Convert<In>::from(u / w.sum[l]);
    }
  }
}

template <class E, class In>
void alignment_weights_backward(const GroupingPair& pair, void* workspace) {
  if (!begin_backward<typename E::Acc, In>(pair)) return;
  Arena arena(workspace);
  GroupingBuffers<E> w(arena, PaddedSizes<E>(pair.tokens.count, pair.patches.count, pair.channels));
  w.template align_and_sum<In, false>(pair, true);
  const In* grad = static_cast<const In*>(pair.grad);
  fill(w.grad_t, w.s.p * w.s.lp, typename E::Acc{0});
  for (int64_t i = 0; i < w.s.p; ++i) {
    const In* column = grad + pair.patches.index[i] * pair.grad_strides[1];
    for (int64_t l = 0; l < w.s.n; ++l) w.grad_t[i * w.s.lp + l] = to_acc(column[l * pair.grad_strides[0]]);
  }
  w.normalise_backward(pair);
  w.template write_gradients<In>(pair, false);
}

template <class E, class In>
GroupingKernel grouping_kernel() {
  return {&workspace_of<E, GroupingBuffers<E>>, &grouped_embeddings_forward<E, In>,
          &grouped_embeddings_backward<E, In>, &alignment_weights_forward<E, In>,
          &alignment_weights_backward<E, In>};
}

}  // namespace SPARC_ISA

SPARC_KERNELS(GroupingKernel, grouping_kernel)

}  // namespace sparc
