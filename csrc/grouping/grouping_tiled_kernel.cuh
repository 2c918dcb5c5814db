// Grouped embeddings and alignment weights on the tiled path (pairs/tiled_pair.cuh). Names follow MATH.md.
#pragma once

#include "alignment/tiled_alignment.cuh"
#include "grouping/grouping_rows.cuh"

namespace sparc {

template <class E>
struct GroupingScratch : AlignmentScratch<E> {
  int64_t mass;  // [L] float: 1 / sum U

  SPARC_HOST_DEVICE GroupingScratch(const PairInputs& in, bool backward)
      : AlignmentScratch<E>(in, backward), mass(this->template take<float>(in.text_rows, 1)) {}
};

template <class Products>
struct GroupingTiled
    : TiledAlignment<Products, GroupingScratch<typename Products::Element>, GroupingArguments> {
  using E = typename Products::Element;
  using Base = TiledAlignment<Products, GroupingScratch<E>, GroupingArguments>;
  using Base::args;
  using Base::Base;
  using Base::in;
  using Base::plan;
  using Base::row_array;

  // dC, or dA as it came
  SPARC_DEVICE GatheredRows<E> grad() const {
    GatheredRows<E> rows = this->gathered(args.grad, this->work.text, plan.text_index, this->n);
    if (args.weights) rows.columns = in.image_rows;
    return rows;
  }

  SPARC_DEVICE void forward() const {
    E* const weights = rows_of<E>(args.output, this->work.text, in.text_rows, in.image_rows);
    this->align([&](int l, const RowAlignment& row, device::Scratch<float> s) {
      const device::Scratch<E> u = this->u().row(l);
      float mass = 0.0f;
      this->for_columns([&](int i) {
        const E rounded = device::from_float<E>(row.weight(s[i]));
        u[i] = rounded;
        mass += args.weights ? row.weight(s[i]) : device::to_float(rounded);  // the sum of what is used
      });
      mass = warp_sum(mass);
      if (args.weights) {
        E* const out = weights + static_cast<int64_t>(l) * in.image_rows;
        if (this->p < in.image_rows) {
          for (int i = device::lane_index(); i < in.image_rows; i += 32) out[i] = E{};
          device::warp_barrier();
        }
        this->for_columns([&](int i) {
          const int patch = this->image_index()[i];
          out[patch] = device::from_float<E>(row.weight(s[i]) * (1.0f / mass));
        });
      }
      if (device::lane_index() == 0) {
        row_array(plan.mass)[l] = 1.0f / mass;
        write_stats(args, this->work.text, l, row, mass);
      }
    });
    if (args.weights) return;
    const OutputRows<E> out = this->text_output(args.output);
    this->multiply(Product{this->u(), this->image()}, [&](int l) {
      return [to = out(l), mass = static_cast<float>(row_array(plan.mass)[l])](
                 int d, const float (&sums)[2]) { to(d, {sums[0] * mass, sums[1] * mass}); };
    });
  }

  SPARC_DEVICE void backward() const {
    if (!args.weights) this->against_image(grad(), this->du());  // dA = dC V^T
    this->align([&](int l, const RowAlignment& row, device::Scratch<float> s) {
      const device::Scratch<float> da = this->du().row(l);
      const device::Scratch<E> a = this->u().row(l);
      float mass = 0.0f, dot = 0.0f;
      this->for_columns([&](int i) {
        if (args.weights) da[i] = grad().get(l, this->image_index()[i]);
        mass += row.weight(s[i]);
        dot += row.weight(s[i]) * da[i];
      });
      const float inverse = 1.0f / warp_sum(mass);
      dot = warp_sum(dot) * inverse;
      this->for_columns([&](int i) {
        a[i] = device::from_float<E>(row.weight(s[i]) * inverse);
        da[i] = (da[i] - dot) * inverse;  // dU
      });
    });
    const float unit = this->align_backward();
    const ScratchMatrix<E> ds = this->ds();
    if (args.grad_patches != nullptr) {
      const float scale = args.weights ? unit : 1.0f;
      const OutputRows<E> out = this->image_output(args.grad_patches);
      const Product product{ds.transpose(), this->text()}, direct{this->u().transpose(), grad()};
      this->multiply(ProductSum{product, unit, direct, !args.weights}, [&](int i) {
        return [scale, to = out(i)](int d, const float (&sums)[2]) {
          to(d, {sums[0] * scale, sums[1] * scale});
        };
      });
    }
    if (args.grad_tokens != nullptr) {
      const OutputRows<E> out = this->text_output(args.grad_tokens);
      this->multiply(Product{ds, this->image()}, [&](int l) {
        return
            [unit, to = out(l)](int d, const float (&sums)[2]) { to(d, {sums[0] * unit, sums[1] * unit}); };
      });
    }
  }
};

template <>
struct TiledOp<GroupingArguments> {
  template <class E>
  using Layout = GroupingScratch<E>;

  template <class Products, bool kBackward>
  SPARC_DEVICE static void run(const GroupingArguments& args, const TiledMemory& memory,
                               const GroupingScratch<typename Products::Element>& plan) {
    using E = typename Products::Element;
    const auto pass = [&](unsigned char* base, const PairWork& work) SPARC_INLINE_LAMBDA {
      const GroupingTiled<Products> tiled(plan, args, base, work);
      if (work.image_rows > 0) {
        if (kBackward) {
          tiled.backward();
        } else {
          tiled.forward();
        }
      }
      fill_grouping<E>(args, work, kBackward);
    };
    for_each_tiled_pair<E, false>(plan, args.in, memory, pass);
  }
};

}  // namespace sparc
