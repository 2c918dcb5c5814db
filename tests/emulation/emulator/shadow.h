// The contents of shared memory and scratch, with a record per byte of who touched it last and when.
//
// Time is one clock per launch that every barrier advances. Two accesses by different threads are ordered if
// a block barrier was completed between them or, within a warpgroup or a warp, one of these, or if the
// earlier one arrived at a barrier between them at which the other one's warpgroup waited. Other warp
// collectives exchange registers and order no memory. Each byte keeps its last writer and two readers since:
// two are enough, as two of different warpgroups are in the way of any writer that no block barrier orders
// behind them, two of different warps, at their group's present barrier, of any writer of that group, and two
// of one warp, at its present barrier, of any writer of that warp. (Not enough where threads of a warpgroup
// read a byte, some before and others after they arrive at a barrier behind which another one writes it.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime.h"

namespace sparc {
namespace emulation {

class Shadow {
 public:
  Shadow(int threads, size_t shared_bytes);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  void add_scratch(void* base, size_t bytes);
  void* shared_base() const { return reinterpret_cast<void*>(regions_[0].begin); }

  void start_block();
  void order_block();
  void order_warpgroup(int group);
  void order_warp(int warp);
  // What the thread did before that time becomes ordered before what the warpgroup does from now on.
  void order_before(int thread, uint32_t clock, int group);
  uint32_t advance() { return ++clock_; }

  void read(int thread, const void* address, size_t bytes, size_t alignment, void* value);
  void write(int thread, void* address, size_t bytes, size_t alignment, const void* value);
  // A row for ldmatrix, which reads shared memory only.
  void read_row(int thread, const void* address, void* row);

  // The destination of an asynchronous copy, of 16 bytes, between issue and completion.
  void claim(int thread, void* destination);
  void complete(int thread, void* destination, const void* value);
  // The source of one: true if it lies in scratch and was read from there.
  bool read_if_scratch(int thread, const void* address, size_t bytes, void* value);

  // A matrix instruction of a warpgroup that reads bytes of shared memory, for one thread of each warp: from
  // its issue until the thread's wait nobody may write to them.
  void start_product(int thread, size_t offset, size_t bytes);
  void finish_product(int thread, size_t offset, size_t bytes);
  uint16_t half_at(size_t offset) const;  // what it reads: 16 bits
  // The offset of an address that it is to be given.
  size_t operand_offset(int thread, const void* address);
  // What the thread has written so far is there for such instructions of threads that a barrier orders
  // behind.
  void fence_proxy(int thread);

 private:
  struct Byte {
    uint32_t write_clock;  // 0: never
    uint32_t read_clock[2];
    uint16_t writer;
    uint16_t reader[2];
    uint16_t copier;    // 1 + the thread whose copy is under way to this byte, 0: none
    uint16_t products;  // matrix instructions under way that read it, once for each warp
  };
  struct Free {
    void operator()(void* pointer) const;
  };
  struct Region {
    uintptr_t begin;
    size_t bytes;
    std::string name;
    std::unique_ptr<unsigned char[], Free> contents;
    std::unique_ptr<Byte[], Free> shadow;  // from calloc: pages that are never used cost nothing
  };

  void add_region(uintptr_t begin, size_t bytes, std::string name);
  Region* find(const void* address);
  Region& locate(int thread, const void* address, size_t bytes, size_t alignment, const char* verb);
  bool ordered(int thread, int earlier_thread, uint32_t earlier_clock) const;
  bool superseded(const Byte& byte, int slot, int warp) const;
  bool fenced(int thread, int writer, uint32_t write_clock) const;
  void record_read(Region& region, size_t offset, size_t bytes, int thread);
  void record_write(Region& region, size_t offset, size_t bytes, int thread, const char* verb);
  void check_free(Region& region, size_t offset, size_t at, size_t bytes, int thread, const char* verb);
  [[noreturn]] void fail(int thread, const std::string& verb, const std::string& where,
                         const std::string& why);
  static std::string range(const Region& region, size_t offset, size_t bytes);

  std::unique_ptr<unsigned char[], Free> shared_addresses_;  // poisoned; only its addresses are used
  std::vector<Region> regions_;                              // the first is shared memory
  uint32_t clock_ = 0;
  uint32_t block_start_ = 0;
  uint32_t block_ordered_ = 0;
  std::vector<uint32_t> warpgroup_ordered_, warp_ordered_;
  std::vector<std::vector<uint32_t>> handed_over_;   // of each warpgroup, by the earlier thread
  std::vector<std::vector<uint32_t>> proxy_fences_;  // of each thread in this block, the clocks
};

// "thread 37 (warp 1, lane 5)"
std::string name_thread(int thread);

}  // namespace emulation
}  // namespace sparc
