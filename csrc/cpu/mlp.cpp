// SPDX-License-Identifier: BSD-3-Clause
// relax_mlp_sgd: columns in lanes where the network is small, else one by one, shared among threads.
#include "../backend.h"
#include "parallel.h"
#include "tiles.h"

namespace pyparareal::cpu {
namespace {

// A tile of one vector of a small network stays in L1 and a little of L2: of more weights a column is alone.
inline constexpr int64_t most_narrow_rows = 1024;

// A tile of several vectors hides the latency of sums, but has to stay in L1.
inline constexpr int64_t most_tile_bytes = 32 << 10;

bool is_narrow(const Mlp& net, const ColumnSpace& space, int64_t lanes) {
  if (NarrowScratch(net, space.length).rows > most_narrow_rows) return false;
  int64_t widest = 0;
  for (int layer = 1; layer <= net.layers; ++layer) widest = std::max(widest, net.sizes[layer]);
  return space.columns() > 1 || widest < lanes;
}

// How the columns are shared: a team, its columns at a time, and the scratch of a member, with room to align it.
struct Plan {
  bool narrow;
  int64_t tile, items, bytes;

  Plan(const Mlp& net, const ColumnSpace& space, int64_t lanes, int64_t size, int32_t team) {
    narrow = is_narrow(net, space, lanes);
    tile = 1;
    int64_t elements = 0;
    if (narrow) {
      const int64_t rows = NarrowScratch(net, space.length).rows;
      const int64_t fit = std::max<int64_t>(1, most_tile_bytes / (rows * lanes * size));
      const int64_t share = (space.columns() + team - 1) / team;
      tile = lanes * std::min({int64_t{mlp_tile_vectors}, fit, (share + lanes - 1) / lanes});
      elements = rows * tile;
    } else {
      elements = WideScratch(net, space.length, size).elements;
    }
    items = (space.columns() + tile - 1) / tile;
    bytes = (elements * size + mlp_row_bytes - 1) / mlp_row_bytes * mlp_row_bytes + mlp_row_bytes;
  }
};

template <class T>
Status descend(const MlpTask<T>& task, const Exec& exec) {
  const MlpTiles<T>& kernels = mlp_tiles_of<T>(tiles());
  const ColumnSpace& space = task.columns.space;
  const auto plan_for = [&](int team) { return Plan(task.net, space, kernels.lanes, sizeof(T), team); };
  // A multiplication costs about what the traffic of an element does.
  const double work = static_cast<double>(space.columns() * space.length) * static_cast<double>(task.columns.m) *
                      static_cast<double>(task.batch()) * sizeof(T);
  int team = team_size(exec.threads, space.columns(), static_cast<int64_t>(std::min(work, 1e18)));
  while (team > 1 && team * plan_for(team).bytes > static_cast<int64_t>(exec.workspace_bytes)) --team;
  const Plan plan = plan_for(team);
  share(team, plan.items, [&](int64_t first, int64_t last) {
#ifdef _OPENMP
    const int64_t rank = team > 1 ? omp_get_thread_num() : 0;
#else
    const int64_t rank = 0;
#endif
    const auto at = reinterpret_cast<uintptr_t>(exec.workspace) + static_cast<uintptr_t>(rank * plan.bytes);
    T* scratch = reinterpret_cast<T*>((at + mlp_row_bytes - 1) / mlp_row_bytes * mlp_row_bytes);
    if (first >= last) return;
    const int64_t end = std::min(last * plan.tile, space.columns());
    if (plan.narrow)
      kernels.narrow(task, first * plan.tile, end, static_cast<int>(plan.tile), scratch);
    else
      kernels.wide(task, first, end, scratch);
  });
  return {};
}

}  // namespace

std::size_t relax_mlp_sgd_workspace_bytes(const ConstView& u, const Mlp& net, int32_t threads) {
  const ColumnSpace space = column_space_of(u);
  const int64_t size = u.dtype == DType::float64 ? 8 : 4;
  const int64_t lanes = size == 8 ? mlp_tiles_of<double>(tiles()).lanes : mlp_tiles_of<float>(tiles()).lanes;
  const int team = team_size(threads, space.columns(), INT64_MAX);
  int64_t most = 0;
  for (int members = 1; members <= team; ++members)
    most = std::max(most, members * Plan(net, space, lanes, size, members).bytes);
  return static_cast<std::size_t>(most);
}

Status relax_mlp_sgd(const MutableView& out, const ConstView& u, const Mlp& net, const ConstView& x, const ConstView& y,
                     const ConstView& alpha, const ConstView& first, int64_t m, const ConstView& f, const ConstView& g,
                     const MutableView& every, const EndNorms& norms, const Exec& exec) {
  const Status done = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    return descend(MlpTask<T>(out, u, net, x, y, alpha, first, m, f, g, every), exec);
  });
  if (!norms.present()) return done;
  return cpu::slice_norms(norms.norms, norms.ends, norms.target, norms.norm, norms.exec);
}

}  // namespace pyparareal::cpu
