// Weights of a chunk's tokens, their cosines, and the gradient of their similarities. Compiled once per
// instruction set.
//
// Columns are patches. What stands for a patch in a context is `column` times its row as it came: the
// similarity times `column` is S, the weight that is stored is E times `column`.
#pragma once

#include "attention_pooling/attention_pooling.h"
#include "captions/token_operands.h"

namespace sparc {
namespace SPARC_ISA {

// Factors of the patches.
template <class Acc>
struct Columns {
  int64_t count, columns;
  Acc* scale;    // of a raw product
  Acc* column;   // of what is stored; both are 0 beyond the last patch
  Acc* inverse;  // 1 / column
};

// What is known of a token: a row of the tile.
template <class Acc>
struct TokenRow {
  Acc norm;       // of a raw product: inverse norm of the token, or 1
  Acc direction;  // gamma
  Acc dot, size;  // n and z
  Acc inverse_context;
  bool regular;  // the context counts as more than 0
  Acc cosine;
  Acc d_dot, d_square;  // dn, 2 dq
};

template <class Acc>
constexpr Acc lowest() {
  return -static_cast<Acc>(__builtin_inf());
}

template <int N, class Acc>
SPARC_INLINE Vec<Acc, N> masked(Vec<Acc, N> x, int64_t at, int64_t count) {
  if (at + N > count) {
    for (int i = 0; i < N; ++i) x[i] = at + i < count ? x[i] : lowest<Acc>();
  }
  return x;
}

// Maximum that keeps a NaN.
template <class V>
SPARC_INLINE V larger(V candidate, V best) {
  return candidate <= best ? best : candidate;
}

// The row's similarities from raw products, over them; and the largest of `tau` times S.
template <class Acc>
Acc scale_row(const Columns<Acc>& columns, Acc norm, Acc tau, Acc* row) {
  constexpr int N = kGranule<Acc>;
  Vec<Acc, N> best = splat<N>(lowest<Acc>());
  for (int64_t x = 0; x < columns.columns; x += N) {
    const Vec<Acc, N> s = load<N>(row + x) * (load<N>(columns.scale + x) * norm);
    store(row + x, s);
    best = larger(masked<N, Acc>(s * load<N>(columns.column + x), x, columns.count), best);
  }
  return max_lanes<Acc>(best) * tau;
}

template <int N, class Acc>
SPARC_INLINE Vec<Acc, N> sigmoid(Vec<Acc, N> x) {
  const Vec<Acc, N> e = exp_vec<N>(x < Acc{0} ? x : -x);
  return (x >= Acc{0} ? splat<N>(Acc{1}) : e) / (e + Acc{1});
}

// Weights of a row from `logits` (times tau), n and z. `columns` may also be those of the logits, in which
// case they are taken as they are.
template <bool kSigmoid, class Acc, class Elem>
void weigh_row(const Columns<Acc>& columns, const Acc* similarities, const Acc* logits, Acc tau, Acc largest,
               Elem* weights, TokenRow<Acc>& row) {
  constexpr int N = kGranule<Acc>;
  const bool own = logits == similarities;
  Vec<Acc, N> dot = {}, size = {};
  for (int64_t x = 0; x < columns.columns; x += N) {
    const Vec<Acc, N> column = load<N>(columns.column + x);
    Vec<Acc, N> logit = load<N>(logits + x) * tau;
    if (own) logit = logit * column;
    Vec<Acc, N> e;
    if constexpr (kSigmoid) {
      e = sigmoid<N, Acc>(logit);
    } else {
      logit -= largest;
      e = exp_vec<N>(logit > Acc{0} ? Vec<Acc, N>{} : logit);  // above 0 beyond the last patch only
    }
    store_numbers<N>(weights + x, e * column);
    const Vec<Acc, N> stored = load_numbers<N>(weights + x);
    dot += stored * load<N>(similarities + x);
    size += stored * load<N>(columns.inverse + x);
  }
  row.dot = sum_lanes<Acc>(dot);
  row.size = kSigmoid ? Acc{1} : sum_lanes<Acc>(size);
}

// From n, z and q the cosine. q has the square of the dot product as a lower bound (Cauchy and Schwarz),
// which rounding may not undercut where contexts cancel.
template <class Acc>
SPARC_INLINE void compare(Acc square, TokenRow<Acc>& row) {
  const Acc dot = row.direction * row.dot, least = dot * dot;
  square = square < least ? least : square;
  const Acc length = static_cast<Acc>(__builtin_sqrt(square));
  row.regular = !(length <= row.size * Acc(1 / kInverseOfZero));
  row.inverse_context = row.regular ? 1 / length : Acc(kInverseOfZero) / row.size;
  row.cosine = dot * row.inverse_context;
}

// From the cosine's gradient k.
template <class Acc>
SPARC_INLINE void pull(Acc k, TokenRow<Acc>& row) {
  row.d_dot = k * row.direction * row.inverse_context;
  row.d_square = row.regular ? -k * row.cosine * row.inverse_context * row.inverse_context : Acc{0};
}

template <class Acc, class Elem>
Acc weighted_sum(const Elem* weights, const Acc* values, int64_t columns) {
  constexpr int N = kGranule<Acc>;
  Vec<Acc, N> sum = {};
  for (int64_t x = 0; x < columns; x += N) sum += load_numbers<N>(weights + x) * load<N>(values + x);
  return sum_lanes<Acc>(sum);
}

// A row of a tile of the backward pass: [columns] each.
template <class Acc, class Elem>
struct GradientRow {
  const Acc* similarities;
  const Elem* weights;
  Acc* products;     // the context's with all patches; words: then what the words' softmax gets
  const Acc* words;  // the words' softmax, or null
  Elem* similarity_grad;
  Elem* scaled_weights;  // times 2 dq
};

// The gradient of raw products, without that of the words' softmax.
template <AttentionWeights kWeights, class Acc, class Elem>
void gradient_row(const Columns<Acc>& columns, Acc tau, const TokenRow<Acc>& row,
                  const GradientRow<Acc, Elem>& out) {
  constexpr int N = kGranule<Acc>;
  const bool shifted = kWeights != AttentionWeights::kSigmoid && !row.regular;
  const Acc shift = shifted ? row.d_dot * row.dot / row.size : Acc{0};
  for (int64_t x = 0; x < columns.columns; x += N) {
    const Vec<Acc, N> weight = load_numbers<N>(out.weights + x), column = load<N>(columns.column + x);
    Vec<Acc, N> pull = load<N>(out.similarities + x) * row.d_dot + load<N>(out.products + x) * row.d_square;
    pull = (pull * column - shift) * tau;
    store_numbers<N>(out.scaled_weights + x, weight * row.d_square);
    if constexpr (kWeights == AttentionWeights::kWordsSoftmax) {
      store(out.products + x, pull * weight * load<N>(columns.inverse + x));
      continue;
    }
    if constexpr (kWeights == AttentionWeights::kSigmoid) {
      pull = pull - pull * weight * load<N>(columns.inverse + x);
    }
    const Vec<Acc, N> scale = load<N>(columns.scale + x) * row.norm;
    store_numbers<N>(out.similarity_grad + x, weight * (pull + row.d_dot) * scale);
  }
}

// The softmax over a caption's words, for each patch: of S into `words`. [rows, columns]
template <class Acc>
void softmax_over_words(const Columns<Acc>& columns, int64_t rows, const Acc* similarities, Acc* words) {
  constexpr int N = kGranule<Acc>;
  const int64_t stride = columns.columns;
  for (int64_t x = 0; x < stride; x += N) {
    const Vec<Acc, N> column = load<N>(columns.column + x);
    Vec<Acc, N> best = splat<N>(lowest<Acc>()), sum = {};
    for (int64_t r = 0; r < rows; ++r) best = larger(load<N>(similarities + r * stride + x) * column, best);
    for (int64_t r = 0; r < rows; ++r) {
      const Vec<Acc, N> e = exp_vec<N>(load<N>(similarities + r * stride + x) * column - best);
      store(words + r * stride + x, e);
      sum += e;
    }
    sum = Acc{1} / sum;
    for (int64_t r = 0; r < rows; ++r) store(words + r * stride + x, load<N>(words + r * stride + x) * sum);
  }
}

template <class Acc>
Acc largest_word(const Columns<Acc>& columns, const Acc* words) {
  constexpr int N = kGranule<Acc>;
  Vec<Acc, N> best = splat<N>(lowest<Acc>());
  for (int64_t x = 0; x < columns.columns; x += N) {
    best = larger(masked<N, Acc>(load<N>(words + x), x, columns.count), best);
  }
  return max_lanes<Acc>(best);
}

// The gradient of a caption's raw products through the softmax over its words; `rows` and `grads` of its
// tokens, one behind the other.
template <class Acc, class Elem>
void gradient_through_words(const Columns<Acc>& columns, int64_t n_rows, const TokenRow<Acc>* rows,
                            const GradientRow<Acc, Elem>& first) {
  constexpr int N = kGranule<Acc>;
  const int64_t stride = columns.columns;
  for (int64_t x = 0; x < stride; x += N) {
    const Vec<Acc, N> column = load<N>(columns.column + x), scale = load<N>(columns.scale + x);
    Vec<Acc, N> sum = {};
    for (int64_t r = 0; r < n_rows; ++r) {
      sum += load<N>(first.words + r * stride + x) * load<N>(first.products + r * stride + x);
    }
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t at = r * stride + x;
      const Vec<Acc, N> through = load<N>(first.words + at) * (load<N>(first.products + at) - sum);
      const Vec<Acc, N> grad = load_numbers<N>(first.weights + at) * rows[r].d_dot + column * through;
      store_numbers<N>(first.similarity_grad + at, grad * (scale * rows[r].norm));
    }
  }
}

}  // namespace SPARC_ISA
}  // namespace sparc
