// Spreads work over torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace sparc {

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

inline std::unique_ptr<void, FreeDeleter> aligned_block(size_t bytes) {
  constexpr size_t kLine = 64;
  void* block = std::aligned_alloc(kLine, (bytes / kLine + 1) * kLine);
  if (!block) throw std::bad_alloc();
  return std::unique_ptr<void, FreeDeleter>(block);
}

// Calls work(item, block) for every item in [0, items); `block` is `bytes` of 64-byte aligned memory of the
// calling thread. Threads take the next item when they are done with one, since masks make them differ in
// size; an item's result does not depend on the thread that computes it.
template <class F>
void for_each_item(int64_t items, size_t bytes, const F& work) {
  const int64_t threads = torch::stable::get_num_threads();
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads < items ? threads : items, 1, [&](int64_t, int64_t) {
    const auto block = aligned_block(bytes);
    for (int64_t item = next++; item < items; item = next++) work(item, block.get());
  });
}

}  // namespace sparc
