// The step of late interaction's forward pass that has a CUDA kernel: its op, checks and launch. The steps
// around it are Triton's (sparc_kernels/ops/late_interaction/native.py), so it is declared here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/cuda_call.h"
#include "late_interaction/late_interaction_launch.h"

#if defined(SPARC_WARPGROUPS)

namespace sparc {
namespace {

using Maybe = std::optional<Tensor>;

void check_columns(int64_t columns, int64_t channels) {
  bool known = false;
#define SPARC_IS(columns_) known = known || columns == columns_;
  SPARC_MAXIMA_COLUMNS(SPARC_IS)
#undef SPARC_IS
  STD_TORCH_CHECK(known, "columns: expected 104, 128, 200 or 256, got ", columns);
  STD_TORCH_CHECK(channels > 0 && channels % 8 == 0 && channels <= kMostChannels,
                  "images: expected a multiple of 8 channels, at most ", kMostChannels, ", got ", channels);
  STD_TORCH_CHECK(maxima_fit(static_cast<int>(channels), static_cast<int>(columns)), "columns: ", columns,
                  " patches of ", channels, " channels do not fit shared memory");
}

void resident_maxima(const Tensor& images, const Tensor& slotted, const Tensor& image_inverse,
                     const Maybe& patch_slots, const Maybe& patch_counts, const Tensor& slot_inverse,
                     const Tensor& captions, const Tensor& codes, const Tensor& run_lengths,
                     const Maybe& token_keys, const Maybe& patch_keys, int64_t columns, int64_t first_image,
                     int64_t n_images, int64_t n_captions) {
  const CudaCall call(images, "images", "highest");
  STD_TORCH_CHECK(call.half_precision(), "images: expected BFloat16 or Half");
  check_hopper(call, "resident_maxima");
  STD_TORCH_CHECK(images.dim() == 3 && slotted.dim() == 2, "images, slotted: expected 3 and 2 dimensions");
  const MatrixView view = matrix_view(images);
  const int64_t channels = images.size(2), slots = slotted.size(0), granules = slots / kGranule;
  check_columns(columns, channels);
  STD_TORCH_CHECK(view.wide && images.size(0) > 0,
                  "images: expected rows that start at multiples of 16 bytes");
  STD_TORCH_CHECK(0 <= first_image && 0 < n_images && first_image + n_images <= images.size(0),
                  "first_image, n_images: expected images that are there");
  MaximaArguments args = {};
  const int64_t patches = image_inverse.numel() / images.size(0), runs = run_lengths.size(0);
  const int64_t chunks = (patches + columns - 1) / columns;
  call.check(slotted, "slotted", images.scalar_type(), {granules * kGranule, channels});
  call.check(image_inverse, "image_inverse", ScalarType::Float, {images.size(0) * patches});
  call.check(slot_inverse, "slot_inverse", ScalarType::Float, {slots});
  call.check(captions, "captions", ScalarType::Int, {granules});
  call.check(codes, "codes", ScalarType::Int, {granules});
  call.check(run_lengths, "run_lengths", ScalarType::Int, {runs});
  STD_TORCH_CHECK(runs > 0 && granules % runs == 0, "run_lengths: expected runs of equal room");
  for (const Tensor* each : {&slotted, &image_inverse, &slot_inverse, &captions, &codes, &run_lengths}) {
    check_contiguous(*each, "an argument of resident_maxima");
  }
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(slotted.const_data_ptr()) % 16 == 0,
                  "slotted: expected to start at a multiple of 16 bytes");
  if (patch_slots) {
    STD_TORCH_CHECK(patch_slots->dim() == 2, "patch_slots: expected 2 dimensions");
    args.n_patch_slots = static_cast<int>(patch_slots->size(1));
    call.check(*patch_slots, "patch_slots", ScalarType::Int, {images.size(0), images.size(1)});
    check_contiguous(*patch_slots, "patch_slots");
    args.patch_slots = static_cast<const int32_t*>(patch_slots->const_data_ptr());
    STD_TORCH_CHECK(patch_counts, "patch_counts: expected where there are patch_slots");
  } else {
    STD_TORCH_CHECK(images.size(1) == patches, "images: expected as many patches as inverse norms");
  }
  if (patch_counts) {
    call.check(*patch_counts, "patch_counts", ScalarType::Int, {images.size(0)});
    args.patch_counts = static_cast<const int32_t*>(patch_counts->const_data_ptr());
  }
  if (token_keys) {
    call.check(*token_keys, "token_keys", ScalarType::Int, {token_keys->size(0), chunks, slots});
    STD_TORCH_CHECK(token_keys->size(0) >= n_images, "token_keys: expected room for all images");
    check_contiguous(*token_keys, "token_keys");
    args.token_keys = static_cast<uint32_t*>(const_cast<void*>(token_keys->const_data_ptr()));
  }
  if (patch_keys) {
    call.check(*patch_keys, "patch_keys", ScalarType::Int, {patch_keys->size(0), n_captions, patches});
    STD_TORCH_CHECK(patch_keys->size(0) >= n_images, "patch_keys: expected room for all images");
    check_contiguous(*patch_keys, "patch_keys");
    args.patch_keys = static_cast<uint32_t*>(const_cast<void*>(patch_keys->const_data_ptr()));
  }
  args.images = view.data;
  args.slotted = slotted.const_data_ptr();
  args.image_inverse = static_cast<const float*>(image_inverse.const_data_ptr());
  args.slot_inverse = static_cast<const float*>(slot_inverse.const_data_ptr());
  args.captions = static_cast<const int32_t*>(captions.const_data_ptr());
  args.codes = static_cast<const int32_t*>(codes.const_data_ptr());
  args.run_lengths = static_cast<const int32_t*>(run_lengths.const_data_ptr());
  args.image_stride = images.stride(0);
  args.patch_stride = images.stride(1);
  args.first_image = first_image;
  args.n_captions = n_captions;
  args.slots = slots;
  args.runs = static_cast<int>(runs);
  args.run_granules = static_cast<int>(granules / runs);
  args.patches = static_cast<int>(patches);
  args.channels = static_cast<int>(channels);
  args.chunks = static_cast<int>(chunks);
  check_cuda(launch_maxima(args, static_cast<int>(columns), images.scalar_type() == ScalarType::BFloat16,
                           n_images, call.stream()),
             "resident_maxima");
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "resident_maxima(Tensor images, Tensor slotted, Tensor image_inverse, Tensor? patch_slots, Tensor? "
      "patch_counts, Tensor slot_inverse, Tensor captions, Tensor codes, Tensor run_lengths, Tensor(a!)? "
      "token_keys, Tensor(b!)? patch_keys, int columns, int first_image, int n_images, int n_captions) -> "
      "()");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CUDA, m) {
  m.impl("resident_maxima", TORCH_BOX(&sparc::resident_maxima));
}

#endif  // without it the op is not there
