// Alignment weights on the pair path: from the similarities that a warp holds to weights, and back.
#pragma once

#include "alignment/row_alignment.cuh"
#include "pairs/pair_pass.cuh"

namespace sparc {

template <class Tile_, class Layout, class Arguments>
struct AlignmentPass : PairPass<Tile_, Layout, Arguments> {
  using Base = PairPass<Tile_, Layout, Arguments>;
  using Strips = typename Base::Strips;
  using RowPair = typename Base::RowPair;
  using Base::Base;
  using Base::shared;

  // Of the two rows that this lane holds.
  struct Alignments {
    RowAlignment rows[2];

    SPARC_DEVICE const RowAlignment& of(int i) const { return rows[i / 2]; }  // i as in for_each
  };

  // From the minimum and maximum of each row; the buffers of shared.partial are used.
  SPARC_DEVICE Alignments align(const Strips& s) const {
    RowPair low = {device::infinity(), device::infinity()}, high = {-low[0], -low[1]};
    this->for_each([&](int strip, int half, int i, int column) {
      if (column < this->p) {
        low[i / 2] = device::min(low[i / 2], s[strip][half][i]);
        high[i / 2] = device::max(high[i / 2], s[strip][half][i]);
      }
    });
    this->across_columns(low, shared.partial[0], [](float a, float b) { return device::min(a, b); });
    this->across_columns(high, shared.partial[1], [](float a, float b) { return device::max(a, b); });
    const float sigma = threshold_of(this->args.threshold, this->p);
    return {{{low[0], high[0], sigma}, {low[1], high[1], sigma}}};
  }

  // U into shared memory.
  SPARC_DEVICE void write_weights(const Strips& s, const Alignments& aligned) const {
    this->write_tile(shared.weights_tile(),
                     [&](int strip, int half, int i) { return aligned.of(i).weight(s[strip][half][i]); });
  }

  // Calls f(half, row) in one lane for each row that this warp's row of warps holds.
  template <class F>
  SPARC_DEVICE void for_held_rows(const F& f) const {
    if (device::lane_index() % 4 != 0 || this->column_warp != 0) return;
    for (int half = 0; half < 2; ++half) {
      if (this->row(half) < this->n) f(half, this->row(half));
    }
  }

  // What dS needs of S: which columns are kept, which are minima, one bit for each similarity of this lane,
  // and 1 / range of its rows (0 in flat ones).
  struct Kept {
    static constexpr int kWords = (sizeof(Strips) / sizeof(float) + 31) / 32;
    uint32_t kept[kWords], minimum[kWords];
    float inverse_range[2];

    SPARC_DEVICE static int bit(int strip, int half, int i) { return strip * 8 + half * 4 + i; }
    SPARC_DEVICE bool is_kept(int strip, int half, int i) const {
      return kept[bit(strip, half, i) / 32] >> (bit(strip, half, i) % 32) & 1u;
    }
    SPARC_DEVICE bool is_minimum(int strip, int half, int i) const {
      return minimum[bit(strip, half, i) / 32] >> (bit(strip, half, i) % 32) & 1u;
    }
  };
  SPARC_DEVICE Kept keep(const Strips& s, const Alignments& aligned) const {
    Kept result;
    SPARC_UNROLL
    for (int word = 0; word < Kept::kWords; ++word) result.kept[word] = result.minimum[word] = 0;
    this->for_each([&](int strip, int half, int i, int column) {
      const RowAlignment& row = aligned.of(i);
      const int bit = Kept::bit(strip, half, i);
      const bool counts = (column < this->p) & !row.flat();
      result.kept[bit / 32] |= static_cast<uint32_t>(counts & row.kept(s[strip][half][i])) << (bit % 32);
      result.minimum[bit / 32] |= static_cast<uint32_t>(counts & (s[strip][half][i] == row.low))
                                  << (bit % 32);
    });
    for (int half = 0; half < 2; ++half) result.inverse_range[half] = aligned.rows[half].inverse_range;
    return result;
  }

  // dU becomes dS: kept entries over the range, and minus their sum at the minima, split evenly.
  SPARC_DEVICE void similarity_gradient(Strips& grad, const Kept& kept) const {
    RowPair total = {0.0f, 0.0f}, ties = {0.0f, 0.0f};
    this->for_each([&](int strip, int half, int i, int) {
      float& x = grad[strip][half][i];
      x = kept.is_kept(strip, half, i) ? x : 0.0f;
      total[i / 2] += x;
      ties[i / 2] += kept.is_minimum(strip, half, i) ? 1.0f : 0.0f;
    });
    this->sum_across(total, 0);
    this->sum_across(ties, 1);
    const RowPair share = {total[0] / device::max(ties[0], 1.0f), total[1] / device::max(ties[1], 1.0f)};
    this->for_each([&](int strip, int half, int i, int) {
      float& x = grad[strip][half][i];
      if (kept.is_minimum(strip, half, i)) x -= share[i / 2];
      x *= kept.inverse_range[i / 2];
    });
  }
};

}  // namespace sparc
