// SPDX-License-Identifier: BSD-3-Clause
// extract and inject: both are a copy of slices between a grid and every m-th point of a finer one.
#include "../backend.h"
#include "rows.cuh"

namespace pyparareal::cuda {
namespace {

template <class Bits, bool packed>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    copy_kernel(Space space, Operand<Bits, packed> to, Operand<Bits, packed> from) {
  for_chunks<Bits>(space, [&](const Place& place, int first_lane) {
    for_rows<packed>(place, [&](int row, auto is_whole) {
      constexpr bool whole = decltype(is_whole)::value;
      constexpr int rows = rows_of_step<whole>;
      const int64_t feature = place.begin + row * lanes + first_lane;
      Pack<Bits> packs[rows];
#pragma unroll
      for (int i = 0; i < rows; ++i)
        load_pack<whole>(packs[i], from, from.slice(place.slice), feature + i * lanes, place.end);
#pragma unroll
      for (int i = 0; i < rows; ++i)
        store_pack<whole>(to, to.slice(place.slice), feature + i * lanes, place.end, packs[i]);
    });
  });
}

template <class Bits>
Status copy(MutableView to, ConstView from, const Exec& exec) {
  merge_slices(to, from);
  const Space space = space_of(from);
  return with_packing<Bits>(
      [&](auto packing) {
        constexpr bool packed = decltype(packing)::value;
        return launch("copy_slices", copy_kernel<Bits, packed>, blocks_for_chunks<Bits>(space), threads_per_block, 0,
                      exec.stream, space, operand_of<Bits, packed>(to), operand_of<Bits, packed>(from));
      },
      to, from);
}

}  // namespace

Status copy_slices(const MutableView& to, const ConstView& from, const Exec& exec) {
  if (to.data == from.data) return {};
  const DeviceGuard guard(from.device_id);
  if (!guard.status().ok()) return guard.status();

  switch (from.dtype) {
    case DType::float64:
      return copy<uint64_t>(to, from, exec);
    case DType::float32:
      return copy<uint32_t>(to, from, exec);
    default:
      return copy<uint16_t>(to, from, exec);
  }
}

}  // namespace pyparareal::cuda
