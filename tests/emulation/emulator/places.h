// Where in the kernel a thread stands when it calls the emulator: the return addresses on its stack,
// innermost first. A function that several places of a kernel call is another place from each of them,
// inlined or not.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace sparc {
namespace emulation {

// A digest of the addresses, the same for all threads that stand at the same place.
using Place = uint64_t;

// `frame` is __builtin_frame_address(0) of a function that the thread has called, `stack_end` the end of the
// thread's stack. All code on it keeps frame pointers (tests/emulation/host/build.py).
Place place_of(const void* frame, const void* stack_end);

class Places {
 public:
  // To be named once the thread has gone on.
  void remember(Place place, const void* frame, const void* stack_end);
  // " at " and file and line of the outermost call by which `place` is not `other`; nothing where they are
  // the same. Both are remembered.
  std::string apart(Place place, Place other) const;

 private:
  std::unordered_map<Place, std::vector<uintptr_t>> addresses_;
};

}  // namespace emulation
}  // namespace sparc
