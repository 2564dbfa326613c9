// SPDX-License-Identifier: BSD-3-Clause
// relax_dense and its adjoint: groups of rows of a slice, shared among threads.
#include "../backend.h"
#include "parallel.h"
#include "tiles.h"

namespace pyparareal::cpu {
namespace {

// States of a group, which stay in L2 beside a matrix of weights.
inline constexpr int64_t most_group_bytes = 256 << 10;

int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// How a team shares the rows: tiles of whole vectors, as wide as leaves one for each member; groups of them take their
// steps together, so that a matrix is read once for all.
struct DensePlan {
  int64_t tile, group, per_slice, items, own_bytes;

  DensePlan(const ColumnSpace& space, int64_t size, int64_t lanes, int64_t team) {
    int64_t vectors = std::min<int64_t>(dense_vectors, parts_of(space.batches, lanes));
    while (vectors > 1 && space.slices * parts_of(space.batches, vectors * lanes) < team) --vectors;
    tile = vectors * lanes;
    const int64_t tiles = parts_of(space.batches, tile), tile_bytes = tile * space.length * size;
    const int64_t share = parts_of(space.slices * tiles, team);
    group = std::min({int64_t{dense_group}, std::max<int64_t>(1, most_group_bytes / tile_bytes), tiles, share});
    per_slice = parts_of(tiles, group);
    items = space.slices * per_slice;
    own_bytes = group * dense_tiles_of_scratch * tile_bytes;
  }
  int64_t bytes(int64_t team) const { return dense_row_bytes + team * own_bytes; }
};

// body(slice, first row, last row, tile, scratch)
template <class T, class Body>
void for_groups(const ColumnSpace& space, int64_t m, const Exec& exec, const Body& body) {
  const int64_t lanes = dense_tiles_of<T>(tiles()).lanes;
  // A multiplication costs about what the traffic of an element does.
  const double work = static_cast<double>(space.columns() * space.length) * static_cast<double>(m) *
                      static_cast<double>(space.length) * sizeof(T);
  int team = team_size(exec.threads, space.columns(), static_cast<int64_t>(std::min(work, 1e18)));
  while (team > 1 && DensePlan(space, sizeof(T), lanes, team).bytes(team) > static_cast<int64_t>(exec.workspace_bytes))
    --team;
  const DensePlan plan(space, sizeof(T), lanes, team);
  auto at = reinterpret_cast<uintptr_t>(exec.workspace);
  at = (at + dense_row_bytes - 1) / dense_row_bytes * dense_row_bytes;
  share(team, plan.items, [&](int64_t first, int64_t last) {
#ifdef _OPENMP
    const int64_t rank = team > 1 ? omp_get_thread_num() : 0;
#else
    const int64_t rank = 0;
#endif
    T* own = reinterpret_cast<T*>(at + static_cast<uintptr_t>(rank * plan.own_bytes));
    for (int64_t item = first; item < last; ++item) {
      const int64_t slice = item / plan.per_slice, row = item % plan.per_slice * plan.group * plan.tile;
      body(slice, row, std::min(row + plan.group * plan.tile, space.batches), static_cast<int>(plan.tile), own);
    }
  });
}

}  // namespace

std::size_t relax_dense_workspace_bytes(const ConstView& u, int32_t threads) {
  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ColumnSpace space = column_space_of(u);
    const int64_t lanes = dense_tiles_of<T>(tiles()).lanes;
    const int team = team_size(threads, space.columns(), INT64_MAX);
    int64_t most = 0;
    for (int members = 1; members <= team; ++members)
      most = std::max(most, DensePlan(space, sizeof(T), lanes, members).bytes(members));
    return static_cast<std::size_t>(most);
  });
}

Status relax_dense(const MutableView& out, const ConstView& u, const ConstView& weight, const ConstView& bias, double h,
                   DenseActivation activation, int64_t m, const MutableView& slopes, const ConstView& f,
                   const ConstView& g, const MutableView& every, const EndNorms& norms, const Exec& exec) {
  with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const DenseTask<T> task(out, u, weight, bias, h, activation, m, slopes, f, g, every);
    for_groups<T>(task.columns.space, m, exec,
                  [&](auto... rest) { dense_tiles_of<T>(tiles()).forward(task, rest...); });
  });
  if (!norms.present()) return {};
  return cpu::slice_norms(norms.norms, norms.ends, norms.target, norms.norm, norms.exec);
}

Status relax_dense_adjoint(const MutableView& out, const ConstView& v, const ConstView& weight, const ConstView& slopes,
                           double scale, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                           const EndNorms& norms, const Exec& exec) {
  with_wide_type(v.dtype, [&](auto zero) {
    using T = decltype(zero);
    const DenseAdjointTask<T> task(out, v, weight, slopes, scale, m, f, g, every);
    for_groups<T>(task.columns.space, m, exec,
                  [&](auto... rest) { dense_tiles_of<T>(tiles()).adjoint(task, rest...); });
  });
  if (!norms.present()) return {};
  return cpu::slice_norms(norms.norms, norms.ends, norms.target, norms.norm, norms.exec);
}

}  // namespace pyparareal::cpu
