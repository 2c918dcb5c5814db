// Maxima over the tokens of all pairs: the op's schemas, whatever the device, and on the CPU checks, memory
// and the steps of a pass.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "captions/token_checks.h"
#include "common/cpu_capability.h"
#include "common/parallel.h"
#include "late_interaction/late_interaction.h"

namespace sparc {
namespace {

using torch::stable::new_empty;

constexpr int64_t kMostInByte = 255;    // entries that an index of one byte can tell from "none"
constexpr int64_t kMostRows = 32767;    // so that an index fits two bytes
constexpr int64_t kItemsPerThread = 4;  // of the step that makes the scores

// The tensors that both passes take, checked, and what follows from them.
struct LateTensors : LateCall {
  CheckedTokens checked;
  ScalarType accumulation;
  LateKernel kernel;
  std::vector<double> image_weights, text_weights;
  std::vector<int64_t> first;  // of each caption's valid tokens among those of all

  LateTensors(const TokenInputs& inputs, bool normalized, bool averaged)
      : checked(inputs, images, texts), accumulation(checked.accumulation), first(first_valid_rows(texts)) {
    normalize = normalized;
    average = averaged;
    STD_TORCH_CHECK(images.rows <= kMostRows && texts.rows <= kMostRows,
                    "image_tokens and text_tokens: expected at most ", kMostRows, " tokens per item, got ",
                    images.rows, " and ", texts.rows);
    images.wide = texts.rows > kMostInByte;
    texts.wide = images.rows > kMostInByte;
    image_weights = weights_of(images);
    text_weights = weights_of(texts);
    images.weights = image_weights.data();
    texts.weights = text_weights.data();
    kernel = pick_kernel<LateKernel>(checked.dtype);
  }
  LateTensors(const LateTensors&) = delete;

  int64_t stats_size() const { return images.total + texts.total; }
  ScalarType index_dtype(const LateSide& side) const {
    return side.wide ? ScalarType::Short : ScalarType::Byte;
  }
  std::vector<int64_t> pairs() const { return {images.items, texts.items}; }

  void set_stats(void* stats) { checked.set_stats(images, texts, stats); }

  void run(LateStep step, int64_t items, size_t bytes) const {
    for_each_item(items, bytes, [&](int64_t item, void* workspace) { step(*this, item, workspace); });
  }

