// Which instruction set the CPU kernels use: the best of this machine, unless a test asks for a lesser one.
#pragma once

#include <string>

namespace sparc {

enum class CpuCapability { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

CpuCapability cpu_capability();

// "baseline", "avx2", "avx512" or "avx512_bf16".
std::string cpu_capability_name();

// Sets the capability for the whole process and returns the name of the one before. Refuses what this machine
// lacks.
std::string set_cpu_capability(std::string name);

}  // namespace sparc
