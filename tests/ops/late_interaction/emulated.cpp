// The step of late interaction's forward pass that products of warpgroups take, on the host.
#include <type_traits>

#include "emulator.h"
#include "late_interaction/late_interaction_maxima.cuh"
#include "tests/emulation/host/arrays.h"

namespace py = pybind11;

namespace sparc {
namespace emulation {
namespace {

// One element type for each number of columns: half of the time to compile.
template <int kN>
using ElementOf = std::conditional_t<kN == 104 || kN == 256, BFloat16, Float16>;

void run(const MaximaArguments& args, int columns, bool bfloat16, int64_t images, uint64_t seed) {
  const MaximaLayout layout(args.channels, columns);
  if (!layout.fits()) throw std::invalid_argument("so many columns and channels do not fit");
  const int64_t grid = images * args.chunks * args.runs;
#define SPARC_CALL(columns_)                                                              \
  if (columns == columns_ && bfloat16 == std::is_same_v<ElementOf<columns_>, BFloat16>) { \
    return emulate(grid, kThreads, static_cast<size_t>(layout.used), {}, seed,            \
                   [&] { find_maxima<ElementOf<columns_>, columns_>(args, layout); });    \
  }
  SPARC_MAXIMA_COLUMNS(SPARC_CALL)
#undef SPARC_CALL
  throw std::invalid_argument("not compiled for these columns and elements");
}

// The keys that the registered op writes, from its arguments.
py::tuple resident_maxima(const py::dict& given, bool bfloat16, uint64_t seed) {
  const Strided<uint16_t> images(given["images"]), slotted(given["slotted"]);
  const Strided<float> image_inverse(given["image_inverse"]), slot_inverse(given["slot_inverse"]);
  auto patch_slots = optional_tensor<int32_t>(given, "patch_slots");
  auto patch_counts = optional_tensor<int32_t>(given, "patch_counts");
  const Strided<int32_t> captions(given["captions"]), codes(given["codes"]), lengths(given["run_lengths"]);
  auto token_keys = optional_tensor<uint32_t>(given, "token_keys");
  auto patch_keys = optional_tensor<uint32_t>(given, "patch_keys");
  const int columns = given["columns"].cast<int>();
  MaximaArguments args = {};
  args.images = images.buffer.data();
  args.slotted = slotted.buffer.data();
  args.image_inverse = image_inverse.buffer.data();
  args.patch_slots = data_or_null(patch_slots);
  args.patch_counts = data_or_null(patch_counts);
  args.slot_inverse = slot_inverse.buffer.data();
  args.captions = captions.buffer.data();
  args.codes = codes.buffer.data();
  args.run_lengths = lengths.buffer.data();
  args.token_keys = data_or_null(token_keys);
  args.patch_keys = data_or_null(patch_keys);
  args.image_stride = images.strides[0];
  args.patch_stride = images.strides[1];
  args.first_image = given["first_image"].cast<int64_t>();
  args.slots = slotted.shape[0];
  args.n_captions = given["n_captions"].cast<int64_t>();
  args.runs = static_cast<int>(lengths.shape[0]);
  args.run_granules = static_cast<int>(codes.shape[0]) / args.runs;
  args.patches = static_cast<int>(image_inverse.shape[0] / images.shape[0]);
  args.n_patch_slots = patch_slots ? static_cast<int>(patch_slots->shape[1]) : 0;
  args.channels = static_cast<int>(images.shape[2]);
  args.chunks = (args.patches + columns - 1) / columns;
  run(args, columns, bfloat16, given["n_images"].cast<int64_t>(), seed);
  const auto array_of = [](std::optional<Strided<uint32_t>>& keys) -> py::object {
    if (!keys) return py::none();
    return keys->buffer.to_numpy();
  };
  return py::make_tuple(array_of(token_keys), array_of(patch_keys));
}

}  // namespace
}  // namespace emulation
}  // namespace sparc

PYBIND11_MODULE(emulated, m) {
  m.def("resident_maxima", &sparc::emulation::resident_maxima, py::arg("given"), py::arg("bfloat16"),
        py::arg("seed"));
}
