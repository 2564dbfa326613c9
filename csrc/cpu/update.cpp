// SPDX-License-Identifier: BSD-3-Clause
// parareal_update and c_relax: elementwise combinations of states, with the jump norm in the same pass.
#include <vector>

#include "../backend.h"
#include "norm_tree.h"
#include "parallel.h"
#include "tiles.h"

namespace pyparareal::cpu {
namespace {

// The output of an elementwise op: where it goes and how it is best written.
template <class T>
struct Output {
  T* data;
  Layout layout;
  bool in_place;   // tiles may be computed at their destination
  bool streaming;  // tiles are written around the caches

  template <class... Inputs>
  Output(const MutableView& view, const Space& space, bool keeps_old, const Inputs&... inputs)
      : data(static_cast<T*>(view.data)), layout(layout_of(view)) {
    const bool aliased = (... || (static_cast<const void*>(data) == inputs.data));
    const int64_t bytes = space.slices * space.features * static_cast<int64_t>(sizeof(T));
    streaming = layout.contiguous() && !aliased && bytes >= streaming_bytes;
    in_place = layout.contiguous() && !streaming && !keeps_old;
  }

  T* tile(int64_t slice, int64_t feature, T* scratch) const {
    return in_place ? data + slice * layout.slice_stride + feature : scratch;
  }

  void put(int64_t slice, int64_t feature, int64_t count, const T* tile) const {
    if (streaming)
      stream_copy(data + slice * layout.slice_stride + feature, tile, static_cast<std::size_t>(count) * sizeof(T));
    else
      put_tile(data, layout, slice, feature, count, tile);
  }
};

template <class T>
Status update(const MutableView& u, const ConstView& f_old, const ConstView& g_new, const ConstView& g_old,
              const ConstView& u_old, const MutableView& jump, Norm norm, const Exec& exec) {
  Space space = space_of(f_old);
  Layout f = layout_of(f_old), g = layout_of(g_new), h = layout_of(g_old), old = layout_of(u_old);
  const bool with_jump = u_old.present();
  Output<T> out(u, space, with_jump && u.data == u_old.data, f_old, g_new, g_old, u_old);
  if (!with_jump) flatten(space, out.layout, f, g, h);
  const Tiles<T>& tile = tiles_of<T>(tiles());
  const auto* f_data = static_cast<const T*>(f_old.data);
  const auto* g_data = static_cast<const T*>(g_new.data);
  const auto* h_data = static_cast<const T*>(g_old.data);
  const auto* old_data = static_cast<const T*>(u_old.data);
  NormPartials partials(space, with_jump ? static_cast<double*>(jump.data) : nullptr, exec);

  const int64_t items = space.slices * space.chunks();
  const int team = team_size(exec.threads, items, space.slices * space.features * int64_t{4 * sizeof(T)});
  share(team, items, [&](int64_t first, int64_t last) {
    alignas(64) T scratch[5][chunk];
    for_chunks(space, first, last, [&](int64_t slice, int64_t feature, int64_t count, int64_t index) {
      T* result = out.tile(slice, feature, scratch[0]);
      const T* fine = tile_of(f_data, f, slice, feature, count, scratch[1]);
      const T* coarse_new = tile_of(g_data, g, slice, feature, count, scratch[2]);
      const T* coarse_old = tile_of(h_data, h, slice, feature, count, scratch[3]);
      if (with_jump)
        partials.at(slice, index) = tile.parareal_update_norm[static_cast<int>(norm)](
            result, fine, coarse_new, coarse_old, tile_of(old_data, old, slice, feature, count, scratch[4]), count);
      else
        tile.parareal_update(result, fine, coarse_new, coarse_old, count);
      out.put(slice, feature, count, result);
    });
    if (out.streaming) stream_fence();
  });
  if (with_jump) partials.reduce(norm, 0, space.slices);
  return {};
}

template <class T>
Status relax(const MutableView& u_new, const ConstView& phi, const ConstView& u, double omega, const Exec& exec) {
  using C = typename Compute<T>::type;
  Space space = space_of(phi);
  Layout left = layout_of(phi), right = layout_of(u);
  Output<T> out(u_new, space, false, phi, u);
  flatten(space, out.layout, left, right);
  const Tiles<T>& tile = tiles_of<T>(tiles());
  const auto* left_data = static_cast<const T*>(phi.data);
  const auto* right_data = static_cast<const T*>(u.data);

  const int64_t items = space.slices * space.chunks();
  const int team = team_size(exec.threads, items, space.slices * space.features * int64_t{3 * sizeof(T)});
  share(team, items, [&](int64_t first, int64_t last) {
    alignas(64) T scratch[3][chunk];
    for_chunks(space, first, last, [&](int64_t slice, int64_t feature, int64_t count, int64_t) {
      T* result = out.tile(slice, feature, scratch[0]);
      tile.c_relax(result, tile_of(left_data, left, slice, feature, count, scratch[1]),
                   tile_of(right_data, right, slice, feature, count, scratch[2]), static_cast<C>(omega),
                   static_cast<C>(1.0 - omega), count);
      out.put(slice, feature, count, result);
    });
    if (out.streaming) stream_fence();
  });
  return {};
}

}  // namespace

Status parareal_update(const MutableView& u, const ConstView& f_old, const ConstView& g_new, const ConstView& g_old,
                       const ConstView& u_old, const MutableView& jump, Norm norm, const Exec& exec) {
  return with_storage_type(
      f_old.dtype, [&](auto zero) { return update<decltype(zero)>(u, f_old, g_new, g_old, u_old, jump, norm, exec); });
}

Status c_relax(const MutableView& u_new, const ConstView& phi, const ConstView& u, double omega, const Exec& exec) {
  return with_storage_type(phi.dtype, [&](auto zero) { return relax<decltype(zero)>(u_new, phi, u, omega, exec); });
}

}  // namespace pyparareal::cpu
