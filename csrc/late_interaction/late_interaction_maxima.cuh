// The best patch of each token and the best token of each patch and caption, as keys, by products of
// warpgroups: what resident_maxima_kernel of sparc_kernels/ops/late_interaction/triton_resident.py finds, bit
// for bit where the products are the same.
//
// A block owns a chunk of an image's patches, which stay in shared memory, and a run of captions. Rows of a
// tile of products are slots of tokens, its columns are the chunk's patches. Two warpgroups take turns at the
// matrix units: while one multiplies a tile, the other looks for the maxima of its own one before, in its
// accumulators. Each has tokens of its own and meets the other nowhere else. A warp has
// 16 rows, one granule, and goes through granules that follow each other, so that it keeps the best token of
// each column in registers until the caption ends. What a caption has in several warps' granules is merged at
// the end.
#pragma once

#include "late_interaction/late_interaction_tokens.cuh"

namespace sparc {

constexpr float kShrink = 0.984375f;  // SHRINK of triton_forward.py, whose keys these are
constexpr int kRanks = 256;           // the most tokens of a caption

// The inverse norms of two neighbouring columns' patches, times kShrink.
struct alignas(8) InversePair {
  float of[2];
};

// Keys of 8 kCount columns of a tile, of which a thread has two of each eight.
template <int kCount>
struct ColumnKeys {
  uint32_t keys[2 * kCount];

  // Zeros that the compiler does not know: it would choose between a zero and the key for every column of
  // every tile, where a branch that is rarely taken does.
  SPARC_DEVICE void clear() {
    SPARC_UNROLL
    for (int i = 0; i < 2 * kCount; ++i) keys[i] = device::made_here(0);
  }

  // The maxima of this thread and the one whose lane differs in `mask`, which shares them: the first half for
  // the one, the second half for the other.
  SPARC_DEVICE ColumnKeys<(kCount + 1) / 2> halved(int mask) const {
    constexpr int kHalf = (kCount + 1) / 2;
    ColumnKeys<kHalf> result;
    const bool second = (device::lane_index() & mask) != 0;
    SPARC_UNROLL
    for (int i = 0; i < 2 * kHalf; ++i) {
      const uint32_t low = keys[i], high = i + 2 * kHalf < 2 * kCount ? keys[i + 2 * kHalf] : 0;
      const uint32_t other = device::shuffle_xor(second ? low : high, mask);
      result.keys[i] = device::max(second ? high : low, other);
    }
    return result;
  }
};

// Calls store(column, key) for all columns, with the best keys of the warp. All lanes call it.
template <int kCount, class Store>
SPARC_DEVICE void store_best(const ColumnKeys<kCount>& open, const Store& store) {
  constexpr int kFirst = (kCount + 1) / 2, kSecond = (kFirst + 1) / 2, kThird = (kSecond + 1) / 2;
  const ColumnKeys<kThird> best = open.halved(16).halved(8).halved(4);
  const int lane = device::lane_index();
  const int third = lane & 4 ? kThird : 0;
  const int second = third + (lane & 8 ? kSecond : 0), first = second + (lane & 16 ? kFirst : 0);
  SPARC_UNROLL
  for (int i = 0; i < kThird; ++i) {
    if (third + i < kSecond && second + i < kFirst && first + i < kCount) {
      store((first + i) * 8 + lane % 4 * 2, best.keys[2 * i]);
      store((first + i) * 8 + lane % 4 * 2 + 1, best.keys[2 * i + 1]);
    }
  }
}

// The work of a block.
template <class E, int kN>
struct MaximaBlock {
  static constexpr int kColumns = kN, kEights = kN / 8;

  const MaximaArguments& in;
  const MaximaLayout& layout;
  const MaximaPlace& place;
  TokenStream<E> tokens;
  int warp;
  float c[kN / 2] = {};
  ColumnKeys<kEights> open;  // the best tokens so far of the caption that goes on

  SPARC_DEVICE MaximaBlock(const MaximaArguments& args, const MaximaLayout& divided, const MaximaPlace& here,
                           int granules)
      : in(args),
        layout(divided),
        place(here),
        tokens(args, divided, here, granules),
        warp(device::same_in_warp(device::warp_index())) {
    open.clear();
  }

  SPARC_DEVICE int granules() const { return tokens.granules; }
  SPARC_DEVICE int first_granule(int of_warp) const { return of_warp * tokens.turns; }
  SPARC_DEVICE int64_t in_run(int granule) const {
    return static_cast<int64_t>(place.run) * in.run_granules + granule;
  }

