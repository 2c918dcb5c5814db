// Instruction set of this translation unit: whatever the compiler's default target has (SSE2 on x86-64, NEON
// on aarch64). Include it before any other header of ours; everything that is compiled for it lives in
// namespace sparc::baseline.
#pragma once

#define SPARC_ISA baseline
#define SPARC_VECTOR_BYTES 16
#if defined(__aarch64__)
#define SPARC_VECTOR_REGISTERS 32
#else
#define SPARC_VECTOR_REGISTERS 16
#endif
