// SPDX-License-Identifier: BSD-3-Clause
// extract and inject: both are a copy of slices between a grid and every m-th point of a finer one.
#include "../backend.h"
#include "parallel.h"

namespace pyparareal::cpu {
namespace {

template <class Bits>
Status copy(const MutableView& to, const ConstView& from, const Exec& exec) {
  Space space = space_of(from);
  Layout target = layout_of(to), source = layout_of(from);
  if (to.data == from.data) return {};
  flatten(space, target, source);
  auto* target_data = static_cast<Bits*>(to.data);
  const auto* source_data = static_cast<const Bits*>(from.data);

  const int64_t items = space.slices * space.chunks();
  const int team = team_size(exec.threads, items, space.slices * space.features * int64_t{2 * sizeof(Bits)});
  share(team, items, [&](int64_t first, int64_t last) {
    alignas(64) Bits scratch[chunk];
    for_chunks(space, first, last, [&](int64_t slice, int64_t feature, int64_t count, int64_t) {
      put_tile(target_data, target, slice, feature, count,
               tile_of(source_data, source, slice, feature, count, scratch));
    });
  });
  return {};
}

}  // namespace

Status copy_slices(const MutableView& to, const ConstView& from, const Exec& exec) {
  switch (from.dtype) {
    case DType::float64:
      return copy<uint64_t>(to, from, exec);
    case DType::float32:
      return copy<uint32_t>(to, from, exec);
    default:
      return copy<uint16_t>(to, from, exec);
  }
}

}  // namespace pyparareal::cpu
