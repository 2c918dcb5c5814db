// Whether this compiler can build code for several x86 instruction sets into one library (#pragma GCC
// target), and every system header that such code needs: they must come before the pragma, lest their inline
// functions be compiled for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPARC_X86_ISAS 1
#include <immintrin.h>
#endif
