// SPDX-License-Identifier: BSD-3-Clause
// relax_rk with a function of the caller's: columns, or tiles of them, shared among threads.
#include "../backend.h"
#include "parallel.h"
#include "tiles.h"

namespace pyparareal::cpu {
namespace {

// Scratch of a tile of a function of lanes that should not grow: half of an L2 of 1 MiB.
inline constexpr int64_t most_function_bytes = 512 << 10;

// Rows of scratch: the state, that of a stage, and the slopes.
int64_t function_rows(const ColumnSpace& space, const RungeKutta& scheme) {
  return (2 + static_cast<int64_t>(scheme.stages)) * space.length;
}

bool in_tiles(const ColumnSpace& space, const RungeKutta& scheme) {
  return scheme.function.takes_lanes || space.length <= most_gathered;
}

// Bytes of a row of a tile: whole vectors of every instruction set.
int64_t function_row_bytes(const ColumnSpace& space, const RungeKutta& scheme, int64_t size) {
  if (!in_tiles(space, scheme)) return size;
  int64_t bytes = relax_row_bytes;
  while (bytes > relax_alignment && bytes * function_rows(space, scheme) > most_function_bytes) bytes /= 2;
  return bytes;
}

// Scratch of one member of a team, with room to align it.
int64_t function_member_bytes(const ColumnSpace& space, const RungeKutta& scheme, int64_t size) {
  const int64_t bytes = function_rows(space, scheme) * function_row_bytes(space, scheme, size);
  return (bytes + relax_alignment - 1) / relax_alignment * relax_alignment + relax_alignment;
}

template <class T>
Status function(const RungeKuttaTask<T>& task, const Exec& exec) {
  const RelaxTiles<T>& kernels = relax_tiles_of<T>(tiles());
  const ColumnSpace& space = task.columns.space;
  const int64_t columns = space.columns(), size = static_cast<int64_t>(sizeof(T)), lanes = kernels.lanes;
  const bool wide = in_tiles(space, task.scheme);
  const int64_t own_bytes = function_member_bytes(space, task.scheme, size);
  int team = team_size(exec.threads, wide ? (columns + lanes - 1) / lanes : columns,
                       columns * space.length * size * (task.columns.m + 1));
  team = static_cast<int>(
      std::min<int64_t>(team, std::max<int64_t>(1, static_cast<int64_t>(exec.workspace_bytes) / own_bytes)));
  const int64_t most = std::min<int64_t>(kernels.wide, function_row_bytes(space, task.scheme, size) / size);
  const int64_t vectors = ((columns + team - 1) / team + lanes - 1) / lanes;
  const int64_t tile = wide ? std::min(vectors * lanes, most) : 1;
  share(team, (columns + tile - 1) / tile, [&](int64_t first, int64_t last) {
#ifdef _OPENMP
    const int64_t rank = team > 1 ? omp_get_thread_num() : 0;
#else
    const int64_t rank = 0;
#endif
    const auto at = reinterpret_cast<uintptr_t>(exec.workspace) + static_cast<uintptr_t>(rank * own_bytes);
    auto* scratch = reinterpret_cast<T*>((at + relax_alignment - 1) / relax_alignment * relax_alignment);
    if (first < last)
      kernels.function(task, first * tile, std::min(last * tile, columns), static_cast<int>(tile), scratch);
  });
  return {};
}

}  // namespace

std::size_t relax_function_workspace_bytes(const ColumnSpace& space, const RungeKutta& scheme, int32_t threads) {
  const int64_t size = scheme.function.dtype == DType::float64 ? 8 : 4;
  const int64_t team = team_size(threads, space.columns(), INT64_MAX);
  return static_cast<std::size_t>(team * function_member_bytes(space, scheme, size));
}

Status relax_function(const MutableView& out, const ConstView& u, const RungeKutta& scheme, const ConstView& steps,
                      const ConstView& times, int64_t m, const ConstView& f, const ConstView& g,
                      const MutableView& every, const EndNorms& norms, const Exec& exec) {
  const Status status = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    return function(RungeKuttaTask<T>{{out, u, m, f, g, every},
                                      scheme,
                                      Coefficients<T>(scheme, steps.present()),
                                      StepSizes(steps),
                                      {StepSizes(times), scheme.times}},
                    exec);
  });
  return norms.present() ? slice_norms(norms.norms, norms.ends, norms.target, norms.norm, norms.exec) : status;
}

}  // namespace pyparareal::cpu