  // Starts the copies of the chunk's patches, and writes the numbers of its columns. Columns that have no
  // patch get the first one once more: its product is the same, bit for bit, whatever the column, and no
  // token takes it there, since the lower column wins.
  SPARC_DEVICE void load_patches() const {
    const int column = (device::thread_index() & 7) * 8;
    const E* const image = static_cast<const E*>(in.images) + place.image * in.image_stride + column;
    SPARC_NO_UNROLL
    for (int row = device::thread_index() >> 3; row < kN; row += kThreads / 8) {
      const E* const from = image + patch_of(row) * in.patch_stride;
      SPARC_NO_UNROLL
      for (int panel = 0; panel < layout.panels; ++panel) {
        const Panel<E> to = {panel * kN * Panel<E>::kRowBytes, kN};
        device::copy_async_if(panel * 64 + column < in.channels,
                              device::address_of(device::shared_at<Piece>(to.piece(row, column))),
                              from + panel * 64);
      }
    }
    const device::Shared<float> inverses = device::shared_at<float>(layout.inverses);
    for (int i = device::thread_index(); i < kN; i += kThreads) {
      int patch = patch_of(i);
      if (in.patch_slots != nullptr) patch = in.patch_slots[place.image * in.n_patch_slots + patch];
      inverses[i] = device::product(in.image_inverse[place.image * in.patches + patch], kShrink);
    }
  }
  SPARC_DEVICE int patch_of(int column) const {
    return place.first_patch + (column < place.patches ? column : 0);
  }

  // This thread's part of the next panel is there for the matrix instructions, of all threads behind a
  // barrier.
  SPARC_DEVICE void await_panel() const {
    tokens.template wait<MaximaLayout(kMostChannels, kN).stages>();
    device::async_proxy_fence();
  }

  // A tile, in this warpgroup's turn: the products of its last panel are under way when this returns. What
  // takes time is done while products are under way, so that little is left to do between the end of one
  // panel's and the start of those behind the next one's.
  SPARC_DEVICE void multiply(int group) {
    uint64_t right = Panel<E>{0, kN}.operand(0, 0);
    await_panel();
    device::take_turn(group);  // a barrier of the warpgroup, too
    SPARC_NO_UNROLL
    for (int panel = 0;;) {
      device::warpgroup_fence();
      multiply_panel(panel > 0, tokens.next_operand(), right);
      right = device::operand_behind(right, kN * Panel<E>::kRowBytes);
      tokens.load();
      if (++panel == layout.panels) break;
      await_panel();
      device::warpgroup_wait<1>();
      // the panel is there for all, and the products of the one before the last are done: its stage is free
      device::warpgroup_barrier();
    }
    device::warpgroup_wait<1>();
  }
  // A group of products; `add`: to what there is.
  SPARC_DEVICE void multiply_panel(bool add, uint64_t left, uint64_t right) {
    SPARC_UNROLL
    for (int k = 0; k < Panel<E>::kColumns; k += 16) {
      device::warpgroup_multiply_add_if<E, kN, false, false>((k > 0) | add, c, Panel<E>::beside(left, k),
                                                             Panel<E>::beside(right, k));
    }
    device::warpgroup_commit();
  }

  // What a thread knows of its warp's granule, fetched while the products are under way. Behind the warp's
  // last one: another one's, whose keys nobody asks for.
  struct Granule {
    int64_t slot;  // of this thread's first row
    float inverse[2];
    int code, caption;
    bool there;
  };
  SPARC_DEVICE Granule granule_at(int turn) const {
    const int granule = first_granule(warp) + turn;
    const bool there = granule < granules();
    const int64_t at = in_run(there ? granule : 0);
    const int64_t slot = at * kGranule + device::lane_index() / 4;
    return {slot,
            {in.slot_inverse[slot], in.slot_inverse[slot + 8]},
            there ? in.codes[at] : 0,
            in.captions[at],
            there};
  }

  // Keys of a tile's rows, of which this warp has a granule's, and what they are for the caption. One number
  // of each element serves both: the value's 24 bits, eight further up, less the ranks of row and column. Of
  // one row's, or one column's, the largest is that of the best key, since what the others have in common
  // does not matter; it is taken off from what was found. Ranks reach into the value's bits: a cosine with 3
  // added is far enough from 2 not to be less than both of them, and what is not finite is far above.
  SPARC_DEVICE void look_for_maxima(const Granule& granule) {
    const int quad = device::lane_index() & 3;
    const device::Shared<InversePair> inverses = device::shared_at<InversePair>(layout.inverses) + quad;
    const int first = -(granule.code >> 1) * kGranule - device::lane_index() / 4;
    int ranks = first;  // less 8 for each eight columns, as for the second row
    uint32_t best[2][2] = {}, keys[2][2][2];
    SPARC_UNROLL
    for (int j = 0; j < kEights; ++j) {
      const InversePair inverse = inverses[4 * j];
      const int behind = device::made_here(ranks - 8);
      SPARC_UNROLL
      for (int i = 0; i < 2; ++i) {
        uint32_t* const key = keys[j % 2][i];
        SPARC_UNROLL
        for (int r = 0; r < 2; ++r) {
          const float value = device::fused_multiply_add(device::product(c[4 * j + 2 * r + i], inverse.of[i]),
                                                         granule.inverse[r], 3.0f);
          key[r] = (device::float_to_bits(value) << 8) + (r == 0 ? ranks : behind);
        }
        open.keys[2 * j + i] = device::max(key[0], key[1], open.keys[2 * j + i]);
        if (j % 2 == 1 || j + 1 == kEights) {
          SPARC_UNROLL
          for (int r = 0; r < 2; ++r) best[i][r] = device::max(keys[0][i][r], keys[1][i][r], best[i][r]);
        }
      }
      ranks = behind;
    }
    uint32_t token[2];
    SPARC_UNROLL
    for (int r = 0; r < 2; ++r) {
      token[r] = device::max(best[0][r], best[1][r] - 1) + (kN - 1 - 2 * quad - first + 8 * r);
      token[r] = device::max(token[r], device::shuffle_xor(token[r], 1));
      token[r] = device::max(token[r], device::shuffle_xor(token[r], 2));
    }
    if (in.token_keys != nullptr && granule.there && quad < 2) {
      in.token_keys[(place.own * in.chunks + place.chunk) * in.slots + granule.slot + 8 * quad] =
          quad == 0 ? token[0] : token[1];
    }
  }

