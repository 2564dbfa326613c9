// SPDX-License-Identifier: BSD-3-Clause
// relax_gru and its adjoint: the rows of all slices and batch indices, in tiles, shared among threads.
#include "../backend.h"
#include "parallel.h"
#include "tiles.h"

namespace pyparareal::cpu {
namespace {

// How the rows are shared: a team, its rows at a time, and the scratch, with room to align each part of it.
struct GruPlan {
  int64_t tile, items, shared_bytes, own_bytes;

  GruPlan(const ColumnSpace& space, bool adjoint, int64_t size, int64_t team) {
    const int64_t share = (space.columns() + team - 1) / team;
    tile = std::min<int64_t>(gru_tile_rows, share);
    items = (space.columns() + tile - 1) / tile;
    const GruScratch scratch(space.length, tile, adjoint, size);
    shared_bytes = scratch.shared * size + gru_row_bytes;
    own_bytes = (scratch.own * size + gru_row_bytes - 1) / gru_row_bytes * gru_row_bytes;
  }
  int64_t bytes(int64_t team) const { return shared_bytes + team * own_bytes; }
};

template <class T, class Body>
void for_tiles(const ColumnSpace& space, const GruWeights<T>& weights, int64_t m, bool adjoint, const Exec& exec,
               const Body& body) {
  // A multiplication costs about what the traffic of an element does.
  const double work = static_cast<double>(space.columns() * space.length) * static_cast<double>(m) *
                      static_cast<double>(gru_gates * space.length) * sizeof(T);
  int team = team_size(exec.threads, space.columns(), static_cast<int64_t>(std::min(work, 1e18)));
  while (team > 1 && GruPlan(space, adjoint, sizeof(T), team).bytes(team) > static_cast<int64_t>(exec.workspace_bytes))
    --team;
  const GruPlan plan(space, adjoint, sizeof(T), team);
  auto at = reinterpret_cast<uintptr_t>(exec.workspace);
  at = (at + gru_row_bytes - 1) / gru_row_bytes * gru_row_bytes;
  T* shared = reinterpret_cast<T*>(at);
  gru_tiles_of<T>(tiles()).pack(weights, adjoint, shared);
  at += static_cast<uintptr_t>((plan.shared_bytes - gru_row_bytes) / gru_row_bytes * gru_row_bytes);
  share(team, plan.items, [&](int64_t first, int64_t last) {
#ifdef _OPENMP
    const int64_t rank = team > 1 ? omp_get_thread_num() : 0;
#else
    const int64_t rank = 0;
#endif
    T* own = reinterpret_cast<T*>(at + static_cast<uintptr_t>(rank * plan.own_bytes));
    if (first < last)
      body(shared, first * plan.tile, std::min(last * plan.tile, space.columns()), static_cast<int>(plan.tile), own);
  });
}

std::size_t bytes_for(const ConstView& states, bool adjoint, int32_t threads) {
  const ColumnSpace space = column_space_of(states);
  const int64_t size = states.dtype == DType::float64 ? 8 : 4;
  const int team = team_size(threads, space.columns(), INT64_MAX);
  int64_t most = 0;
  for (int members = 1; members <= team; ++members)
    most = std::max(most, GruPlan(space, adjoint, size, members).bytes(members));
  return static_cast<std::size_t>(most);
}

}  // namespace

std::size_t relax_gru_workspace_bytes(const ConstView& u, int32_t threads) { return bytes_for(u, false, threads); }

std::size_t relax_gru_adjoint_workspace_bytes(const ConstView& d_end, int32_t threads) {
  return bytes_for(d_end, true, threads);
}

Status relax_gru(const MutableView& out, const ConstView& u, const ConstView& gates, const ConstView& weight,
                 const ConstView& bias, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                 const EndNorms& norms, const Exec& exec) {
  with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GruTask<T> task(out, u, gates, weight, bias, m, f, g, every);
    for_tiles(task.columns.space, task.weights, m, false, exec,
              [&](auto... rest) { gru_tiles_of<T>(tiles()).forward(task, rest...); });
  });
  if (!norms.present()) return {};
  return cpu::slice_norms(norms.norms, norms.ends, norms.target, norms.norm, norms.exec);
}

Status relax_gru_adjoint(const MutableView& d_start, const MutableView& d_gates, const MutableView& d_hidden,
                         const ConstView& u, const ConstView& gates, const ConstView& weight, const ConstView& bias,
                         const ConstView& d_end, const ConstView& d_every, const Exec& exec) {
  with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GruAdjointTask<T> task(d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every);
    for_tiles(task.space, task.weights, task.m, true, exec,
              [&](auto... rest) { gru_tiles_of<T>(tiles()).adjoint(task, rest...); });
  });
  return {};
}

}  // namespace pyparareal::cpu
