// The arguments of the ops on the CPU, checked.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/checks.h"
#include "common/cpu_capability.h"
#include "common/huge_pages.h"
#include "contrastive/contrastive.h"

namespace sparc {

using Maybe = std::optional<Tensor>;

inline int64_t parts_of(int64_t total, int64_t size) { return (total + size - 1) / size; }

// The tensors that both ops take, under the names of the schema.
struct Inputs {
  const Tensor &rows, &cols;
  const Maybe &row_ids, &col_ids, &excluded_indptr, &excluded_indices, &guide_rows, &guide_cols,
      &guide_threshold;
};

inline EmbedView view_of(const Tensor& embeds) {
  return {embeds.const_data_ptr(), embeds.size(0), embeds.size(1), embeds.stride(0), embeds.stride(1)};
}

inline VectorView items_of(const Tensor& vector, const char* name, ScalarType dtype, int64_t count) {
  check_cpu_input(vector, name, dtype, {count});
  return {vector.const_data_ptr(), vector.stride(0)};
}

// [] or [count].
inline VectorView numbers_of(const Tensor& numbers, const char* name, ScalarType dtype, int64_t count) {
  if (numbers.dim() != 0) return items_of(numbers, name, dtype, count);
  check_cpu_input(numbers, name, dtype, {});
  return {numbers.const_data_ptr(), 0};
}

inline void set_scale(SimilaritySide& side, const Tensor& scale, const char* name, ScalarType dtype) {
  side.scale = numbers_of(scale, name, dtype, side.embeds.count);
  side.scale_per_item = scale.dim() != 0;
}

inline void check_both(const Maybe& one, const Maybe& other, const char* name, const char* other_name) {
  STD_TORCH_CHECK(one.has_value() == other.has_value(), one ? other_name : name, ": expected a tensor, as ",
                  one ? name : other_name, " is one, got None");
}

inline void check_embeds(const Tensor& embeds, const char* name, const char* shape) {
  check_on_cpu(embeds, name);
  STD_TORCH_CHECK(embeds.dim() == 2, name, ": expected 2 dimensions ", shape, ", got ", embeds.dim());
}

inline void check_kernel_dtype(const Tensor& embeds, const char* name) {
  const ScalarType dtype = embeds.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
                  name, ": the CPU kernels take Float, Double and BFloat16, got ",
                  torch::headeronly::toString(dtype));
}

// A gradient of the shape and dtype of its input, or [0] where it is not needed.
struct Gradient {
  bool needed;
  Tensor tensor;
  void* data = nullptr;

  Gradient(const Tensor& input, bool asked) : needed(asked), tensor(make(input, asked)) {
    if (!needed) return;
    data = tensor.mutable_data_ptr();
    prefer_huge_pages(data, tensor.numel() * tensor.element_size());
  }

 private:
  static Tensor make(const Tensor& input, bool needed) {
    std::vector<int64_t> shape{0};
    if (needed) {
      shape.clear();
      for (int64_t axis = 0; axis < input.dim(); ++axis) shape.push_back(input.size(axis));
    }
    return torch::stable::new_empty(input, shape);
  }
};

// A call of either op over all pairs, its tensors checked.
struct CheckedCall : SimilarityCall {
  const Tensor& like;
  ScalarType dtype, accumulation;
  SimilarityKernel kernel;

  CheckedCall(const Inputs& in, bool ids_exclude)
      : like(in.rows), dtype(in.rows.scalar_type()), accumulation(accumulation_dtype(dtype)) {
    check_embeds(in.rows, "rows", "[M, D]");
    check_embeds(in.cols, "cols", "[N, D]");
    check_kernel_dtype(in.rows, "rows");
    const int64_t m = in.rows.size(0), n = in.cols.size(0);
    check_cpu_input(in.cols, "cols", dtype, {n, in.rows.size(1)});
    rows.embeds = view_of(in.rows);
    cols.embeds = view_of(in.cols);
    set_ids(in, m, n);
    set_pairs(in, m);
    set_guide(in, m, n);
    targets = in.row_ids && !ids_exclude;
    kernel = pick_kernel<SimilarityKernel>(dtype);
    parts = std::max<int64_t>(parts_of(m, kTileRows), 1);  // one of no rows gives columns their empty sums
    parts = parts_of(parts, std::max<int64_t>(parts_of(parts, kMaxRowParts), 1));
  }

  int64_t stats_size(bool keep) const {
    const int64_t m = rows.embeds.count, n = cols.embeds.count;
    return kSimilarityStats * (m + n) + (keep ? m * n : 0);
  }

  // The parts of `stats`: of the rows, of the columns, and the similarities where they are kept.
  void set_stats(void* data, bool keep) {
    char* at = static_cast<char*>(data);
    const int64_t size = accumulation == ScalarType::Double ? 8 : 4;
    rows.stats = at;
    cols.stats = at += kSimilarityStats * rows.embeds.count * size;
    at += kSimilarityStats * cols.embeds.count * size;
    if (keep) similarities = at;
  }

  Tensor vector(bool wanted, int64_t size) const {
    return torch::stable::new_empty(like, std::vector<int64_t>{wanted ? size : 0}, accumulation);
  }

 private:
  void set_ids(const Inputs& in, int64_t m, int64_t n) {
    check_both(in.row_ids, in.col_ids, "row_ids", "col_ids");
    if (!in.row_ids) return;
    rows.ids = items_of(*in.row_ids, "row_ids", ScalarType::Long, m);
    cols.ids = items_of(*in.col_ids, "col_ids", ScalarType::Long, n);
  }

  void set_pairs(const Inputs& in, int64_t m) {
    check_both(in.excluded_indptr, in.excluded_indices, "excluded_indptr", "excluded_indices");
    if (!in.excluded_indptr) return;
    indptr = items_of(*in.excluded_indptr, "excluded_indptr", ScalarType::Long, m + 1);
    STD_TORCH_CHECK(in.excluded_indices->dim() == 1, "excluded_indices: expected 1 dimension, got ",
                    in.excluded_indices->dim());
    pairs = in.excluded_indices->size(0);
    indices = items_of(*in.excluded_indices, "excluded_indices", ScalarType::Long, pairs);
  }

  void set_guide(const Inputs& in, int64_t m, int64_t n) {
    check_both(in.guide_rows, in.guide_cols, "guide_rows", "guide_cols");
    if (in.guide_rows) {
      check_embeds(*in.guide_rows, "guide_rows", "[M, K]");
      const int64_t width = in.guide_rows->size(1);
      check_cpu_input(*in.guide_rows, "guide_rows", dtype, {m, width});
      check_cpu_input(*in.guide_cols, "guide_cols", dtype, {n, width});
      rows.guide = view_of(*in.guide_rows);
      cols.guide = view_of(*in.guide_cols);
    }
    if (!in.guide_threshold) return;
    STD_TORCH_CHECK(in.guide_rows, "guide_threshold: expected guide_rows with it, got None");
    threshold = numbers_of(*in.guide_threshold, "guide_threshold", accumulation, m);
  }
};

}  // namespace sparc
