#include "common/cpu_capability.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <string>

namespace sparc {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

CpuCapability detect() {
#if defined(SPARC_X86_ISAS)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512cd");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return CpuCapability::avx512_bf16;
  if (avx512) return CpuCapability::avx512;
  if (avx2) return CpuCapability::avx2;
#endif
  return CpuCapability::baseline;
}

CpuCapability best() {
  static const CpuCapability capability = detect();
  return capability;
}

std::atomic<CpuCapability>& current() {
  static std::atomic<CpuCapability> capability{best()};
  return capability;
}

std::string cpu_capability_name() { return kNames[static_cast<int>(cpu_capability())]; }

// Sets the capability for the whole process and returns the name of the one before. Refuses what this machine
// lacks.
std::string set_cpu_capability(std::string name) {
  std::string before = cpu_capability_name();
  for (int i = 0; i <= static_cast<int>(CpuCapability::avx512_bf16); ++i) {
    if (name != kNames[i]) continue;
    STD_TORCH_CHECK(i <= static_cast<int>(best()), "set_cpu_capability: this machine has ",
                    kNames[static_cast<int>(best())], ", not ", name);
    current().store(static_cast<CpuCapability>(i));
    return before;
  }
  STD_TORCH_CHECK(false, "set_cpu_capability: expected baseline, avx2, avx512 or avx512_bf16, got '", name,
                  "'");
}

}  // namespace

CpuCapability cpu_capability() { return current().load(std::memory_order_relaxed); }

}  // namespace sparc

STABLE_TORCH_LIBRARY_IMPL(sparc_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&sparc::cpu_capability_name));
  m.impl("set_cpu_capability", TORCH_BOX(&sparc::set_cpu_capability));
}
