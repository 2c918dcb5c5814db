// Attention-pooled scores of all pairs: the op's schemas, whatever the device, and on the CPU checks, memory
// and the steps of a pass.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "attention_pooling/attention_pooling.h"
#include "captions/token_checks.h"
#include "common/cpu_capability.h"
#include "common/parallel.h"

namespace sparc {
namespace {

using torch::stable::new_empty;

constexpr int64_t kItemsPerThread = 4;  // of the step that makes the scores
// A Gram matrix takes P columns to a product, a context D; the backward pass takes 1.6 and 3 of such products
// (docs/performance_log.md).
constexpr double kMostPatchesPerChannel = 1.75;

int64_t round_to_line(size_t bytes) { return parts_of(static_cast<int64_t>(bytes), 64) * 64; }

struct Options {
  bool normalize;
  const std::string &weights, &pooling;
  double attention_scale, pooling_scale;
};

double positive(double scale, const char* name) {
  STD_TORCH_CHECK(scale > 0 && scale <= 1e300, name, ": expected a positive number, got ", scale);
  return scale;
}

// The tensors that both passes take, checked, and what follows from them.
struct PooledTensors : PooledCall {
  CheckedTokens checked;
  PooledKernel kernel;
  std::vector<int64_t> first;
  std::vector<int32_t> caption;
  std::vector<TokenChunk> chunks;
  std::unique_ptr<void, FreeDeleter> rows, pairs, norms;

  PooledTensors(const TokenInputs& inputs, const Options& options)
      : checked(inputs, images, texts),
        kernel(pick_kernel<PooledKernel>(checked.dtype)),
        first(first_valid_rows(texts)) {
    normalize = options.normalize;
    set_weights(options.weights);
    STD_TORCH_CHECK(options.pooling == "mean" || options.pooling == "logsumexp",
                    "pooling: expected mean or logsumexp, got ", options.pooling);
    average = options.pooling == "mean";
    attention_scale = positive(options.attention_scale, "attention_scale");
    pooling_scale = positive(options.pooling_scale, "pooling_scale");
    gram = static_cast<double>(images.rows) <= kMostPatchesPerChannel * static_cast<double>(images.width);
    for (int64_t j = 0; j < texts.items; ++j) {
      caption.insert(caption.end(), first[j + 1] - first[j], static_cast<int32_t>(j));
    }
    tokens.first = first.data();
    tokens.caption = caption.data();
    set_chunks();
  }
  PooledTensors(const PooledTensors&) = delete;

  int64_t acc_bytes() const {
    return checked.accumulation == ScalarType::Double ? sizeof(double) : sizeof(float);
  }
  int64_t stats_size() const { return images.total + texts.total; }
  std::vector<int64_t> pairs_shape() const { return {images.items, texts.items}; }

  void pack_tokens() {
    rows = aligned_block(n_tokens() * kernel.token_bytes(*this));
    norms = aligned_block(n_tokens() * acc_bytes());
    tokens.rows = rows.get();
    tokens.inverse_norms = norms.get();
    run(kernel.pack_caption, texts.items, 0);
  }
  void pack_pairs() {
    if (!kernel.pair_bytes(*this)) return;
    pairs = aligned_block((n_tokens() / 2 + tokens.n_chunks + 1) * kernel.pair_bytes(*this));
    tokens.pairs = pairs.get();
    run(kernel.pack_pairs, tokens.n_chunks, 0);
  }

  void run(PooledStep step, int64_t items, size_t bytes) const {
    for_each_item(items, bytes, [&](int64_t item, void* workspace) { step(*this, item, workspace); });
  }

 private:
  void set_weights(const std::string& name) {
    STD_TORCH_CHECK(
        name == "softmax" || name == "softmax_sink" || name == "sigmoid" || name == "words_softmax",
        "weights: expected softmax, softmax_sink, sigmoid or words_softmax, got ", name);
    sink = name == "softmax_sink";
    weights = name == "sigmoid"         ? AttentionWeights::kSigmoid
              : name == "words_softmax" ? AttentionWeights::kWordsSoftmax
                                        : AttentionWeights::kSoftmax;
  }

