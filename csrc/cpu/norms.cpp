// SPDX-License-Identifier: BSD-3-Clause
// slice_norms: one pass over the state, chunk partials, fixed tree.
#include "../backend.h"
#include "norm_tree.h"
#include "parallel.h"
#include "tiles.h"

namespace pyparareal::cpu {
namespace {

template <class T>
Status norms_of(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm, const Exec& exec) {
  const Space space = space_of(u);
  const Layout state = layout_of(u), old = layout_of(u_old);
  const auto chunk_norm = tiles_of<T>(tiles()).chunk_norm[static_cast<int>(norm)];
  const auto* data = static_cast<const T*>(u.data);
  const auto* old_data = static_cast<const T*>(u_old.data);
  NormPartials partials(space, static_cast<double*>(norms.data), exec);

  const int64_t items = space.slices * space.chunks();
  const int team = team_size(exec.threads, items, space.slices * space.features * int64_t{sizeof(T)});
  share(team, items, [&](int64_t first, int64_t last) {
    alignas(64) T scratch[2][chunk];
    for_chunks(space, first, last, [&](int64_t slice, int64_t feature, int64_t count, int64_t index) {
      const T* before = old_data ? tile_of(old_data, old, slice, feature, count, scratch[1]) : nullptr;
      partials.at(slice, index) = chunk_norm(tile_of(data, state, slice, feature, count, scratch[0]), before, count);
    });
  });
  partials.reduce(norm);
  return {};
}

}  // namespace

Status slice_norms(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm, const Exec& exec) {
  return with_storage_type(u.dtype, [&](auto zero) { return norms_of<decltype(zero)>(norms, u, u_old, norm, exec); });
}

}  // namespace pyparareal::cpu
