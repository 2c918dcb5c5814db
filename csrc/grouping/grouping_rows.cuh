// What both paths do with the results of a row, and with the rows that have none.
#pragma once

#include "alignment/row_alignment.cuh"
#include "grouping/grouping_cuda.h"
#include "pairs/pair_work.cuh"

namespace sparc {

// m, M and sum U of token `l`.
SPARC_DEVICE void write_stats(const GroupingArguments& args, int64_t text, int l, const RowAlignment& row,
                              float mass) {
  float* const stat = args.stats + text * args.in.text_rows + l;
  stat[kMinimum * args.stats_stride] = row.low;
  stat[kMaximum * args.stats_stride] = row.high;
  stat[kWeightSum * args.stats_stride] = mass;
}

// The results of an image without a valid patch (NaN), and the gradients of masked patches (0).
template <class E>
SPARC_DEVICE void fill_grouping(const GroupingArguments& args, const PairWork& work, bool backward) {
  const PairInputs& in = args.in;
  const MaskView everything = {nullptr, 0, 0};
  const bool computed = work.image_rows > 0;
  const auto nan = [](int64_t) { return device::nan(); };
  if (backward) {
    fill_rows<E>(everything, work.text, in.text_rows, in.channels, computed, nan, args.grad_tokens);
    fill_rows<E>(in.image_mask, work.image, in.image_rows, in.channels, true, nan, args.grad_patches);
    return;
  }
  const int columns = args.weights ? in.image_rows : in.channels;
  fill_rows<E>(everything, work.text, in.text_rows, columns, computed, nan, args.output);
  if (computed) return;
  for (int i = device::thread_index(); i < in.text_rows; i += kThreads) {
    for (int field = 0; field < kGroupingStats; ++field) {
      args.stats[field * args.stats_stride + work.text * in.text_rows + i] = device::nan();
    }
  }
}

}  // namespace sparc