  void set_chunks() {
    const bool whole = weights == AttentionWeights::kWordsSoftmax;
    for (int64_t begin = 0, j = 0; begin < n_tokens();) {
      int64_t end = std::min(begin + kChunkRows, n_tokens());
      if (whole) {
        while (first[j + 1] <= begin) ++j;
        end = first[j + 1];
        while (j + 1 < texts.items && first[j + 2] <= begin + kChunkRows) end = first[++j + 1];
      }
      chunks.push_back({begin, end});
      tokens.most_rows = std::max(tokens.most_rows, end - begin);
      begin = end;
    }
    tokens.chunks = chunks.data();
    tokens.n_chunks = static_cast<int64_t>(chunks.size());
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& image_tokens, const Tensor& text_tokens, const Maybe& image_mask, const Maybe& text_mask,
    const Maybe& text_offsets, int64_t max_tokens, bool normalize, const std::string& weights,
    double attention_scale, const std::string& pooling, double pooling_scale,
    const std::string& /* float32_precision: the CPU products are exact */) {
  PooledTensors call({image_tokens, text_tokens, image_mask, text_mask, text_offsets, max_tokens},
                     {normalize, weights, pooling, attention_scale, pooling_scale});
  const ScalarType accumulation = call.checked.accumulation;
  Tensor scores = new_empty(image_tokens, call.pairs_shape(), accumulation);
  Tensor stats = new_empty(image_tokens, std::vector<int64_t>{call.stats_size()}, accumulation);
  Tensor levels =
      new_empty(image_tokens, call.average ? std::vector<int64_t>{0} : call.pairs_shape(), accumulation);
  if (text_offsets) __builtin_memset(stats.mutable_data_ptr(), 0, stats.numel() * stats.element_size());
  call.checked.set_stats(call.images, call.texts, stats.mutable_data_ptr());
  call.scores = scores.mutable_data_ptr();
  call.levels = call.average ? nullptr : levels.mutable_data_ptr();
  call.run(call.kernel.image_norms, call.images.items, 0);
  call.run(call.kernel.text_norms, call.texts.items, 0);
  call.pack_tokens();
  // Every part of an image's captions packs its patches again: no more parts than keep the threads busy.
  const int64_t captions = call.texts.items;
  const int64_t wanted = torch::stable::get_num_threads() * kItemsPerThread;
  const int64_t parts = std::min(captions, parts_of(wanted, std::max<int64_t>(call.images.items, 1)));
  call.captions_at_once = std::max<int64_t>(parts_of(captions, std::max<int64_t>(parts, 1)), 1);
  call.run(call.kernel.scores, call.images.items * parts_of(captions, call.captions_at_once),
           call.kernel.forward_bytes(call));
  return {scores, stats, levels};
}

// The blocks of the backward pass, one after the other.
void add_up(PooledTensors& call) {
  const PooledKernel& kernel = call.kernel;
  const int64_t images_at_once = std::min(kImagesAtOnce, call.images.items);
  const auto states = aligned_block(images_at_once * call.state_bytes);
  call.image_states = static_cast<char*>(states.get());
  const int64_t token_bytes = images_at_once * kernel.gradient_bytes(call);
  int64_t most =
      call.grad_texts ? std::max(kSimilarityBytes / token_bytes, call.tokens.most_rows) : call.n_tokens();
  most = std::min(most, call.n_tokens());
  const auto grads = aligned_block(call.grad_texts ? most * token_bytes : 0);
  const bool keep_along = call.grad_texts && !call.normalize;
  const auto along = aligned_block(keep_along ? most * images_at_once * call.acc_bytes() : 0);
  call.similarity_grads = call.grad_texts ? grads.get() : nullptr;
  call.along = keep_along ? along.get() : nullptr;
  const size_t bytes = kernel.backward_bytes(call);
  PooledBlock& block = call.block;
  for (block.image = 0; block.image < call.images.items; block.image += images_at_once) {
    block.images = std::min(images_at_once, call.images.items - block.image);
    call.run(kernel.open_image, block.images, bytes);
    for (block.chunk = 0; block.chunk < call.tokens.n_chunks; block.chunk = block.last_chunk) {
      const int64_t end = call.chunks[block.chunk].first + most;
      block.last_chunk = block.chunk + 1;
      while (block.last_chunk < call.tokens.n_chunks && call.chunks[block.last_chunk].last <= end)
        ++block.last_chunk;
      call.run(kernel.image_sums, block.images, bytes);
      if (call.grad_texts) call.run(kernel.text_sums, block.last_chunk - block.chunk, 0);
    }
    if (call.grad_images) call.run(kernel.close_image, block.images, bytes);
  }
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad_scores, const Tensor& image_tokens,
                                    const Tensor& text_tokens, const Maybe& image_mask,
                                    const Maybe& text_mask, const Maybe& text_offsets, const Tensor& stats,
                                    const Tensor& levels, int64_t max_tokens, bool normalize,
                                    const std::string& weights, double attention_scale,
                                    const std::string& pooling, double pooling_scale, bool need_image_tokens,
                                    bool need_text_tokens,
                                    const std::string& /* float32_precision: the CPU products are exact */) {
  PooledTensors call({image_tokens, text_tokens, image_mask, text_mask, text_offsets, max_tokens},
                     {normalize, weights, pooling, attention_scale, pooling_scale});
  const ScalarType accumulation = call.checked.accumulation;
  check_cpu_input(stats, "stats", accumulation, {call.stats_size()});
  check_contiguous(stats, "stats");
  call.checked.set_stats(call.images, call.texts, const_cast<void*>(stats.const_data_ptr()));
  check_cpu_input(grad_scores, "grad_scores", accumulation, {call.images.items, call.texts.items});
  check_contiguous(grad_scores, "grad_scores");
  call.upstream = grad_scores.const_data_ptr();
  if (!call.average) {
    check_cpu_input(levels, "levels", accumulation, {call.images.items, call.texts.items});
    check_contiguous(levels, "levels");
    call.levels = const_cast<void*>(levels.const_data_ptr());
  }
  Tensor grad_images = new_token_gradient(call.checked.image_tokens, call.images, need_image_tokens);
  Tensor grad_texts = new_token_gradient(call.checked.text_tokens, call.texts, need_text_tokens);
  call.grad_images = need_image_tokens ? grad_images.mutable_data_ptr() : nullptr;
  call.grad_texts = need_text_tokens ? grad_texts.mutable_data_ptr() : nullptr;
  call.state_bytes = round_to_line(call.kernel.state_bytes(call));
  call.pack_tokens();
  call.pack_pairs();
  const int64_t sums = need_text_tokens ? call.n_tokens() * call.kernel.sum_bytes(call) : 0;
  const int64_t alongs = need_text_tokens && !normalize ? call.n_tokens() * call.acc_bytes() : 0;
  const auto text_sums = aligned_block(sums), text_along = aligned_block(alongs);
  __builtin_memset(text_sums.get(), 0, sums);
  __builtin_memset(text_along.get(), 0, alongs);
  call.text_sums = text_sums.get();
  call.text_along = text_along.get();
  if (call.images.items > 0) add_up(call);
  if (need_text_tokens) call.run(call.kernel.close_caption, call.texts.items, 0);
  return {grad_images, grad_texts};
}

}  // namespace
}  // namespace sparc

STABLE_TORCH_LIBRARY_FRAGMENT(sparc_kernels, m) {
  m.def(
      "attention_pooled_forward(Tensor image_tokens, Tensor text_tokens, Tensor? image_mask, Tensor? "
      "text_mask, Tensor? text_offsets, SymInt max_tokens, bool normalize, str weights, float "
      "attention_scale, str pooling, float pooling_scale, str float32_precision) -> (Tensor scores, Tensor "
      "stats, Tensor levels)");
  m.def(
      "attention_pooled_backward(Tensor grad_scores, Tensor image_tokens, Tensor text_tokens, Tensor? "
      "image_mask, Tensor? text_mask, Tensor? text_offsets, Tensor stats, Tensor levels, SymInt max_tokens, "
      "bool normalize, str weights, float attention_scale, str pooling, float pooling_scale, bool "
      "need_image_tokens, bool need_text_tokens, str float32_precision) -> (Tensor grad_image_tokens, Tensor "
      "grad_text_tokens)");
}

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CPU, m) {
  m.impl("attention_pooled_forward", TORCH_BOX(&sparc::forward));
  m.impl("attention_pooled_backward", TORCH_BOX(&sparc::backward));
}
