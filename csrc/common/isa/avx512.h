// Instruction set of this translation unit: AVX-512 F/BW/DQ/VL, x86-64-v4. See isa/baseline.h.
#pragma once

#define SPARC_ISA avx512
#define SPARC_VECTOR_BYTES 64
#define SPARC_VECTOR_REGISTERS 32
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,bmi,bmi2,f16c")
