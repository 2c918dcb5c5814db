// The step of the sigmoid loss that has a CUDA kernel: its op, checks and launch. The steps around it are
// Triton's (sparc_kernels/ops/contrastive/native.py), so it is declared here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/cuda_call.h"
#include "contrastive/contrastive_launch.h"

#if defined(SPARC_WARPGROUPS)

namespace sparc {
namespace {

using Maybe = std::optional<Tensor>;

constexpr int64_t kMostItems = int64_t{1} << 30;  // so that indices and their differences are ints

void check_columns(int64_t columns, int64_t channels) {
  bool known = false;
#define SPARC_IS(columns_) known = known || columns == columns_;
  SPARC_SWEEP_COLUMNS(SPARC_IS)
#undef SPARC_IS
  STD_TORCH_CHECK(known, "columns: expected 96, 128 or 192, got ", columns);
  STD_TORCH_CHECK(channels > 0 && channels % 8 == 0 && channels <= 1024,
                  "rows: expected a multiple of 8 channels, at most 1024, got ", channels);
  STD_TORCH_CHECK(sweep_fits(static_cast<int>(channels), static_cast<int>(columns)), "columns: ", columns,
                  " of ", channels, " channels do not fit shared memory");
}

bool is_aligned(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

// Rows that are copied in pieces of 16 bytes; sixteen of them apart by less than 2^32 bytes.
void check_embeddings(const Tensor& embeddings, const char* name) {
  STD_TORCH_CHECK(embeddings.dim() == 2, name, ": expected 2 dimensions, got ", embeddings.dim());
  STD_TORCH_CHECK(embeddings.size(0) > 0 && embeddings.size(0) < kMostItems, name,
                  ": expected 1 to 2^30 - 1 items, got ", embeddings.size(0));
  const bool apart = embeddings.size(0) == 1 || (embeddings.stride(0) % 8 == 0 && embeddings.stride(0) >= 0 &&
                                                 embeddings.stride(0) < int64_t{1} << 26);
  STD_TORCH_CHECK(embeddings.stride(1) == 1 && apart && is_aligned(embeddings), name,
                  ": expected rows that start at multiples of 16 bytes");
}

const float* numbers(const CudaCall& call, const Tensor& tensor, const char* name, int64_t count) {
  call.check(tensor, name, ScalarType::Float, {count});
  check_contiguous(tensor, name);
  return static_cast<const float*>(tensor.const_data_ptr());
}

void resident_softplus(const Tensor& rows, const Tensor& cols, const Tensor& row_inverse,
                       const Tensor& col_inverse, const Tensor& scale, const Tensor& bias,
                       const Tensor& weights, const Maybe& power, const Maybe& gradient,
                       const Tensor& partials, int64_t columns, int64_t diagonal, int64_t runs) {
  const CudaCall call(rows, "rows", "highest");
  STD_TORCH_CHECK(call.half_precision(), "rows: expected BFloat16 or Half");
  check_hopper(call, "resident_softplus");
  check_embeddings(rows, "rows");
  check_embeddings(cols, "cols");
  const int64_t m = rows.size(0), n = cols.size(0), channels = rows.size(1);
  check_columns(columns, channels);
  call.check(cols, "cols", rows.scalar_type(), {n, channels});
  const int64_t chunks = (n + columns - 1) / columns;
  SweepArguments args = {};
  args.row_inverse = numbers(call, row_inverse, "row_inverse", m);
  args.col_inverse = numbers(call, col_inverse, "col_inverse", n);
  args.weights = numbers(call, weights, "weights", m);
  args.scale = call.scalar(scale, "scale");
  args.bias = call.scalar(bias, "bias");
  if (power) args.power = numbers(call, *power, "power", 2);
  STD_TORCH_CHECK(power.has_value() == (rows.scalar_type() == ScalarType::Half),
                  "power: expected for Half, and for nothing else");
  if (gradient) {
    call.check(*gradient, "gradient", rows.scalar_type(), {m, n});
    // of the last row too, whose padding is written
    const bool roomy = m == 1 || gradient->stride(0) >= sweep_padded(static_cast<int>(n));
    STD_TORCH_CHECK(
        (n == 1 || gradient->stride(1) == 1) && roomy && (m == 1 || gradient->stride(0) % 8 == 0) &&
            is_aligned(*gradient),
        "gradient: expected rows that start at multiples of 16 bytes, with room for multiples of 16 columns");
    args.gradient = const_cast<void*>(gradient->const_data_ptr());
    args.gradient_stride = gradient->stride(0);
  }
  call.check(partials, "partials", ScalarType::Float, {3, chunks, m});
  check_contiguous(partials, "partials");
  args.partials = static_cast<float*>(const_cast<void*>(partials.const_data_ptr()));
  STD_TORCH_CHECK(-kMostItems < diagonal && diagonal < kMostItems, "diagonal: expected less than 2^30, got ",
                  diagonal);
  STD_TORCH_CHECK(0 < runs && runs <= (m + kSweepRows - 1) / kSweepRows && runs * chunks <= INT32_MAX,
                  "runs: expected 1 to the tiles of 64 rows, got ", runs);
  args.rows = rows.const_data_ptr();
  args.cols = cols.const_data_ptr();
  args.row_stride = m == 1 ? channels : rows.stride(0);
  args.col_stride = n == 1 ? channels : cols.stride(0);
  args.n_rows = static_cast<int>(m);
  args.n_cols = static_cast<int>(n);
  args.padded_cols = sweep_padded(args.n_cols);
  args.channels = static_cast<int>(channels);
  args.chunks = static_cast<int>(chunks);
  args.runs = static_cast<int>(runs);
  args.run_tiles = sweep_run_tiles(args.n_rows, args.runs);
  args.diagonal = static_cast<int>(diagonal);
  check_cuda(launch_sweep(args, static_cast<int>(columns), rows.scalar_type() == ScalarType::BFloat16,
                          call.stream()),
             "resident_softplus");
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "resident_softplus(Tensor rows, Tensor cols, Tensor row_inverse, Tensor col_inverse, Tensor scale, "
      "Tensor bias, Tensor weights, Tensor? power, Tensor(a!)? gradient, Tensor(b!) partials, int columns, "
      "int diagonal, int runs) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CUDA, m) {
  m.impl("resident_softplus", TORCH_BOX(&sparc::resident_softplus));
}

#endif  // without it the op is not there
