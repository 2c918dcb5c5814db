// Alignment weights on the tiled path: S, U and their gradients in scratch.
#pragma once

#include "alignment/row_alignment.cuh"
#include "pairs/tiled_pair.cuh"

namespace sparc {

template <class E>
struct AlignmentScratch : TiledScratch {
  int64_t low, high;                                               // [L] float
  int64_t similarities, weights, grad_weights, grad_similarities;  // S, U, dU, dS: [L, P] float, E, float, E

  SPARC_HOST_DEVICE AlignmentScratch(const PairInputs& in, bool backward) : TiledScratch(in) {
    low = take<float>(in.text_rows, 1);
    high = take<float>(in.text_rows, 1);
    similarities = take<float>(in.text_rows, image_pitch);
    weights = take<E>(in.text_rows, image_pitch);
    grad_weights = take<float>(backward ? in.text_rows : 0, image_pitch);
    grad_similarities = take<E>(backward ? in.text_rows : 0, image_pitch);
  }
};

template <class Products, class Layout, class Arguments>
struct TiledAlignment : TiledPair<Products, Layout, Arguments> {
  using Base = TiledPair<Products, Layout, Arguments>;
  using E = typename Base::E;
  using Base::Base;
  using Base::n;
  using Base::p;
  using Base::plan;

  // [n, p] of scratch: S, U, dU and dS
  template <class T>
  SPARC_DEVICE ScratchMatrix<T> aligned(int64_t offset) const {
    return this->template matrix<T>(offset, n, p, plan.image_pitch);
  }
  SPARC_DEVICE ScratchMatrix<float> s() const { return aligned<float>(plan.similarities); }
  SPARC_DEVICE ScratchMatrix<E> u() const { return aligned<E>(plan.weights); }
  SPARC_DEVICE ScratchMatrix<float> du() const { return aligned<float>(plan.grad_weights); }
  SPARC_DEVICE ScratchMatrix<E> ds() const { return aligned<E>(plan.grad_similarities); }

  // rows V^T
  template <class Rows>
  SPARC_DEVICE void against_image(const Rows& rows, const ScratchMatrix<float>& to) const {
    this->multiply(Product{rows, this->image().transpose()}, to);
  }

  // S, and m and M of each row; f(row, alignment, row of S) then does what is to be done with it.
  template <class F>
  SPARC_DEVICE void align(const F& f) const {
    u().clear_padding();
    against_image(this->text(), s());
    this->for_rows([&](int l) {
      const device::Scratch<float> s = this->s().row(l);
      float low = device::infinity(), high = -device::infinity();
      this->for_columns([&](int i) {
        low = device::min(low, s[i]);
        high = device::max(high, s[i]);
      });
      low = warp_min(low);
      high = warp_max(high);
      if (device::lane_index() == 0) {
        this->row_array(plan.low)[l] = low;
        this->row_array(plan.high)[l] = high;
      }
      f(l, RowAlignment(low, high, sigma()), s);
    });
    device::block_barrier();
  }

  // dS from dU: kept entries over the range, and minus their sum at the minima. Written in a unit (float16:
  // its largest element), which is returned.
  SPARC_DEVICE float align_backward() const {
    float largest = 0.0f;
    this->for_rows([&](int l) {
      const RowAlignment row = {this->row_array(plan.low)[l], this->row_array(plan.high)[l], sigma()};
      const device::Scratch<float> s = this->s().row(l), grad = du().row(l);
      float total = 0.0f, ties = 0.0f;
      this->for_columns([&](int i) {
        if (row.kept(s[i])) total += grad[i];
        if (s[i] == row.low) ties += 1.0f;
      });
      const float share = warp_sum(total) / device::max(warp_sum(ties), 1.0f);
      this->for_columns([&](int i) {
        const float kept = row.kept(s[i]) ? static_cast<float>(grad[i]) : 0.0f;
        const float ds = (kept - (s[i] == row.low ? share : 0.0f)) * row.inverse_range;
        grad[i] = ds;
        largest = device::max(largest, device::abs(ds));
      });
    });
    const float unit = range_unit<E>([&] { return largest; }, this->parts());
    ds().clear_padding();
    this->for_rows([&](int l) {
      const device::Scratch<float> found = du().row(l);
      const device::Scratch<E> out = ds().row(l);
      this->for_columns([&](int i) { out[i] = device::from_float<E>(found[i] * (1.0f / unit)); });
    });
    device::block_barrier();
    return unit;
  }

 private:
  SPARC_DEVICE float sigma() const { return threshold_of(this->args.threshold, p); }
};

}  // namespace sparc
