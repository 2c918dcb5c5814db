// Prints, a line each, where the atoms of NVIDIA's CuTe put the elements of matrix operands: an independent
// word on the layouts that the emulator computes with. Compiled by test_cute_layouts.py with the headers of
// nvidia-cutlass and of the CUDA toolkit, for the host.
#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

using namespace cute;
using Major = SM90::GMMA::Major;

// The layout's values, its first mode fastest.
template <class Layout>
void print_layout(const char* name, const Layout& layout) {
  std::printf("%s", name);
  for (int i = 0; i < int(size(layout)); ++i) std::printf(" %d", int(layout(i)));
  std::printf("\n");
}

// The fields of a matrix descriptor in their units of 16 bytes: leading and stride distance, base, swizzle.
// (The address of a tensor in shared memory means nothing on the host.)
template <Major kMajor, class Layout>
void print_descriptor(const char* name, const Layout& layout) {
  static half_t memory[64 * 128];
  const auto tensor = make_tensor(make_smem_ptr(memory), layout);
  const GmmaDescriptor descriptor = SM90::GMMA::make_gmma_desc<kMajor>(tensor);
  std::printf("\n%s %d %d %d %d\n", name, int(descriptor.bitfield.leading_byte_offset_),
              int(descriptor.bitfield.stride_byte_offset_), int(descriptor.bitfield.base_offset_),
              int(descriptor.bitfield.layout_type_));
}

int main() {
  using Shared = MMA_Traits<SM90_64x96x16_F32F16F16_SS<Major::K, Major::K>>;
  using Registers = MMA_Traits<SM90_64x96x16_F32F16F16_RS<Major::K, Major::K>>;
  using Warp = MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>;
  print_layout("group_a", Registers::ALayout{});  // (thread, value) to row + 64 k
  print_layout("group_c", Shared::CLayout{});     // (thread, value) to row + 64 column
  print_layout("warp_a", Warp::ALayout{});        // (lane, value) to row + 16 k
  print_layout("warp_b", Warp::BLayout{});        // (lane, value) to column + 8 k
  print_layout("warp_c", Warp::CLayout{});        // (lane, value) to row + 16 column
  // (lane, bit) to the bit of the 32 rows that the lanes name.
  print_layout("rows", Copy_Traits<SM75_U32x4_LDSM_N>::SrcLayout{});
  print_layout("matrices", Copy_Traits<SM75_U32x4_LDSM_N>::DstLayout{});
  print_layout("matrices_transposed", Copy_Traits<SM75_U16x8_LDSM_T>::DstLayout{});
  // (row or column, k) to the element in memory. As it stands the swizzle is one of byte addresses.
  const auto k_major = tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<half_t>{}, Shape<_128, _64>{});
  const auto mn_major =
      tile_to_shape(SM90::GMMA::Layout_MN_SW128_Atom<half_t>{}, Shape<_128, _64>{}, Step<_2, _1>{});
  print_layout("k_major", as_position_independent_swizzle_layout(k_major));
  print_layout("mn_major", as_position_independent_swizzle_layout(mn_major));
  print_descriptor<Major::K>(
      "k_major_fields",
      tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<half_t>{}, Shape<_128, _64>{}).compose(_, Layout<_16>{}));
  print_descriptor<Major::MN>("mn_major_fields", mn_major.compose(_, Layout<_16>{}));
}