  // Stores the best tokens of the caption that ends with the granule, if one does.
  SPARC_DEVICE void end_caption(const Granule& granule) {
    const bool ended = device::same_in_warp(granule.code & 1) != 0;
    if (ended && in.patch_keys != nullptr) {
      uint32_t* const keys = caption_keys(granule.caption);
      store_best(open, [&](int column, uint32_t key) {
        if (column < place.patches) keys[column] = patch_key(column, key);
      });
    }
    if (ended) open.clear();
  }

  // The key of what look_for_maxima has found for a column.
  SPARC_DEVICE static uint32_t patch_key(int column, uint32_t found) {
    return found + (column & ~7) + (kRanks - 1);
  }

  SPARC_DEVICE uint32_t* caption_keys(int64_t caption) const {
    return in.patch_keys + (place.own * in.n_captions + caption) * in.patches + place.first_patch;
  }

  // What captions have in granules of several warps. A caption's keys are those of the granules of the warp
  // at which it ends; what warps before have of it, they have kept.
  SPARC_DEVICE void merge() const {
    device::block_barrier();  // stages are free
    const device::Shared<uint32_t> kept = device::shared_at<uint32_t>(layout.tokens);
    store_best(open, [&](int column, uint32_t key) { kept[warp * kN + column] = patch_key(column, key); });
    device::block_barrier();
    for (int of_warp = 1; of_warp < kWarps; ++of_warp) {
      const int first = first_granule(of_warp);
      if (first >= granules() || begins(of_warp)) continue;
      const int end = first_end(of_warp);
      if (end < 0) continue;
      uint32_t* const keys = caption_keys(in.captions[in_run(end)]);
      for (int column = device::thread_index(); column < place.patches; column += kThreads) {
        uint32_t key = keys[column];
        int before = of_warp;
        do {
          --before;
          key = device::max(key, static_cast<uint32_t>(kept[before * kN + column]));
        } while (!begins(before) && first_end(before) < 0);
        keys[column] = key;
      }
    }
  }
  // Whether the warp's first granule is a caption's first one.
  SPARC_DEVICE bool begins(int of_warp) const { return in.codes[in_run(first_granule(of_warp))] >> 1 == 0; }
  // The first of the warp's granules that is a caption's last one; negative for none.
  SPARC_DEVICE int first_end(int of_warp) const {
    const int first = first_granule(of_warp), end = at_most(first + tokens.turns, granules());
    for (int granule = first; granule < end; ++granule) {
      if (in.codes[in_run(granule)] & 1) return granule;
    }
    return -1;
  }

  SPARC_DEVICE void run() {
    load_patches();
    device::copy_async_commit();
    for (int ahead = 0; ahead < layout.stages - 2; ++ahead) tokens.load();
    wait_for_copies(layout.stages - 2);
    device::async_proxy_fence();
    device::block_barrier();  // patches are there
    const int group = warp / TokenStream<E>::kGroupWarps;
    if (group == 1) device::give_turn(0);
    SPARC_NO_UNROLL
    for (int turn = 0; turn < tokens.turns; ++turn) {
      const Granule granule = granule_at(turn);
      multiply(group);
      if (group == 0 || turn + 1 < tokens.turns) device::give_turn(1 - group);
      device::warpgroup_wait<0>();
      device::warpgroup_hold(c);
      look_for_maxima(granule);
      end_caption(granule);
    }
    device::copy_async_wait<0>();
    if (in.patch_keys != nullptr) merge();
  }
};

template <class E, int kN>
SPARC_DEVICE void find_maxima(const MaximaArguments& in, const MaximaLayout& layout) {
  const MaximaPlace place(in, kN);
  const int granules = in.run_lengths[place.run];
  if (place.patches <= 0 || granules == 0) return;
  MaximaBlock<E, kN>(in, layout, place, granules).run();
}

}  // namespace sparc
