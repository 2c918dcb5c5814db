// The race detector against one that remembers every access: both must call the same accesses races.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "shadow.h"

namespace sparc {
namespace emulation {

// Lets some threads of six warps, of two warpgroups, read and write one byte at random, with barriers
// between, until the first race of either detector; `rounds` times. Returns the numbers of accesses, of races
// and of disagreements.
inline std::vector<int64_t> compare_with_oracle(uint64_t seed, int rounds) {
  constexpr int kWarps = 6, kGroups = 2;
  struct Access {
    int thread;
    bool is_write;
    int block_epoch;
    int group_epoch;
    int warp_epoch;
  };
  std::mt19937_64 random(seed);
  std::vector<int64_t> counts(3, 0);
  for (int round = 0; round < rounds; ++round) {
    Shadow shadow(kWarps * kWarpSize, 16);
    shadow.start_block();
    std::vector<Access> all;
    int block_epoch = 0;
    int group_epoch[kGroups] = {};
    int warp_epoch[kWarps] = {};
    const uint64_t warps_used = 1 + random() % kWarps;
    const uint64_t writes_in_ten = 1 + random() % 5;
    for (int step = 0; step < 14; ++step) {
      const uint64_t choice = random() % 10;
      if (choice == 0) {
        shadow.order_block();
        ++block_epoch;
        continue;
      }
      if (choice == 1) {
        const int group = static_cast<int>(random() % warps_used) / kWarpgroupWarps;
        shadow.order_warpgroup(group);
        ++group_epoch[group];
        continue;
      }
      if (choice <= 3) {
        const int warp = static_cast<int>(random() % warps_used);
        shadow.order_warp(warp);
        ++warp_epoch[warp];
        continue;
      }
      const int warp = static_cast<int>(random() % warps_used);
      const int thread = warp * kWarpSize + static_cast<int>(random() % 3);
      const bool is_write = all.empty() || random() % 10 < writes_in_ten;
      bool expected = false;
      for (const Access& earlier : all) {
        if (earlier.thread == thread || !(earlier.is_write || is_write)) continue;
        const int other = earlier.thread / kWarpSize, group = warp / kWarpgroupWarps;
        const bool in_warp = other == warp && earlier.warp_epoch < warp_epoch[warp];
        const bool in_group = other / kWarpgroupWarps == group && earlier.group_epoch < group_epoch[group];
        expected |= earlier.block_epoch == block_epoch && !in_warp && !in_group;
      }
      bool found = false;
      try {
        unsigned char value = 0;
        if (is_write) {
          shadow.write(thread, shadow.shared_base(), 1, 1, &value);
        } else {
          shadow.read(thread, shadow.shared_base(), 1, 1, &value);
        }
      } catch (const EmulationError&) {
        found = true;
      }
      ++counts[0];
      counts[1] += expected ? 1 : 0;
      counts[2] += found != expected ? 1 : 0;
      if (found || expected) break;
      all.push_back({thread, is_write, block_epoch, group_epoch[warp / kWarpgroupWarps], warp_epoch[warp]});
    }
  }
  return counts;
}

}  // namespace emulation
}  // namespace sparc
