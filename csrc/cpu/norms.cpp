// SPDX-License-Identifier: BSD-3-Clause
// slice_norms: one pass over the state, chunk partials, fixed tree.
#include "../backend.h"
#include "slice_norms.h"

namespace pyparareal::cpu {
namespace {

template <class T>
Status norms_of(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm, const Exec& exec) {
  SliceNorms<T> of(norms, u, u_old, norm, exec);
  const Space& space = of.space();
  const int64_t items = space.slices * space.chunks();
  const int team = team_size(exec.threads, items, space.slices * space.features * int64_t{sizeof(T)});
  share(team, items, [&](int64_t first, int64_t last) { of.chunks(first, last); });
  of.combine(0, space.slices);
  return {};
}

}  // namespace

Status slice_norms(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm, const Exec& exec) {
  return with_storage_type(u.dtype, [&](auto zero) { return norms_of<decltype(zero)>(norms, u, u_old, norm, exec); });
}

}  // namespace pyparareal::cpu
