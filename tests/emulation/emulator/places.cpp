#include "places.h"

#include <sanitizer/common_interface_defs.h>

#include <cstring>

namespace sparc {
namespace emulation {
namespace {

// Calls `take` with every return address. What a frame pointer points to is the caller's frame pointer and,
// behind it, the address to which the function returns (on x86-64 and AArch64).
template <class Take>
void walk(const void* frame, const void* stack_end, const Take& take) {
  const uintptr_t end = reinterpret_cast<uintptr_t>(stack_end);
  uintptr_t at = reinterpret_cast<uintptr_t>(frame);
  while (at != 0 && at + 2 * sizeof(uintptr_t) <= end) {
    const uintptr_t* saved = reinterpret_cast<const uintptr_t*>(at);
    take(saved[1]);
    if (saved[0] <= at) return;
    at = saved[0];
  }
}

// The calls at an address, more than one where functions were inlined, as "file:line", innermost first.
std::vector<std::string> lines_at(uintptr_t address) {
  char text[4096] = {};  // strings one behind the other
  __sanitizer_symbolize_pc(reinterpret_cast<void*>(address), "%s:%l", text, sizeof(text) - 1);
  std::vector<std::string> lines;
  for (const char* next = text; *next != 0; next += std::strlen(next) + 1) {
    const char* folder_end = std::strrchr(next, '/');
    lines.push_back(folder_end == nullptr ? next : folder_end + 1);
  }
  if (lines.empty()) lines.push_back("a line without a name");
  return lines;
}

// Takes away what both end with, but leaves one.
template <class T>
void cut_common_end(std::vector<T>& some, std::vector<T>& others) {
  while (some.size() > 1 && others.size() > 1 && some.back() == others.back()) {
    some.pop_back();
    others.pop_back();
  }
}

}  // namespace

Place place_of(const void* frame, const void* stack_end) {
  Place place = 0;
  walk(frame, stack_end, [&](uintptr_t address) { place = (place ^ address) * 0x9E3779B97F4A7C15u; });
  return place;
}

void Places::remember(Place place, const void* frame, const void* stack_end) {
  std::vector<uintptr_t>& addresses = addresses_[place];
  if (!addresses.empty()) return;
  walk(frame, stack_end, [&](uintptr_t address) { addresses.push_back(address); });
}

std::string Places::apart(Place place, Place other) const {
  if (place == other) return "";
  std::vector<uintptr_t> own = addresses_.at(place);
  std::vector<uintptr_t> theirs = addresses_.at(other);
  cut_common_end(own, theirs);
  std::vector<std::string> own_lines = lines_at(own.back());
  std::vector<std::string> their_lines = lines_at(theirs.back());
  cut_common_end(own_lines, their_lines);  // one line may hold both calls
  return " at " + own_lines.back();
}

}  // namespace emulation
}  // namespace sparc
