#include "shadow.h"

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace sparc {
namespace emulation {
namespace {

constexpr size_t kCopyBytes = 16;

int group_of(int warp) { return warp / kWarpgroupWarps; }

template <class T>
T* allocate(size_t count) {
  void* pointer = std::calloc(count == 0 ? 1 : count, sizeof(T));
  if (pointer == nullptr) throw std::bad_alloc();
  return static_cast<T*>(pointer);
}

}  // namespace

std::string name_thread(int thread) {
  return "thread " + std::to_string(thread) + " (warp " + std::to_string(thread / kWarpSize) + ", lane " +
         std::to_string(thread % kWarpSize) + ")";
}

void Shadow::Free::operator()(void* pointer) const { std::free(pointer); }

Shadow::Shadow(int threads, size_t shared_bytes)
    : warpgroup_ordered_(group_of(threads / kWarpSize - 1) + 1, 0),
      warp_ordered_(threads / kWarpSize, 0),
      handed_over_(warpgroup_ordered_.size(), std::vector<uint32_t>(threads, 0)),
      proxy_fences_(threads) {
  constexpr size_t kAlignment = 1024;
  const size_t rounded = (shared_bytes / kAlignment + 1) * kAlignment;
  shared_addresses_.reset(static_cast<unsigned char*>(std::aligned_alloc(kAlignment, rounded)));
  if (shared_addresses_ == nullptr) throw std::bad_alloc();
  __asan_poison_memory_region(shared_addresses_.get(), rounded);
  add_region(reinterpret_cast<uintptr_t>(shared_addresses_.get()), shared_bytes, "shared memory");
}

Shadow::~Shadow() {
  for (const Region& region : regions_) {
    __asan_unpoison_memory_region(reinterpret_cast<void*>(region.begin), region.bytes);
  }
}

void Shadow::add_scratch(void* base, size_t bytes) {
  __asan_poison_memory_region(base, bytes);
  add_region(reinterpret_cast<uintptr_t>(base), bytes, "scratch " + std::to_string(regions_.size() - 1));
}

void Shadow::add_region(uintptr_t begin, size_t bytes, std::string name) {
  Region region;
  region.begin = begin;
  region.bytes = bytes;
  region.name = std::move(name);
  region.contents.reset(allocate<unsigned char>(bytes));
  region.shadow.reset(allocate<Byte>(bytes));
  regions_.push_back(std::move(region));
}

void Shadow::start_block() {
  block_start_ = ++clock_;
  block_ordered_ = clock_;
  for (std::vector<uint32_t>& fences : proxy_fences_) fences.clear();
}

void Shadow::order_block() { block_ordered_ = ++clock_; }

void Shadow::order_warpgroup(int group) { warpgroup_ordered_[group] = ++clock_; }

void Shadow::order_warp(int warp) { warp_ordered_[warp] = ++clock_; }

void Shadow::order_before(int thread, uint32_t clock, int group) { handed_over_[group][thread] = clock; }

std::string Shadow::range(const Region& region, size_t offset, size_t bytes) {
  const std::string first = std::to_string(offset);
  if (bytes == 1) return region.name + " byte " + first;
  return region.name + " bytes " + first + ".." + std::to_string(offset + bytes - 1);
}

void Shadow::fail(int thread, const std::string& verb, const std::string& where, const std::string& why) {
  throw EmulationError(name_thread(thread) + " " + verb + " " + where + ": " + why);
}

Shadow::Region* Shadow::find(const void* address) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  for (Region& region : regions_) {
    if (at >= region.begin && at - region.begin < region.bytes) return &region;
  }
  return nullptr;
}

Shadow::Region& Shadow::locate(int thread, const void* address, size_t bytes, size_t alignment,
                               const char* verb) {
  Region* region = find(address);
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  if (region == nullptr) {
    // Named relative to the region that begins or ends nearest.
    const Region* nearest = &regions_[0];
    uintptr_t least = UINTPTR_MAX;
    for (const Region& candidate : regions_) {
      const uintptr_t distance =
          at < candidate.begin ? candidate.begin - at : at - (candidate.begin + candidate.bytes);
      if (distance < least) {
        least = distance;
        nearest = &candidate;
      }
    }
    const std::string offset = std::to_string(static_cast<intptr_t>(at - nearest->begin));
    fail(thread, verb, nearest->name + " offset " + offset,
         "out of bounds, it has " + std::to_string(nearest->bytes) + " bytes");
  }
  const size_t offset = at - region->begin;
  if (bytes > region->bytes - offset) {
    fail(thread, verb, range(*region, offset, bytes),
         "out of bounds, it has " + std::to_string(region->bytes) + " bytes");
  }
  if (at % alignment != 0) {
    fail(thread, verb, range(*region, offset, bytes),
         "misaligned, not at a multiple of " + std::to_string(alignment));
  }
  return *region;
}

bool Shadow::ordered(int thread, int earlier_thread, uint32_t earlier_clock) const {
  if (thread == earlier_thread || earlier_clock < block_ordered_) return true;
  const int warp = thread / kWarpSize, earlier = earlier_thread / kWarpSize;
  if (group_of(warp) != group_of(earlier)) {
    return earlier_clock < handed_over_[group_of(warp)][earlier_thread];
  }
  return earlier_clock < warpgroup_ordered_[group_of(warp)] ||
         (warp == earlier && earlier_clock < warp_ordered_[warp]);
}

// Whether a reader is in no writer's way that another one, of this warp, is not in after it.
bool Shadow::superseded(const Byte& byte, int slot, int warp) const {
  const int earlier = byte.reader[slot] / kWarpSize;
  return (group_of(warp) == group_of(earlier) &&
          byte.read_clock[slot] < warpgroup_ordered_[group_of(warp)]) ||
         (warp == earlier && byte.read_clock[slot] < warp_ordered_[warp]);
}

void Shadow::check_free(Region& region, size_t offset, size_t at, size_t bytes, int thread,
                        const char* verb) {
  const Byte& byte = region.shadow[at];
  if (byte.copier != 0) {
    fail(thread, verb, range(region, offset, bytes),
         "a copy_async of " + name_thread(byte.copier - 1) + " to byte " + std::to_string(at) +
             " is under way (no copy_async_wait has completed it)");
  }
  // Blocks run at the same time on the device, so none may touch the scratch of another.
  if (&region != &regions_[0] && byte.write_clock != 0 && byte.write_clock < block_start_) {
    fail(thread, verb, range(region, offset, bytes), "scratch that another block has written");
  }
}

void Shadow::record_read(Region& region, size_t offset, size_t bytes, int thread) {
  const int warp = thread / kWarpSize;
  for (size_t at = offset; at < offset + bytes; ++at) {
    Byte& byte = region.shadow[at];
    check_free(region, offset, at, bytes, thread, "reads");
    if (byte.write_clock < block_start_) {
      fail(thread, "reads", range(region, offset, bytes),
           "byte " + std::to_string(at) + " was never written in this block");
    }
    if (!ordered(thread, byte.writer, byte.write_clock)) {
      fail(thread, "reads", range(region, offset, bytes),
           "race, " + name_thread(byte.writer) + " wrote byte " + std::to_string(at) +
               " and no barrier lies between");
    }
    bool have[2];
    for (int slot = 0; slot < 2; ++slot) {
      have[slot] = byte.read_clock[slot] >= block_ordered_ && !superseded(byte, slot, warp);
    }
    // A kept reader that reads again, perhaps after it has arrived at a barrier behind which others write.
    for (int slot = 0; slot < 2; ++slot) {
      if (have[slot] && byte.reader[slot] == thread) byte.read_clock[slot] = clock_;
    }
    if (!have[0] && have[1]) {
      byte.reader[0] = byte.reader[1];
      byte.read_clock[0] = byte.read_clock[1];
      std::swap(have[0], have[1]);
    }
    int slot = 0;
    if (have[0]) {
      const int first = byte.reader[0] / kWarpSize, second = byte.reader[1] / kWarpSize;
      const bool apart = have[1] && first != second, far = have[1] && group_of(first) != group_of(second);
      const bool of_first_warp = first == warp && (have[1] || byte.reader[0] == thread);
      const bool of_first_group = group_of(first) == group_of(warp);
      if (far || (apart && of_first_group) || (!apart && of_first_warp)) continue;
      slot = 1;
    } else {
      byte.read_clock[1] = 0;
    }
    byte.reader[slot] = static_cast<uint16_t>(thread);
    byte.read_clock[slot] = clock_;
  }
}

void Shadow::record_write(Region& region, size_t offset, size_t bytes, int thread, const char* verb) {
  for (size_t at = offset; at < offset + bytes; ++at) {
    Byte& byte = region.shadow[at];
    check_free(region, offset, at, bytes, thread, verb);
    if (byte.products > 0) {
      fail(thread, verb, range(region, offset, bytes),
           "a matrix instruction that reads byte " + std::to_string(at) +
               " is under way (no warpgroup_wait has completed it)");
    }
    if (byte.write_clock >= block_start_ && !ordered(thread, byte.writer, byte.write_clock)) {
      fail(thread, verb, range(region, offset, bytes),
           "race, " + name_thread(byte.writer) + " wrote byte " + std::to_string(at) +
               " and no barrier lies between");
    }
    for (int slot = 0; slot < 2; ++slot) {
      if (byte.read_clock[slot] >= block_start_ &&
          !ordered(thread, byte.reader[slot], byte.read_clock[slot])) {
        fail(thread, verb, range(region, offset, bytes),
             "race, " + name_thread(byte.reader[slot]) + " read byte " + std::to_string(at) +
                 " and no barrier lies between");
      }
      byte.read_clock[slot] = 0;
    }
    byte.writer = static_cast<uint16_t>(thread);
    byte.write_clock = clock_;
  }
}

void Shadow::read(int thread, const void* address, size_t bytes, size_t alignment, void* value) {
  Region& region = locate(thread, address, bytes, alignment, "reads");
  const size_t offset = reinterpret_cast<uintptr_t>(address) - region.begin;
  record_read(region, offset, bytes, thread);
  std::memcpy(value, &region.contents[offset], bytes);
}

void Shadow::write(int thread, void* address, size_t bytes, size_t alignment, const void* value) {
  Region& region = locate(thread, address, bytes, alignment, "writes");
  const size_t offset = reinterpret_cast<uintptr_t>(address) - region.begin;
  record_write(region, offset, bytes, thread, "writes");
  std::memcpy(&region.contents[offset], value, bytes);
}

void Shadow::read_row(int thread, const void* address, void* row) {
  const Region& region = locate(thread, address, 16, 16, "reads with load_matrices");
  if (&region != &regions_[0]) fail(thread, "reads with load_matrices", region.name, "not shared memory");
  read(thread, address, 16, 16, row);
}

void Shadow::claim(int thread, void* destination) {
  const char* verb = "copies asynchronously to";
  Region& region = locate(thread, destination, kCopyBytes, kCopyBytes, verb);
  if (&region != &regions_[0]) fail(thread, verb, region.name, "not shared memory");
  const size_t offset = reinterpret_cast<uintptr_t>(destination) - region.begin;
  record_write(region, offset, kCopyBytes, thread, verb);  // the copy may write from now on
  for (size_t at = offset; at < offset + kCopyBytes; ++at) {
    region.shadow[at].copier = static_cast<uint16_t>(thread + 1);
  }
}

void Shadow::complete(int thread, void* destination, const void* value) {
  Region& region = regions_[0];
  const size_t offset = reinterpret_cast<uintptr_t>(destination) - region.begin;
  for (size_t at = offset; at < offset + kCopyBytes; ++at) {
    Byte& byte = region.shadow[at];
    byte.copier = 0;
    byte.writer = static_cast<uint16_t>(thread);
    byte.write_clock = clock_;
  }
  std::memcpy(&region.contents[offset], value, kCopyBytes);
}

bool Shadow::read_if_scratch(int thread, const void* address, size_t bytes, void* value) {
  const Region* region = find(address);
  if (region == nullptr) return false;
  if (region == &regions_[0]) fail(thread, "copies asynchronously from", region->name, "not global memory");
  read(thread, address, bytes, 1, value);
  return true;
}

size_t Shadow::operand_offset(int thread, const void* address) {
  const char* verb = "names as operand";
  Region& region = locate(thread, address, 16, 16, verb);
  if (&region != &regions_[0]) fail(thread, verb, region.name, "not shared memory");
  return reinterpret_cast<uintptr_t>(address) - region.begin;
}

void Shadow::fence_proxy(int thread) { proxy_fences_[thread].push_back(++clock_); }

bool Shadow::fenced(int thread, int writer, uint32_t write_clock) const {
  const std::vector<uint32_t>& fences = proxy_fences_[writer];
  const auto fence = std::upper_bound(fences.begin(), fences.end(), write_clock);
  return fence != fences.end() && ordered(thread, writer, *fence);
}

void Shadow::start_product(int thread, size_t offset, size_t bytes) {
  Region& region = regions_[0];
  locate(thread, reinterpret_cast<const void*>(region.begin + offset), bytes, bytes, "multiplies");
  record_read(region, offset, bytes, thread);
  uint32_t clock = 0;  // of the write that was looked at last: a copy writes sixteen bytes at once
  int writer = -1;
  for (size_t at = offset; at < offset + bytes; ++at) {
    Byte& byte = region.shadow[at];
    ++byte.products;
    if (byte.write_clock == clock && byte.writer == writer) continue;
    clock = byte.write_clock;
    writer = byte.writer;
    if (fenced(thread, writer, clock)) continue;
    fail(thread, "multiplies", range(region, offset, bytes),
         name_thread(writer) + " wrote byte " + std::to_string(at) +
             " and no async_proxy_fence of it with a barrier behind it lies between");
  }
}

void Shadow::finish_product(int thread, size_t offset, size_t bytes) {
  Region& region = regions_[0];
  record_read(region, offset, bytes, thread);  // it may have been read until now
  for (size_t at = offset; at < offset + bytes; ++at) --region.shadow[at].products;
}

uint16_t Shadow::half_at(size_t offset) const {
  uint16_t half;
  std::memcpy(&half, &regions_[0].contents[offset], sizeof(half));
  return half;
}

}  // namespace emulation
}  // namespace sparc
