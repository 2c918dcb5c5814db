// Threads launch the same kernels on two devices, each with shared memory of its own size, while another
// raises the limits of the same kernels. Exits with 0 where no launch failed.
#include "common/shared_limit.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

constexpr int kDevices = 2, kKernels = 3, kThreads = 8, kRounds = 200, kWithoutAsking = 48 << 10;
constexpr int kMost[kDevices] = {99 << 10, 227 << 10};

char kernels[kKernels];  // their addresses stand for kernels
std::atomic<int> limit[kKernels][kDevices];
std::atomic<int> times_set[kKernels][kDevices];
std::atomic<bool> lowered{false}, other_value{false}, broken{false};
thread_local int current_device = 0;

#define EXPECT(condition)                                   \
  if (!(condition)) {                                       \
    std::printf("line %d: not %s\n", __LINE__, #condition); \
    return 1;                                               \
  }

// One launch after another thread had time to do the same: does its memory fit the limit that holds now?
bool launch(int kernel, int device, int bytes) {
  current_device = device;
  if (sparc::allow_shared_memory(&kernels[kernel], bytes) != cudaSuccess) return false;
  std::this_thread::yield();
  return bytes <= limit[kernel][device];
}

int run() {
  for (auto& kernel : limit) {
    for (auto& bytes : kernel) bytes = kWithoutAsking;
  }
  for (int device = 0; device < kDevices; ++device) {
    EXPECT(launch(0, device, kWithoutAsking));
    EXPECT(times_set[0][device] == 0);
  }
  broken = true;
  EXPECT(!launch(0, 0, kMost[0]));
  broken = false;  // what failed is tried again

  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([thread, &failed] {
      for (int round = 0; round < kRounds; ++round) {
        const int kernel = (thread + round) % kKernels, device = round / kKernels % kDevices;
        const int room = kMost[device] - kWithoutAsking;
        failed += !launch(kernel, device, kWithoutAsking + 1 + (thread * 7919 + round * 104729) % room);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(failed == 0);
  EXPECT(!lowered);
  EXPECT(!other_value);
  for (int kernel = 0; kernel < kKernels; ++kernel) {
    for (int device = 0; device < kDevices; ++device) {
      EXPECT(limit[kernel][device] == kMost[device]);
      EXPECT(times_set[kernel][device] == 1);
    }
  }
  return 0;
}

}  // namespace

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  *value = kMost[device];
  return attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (broken) return cudaErrorInvalidValue;
  const auto index = static_cast<const char*>(kernel) - kernels;
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (limit[index][current_device].exchange(value) > value) lowered = true;
  if (value != kMost[current_device]) other_value = true;
  ++times_set[index][current_device];
  return cudaSuccess;
}

int main() { return run(); }
