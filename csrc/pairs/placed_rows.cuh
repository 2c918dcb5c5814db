// Copies of the same rows in every chunk of a stream: their numbers are looked up once and stay in registers.
#pragma once

#include "pairs/panel_stream.cuh"

namespace sparc {

// Rows `index[0..count)` of a matrix, up to 32 kTurns of them. A thread copies 16 bytes of every 32nd.
template <class E, int kTurns>
struct PlacedRows {
  static constexpr int kPieces = Panel<E>::kColumns / 8, kStep = kThreads / kPieces;

  const E* piece;  // this thread's column in row 0 of the matrix
  uint32_t row_bytes;
  int count;
  int rows[kTurns];

  SPARC_DEVICE PlacedRows(const InputRows<E>& from, const device::Shared<int>& index, int count_)
      : piece(from.data + device::thread_index() % kPieces * 8),
        row_bytes(static_cast<uint32_t>(from.row_stride) * static_cast<uint32_t>(sizeof(E))),
        count(count_) {
    SPARC_UNROLL
    for (int i = 0; i < kTurns; ++i) {
      const int row = first_row() + i * kStep;
      rows[i] = row < count ? static_cast<int>(index[row]) : 0;
    }
  }

  // 64 channels from `first` on, all of which there are; `place` is where the thread's piece lies in the
  // panel.
  SPARC_DEVICE void copy(int first, const Panel<E>& to, int place) const {
    E* const target = device::address_of(device::shared_at<E>(to.offset + place));
    const E* const source = piece + first;
    const auto copy_some = [&](int i) {
      if (first_row() + i * kStep < to.filled) {
        device::copy_async(target + to.rows_apart(i * kStep), device::further(source, rows[i], row_bytes),
                           first_row() + i * kStep < count ? 16 : 0);
      }
    };
    if ((kTurns - 1) * kStep <= count) {  // one behind the other: the first of a run of copies costs most
      SPARC_UNROLL
      for (int i = 0; i < kTurns - 1; ++i) {
        device::copy_async(target + to.rows_apart(i * kStep), device::further(source, rows[i], row_bytes));
      }
      copy_some(kTurns - 1);
    } else {
      SPARC_UNROLL
      for (int i = 0; i < kTurns; ++i) copy_some(i);
    }
  }
  SPARC_DEVICE static int place() {
    return Panel<E>{0, 0}.piece(first_row(), device::thread_index() % kPieces * 8);
  }

 private:
  SPARC_DEVICE static int first_row() { return device::thread_index() / kPieces; }
};

}  // namespace sparc
