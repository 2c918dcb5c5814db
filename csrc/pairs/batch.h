// A batch of images and texts as an op gets it: checks, and the loop over pairs of them on the CPU.
#pragma once

#include <optional>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"
#include "pairs/valid_rows.h"

namespace sparc {

// The images or the texts, and what the op's errors call them.
struct Side {
  Tensor embeds;               // [B, rows, D]
  std::optional<Tensor> mask;  // [B, rows] bool; none: all rows are valid
  const char *name, *mask_name;
  const char* shape;  // of `embeds`, in the op's letters
};

// Sizes of two sides, whose shapes and dtypes are checked against each other and against the masks'.
struct PairSizes {
  int64_t b;     // images, and texts
  int64_t p, l;  // rows of an image, of a text
  int64_t d;     // channels

  PairSizes(const Side& images, const Side& texts) {
    p = rows_of(images);
    l = rows_of(texts);
    b = images.embeds.size(0);
    d = images.embeds.size(2);
    check_shape(texts.embeds, texts.name, {b, l, d});
    check_dtype(texts.embeds, texts.name, images.embeds.scalar_type());
    check_mask(texts, l);
    check_mask(images, p);
  }

 private:
  static int64_t rows_of(const Side& side) {
    STD_TORCH_CHECK(side.embeds.dim() == 3, side.name, ": expected 3 dimensions ", side.shape, ", got ",
                    side.embeds.dim());
    return side.embeds.size(1);
  }
  void check_mask(const Side& side, int64_t length) const {
    if (!side.mask) return;
    check_dtype(*side.mask, side.mask_name, ScalarType::Bool);
    check_shape(*side.mask, side.mask_name, {b, length});
  }
};

// Both sides, checked, on the CPU.
struct Batch : PairSizes {
  Side images, texts;
  ScalarType dtype, accumulation;

  Batch(const Side& images_, const Side& texts_)
      : PairSizes(images_, texts_),
        images(images_),
        texts(texts_),
        dtype(images.embeds.scalar_type()),
        accumulation(accumulation_dtype(dtype)) {
    for (const Side* side : {&images, &texts}) {
      check_on_cpu(side->embeds, side->name);
      if (side->mask) check_on_cpu(*side->mask, side->mask_name);
    }
    STD_TORCH_CHECK(
        dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16,
        images.name, ": the CPU kernels take Float, Double and BFloat16, got ",
        torch::headeronly::toString(dtype));
  }
};

// The valid rows of image after image, or text after text. Bound once per call: asking a tensor for its
// strides crosses the ABI each time.
class RowReader {
 public:
  explicit RowReader(const Side& side)
      : data_(static_cast<const char*>(side.embeds.const_data_ptr())),
        bytes_(side.embeds.element_size()),
        length_(side.embeds.size(1)),
        batch_stride_(side.embeds.stride(0)),
        row_stride_(side.embeds.stride(1)),
        column_stride_(side.embeds.stride(2)) {
    if (side.mask) {
      mask_ = static_cast<const bool*>(side.mask->const_data_ptr());
      mask_batch_stride_ = side.mask->stride(0);
      mask_stride_ = side.mask->stride(1);
    }
  }

  // `index` holds the numbers of the rows as long as the result is in use.
  ValidRows read(int64_t item, std::vector<int32_t>& index) const {
    index.clear();
    for (int64_t i = 0; i < length_; ++i) {
      if (!mask_ || mask_[item * mask_batch_stride_ + i * mask_stride_])
        index.push_back(static_cast<int32_t>(i));
    }
    const int64_t count = static_cast<int64_t>(index.size());
    const bool leading = count == 0 || index.back() == count - 1;
    return {data_ + item * batch_stride_ * bytes_, row_stride_, column_stride_, index.data(), count, leading};
  }

 private:
  const char* data_;
  const bool* mask_ = nullptr;
  int64_t bytes_, length_, batch_stride_, row_stride_, column_stride_;
  int64_t mask_batch_stride_ = 0, mask_stride_ = 0;
};

// Which image meets which text.
struct PairIndex {
  int64_t image, text;
};
inline PairIndex matching(int64_t i) { return {i, i}; }

// Calls work(rows of the image, rows of the text, pair, workspace) for every pair in [0, pairs), whose image
// and text are index(pair); `workspace` is `bytes` of 64-byte aligned memory of the calling thread.
template <class Index, class F>
void for_each_pair(const Batch& batch, int64_t pairs, const Index& index, size_t bytes, const F& work) {
  const RowReader images(batch.images), texts(batch.texts);
  for_each_item(pairs, bytes, [&](int64_t pair, void* workspace) {
    thread_local std::vector<int32_t> image_rows, text_rows;
    const PairIndex at = index(pair);
    work(images.read(at.image, image_rows), texts.read(at.text, text_rows), pair, workspace);
  });
}

}  // namespace sparc
