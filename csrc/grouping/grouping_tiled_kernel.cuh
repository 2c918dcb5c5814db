// Grouped embeddings and alignment weights on the tiled path (common/tiled_product.cuh). Names follow MATH.md.
#pragma once

#include "common/tiled_product.cuh"
#include "grouping/grouping_cuda.h"
#include "grouping/grouping_pair_kernel.cuh"

namespace sparc {

template <class E>
struct GroupingScratch : TiledScratch<E> {
  int64_t mass;  // [L] float: 1 / sum U

  SPARC_HOST_DEVICE GroupingScratch(const PairInputs& in, bool backward)
      : TiledScratch<E>(in, backward), mass(this->plan.take(in.tokens * 4)) {}
};

template <class Products>
struct GroupingTiled : TiledPair<Products> {
  using Base = TiledPair<Products>;
  using E = typename Products::Element;

  const GroupingScratch<E>& plan;
  const GroupingArguments& args;

  SPARC_DEVICE GroupingTiled(const GroupingScratch<E>& plan_, const GroupingArguments& args_,
                             unsigned char* base, int64_t pair, int p)
      : Base{plan_, args_.in, base, pair, args_.in.tokens, p}, plan(plan_), args(args_) {}

  SPARC_DEVICE device::Scratch<E> u_row(int l) const {
    return this->template row_of<E>(plan.weights, l, plan.patches_pitch);
  }
  SPARC_DEVICE E* of_pair(void* out, int64_t rows, int64_t columns) const {
    return static_cast<E*>(out) + this->pair * rows * columns;
  }
  // dC, or dA as it came
  SPARC_DEVICE Operand<E> grad() const {
    Operand<E> rows = this->gathered(args.grad, plan.token_index, this->n);
    if (args.weights) rows.columns = this->in.patches;
    return rows;
  }

  SPARC_DEVICE void forward() const {
    this->similarities(this->tokens(), plan.similarities);
    E* const weights = of_pair(args.output, this->in.tokens, this->in.patches);
    this->align([&](int l, const RowAlignment& row, device::Scratch<float> s) {
      float mass = 0.0f;
      this->for_patches([&](int i) {
        const E rounded = device::from_float<E>(row.weight(s[i]));
        u_row(l)[i] = rounded;
        mass += args.weights ? row.weight(s[i]) : device::to_float(rounded);  // the sum of what is used
      });
      mass = warp_sum(mass);
      if (args.weights) {
        E* const out = weights + static_cast<int64_t>(l) * this->in.patches;
        if (this->p < this->in.patches) {
          for (int i = device::lane_index(); i < this->in.patches; i += 32) out[i] = E{};
          device::warp_barrier();
        }
        this->for_patches([&](int i) {
          const int patch = this->template scratch<int>(plan.patch_index)[i];
          out[patch] = device::from_float<E>(row.weight(s[i]) * (1.0f / mass));
        });
      }
      if (device::lane_index() == 0) {
        this->template scratch<float>(plan.mass)[l] = 1.0f / mass;
        float* const stat = args.stats + this->pair * this->in.tokens + l;
        stat[kMinimum * args.stats_stride] = row.low;
        stat[kMaximum * args.stats_stride] = row.high;
        stat[kWeightSum * args.stats_stride] = mass;
      }
    });
    if (args.weights) return;
    Product<E> groups(this->n, this->in.channels);
    groups.add(this->weights(), false, this->patches(), true);
    groups.with_row_scale = true;
    groups.row_scale = this->template scratch<float>(plan.mass);
    groups.to_rows = true;
    groups.rows = of_pair(args.output, this->in.tokens, this->in.channels);
    groups.row_index = this->template scratch<int>(plan.token_index);
    groups.pitch = this->in.channels;
    multiply<Products>(groups);
  }

  SPARC_DEVICE void backward() const {
    this->similarities(this->tokens(), plan.similarities);
    if (!args.weights) this->similarities(grad(), plan.grad_weights);  // dA = dC V^T
    this->align([&](int l, const RowAlignment& row, device::Scratch<float> s) {
      const device::Scratch<float> da =
          this->template row_of<float>(plan.grad_weights, l, plan.patches_pitch);
      float mass = 0.0f, dot = 0.0f;
      this->for_patches([&](int i) {
        if (args.weights) da[i] = grad().get(l, this->template scratch<int>(plan.patch_index)[i]);
        mass += row.weight(s[i]);
        dot += row.weight(s[i]) * da[i];
      });
      const float inverse = 1.0f / warp_sum(mass);
      dot = warp_sum(dot) * inverse;
      this->for_patches([&](int i) {
        u_row(l)[i] = device::from_float<E>(row.weight(s[i]) * inverse);  // A
        da[i] = (da[i] - dot) * inverse;                                  // dU
      });
    });
    const float unit = this->align_backward();
    if (args.grad_patches != nullptr) write_patch_gradient(unit);
    if (args.grad_tokens != nullptr) write_token_gradient(unit);
  }

 private:
  SPARC_DEVICE void write_patch_gradient(float unit) const {
    Product<E> grad_patches(this->p, this->in.channels);
    grad_patches.add(this->grad_similarities(), true, this->tokens(), true);
    grad_patches.between = grad_patches.scale = unit;
    if (!args.weights) {
      grad_patches.add(this->weights(), true, grad(), true);
      grad_patches.scale = 1.0f;
    }
    grad_patches.to_rows = true;
    grad_patches.rows = of_pair(args.grad_patches, this->in.patches, this->in.channels);
    grad_patches.row_index = this->template scratch<int>(plan.patch_index);
    grad_patches.pitch = this->in.channels;
    multiply<Products>(grad_patches);
  }

  SPARC_DEVICE void write_token_gradient(float unit) const {
    Product<E> grad_tokens(this->n, this->in.channels);
    grad_tokens.add(this->grad_similarities(), false, this->patches(), true);
    grad_tokens.scale = unit;
    grad_tokens.to_rows = true;
    grad_tokens.rows = of_pair(args.grad_tokens, this->in.tokens, this->in.channels);
    grad_tokens.row_index = this->template scratch<int>(plan.token_index);
    grad_tokens.pitch = this->in.channels;
    multiply<Products>(grad_tokens);
  }
};

template <class Products, bool kBackward>
SPARC_DEVICE void grouping_tiled(const GroupingArguments& args, const TiledMemory& memory) {
  using E = typename Products::Element;
  const GroupingScratch<E> plan(args.in, kBackward);
  unsigned char* const base = static_cast<unsigned char*>(memory.base) + device::block_index() * memory.bytes;
  const device::Shared<int> counts = device::shared_at<int>(TiledShared<E>::kCounts);
  const MaskView everything = {nullptr, 0, 0};
  for (int64_t pair = device::block_index(); pair < args.in.pairs; pair += device::block_count()) {
    list_valid(everything, pair, args.in.tokens, device::scratch_at<int>(base, plan.token_index), counts);
    const int p = list_valid(args.in.patch_mask, pair, args.in.patches,
                             device::scratch_at<int>(base, plan.patch_index), counts);
    if (memory.beside_pair_path && pair_path_holds(args.in.tokens, p)) continue;
    const GroupingTiled<Products> tiled(plan, args, base, pair, p);
    if (p > 0) {
      if (kBackward) {
        tiled.backward();
      } else {
        tiled.forward();
      }
    }
    fill_grouping<E>(args, pair, p, kBackward);
    device::block_barrier();  // scratch is free for the next pair
  }
}

}  // namespace sparc
