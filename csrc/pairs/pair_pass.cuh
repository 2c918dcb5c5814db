// What every pass of an op over one pair starts from: its rows as a stream, and its rows of the results.
#pragma once

#include "pairs/pair_stores.cuh"
#include "pairs/pair_tile.cuh"

namespace sparc {

// The pair path of the op that takes `Arguments`, specialised by it: Layout<E, kChunk>, and the kernel
// run<E, kStrips, kChunk, kBackward>(arguments, streaming, layout).
template <class Arguments>
struct PairOp;

// Shared memory that it takes.
template <class Arguments, class E>
int64_t pair_layout_bytes(const PairInputs& in, const Streaming& streaming, bool backward) {
  using Op = PairOp<Arguments>;
  if (streaming.chunk == 64) return typename Op::template Layout<E, 64>(in, streaming, backward).plan.used;
  return typename Op::template Layout<E, 32>(in, streaming, backward).plan.used;
}

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
  using Base::kChunk;

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
        chunks((args_.in.channels + kChunk - 1) / kChunk) {}

  // One chunk of a stream: of the image, of the text, of the first n rows of a matrix.
  SPARC_DEVICE void load_image(int c, int stage) const {
    const device::Shared<int> index = image_index();
    image_copies.load(image, &index, this->p, c * kChunk, args.in.channels, shared.image_tile(stage));
  }
  SPARC_DEVICE void load_text(int c, int stage) const {
    const device::Shared<int> index = text_index();
    text_copies.load(text, &index, this->n, c * kChunk, args.in.channels, shared.text_tile(stage));
  }
  template <class To>
  SPARC_DEVICE void load_leading(const InputRows<E>& rows, int c, const To& to) const {
    load_rows<kChunk>(rows, nullptr, this->n, c * kChunk, args.in.channels, to);
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
  // A warp takes [16 kTasksDown, 16 kTasksAcross] at a time: the larger, the fewer operands are read again.
  SPARC_DEVICE void write_image_gradient(const ImageGradient& grad, const Tile<E>& x, int chunk,
                                         int stage) const {
    constexpr int kDown = Base::kTasksDown, kAcross = Base::kTasksAcross, kWide = kChunk / (16 * kAcross);
    const int tasks = (this->p + 16 * kDown - 1) / (16 * kDown) * kWide;
    SPARC_NO_UNROLL
    for (int task = device::same_in_warp(device::warp_index()); task < tasks; task += kWarps) {
      const int m = task / kWide * (16 * kDown), column = task % kWide * (16 * kAcross);
      Sums c[kDown][kAcross] = {};
      add_over_text(c, x, shared.text_tile(stage), m, column);
      if (grad.with_second) {
        if constexpr (kIsFloat16<E>) {  // 1 in others
          SPARC_UNROLL
          for (int i = 0; i < 8 * kDown * kAcross; ++i)
            c[i / 8 / kAcross][i / 8 % kAcross][i / 4 % 2][i % 4] *= grad.x_unit;
        }
        add_over_text(c, shared.weights_tile(), shared.second_tile(stage), m, column);
      }
      SPARC_UNROLL
      for (int down = 0; down < kDown; ++down) {
        if (down > 0 && m + 16 * down >= this->p) break;
        store_image_gradient(grad, grad.share, c[down], m + 16 * down, chunk * kChunk + column);
      }
    }
  }
  // 16 rows from `m` on of that sum, its channels from `at` on; share: grad.share, or where it has been put.
  template <class Share, int kCount>
  SPARC_DEVICE void store_image_gradient(const ImageGradient& grad, const Share& share,
                                         const Sums (&c)[kCount], int m, int at) const {
    const float last = grad.with_second ? grad.factor : grad.factor * grad.x_unit;
    const device::Shared<int> index = image_index();
    RoundedSums<E> rounded[kCount];
    SPARC_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (!share.is_there()) {
        rounded[i] = RoundedSums<E>(c[i], last);
      } else {
        Sums sum;
        SPARC_UNROLL
        for (int half = 0; half < 2; ++half) {
          float each[2];
          share.template two_at<Base::kWhole>(at + 16 * i + sum_column(half, 0), each);
          SPARC_UNROLL
          for (int e = 0; e < 4; ++e) sum[half][e] = c[i][half][e] * last + each[e % 2];
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
  // c += a^T b: a [n, p] from column m on, b [n, kChunk] from `column` on
  template <int kDown, int kAcross, class Chunk>
  SPARC_DEVICE void add_over_text(Sums (&c)[kDown][kAcross], const Tile<E>& a, const Chunk& b, int m,
                                  int column) const {
    SPARC_UNROLL
    for (int k = 0; k < kPairTextRows; k += Products::kDepth) {
      if (k >= this->n) break;
      typename Products::A left[kDown];
      SPARC_UNROLL
      for (int down = 0; down < kDown; ++down) {
        if (down == 0 || m + 16 * down < this->p)
          left[down] = Products::load_a_transposed(a, k, m + 16 * down);
      }
      SPARC_UNROLL
      for (int across = 0; across < kAcross; ++across) {
        const typename Products::B right = Products::load_b_transposed(b, k, column + 16 * across);
        SPARC_UNROLL
        for (int down = 0; down < kDown; ++down) {
          if (down == 0 || m + 16 * down < this->p)
            Products::multiply_add(c[down][across], left[down], right);
        }
      }
    }
  }
};

}  // namespace sparc
