// A tiled matrix product C = A B with asynchronous copies and matrix instructions, to try the emulator with:
// the ways of csrc's own kernels at a small scale, and places where one of them can be left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/device.cuh"

namespace sparc {

enum class Fault {
  kNone,
  kNoWait,            // the tile is used while copies to it are under way
  kNoArrivalBarrier,  // each thread waits for its own copies only
  kNoReuseBarrier,    // the next tile overwrites one that other warps still read
  kPlainB,            // b by load_matrices where its transpose is due
};

constexpr int kProductThreads = 128;
constexpr int kTileRows = 64;  // 16 per warp
constexpr int kTileColumns = 32;
constexpr int kTileInner = 32;

// Rows of a tile are padded by 16 bytes.
template <class T>
struct ProductTile {
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(T));  // elements per copy
  static constexpr int kStrideA = kTileInner + kChunk;
  static constexpr int kStrideB = kTileColumns + kChunk;
  static constexpr size_t kBytesA = kTileRows * kStrideA * sizeof(T);
  static constexpr size_t kBytesB = kTileInner * kStrideB * sizeof(T);
  static constexpr size_t kBytes = 2 * (kBytesA + kBytesB);  // two buffers
};

// `rows` x `columns` of `source`, of `limit_rows` x `limit_columns` from there on, zeros elsewhere.
template <class T>
SPARC_DEVICE void copy_tile(device::Shared<T> tile, int stride, int rows, int columns, const T* source,
                            int64_t source_stride, int64_t limit_rows, int64_t limit_columns) {
  constexpr int kChunk = ProductTile<T>::kChunk;
  const int chunks = columns / kChunk;
  for (int i = device::thread_index(); i < rows * chunks; i += kProductThreads) {
    const int row = i / chunks;
    const int column = i % chunks * kChunk;
    const bool inside = row < limit_rows && column < limit_columns;
    const int64_t left = inside ? (limit_columns - column) * static_cast<int64_t>(sizeof(T)) : 0;
    const T* from = inside ? source + row * source_stride + column : source;
    device::copy_async(device::address_of(tile + row * stride + column), from,
                       left < 16 ? static_cast<int>(left) : 16);
  }
}

// A [rows, inner] and B [inner, columns], both in rows; inner and columns are multiples of 16 bytes.
template <class T>
struct ProductProblem {
  const T* a;
  const T* b;
  float* c;
  int64_t rows;
  int64_t inner;
  int64_t columns;
};

template <class T>
SPARC_DEVICE void multiply_step(float (&c)[4][4], device::Shared<T> a, device::Shared<T> b, int k,
                                Fault fault) {
  constexpr int kStrideA = ProductTile<T>::kStrideA;
  constexpr int kStrideB = ProductTile<T>::kStrideB;
  const int lane = device::lane_index();
  const int first_row = device::warp_index() * 16;
  const int quarter_row = lane / 8 % 2 * 8 + lane % 8;  // of 16 x 16 elements in four quarters
  uint32_t fragment_a[4];
  if constexpr (std::is_same<T, float>::value) {
    device::load_matrices(fragment_a,
                          device::address_of(a + (first_row + quarter_row) * kStrideA + k + lane / 16 * 4));
    for (int n = 0; n < 4; ++n) {
      const auto at = b + (k + lane % 4) * kStrideB + n * 8 + lane / 4;
      const uint32_t fragment_b[2] = {device::float_to_bits(at[0]), device::float_to_bits(at[4 * kStrideB])};
      device::multiply_add_tf32(c[n], fragment_a, fragment_b);
    }
  } else {
    device::load_matrices(fragment_a,
                          device::address_of(a + (first_row + quarter_row) * kStrideA + k + lane / 16 * 8));
    for (int n = 0; n < 4; n += 2) {
      uint32_t both[4];
      const void* row = device::address_of(b + (k + quarter_row) * kStrideB + n * 8 + lane / 16 * 8);
      if (fault == Fault::kPlainB) {
        device::load_matrices(both, row);
      } else {
        device::load_matrices_transposed(both, row);
      }
      for (int half = 0; half < 2; ++half) {
        const uint32_t fragment_b[2] = {both[2 * half], both[2 * half + 1]};
        if constexpr (std::is_same<T, BFloat16>::value) {
          device::multiply_add_bf16(c[n + half], fragment_a, fragment_b);
        } else {
          device::multiply_add_f16(c[n + half], fragment_a, fragment_b);
        }
      }
    }
  }
}

// One block per tile of C.
template <class T>
SPARC_DEVICE void product_kernel(const ProductProblem<T>& problem, Fault fault) {
  using Tile = ProductTile<T>;
  constexpr int kStep = std::is_same<T, float>::value ? 8 : 16;
  const int64_t tiles_across = (problem.columns + kTileColumns - 1) / kTileColumns;
  const int64_t row0 = device::block_index() / tiles_across * kTileRows;
  const int64_t column0 = device::block_index() % tiles_across * kTileColumns;
  const int steps = static_cast<int>((problem.inner + kTileInner - 1) / kTileInner);

  const auto fetch = [&](int step) {
    const size_t buffer = static_cast<size_t>(step % 2);
    const int64_t k0 = static_cast<int64_t>(step) * kTileInner;
    copy_tile(device::shared_at<T>(buffer * Tile::kBytesA), Tile::kStrideA, kTileRows, kTileInner,
              problem.a + row0 * problem.inner + k0, problem.inner, problem.rows - row0, problem.inner - k0);
    copy_tile(device::shared_at<T>(2 * Tile::kBytesA + buffer * Tile::kBytesB), Tile::kStrideB, kTileInner,
              kTileColumns, problem.b + k0 * problem.columns + column0, problem.columns, problem.inner - k0,
              problem.columns - column0);
    device::copy_async_commit();
  };

  float c[4][4] = {};
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      fetch(step + 1);
      if (fault != Fault::kNoWait) device::copy_async_wait<1>();
    } else {
      device::copy_async_wait<0>();
    }
    if (fault != Fault::kNoArrivalBarrier) device::block_barrier();
    const size_t buffer = static_cast<size_t>(step % 2);
    const auto a = device::shared_at<T>(buffer * Tile::kBytesA);
    const auto b = device::shared_at<T>(2 * Tile::kBytesA + buffer * Tile::kBytesB);
    for (int k = 0; k < kTileInner; k += kStep) multiply_step<T>(c, a, b, k, fault);
    if (fault != Fault::kNoReuseBarrier) device::block_barrier();
  }

  const int lane = device::lane_index();
  for (int n = 0; n < 4; ++n) {
    for (int i = 0; i < 4; ++i) {
      const int64_t row = row0 + device::warp_index() * 16 + i / 2 * 8 + lane / 4;
      const int64_t column = column0 + n * 8 + lane % 4 * 2 + i % 2;
      if (row < problem.rows && column < problem.columns) problem.c[row * problem.columns + column] = c[n][i];
    }
  }
}

}  // namespace sparc
