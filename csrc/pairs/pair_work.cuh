// The pairs that a block works on, one after another.
#pragma once

#include "pairs/pair_stream.cuh"

namespace sparc {

// A pair: an image and a text, by their numbers in the batch, and their valid rows.
struct PairWork {
  int64_t pair;  // of in.pairs
  int64_t image, text;
  int image_rows, text_rows;  // valid ones
  int buffer;                 // which of the two index buffers lists them; by turns
};

// Pair number `pair`: image i goes with text i.
SPARC_DEVICE PairWork pair_work(int64_t pair, int buffer) { return {pair, pair, pair, 0, 0, buffer}; }

// Whether the pair path serves a pair with so many valid rows.
SPARC_DEVICE bool pair_path_holds(const PairWork& work) {
  return work.text_rows <= kPairTextRows && work.image_rows <= kPairImageRows;
}

// A pair with its valid rows listed; those of the image only where a text with a mask has any. Ops without
// a text mask (`kTextMask`) read all of its rows, which are not listed.
template <bool kTextMask>
SPARC_DEVICE PairWork list_rows(const PairPlaces& shared, const PairInputs& in, int64_t pair, int buffer) {
  const device::Shared<int> counts = device::shared_at<int>(shared.counts);
  PairWork work = pair_work(pair, buffer);
  work.text_rows = in.text_rows;
  if (kTextMask) {
    work.text_rows = list_valid(in.text_mask, work.text, in.text_rows,
                                device::shared_at<int>(shared.text_index[buffer]), counts);
  }
  if (!kTextMask || work.text_rows > 0) {
    work.image_rows = list_valid(in.image_mask, work.image, in.image_rows,
                                 device::shared_at<int>(shared.image_index[buffer]), counts);
  }
  return work;
}

// Calls body(work) for every pair of this block that the pair path holds.
template <bool kTextMask, class Body>
SPARC_DEVICE void for_each_pair(const PairPlaces& shared, const PairInputs& in, const Body& body) {
  for (int64_t pair = device::block_index(); pair < in.pairs; pair += device::block_count()) {
    const PairWork work = list_rows<kTextMask>(shared, in, pair, 0);
    if (!pair_path_holds(work)) continue;  // the tiled launch serves it
    body(work);
    device::block_barrier();
  }
}

// The next pair from `pair` on, in steps of the grid, that has valid rows of both, and not too many. Those
// that lack them are answered by `trivial(work)`.
template <class Trivial>
SPARC_DEVICE PairWork next_work(const PairPlaces& shared, const PairInputs& in, int64_t pair, int buffer,
                                const Trivial& trivial) {
  for (; pair < in.pairs; pair += device::block_count()) {
    const PairWork work = list_rows<true>(shared, in, pair, buffer);
    if (!pair_path_holds(work)) continue;  // the tiled launch serves it
    if (work.image_rows > 0) return work;
    trivial(work);
  }
  return pair_work(pair, buffer);
}

}  // namespace sparc
