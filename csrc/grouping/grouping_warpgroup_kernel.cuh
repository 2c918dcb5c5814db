// Grouped embeddings and alignment weights on the pair path by products of warpgroups. Names follow MATH.md.
//
// V, T and dC are streamed twice, there and back: S (and dA, at once, which the sums of two products have
// room for), then the results. The stream goes on with the next pair; for weights a forward pass has no way
// back.
#pragma once

#include "grouping/grouping_pair_kernel.cuh"
#include "pairs/warpgroup_gradients.cuh"

namespace sparc {

template <class E>
struct GroupingPanelLayout : PanelLayout<E> {
  int x;  // dS [64, P] E, in a backward pass

  SPARC_HOST_DEVICE GroupingPanelLayout(const PairInputs& in, const Streaming& streaming, bool backward)
      : PanelLayout<E>(in, streaming, backward),
        x(backward ? this->take_panels(this->weights_panels() * kPairTextRows) : 0) {}
  SPARC_DEVICE Panel<E> x_tile() const { return {x, kPairTextRows}; }
};

// `Stream_`: the TurningStream of the pass.
template <class E, int kStrips, class Stream_>
struct GroupingWarpgroupSteps : GroupingPairBase<WarpgroupTile<E, kStrips, Stream_>, GroupingPanelLayout<E>> {
  using Base = GroupingPairBase<WarpgroupTile<E, kStrips, Stream_>, GroupingPanelLayout<E>>;
  using Stream = Stream_;
  using Base::args;
  using Base::Base;
  using Base::shared;
  using Base::streaming;
  using Base::work;

  // What a stream starts with: V, T and, `kSecond`, dC.
  template <bool kSecond>
  SPARC_DEVICE void load(int c, int stage) const {
    this->load_image(c, stage);
    this->load_text(c, stage);
    if constexpr (kSecond) load_grads(c, stage);
  }
  SPARC_DEVICE void load_grads(int c, int stage) const {
    const InputRows<E> rows = this->grad_rows();
    const typename Base::TextCopies copies(rows, nullptr, this->n);
    copies.load(rows, nullptr, this->n, c * Base::kChunk, args.in.channels, shared.second_tile(stage));
  }
  template <bool kSecond>
  SPARC_DEVICE void start_stream() const {
    this->start([&](int c, int stage) { load<kSecond>(c, stage); });
  }

  // kGoesOn: whether the stream has gone on from the pair before, and so lies where that left it.
  template <bool kSecond, bool kGoesOn, class Compute>
  SPARC_DEVICE void there(const Compute& compute) const {
    const auto load_chunk = [&](int c, int stage) { load<kSecond>(c, stage); };
    Stream::there(streaming, kGoesOn && mirrored(), this->chunks, load_chunk, compute);
  }
  // load(c, stage): what the way back needs of a chunk; the pair `following` is begun behind it.
  template <bool kSecond, class Load, class Compute>
  SPARC_DEVICE void back(const PairWork& following, const Load& load_chunk, const Compute& compute) const {
    const auto load_next = [&](int c, int stage) {
      if (following.pair < args.in.pairs) {
        GroupingWarpgroupSteps(shared, args, streaming, following).template load<kSecond>(c, stage);
      }
    };
    Stream::back(streaming, mirrored(), this->chunks, load_chunk, load_next, compute);
  }

 private:
  SPARC_DEVICE bool mirrored() const { return work.buffer != 0; }
};

template <class E, int kStrips>
struct GroupingWarpgroupForward : GroupingWarpgroupSteps<E, kStrips, PanelStream> {
  using Base = GroupingWarpgroupSteps<E, kStrips, PanelStream>;
  using RowPair = typename Base::RowPair;
  using Base::args;
  using Base::Base;
  using Base::shared;

  // kEmbeddings: these are asked for, not the weights. next() gives the pair to go on with, whose stream is
  // under way when it returns; all threads call it.
  template <bool kEmbeddings, class Next>
  SPARC_DEVICE PairWork run(const Next& next) const {
    typename Base::Strips s = {};
    this->template there<false, kEmbeddings>([&](int, int stage, const auto& copy) {
      this->add_products(s, shared.text_tile(stage), shared.image_tile(stage));
      copy();
    });
    device::warpgroup_hold(accumulators(s));
    RowPair inverse;
    this->weigh(s, inverse);  // behind its barriers no product reads a stage
    const PairWork following = next();
    if constexpr (kEmbeddings) {
      this->write_tile(shared.weights_tile(), [&](int strip, int half, int i) { return s[strip][half][i]; });
      device::block_barrier();
      write_groups(following, inverse);
    } else {
      if (following.pair < args.in.pairs) {
        Base(shared, args, this->streaming, following).template start_stream<false>();
      }
      this->write_output(s, inverse);
    }
    return following;
  }

