// Instruction set of this translation unit: AVX-512 with the bfloat16 dot product (Zen 4, Cooper Lake and
// later). See isa/baseline.h.
#pragma once

#define SPARC_ISA avx512_bf16
#define SPARC_VECTOR_BYTES 64
#define SPARC_VECTOR_REGISTERS 32
#define SPARC_HAS_BF16_DOT 1
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512bf16,avx2,fma,bmi,bmi2,f16c")
