// The tiled path: one block works on one pair of any size and dtype, with what is between in scratch memory
// of its own (not of the pair: it does not grow with the batch). Serves what the pair path cannot hold in
// registers: long texts, large images, float32.
#pragma once

#include "common/tiled_product.cuh"
#include "pairs/pair_work.cuh"

namespace sparc {

// Where things lie in a block's scratch. The host makes it and passes it as a kernel argument: offsets then
// come from the constant bank and take no registers. Pitches are in elements, rows 16-byte aligned.
struct TiledScratch {
  Plan<int64_t> plan;
  int image_pitch, text_pitch, channels_pitch;
  int64_t text_index, image_index;  // [L], [P] int

  SPARC_HOST_DEVICE explicit TiledScratch(const PairInputs& in)
      : image_pitch(round_up(in.image_rows, 8)),
        text_pitch(round_up(in.text_rows, 8)),
        channels_pitch(round_up(in.channels, 8)),
        text_index(take<int>(in.text_rows, 1)),
        image_index(take<int>(in.image_rows, 1)) {}

  template <class T>
  SPARC_HOST_DEVICE int64_t take(int rows, int pitch) {
    return plan.take(static_cast<int64_t>(rows) * pitch * static_cast<int64_t>(sizeof(T)));
  }
};

// The tiled path of the op that takes `Arguments`, specialised by it: Layout<E>, and the kernel
// run<Products, kBackward>(arguments, memory, layout).
template <class Arguments>
struct TiledOp;

// One pair. `Layout` is a TiledScratch with what the op adds.
template <class Products_, class Layout, class Arguments>
struct TiledPair {
  using Products = Products_;
  using E = typename Products::Element;

  const Layout& plan;
  const Arguments& args;
  unsigned char* base;  // of this block's scratch
  const PairWork& work;
  const PairInputs& in;
  int n, p;  // valid rows of the text and of the image

  SPARC_DEVICE TiledPair(const Layout& plan_, const Arguments& args_, unsigned char* base_,
                         const PairWork& work_)
      : plan(plan_),
        args(args_),
        base(base_),
        work(work_),
        in(args_.in),
        n(work_.text_rows),
        p(work_.image_rows) {}

  template <class T>
  SPARC_DEVICE device::Scratch<T> scratch(int64_t offset) const {
    return device::scratch_at<T>(base, static_cast<size_t>(offset));
  }
  SPARC_DEVICE device::Scratch<float> row_array(int64_t offset) const { return scratch<float>(offset); }
  SPARC_DEVICE device::Scratch<int> image_index() const { return scratch<int>(plan.image_index); }
  SPARC_DEVICE device::Scratch<int> text_index() const { return scratch<int>(plan.text_index); }
  // Working memory of reductions over the block.
  SPARC_DEVICE device::Shared<float> parts() const {
    return device::shared_at<float>(TiledLayout<E>::kParts);
  }
  template <class T>
  SPARC_DEVICE ScratchMatrix<T> matrix(int64_t offset, int rows, int columns, int pitch) const {
    return {scratch<T>(offset), rows, columns, pitch};
  }

  // the gathered rows of an input
  SPARC_DEVICE GatheredRows<E> gathered(const MatrixView& view, int64_t item, int64_t index, int rows) const {
    return {static_cast<const E*>(view.data) + item * view.batch_stride,
            view.row_stride,
            view.column_stride,
            rows,
            in.channels,
            view.wide && in.channels % kPiece<E> == 0,
            scratch<int>(index)};
  }
  SPARC_DEVICE GatheredRows<E> image() const {
    return gathered(in.image_embeds, work.image, plan.image_index, p);
  }
  SPARC_DEVICE GatheredRows<E> text() const {
    return gathered(in.text_embeds, work.text, plan.text_index, n);
  }

  // The pair's rows of an output [B, P or L, D].
  SPARC_DEVICE OutputRows<E> image_output(void* out) const {
    return {rows_of<E>(out, work.image, in.image_rows, in.channels), image_index(), in.channels};
  }
  SPARC_DEVICE OutputRows<E> text_output(void* out) const {
    return {rows_of<E>(out, work.text, in.text_rows, in.channels), text_index(), in.channels};
  }

  // A product, or a sum of two, of which `store` takes every number (sparc::multiply).
  template <class Terms, class Store>
  SPARC_DEVICE void multiply(const Terms& terms, const Store& store) const {
    sparc::multiply<Products>(terms, store);
  }

  // Calls f(row) for the text rows of this warp.
  template <class F>
  SPARC_DEVICE void for_rows(const F& f) const {
    SPARC_NO_UNROLL
    for (int l = device::warp_index(); l < n; l += kWarps) f(l);
  }
  // Calls f(i) for the image rows of this lane.
  template <class F>
  SPARC_DEVICE void for_columns(const F& f) const {
    for (int i = device::lane_index(); i < p; i += 32) f(i);
  }
};

// Calls body(base of the block's scratch, work) for every pair of this block that the pair path leaves;
// `kTextMask` as in list_rows.
template <class E, bool kTextMask, class Body>
SPARC_DEVICE void for_each_tiled_pair(const TiledScratch& plan, const PairInputs& in,
                                      const TiledMemory& memory, const Body& body) {
  unsigned char* const base = static_cast<unsigned char*>(memory.base) + device::block_index() * memory.bytes;
  const device::Shared<int> counts = device::shared_at<int>(TiledLayout<E>::kCounts);
  for (int64_t pair = device::block_index(); pair < in.pairs; pair += device::block_count()) {
    PairWork work = pair_work(pair, 0);
    work.text_rows = list_valid(in.text_mask, work.text, in.text_rows,
                                device::scratch_at<int>(base, plan.text_index), counts);
    if (!kTextMask || work.text_rows > 0) {
      work.image_rows = list_valid(in.image_mask, work.image, in.image_rows,
                                   device::scratch_at<int>(base, plan.image_index), counts);
    }
    if (memory.beside_pair_path && pair_path_holds(work)) continue;
    body(base, work);
    device::block_barrier();  // scratch is free for the next pair
  }
}

}  // namespace sparc
