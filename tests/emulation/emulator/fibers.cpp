#include "fibers.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__x86_64__)
// ucontext would do, but makes a system call per switch to keep the signal mask. Saves what a function call
// must keep on the running stack, whose pointer goes to *save, and continues on the other.
extern "C" void sparc_switch_stack(void** save, void* load) __asm__("sparc_switch_stack");
__asm__(
    ".text\n"
    ".type sparc_switch_stack, @function\n"
    "sparc_switch_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size sparc_switch_stack, .-sparc_switch_stack\n");
#endif

namespace sparc {
namespace emulation {
namespace {

constexpr size_t kGuardBytes = 4096;
constexpr size_t kStackBytes = 256 * 1024;  // kernels keep their fragments on it, unrolled and instrumented

Fiber* starting = nullptr;  // entry functions take no arguments

}  // namespace

Fiber::Fiber(std::function<void()> body) : body_(std::move(body)) {
  void* mapping = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  stack_ = mapping_ + kGuardBytes;
  stack_end_ = stack_ + kStackBytes;
  mprotect(mapping_, kGuardBytes, PROT_NONE);
#if defined(__x86_64__)
  // As if entry() had been called from address 0 and was to be returned into.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(stack_ + kStackBytes) - 2;
  *top = reinterpret_cast<uintptr_t>(&Fiber::entry);
  inner_ = top - 6;  // six registers, all zero
#else
  getcontext(&inner_);
  inner_.uc_stack.ss_sp = stack_;
  inner_.uc_stack.ss_size = kStackBytes;
  inner_.uc_link = nullptr;
  makecontext(&inner_, &Fiber::entry, 0);
#endif
}

Fiber::~Fiber() {
  // Frames that were abandoned left poisoned bytes, which the next user of these pages would trip over.
  __asan_unpoison_memory_region(stack_, kStackBytes);
  munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fiber::entry() {
  Fiber* self = starting;
  __sanitizer_finish_switch_fiber(nullptr, &self->outer_stack_, &self->outer_stack_bytes_);
  self->body_();
  std::abort();  // there is nothing to return to
}

void Fiber::resume() {
  starting = this;
  __sanitizer_start_switch_fiber(&outer_fake_stack_, stack_, kStackBytes);
  switch_in();
  __sanitizer_finish_switch_fiber(outer_fake_stack_, nullptr, nullptr);
}

void Fiber::suspend() {
  __sanitizer_start_switch_fiber(&fake_stack_, outer_stack_, outer_stack_bytes_);
  switch_out();
  __sanitizer_finish_switch_fiber(fake_stack_, &outer_stack_, &outer_stack_bytes_);
}

#if defined(__x86_64__)
void Fiber::switch_in() { sparc_switch_stack(&outer_, inner_); }
void Fiber::switch_out() { sparc_switch_stack(&inner_, outer_); }
#else
void Fiber::switch_in() { swapcontext(&outer_, &inner_); }
void Fiber::switch_out() { swapcontext(&inner_, &outer_); }
#endif

}  // namespace emulation
}  // namespace sparc