 private:
  SPARC_DEVICE void write_groups(const PairWork& following, const RowPair& inverse) const {
    typename Base::HeldOperand held;
    this->hold(held, shared.weights_tile());
    const auto load = [&](int c, int stage) { this->load_image(c, stage); };
    this->template back<false>(following, load, [&](int c, int stage, const auto& copy) {
      Sums groups[Base::kChannels / 16] = {};
      this->times_image(groups, held, shared.image_tile(stage));
      copy();
      device::warpgroup_wait<0>();
      device::warpgroup_hold(accumulators(groups));
      this->store_rows(args.output, groups, inverse, c * Base::kChunk + this->first_channel());
    });
  }
};

// Its products are done before the next chunk's are begun: more is on its way to the few stages that fit.
template <class E, int kStrips>
struct GroupingWarpgroupBackward : WarpgroupGradients<GroupingWarpgroupSteps<E, kStrips, TurningStream<0>>> {
  using Base = WarpgroupGradients<GroupingWarpgroupSteps<E, kStrips, TurningStream<0>>>;
  using RowPair = typename Base::RowPair;
  using Base::args;
  using Base::Base;
  using Base::shared;

  // As that of the forward pass.
  template <bool kEmbeddings, class Next>
  SPARC_DEVICE PairWork run(const Next& next) const {
    typename Base::Strips s = {}, grad = {};
    if constexpr (!kEmbeddings) this->read_weight_gradient(grad);  // on its way while V and T are
    this->template there<kEmbeddings, true>([&](int, int stage, const auto& copy) {
      this->add_products(s, shared.text_tile(stage), shared.image_tile(stage));
      if constexpr (kEmbeddings) {
        this->add_products(grad, shared.second_tile(stage), shared.image_tile(stage));
      }
      copy();
    });
    device::warpgroup_hold(accumulators(s));
    if constexpr (kEmbeddings) device::warpgroup_hold(accumulators(grad));
    RowPair inverse;
    const typename Base::Kept kept = this->normalize(s, inverse);
    const Panel<E> a = shared.weights_tile();
    const float x_unit = this->mix(grad, kept, inverse, [&](int strip, int half, int i, int column) {
      // S of 256 patches leaves no registers for A beside dA: it is read where this thread has written it
      if constexpr (kStrips < 8) return s[strip][half][i];
      return a.get(this->row(i / 2), column);
    });
    const PairWork following = next();
    write_gradients<kEmbeddings>(following, x_unit);
    return following;
  }

 private:
  // dV and dT = dS V, as asked for.
  template <bool kEmbeddings>
  SPARC_DEVICE void write_gradients(const PairWork& following, float x_unit) const {
    const typename Base::ImageGradient image = this->image_gradient(x_unit);
    const RowPair unit = {x_unit, x_unit};
    const auto load = [&](int c, int stage) {
      if (args.grad_tokens != nullptr) this->load_image(c, stage);
      if (args.grad_patches != nullptr) {
        this->load_text(c, stage);
        if constexpr (kEmbeddings) this->load_grads(c, stage);
      }
    };
    this->template back<kEmbeddings>(following, load, [&](int c, int stage, const auto& copy) {
      const int first = c * Base::kChunk;
      this->template chunk_gradients<kEmbeddings>(
          stage, x_unit, copy,
          [&](const auto& sums, int row, int channel) {
            if (args.grad_patches != nullptr)
              this->store_image_gradient(image, image.share, sums, row, first + channel);
          },
          [&](const auto& sums, int channel) {
            if (args.grad_tokens != nullptr) this->store_rows(args.grad_tokens, sums, unit, first + channel);
          });
    });
  }
};

// All pairs of this block by `Pass`, of embeddings or of weights.
template <class Pass, bool kEmbeddings, bool kBackward, class Layout>
SPARC_DEVICE void run_grouping(const GroupingArguments& args, const Streaming& streaming,
                               const Layout& shared) {
  using E = typename Pass::E;
  const auto next = [&](int64_t pair, int buffer) {
    return next_work(shared, args.in, pair, buffer,
                     [&](const PairWork& empty) { fill_grouping<E>(args, empty, kBackward); });
  };
  PairWork work = next(device::block_index(), 0);
  if (work.pair < args.in.pairs) {
    Pass(shared, args, streaming, work).template start_stream<kBackward && kEmbeddings>();
  }
  while (work.pair < args.in.pairs) {
    const PairWork following = Pass(shared, args, streaming, work).template run<kEmbeddings>([&] {
      return next(work.pair + device::block_count(), 1 - work.buffer);
    });
    fill_grouping<E>(args, work, kBackward);
    work = following;
  }
}

template <>
struct WarpgroupOp<GroupingArguments> {
  template <class E>
  using Layout = GroupingPanelLayout<E>;

  template <class E, int kStrips, bool kBackward>
  SPARC_DEVICE static void run(const GroupingArguments& args, const Streaming& streaming,
                               const Layout<E>& shared) {
    using Pass = typename std::conditional<kBackward, GroupingWarpgroupBackward<E, kStrips>,
                                           GroupingWarpgroupForward<E, kStrips>>::type;
    if (args.weights) {
      run_grouping<Pass, false, kBackward>(args, streaming, shared);
    } else {
      run_grouping<Pass, true, kBackward>(args, streaming, shared);
    }
  }
};

}  // namespace sparc
