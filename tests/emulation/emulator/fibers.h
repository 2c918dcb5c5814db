// Threads of an emulated block as fibers: each runs on a stack of its own until it suspends itself.
#pragma once

#include <cstddef>
#include <functional>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace sparc {
namespace emulation {

class Fiber {
 public:
  explicit Fiber(std::function<void()> body);
  ~Fiber();  // may be called while the body is suspended: what it left on its stack is abandoned
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Called from outside: runs the body from where it suspended. The body must neither return nor throw.
  void resume();
  // Called by the body: goes back to the caller of resume().
  void suspend();

  const void* stack_end() const { return stack_end_; }

 private:
  static void entry();
  void switch_in();
  void switch_out();

  std::function<void()> body_;
  unsigned char* mapping_ = nullptr;  // a guard page, then the stack
  unsigned char* stack_ = nullptr;
  unsigned char* stack_end_ = nullptr;
  // Of AddressSanitizer, which must know on which stack the code runs.
  void* fake_stack_ = nullptr;
  void* outer_fake_stack_ = nullptr;
  const void* outer_stack_ = nullptr;
  size_t outer_stack_bytes_ = 0;
#if defined(__x86_64__)
  void* inner_ = nullptr;  // stack pointers of whoever does not run
  void* outer_ = nullptr;
#else
  ucontext_t inner_;
  ucontext_t outer_;
#endif
};

}  // namespace emulation
}  // namespace sparc
