#include "collectives.h"

#include "numbers.h"

namespace sparc {
namespace emulation {
namespace {

constexpr int kRows = 16;      // of a and c
constexpr int kColumns = 8;    // of b and c
constexpr int kMaxInner = 16;  // columns of a, rows of b

float element_of(Collective kind, uint32_t pair, int half) {
  const uint16_t bits = static_cast<uint16_t>(half == 0 ? pair : pair >> 16);
  return kind == Collective::kMultiplyAddBf16 ? float_of_bf16(bits) : float_of_f16(bits);
}

}  // namespace

void exchange(Collective kind, WarpArguments& lanes) {
  uint32_t values[kWarpSize];
  uint32_t votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    values[lane] = lanes[lane]->value;
    if (values[lane] != 0) votes |= 1u << lane;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    LaneArguments& arguments = *lanes[lane];
    // The device takes source lanes modulo the width of the warp.
    if (kind == Collective::kBallot) {
      arguments.value = votes;
    } else if (kind == Collective::kShuffle) {
      arguments.value = values[arguments.selector & (kWarpSize - 1)];
    } else {
      arguments.value = values[(lane ^ arguments.selector) & (kWarpSize - 1)];
    }
  }
}

void distribute_matrices(bool transposed, const uint16_t (&rows)[kWarpSize][8], WarpArguments& lanes) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int row = lane / 4;
    const int column = lane % 4 * 2;
    for (int tile = 0; tile < 4; ++tile) {
      const uint16_t (*matrix)[8] = &rows[tile * 8];
      const uint32_t first = transposed ? matrix[column][row] : matrix[row][column];
      const uint32_t second = transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      lanes[lane]->r[tile] = first | second << 16;
    }
  }
}

void multiply_add(Collective kind, WarpArguments& lanes) {
  float a[kRows][kMaxInner];
  float b[kMaxInner][kColumns];
  const bool is_tf32 = kind == Collective::kMultiplyAddTf32;
  const int inner = is_tf32 ? 8 : 16;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const LaneArguments& arguments = *lanes[lane];
    const int group = lane / 4;
    const int member = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + i % 2 * 8;
      if (is_tf32) {
        a[row][member + i / 2 * 4] = float_of_tf32(arguments.a[i]);
      } else {
        const int column = member * 2 + i / 2 * 8;
        a[row][column] = element_of(kind, arguments.a[i], 0);
        a[row][column + 1] = element_of(kind, arguments.a[i], 1);
      }
    }
    for (int i = 0; i < 2; ++i) {
      if (is_tf32) {
        b[member + i * 4][group] = float_of_tf32(arguments.b[i]);
      } else {
        const int row = member * 2 + i * 8;
        b[row][group] = element_of(kind, arguments.b[i], 0);
        b[row + 1][group] = element_of(kind, arguments.b[i], 1);
      }
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8;
      const int column = lane % 4 * 2 + i % 2;
      // Products of such operands are exact in float64. The device rounds partial sums in an order of its
      // own.
      double sum = lanes[lane]->c[i];
      for (int k = 0; k < inner; ++k)
        sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
      lanes[lane]->c[i] = static_cast<float>(sum);
    }
  }
}

}  // namespace emulation
}  // namespace sparc
