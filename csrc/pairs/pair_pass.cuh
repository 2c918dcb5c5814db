// What every pass of an op over one pair starts from: its rows as a stream, and its rows of the results.
#pragma once

#include "pairs/pair_stores.cuh"
#include "pairs/pair_tile.cuh"

namespace sparc {

// The pair path of the op that takes `Arguments`, specialised by it: Layout<E>, and the kernel
// run<E, kStrips, kBackward>(arguments, streaming, layout).
template <class Arguments>
struct PairOp;

// `Tile_` is a PairTile or one with other products, `Layout` its PairPlaces with what the op adds,
// `Arguments` what it takes, with PairInputs `in`.
template <class Tile_, class Layout, class Arguments_>
struct PairPass : Tile_ {
  using Base = Tile_;
  using E = typename Base::Element;
  using Arguments = Arguments_;
  using Products = typename Base::Products;
  using RowPair = typename Base::RowPair;
  using HeldOperand = typename Base::HeldOperand;

  const Layout& shared;
  const Arguments& args;
  const Streaming& streaming;
  PairWork work;
  InputRows<E> image, text;
  typename Base::ImageCopies image_copies;
  typename Base::TextCopies text_copies;
  int chunks;

  SPARC_DEVICE PairPass(const Layout& shared_, const Arguments& args_, const Streaming& streaming_,
                        const PairWork& work_)
      : Base(shared_, work_),
        shared(shared_),
        args(args_),
        streaming(streaming_),
        work(work_),
        image(args_.in.image_embeds, work_.image),
        text(args_.in.text_embeds, work_.text),
        image_copies(copies<typename Base::ImageCopies>(image, image_index(), this->p)),
        text_copies(copies<typename Base::TextCopies>(text, text_index(), this->n)),
        chunks((args_.in.channels + streaming_.chunk - 1) / streaming_.chunk) {}

  // One chunk of a stream: of the image, of the text, of the first n rows of a matrix.
  SPARC_DEVICE void load_image(int c, int stage) const {
    const device::Shared<int> index = image_index();
    image_copies.load(image, &index, this->p, c * streaming.chunk, streaming.chunk, args.in.channels,
                      shared.image_tile(stage));
  }
  SPARC_DEVICE void load_text(int c, int stage) const {
    const device::Shared<int> index = text_index();
    text_copies.load(text, &index, this->n, c * streaming.chunk, streaming.chunk, args.in.channels,
                     shared.text_tile(stage));
  }
  template <class To>
  SPARC_DEVICE void load_leading(const InputRows<E>& rows, int c, const To& to) const {
    load_rows(rows, nullptr, this->n, c * streaming.chunk, streaming.chunk, args.in.channels, to);
  }

  // Where row r of this warp's 16 is stored in such a matrix; negative past the last one.
  SPARC_DEVICE int64_t leading_row(int r) const { return this->row0 + r < this->n ? this->row0 + r : -1; }

  // Streams of chunks: `load(c, stage)` starts copies, `compute(c, stage)` works on what has come.
  template <class Load>
  SPARC_DEVICE void start(const Load& load) const {
    Base::Stream::start(streaming, chunks, load);
  }
  template <class Load, class Compute>
  SPARC_DEVICE void for_chunks(const Load& load, const Compute& compute) const {
    Base::Stream::run(streaming, chunks, load, compute);
  }
  // Calls f(column) for this warp's turns of 16 channels of a chunk.
  template <class F>
  SPARC_DEVICE void for_channels(const F& f) const {
    SPARC_NO_UNROLL
    for (int d = 0; d < streaming.chunk; d += kChannelStep) f(d + this->column_warp * 16);
  }

  SPARC_DEVICE device::Shared<int> image_index() const {
    return device::shared_at<int>(shared.image_index[work.buffer]);
  }
  SPARC_DEVICE device::Shared<int> text_index() const {
    return device::shared_at<int>(shared.text_index[work.buffer]);
  }

  // The gradient of the image: out [P, D] = x_unit X^T T, plus, `with_second`, weights^T second, that sum in
  // units of `factor`, and each row's share of the gradient of the rows' mean.
  struct ImageGradient {
    float x_unit;
    bool with_second;
    float factor;
    MeanShare<E> share;
    E* out;
  };
  SPARC_DEVICE void write_image_gradient(const ImageGradient& grad, const Tile<E>& x, int chunk,
                                         int stage) const {
    const int across = streaming.chunk / 32, tasks = (this->p + 15) / 16 * across;
    SPARC_NO_UNROLL
    for (int task = device::warp_index(); task < tasks; task += kWarps) {
      const int m = task / across * 16, column = task % across * 32;
      Sums c[2] = {};
      add_over_text(c, x, shared.text_tile(stage), m, column);
      if (grad.with_second) {
        SPARC_UNROLL
        for (int i = 0; i < 16; ++i) c[i / 8][i / 4 % 2][i % 4] *= grad.x_unit;
        add_over_text(c, shared.weights_tile(), shared.second_tile(stage), m, column);
      }
      store_image_gradient(grad, c, m, chunk * streaming.chunk + column);
    }
  }
  // 16 rows from `m` on of that sum, its channels from `at` on.
  template <int kCount>
  SPARC_DEVICE void store_image_gradient(const ImageGradient& grad, const Sums (&c)[kCount], int m,
                                         int at) const {
    const float last = grad.with_second ? grad.factor : grad.factor * grad.x_unit;
    const device::Shared<int> index = image_index();
    RoundedSums<E> rounded[kCount];
    SPARC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (grad.share.grad == nullptr) {
        rounded[i] = RoundedSums<E>(c[i], last);
      } else {
        Sums sum;
        SPARC_UNROLL
        for (int half = 0; half < 2; ++half) {
          float share[2];
          grad.share.template two_at<Base::kWhole>(at + 16 * i + sum_column(half, 0), share);
          SPARC_UNROLL
          for (int e = 0; e < 4; ++e) sum[half][e] = c[i][half][e] * last + share[e % 2];
        }
        rounded[i] = RoundedSums<E>(sum);
      }
    }
    store_side_by_side<Base::kWhole>(rounded, grad.out, args.in.channels, at, [&](int r) -> int64_t {
      return m + r < this->p ? static_cast<int>(index[m + r]) : -1;
    });
  }

 private:
  template <class Copies>
  SPARC_DEVICE static Copies copies(const InputRows<E>& rows, const device::Shared<int>& index, int count) {
    return Copies(rows, &index, count);
  }
  // c [16 image rows, 32 channels] += a^T b: a [n, p], b [n, chunk]
  SPARC_DEVICE void add_over_text(Sums (&c)[2], const Tile<E>& a, const Tile<E>& b, int m, int column) const {
    SPARC_NO_UNROLL
    for (int k = 0; k < this->n; k += Products::kDepth) {
      const typename Products::A left = Products::load_a_transposed(a, k, m);
      SPARC_UNROLL
      for (int strip = 0; strip < 2; ++strip) {
        Products::multiply_add(c[strip], left, Products::load_b_transposed(b, k, column + 16 * strip));
      }
    }
  }
};

}  // namespace sparc
