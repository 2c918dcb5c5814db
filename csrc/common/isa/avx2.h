// Instruction set of this translation unit: AVX2 and FMA, x86-64-v3. See isa/baseline.h.
#pragma once

#define SPARC_ISA avx2
#define SPARC_VECTOR_BYTES 32
#define SPARC_VECTOR_REGISTERS 16
#pragma GCC target("avx2,fma,bmi,bmi2,f16c")
