// The instruction set of this translation unit. setup.py compiles every *_isa.cpp once per set, with
// SPARC_FOR_<SET> defined; whatever is compiled for a set lives in namespace sparc::<set>.
//
// Headers of ours that such a file includes begin with this one: it includes the system headers that they
// need before the pragma, lest inline functions in those be compiled for the set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

// Whether this compiler can build code for several x86 instruction sets into one library.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPARC_X86_ISAS 1
#include <immintrin.h>
#endif

#if defined(SPARC_X86_ISAS) && defined(SPARC_FOR_AVX2)  // with FMA: x86-64-v3
#define SPARC_ISA avx2
#define SPARC_VECTOR_BYTES 32
#define SPARC_VECTOR_REGISTERS 16
#pragma GCC target("avx2,fma,bmi,bmi2,f16c")
#elif defined(SPARC_X86_ISAS) && defined(SPARC_FOR_AVX512)  // F/BW/DQ/VL/CD: x86-64-v4
#define SPARC_ISA avx512
#define SPARC_VECTOR_BYTES 64
#define SPARC_VECTOR_REGISTERS 32
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi,bmi2,f16c")
#elif defined(SPARC_X86_ISAS) && defined(SPARC_FOR_AVX512_BF16)  // Zen 4, Cooper Lake and later
#define SPARC_ISA avx512_bf16
#define SPARC_VECTOR_BYTES 64
#define SPARC_VECTOR_REGISTERS 32
#define SPARC_HAS_BF16_DOT 1
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma,bmi,bmi2,f16c")
#else  // whatever the compiler's default target has: SSE2 on x86-64, NEON on aarch64
#define SPARC_ISA baseline
#define SPARC_VECTOR_BYTES 16
#if defined(__aarch64__)
#define SPARC_VECTOR_REGISTERS 32
#else
#define SPARC_VECTOR_REGISTERS 16
#endif
#endif

namespace sparc {

// Named as the namespaces; each has what the one before has.
enum class CpuCapability { baseline, avx2, avx512, avx512_bf16 };

}  // namespace sparc
