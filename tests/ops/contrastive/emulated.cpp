// The step of the sigmoid loss that products of warpgroups take, on the host.
#include <type_traits>

#include "contrastive/contrastive_sweep.cuh"
#include "emulator.h"
#include "tests/emulation/host/arrays.h"

namespace py = pybind11;

namespace sparc {
namespace emulation {
namespace {

// One element type for each number of columns: half of the time to compile.
template <int kN>
using ElementOf = std::conditional_t<kN == 96, Float16, BFloat16>;

void run(const SweepArguments& args, int columns, bool bfloat16, uint64_t seed) {
  const SweepLayout layout(args.channels, columns);
  if (!layout.fits()) throw std::invalid_argument("so many columns and channels do not fit");
  const int64_t grid = static_cast<int64_t>(args.chunks) * args.runs;
#define SPARC_CALL(columns_)                                                              \
  if (columns == columns_ && bfloat16 == std::is_same_v<ElementOf<columns_>, BFloat16>) { \
    return emulate(grid, kThreads, static_cast<size_t>(layout.used), {}, seed,            \
                   [&] { sweep_softplus<ElementOf<columns_>, columns_>(args, layout); }); \
  }
  SPARC_SWEEP_COLUMNS(SPARC_CALL)
#undef SPARC_CALL
  throw std::invalid_argument("not compiled for these columns and elements");
}

// G, flat, and the partial sums that the registered op writes, from its arguments.
py::tuple resident_softplus(const py::dict& given, bool bfloat16, uint64_t seed) {
  const Strided<uint16_t> rows(given["rows"]), cols(given["cols"]);
  const Strided<float> row_inverse(given["row_inverse"]), col_inverse(given["col_inverse"]);
  const Strided<float> scale(given["scale"]), bias(given["bias"]), weights(given["weights"]);
  auto power = optional_tensor<float>(given, "power");
  auto gradient = optional_tensor<uint16_t>(given, "gradient");
  Strided<float> partials(given["partials"]);
  const int columns = given["columns"].cast<int>();
  SweepArguments args = {};
  args.rows = rows.buffer.data();
  args.cols = cols.buffer.data();
  args.row_inverse = row_inverse.buffer.data();
  args.col_inverse = col_inverse.buffer.data();
  args.scale = scale.buffer.data();
  args.bias = bias.buffer.data();
  args.weights = weights.buffer.data();
  args.power = data_or_null(power);
  args.gradient = data_or_null(gradient);
  args.partials = partials.buffer.data();
  args.row_stride = rows.strides[0];
  args.col_stride = cols.strides[0];
  args.gradient_stride = gradient ? gradient->strides[0] : 0;
  args.n_rows = static_cast<int>(rows.shape[0]);
  args.n_cols = static_cast<int>(cols.shape[0]);
  args.padded_cols = sweep_padded(args.n_cols);
  args.channels = static_cast<int>(rows.shape[1]);
  args.chunks = (args.n_cols + columns - 1) / columns;
  args.runs = given["runs"].cast<int>();
  args.run_tiles = sweep_run_tiles(args.n_rows, args.runs);
  args.diagonal = given["diagonal"].cast<int>();
  run(args, columns, bfloat16, seed);
  return py::make_tuple(gradient ? py::object(gradient->buffer.to_numpy()) : py::object(py::none()),
                        partials.buffer.to_numpy());
}

}  // namespace
}  // namespace emulation
}  // namespace sparc

PYBIND11_MODULE(emulated, m) {
  m.def("resident_softplus", &sparc::emulation::resident_softplus, py::arg("given"), py::arg("bfloat16"),
        py::arg("seed"));
}