 private:
  // Of the maxima in the score of each item.
  std::vector<double> weights_of(const TokenSide& side) const {
    std::vector<double> weights(side.items);
    for (int64_t i = 0; i < side.items; ++i) {
      const int64_t count = side.valid_rows(i);
      weights[i] = average && count > 0 ? 1.0 / static_cast<double>(count) : 1.0;
    }
    return weights;
  }
};

Tensor new_scores(LateTensors& call, const Tensor& like, LateSide& side, bool wanted) {
  Tensor scores = new_empty(like, wanted ? call.pairs() : std::vector<int64_t>{0}, call.accumulation);
  if (wanted) side.scores = scores.mutable_data_ptr();
  return scores;
}

// The table of a side's indices.
std::vector<int64_t> index_shape(const LateTensors& call, bool of_images) {
  if (of_images) return {call.images.items, call.texts.items, call.images.rows};
  if (call.texts.offsets) return {call.images.items, call.texts.total};
  return {call.images.items, call.texts.items, call.texts.rows};
}

Tensor new_indices(LateTensors& call, const Tensor& like, bool of_images, bool wanted) {
  LateSide& side = of_images ? call.images : call.texts;
  Tensor indices = new_empty(like, wanted ? index_shape(call, of_images) : std::vector<int64_t>{0},
                             call.index_dtype(side));
  if (!wanted) return indices;
  side.best = indices.mutable_data_ptr();
  const size_t bytes = indices.numel() * indices.element_size();
  prefer_huge_pages(side.best, bytes);
  // tokens of no caption
  if (!of_images && call.texts.offsets)
    std::fill_n(static_cast<char*>(side.best), bytes, static_cast<char>(0xFF));
  return indices;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& image_tokens, const Tensor& text_tokens, const Maybe& image_mask, const Maybe& text_mask,
    const Maybe& text_offsets, int64_t max_tokens, bool normalize, bool average, bool by_image, bool by_text,
    bool keep, const std::string& /* float32_precision: the CPU products are exact */) {
  LateTensors call({image_tokens, text_tokens, image_mask, text_mask, text_offsets, max_tokens}, normalize,
                   average);
  Tensor image_scores = new_scores(call, image_tokens, call.images, by_image);
  Tensor text_scores = new_scores(call, image_tokens, call.texts, by_text);
  Tensor best_token = new_indices(call, image_tokens, true, by_image && keep);
  Tensor best_patch = new_indices(call, image_tokens, false, by_text && keep);
  Tensor stats = new_empty(image_tokens, std::vector<int64_t>{call.stats_size()}, call.accumulation);
  const int64_t acc_bytes = stats.element_size();
  if (text_offsets) std::fill_n(static_cast<char*>(stats.mutable_data_ptr()), stats.numel() * acc_bytes, 0);
  call.set_stats(stats.mutable_data_ptr());

  const int64_t valid = call.first.back(), captions = call.texts.items;
  const auto rows = aligned_block(valid * call.kernel.token_bytes(call));
  const auto norms = aligned_block(valid * acc_bytes);
  const auto index = aligned_block(valid * sizeof(int32_t));
  call.tokens = {rows.get(), norms.get(), static_cast<int32_t*>(index.get()), call.first.data()};
  // Every part of an image's captions packs its patches again: no more parts than keep the threads busy.
  const int64_t wanted = torch::stable::get_num_threads() * kItemsPerThread;
  const int64_t parts = std::min(captions, parts_of(wanted, std::max<int64_t>(call.images.items, 1)));
  call.captions_at_once = std::max<int64_t>(parts_of(captions, std::max<int64_t>(parts, 1)), 1);
  call.run(call.kernel.image_norms, call.images.items, 0);
  call.run(call.kernel.pack_caption, captions, 0);
  if (by_image || by_text) {
    call.run(call.kernel.scores, call.images.items * parts_of(captions, call.captions_at_once),
             call.kernel.score_bytes(call));
  }
  return {image_scores, stats, best_token, best_patch, text_scores};
}

// The upstream gradient of a side's scores with the indices that go with it.
void set_upstream(LateTensors& call, bool of_images, const Maybe& grad, const char* name,
                  const Tensor& indices, const char* indices_name) {
  if (!grad) return;
  LateSide& side = of_images ? call.images : call.texts;
  const auto shape = index_shape(call, of_images);
  check_cpu_input(*grad, name, call.accumulation, {call.images.items, call.texts.items});
  check_contiguous(*grad, name);
  if (shape.size() == 3) {
    check_cpu_input(indices, indices_name, call.index_dtype(side), {shape[0], shape[1], shape[2]});
  } else {
    check_cpu_input(indices, indices_name, call.index_dtype(side), {shape[0], shape[1]});
  }
  check_contiguous(indices, indices_name);
  side.upstream = grad->const_data_ptr();
  side.best = const_cast<void*>(indices.const_data_ptr());
}

Tensor new_gradient(const Tensor& tokens, LateSide& side, bool needed) {
  Tensor grad = new_token_gradient(tokens, side, needed);
  if (needed) side.grad = grad.mutable_data_ptr();
  return grad;
}

std::tuple<Tensor, Tensor> backward(const Maybe& grad_image_scores, const Maybe& grad_text_scores,
                                    const Tensor& image_tokens, const Tensor& text_tokens,
                                    const Maybe& image_mask, const Maybe& text_mask,
                                    const Maybe& text_offsets, const Tensor& stats, const Tensor& best_token,
                                    const Tensor& best_patch, int64_t max_tokens, bool normalize,
                                    bool average, bool need_image_tokens, bool need_text_tokens,
                                    const std::string& /* float32_precision: the CPU products are exact */) {
  LateTensors call({image_tokens, text_tokens, image_mask, text_mask, text_offsets, max_tokens}, normalize,
                   average);
  check_cpu_input(stats, "stats", call.accumulation, {call.stats_size()});
  check_contiguous(stats, "stats");
  call.set_stats(const_cast<void*>(stats.const_data_ptr()));
  set_upstream(call, true, grad_image_scores, "grad_image_scores", best_token, "best_token");
  set_upstream(call, false, grad_text_scores, "grad_text_scores", best_patch, "best_patch");
  Tensor grad_images = new_gradient(image_tokens, call.images, need_image_tokens);
  Tensor grad_texts = new_gradient(text_tokens, call.texts, need_text_tokens);
  const LateKernel& kernel = call.kernel;
  const LateSide &images = call.images, &texts = call.texts;
  if (need_image_tokens) {
    call.run(kernel.image_gradient, parts_of(images.items, items_at_once(images)),
             kernel.gradient_bytes(images));
  }
  if (need_text_tokens) {
    call.run(kernel.text_gradient, parts_of(texts.items, items_at_once(texts)), kernel.gradient_bytes(texts));
  }
  return {grad_images, grad_texts};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "max_similarity_forward(Tensor image_tokens, Tensor text_tokens, Tensor? image_mask, Tensor? "
      "text_mask, "
      "Tensor? text_offsets, SymInt max_tokens, bool normalize, bool average, bool by_image, bool by_text, "
      "bool keep, str float32_precision) -> (Tensor image_scores, Tensor stats, Tensor best_token, Tensor "
      "best_patch, Tensor text_scores)");
  m.def(
      "max_similarity_backward(Tensor? grad_image_scores, Tensor? grad_text_scores, Tensor image_tokens, "
      "Tensor text_tokens, Tensor? image_mask, Tensor? text_mask, Tensor? text_offsets, Tensor stats, Tensor "
      "best_token, Tensor best_patch, SymInt max_tokens, bool normalize, bool average, bool "
      "need_image_tokens, "
      "bool need_text_tokens, str float32_precision) -> (Tensor grad_image_tokens, Tensor grad_text_tokens)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("max_similarity_forward", TORCH_BOX(&sparc::forward));
  m.impl("max_similarity_backward", TORCH_BOX(&sparc::backward));
}
