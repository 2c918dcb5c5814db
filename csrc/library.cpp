// The schemas of the native ops, one per op, whatever the device. sparc_kernels/ops/<op>/schema.py holds the
// same strings (a test compares them). Implementations register themselves by dispatch key in
// <op>/<op>_cpu.cpp.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sparc_kernels, m) {
  m.def(
      "fine_grained_forward(Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? "
      "patch_mask, "
      "Tensor logit_scale, Tensor? similarity_threshold, bool pool_patches, bool pool_tokens, "
      "str float32_precision) "
      "-> (Tensor token_loss, Tensor stats, Tensor pooled_patches, Tensor pooled_tokens)");
  m.def(
      "fine_grained_backward(Tensor grad_token_loss, Tensor? grad_pooled_patches, Tensor? "
      "grad_pooled_tokens, Tensor patch_embeds, Tensor token_embeds, Tensor? token_mask, Tensor? patch_mask, "
      "Tensor logit_scale, Tensor? similarity_threshold, Tensor stats, bool need_patches, bool need_tokens, "
      "str float32_precision) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)");
  m.def(
      "grouped_embeddings_forward(Tensor patch_embeds, Tensor token_embeds, Tensor? patch_mask, "
      "Tensor? similarity_threshold, str float32_precision) -> (Tensor embeddings, Tensor stats)");
  m.def(
      "grouped_embeddings_backward(Tensor grad_embeddings, Tensor patch_embeds, Tensor token_embeds, "
      "Tensor? patch_mask, Tensor? similarity_threshold, Tensor stats, bool need_patches, bool need_tokens, "
      "str float32_precision) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)");
  m.def(
      "alignment_weights_forward(Tensor patch_embeds, Tensor token_embeds, Tensor? patch_mask, "
      "Tensor? similarity_threshold, str float32_precision) -> (Tensor weights, Tensor stats)");
  m.def(
      "alignment_weights_backward(Tensor grad_weights, Tensor patch_embeds, Tensor token_embeds, "
      "Tensor? patch_mask, Tensor? similarity_threshold, Tensor stats, bool need_patches, bool need_tokens, "
      "str float32_precision) -> (Tensor grad_patch_embeds, Tensor grad_token_embeds)");
  m.def("cuda_build_info(Tensor tensor) -> Tensor");
  m.def("cpu_capability() -> str");
  m.def("set_cpu_capability(str name) -> str");
}
