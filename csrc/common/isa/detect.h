// Whether this compiler can build code for several x86 instruction sets into one library (#pragma GCC
// target).
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPARC_X86_ISAS 1
#endif
