// SPDX-License-Identifier: BSD-3-Clause
// relax_gru on tensor cores, see gru_mma.cuh. Two copies of the states take turns: a step reads one and writes the
// other.
#include "gru_mma.cuh"

namespace pyparareal::cuda {
namespace {

// A block's rows, and what a lane does with its elements of them.
template <int tiles>
struct ForwardRows {
  const GruTask<float>& task;
  const RowPointers<float>* at;
  const Here& here;

  __device__ __forceinline__ void load(float* states) const {
    const ColumnTask<float>& c = task.columns;
    for (int unit_tile = here.warp; unit_tile < here.plan.unit_tiles; unit_tile += here.plan.warps)
      for_elements<tiles>([&](int tile, int i) {
        const int row = here.row(tile, i), unit = here.unit(unit_tile, i);
        states[here.place(row, unit)] = here.inside(row, unit) ? at[row].u[unit * c.u.stride] : 0.0f;
      });
  }

  // Of a unit tile, from the states and their products: the next states, and what is kept of them, if anything is.
  template <bool compensated>
  __device__ __forceinline__ void finish(const mma::Sums<compensated> (&sums)[gru_gates][tiles],
                                         const Sides<tiles>& sides, const float* states, float* next, int64_t j,
                                         int64_t keep, int unit_tile) const {
    const ColumnTask<float>& c = task.columns;
    for_elements<tiles>([&](int tile, int i) {
      const int row = here.row(tile, i), unit = here.unit(unit_tile, i), place = here.place(row, unit);
      const bool inside = here.inside(row, unit);
      const float bias = unit < here.plan.hidden ? task.weights.bias_at(unit) : 0.0f;
      const GruGates<float, float> gates =
          fast_gates(sides.gate[0][tile][i], sides.gate[1][tile][i], sides.gate[2][tile][i], sums[0][tile].result(i),
                     sums[1][tile].result(i), sums[2][tile].result(i), bias);
      float u = gates.template next<ScalarMlpMath>(states[place]);
      const RowPointers<float>& to = at[row];
      if (inside && c.g.data)
        u = to.f[j * c.f.step_stride + unit * c.f.stride] + (u - to.g[j * c.g.step_stride + unit * c.g.stride]);
      else if (inside && c.f.data)
        u = u + to.f[j * c.f.step_stride + unit * c.f.stride];
      next[place] = inside ? u : 0.0f;
      if (inside && keep >= 0) to.every[keep * c.every.step_stride + unit * c.every.stride] = u;
    });
  }

  __device__ __forceinline__ void store(const float* states) const {
    const ColumnTask<float>& c = task.columns;
    for (int unit_tile = here.warp; unit_tile < here.plan.unit_tiles; unit_tile += here.plan.warps)
      for_elements<tiles>([&](int tile, int i) {
        const int row = here.row(tile, i), unit = here.unit(unit_tile, i);
        if (here.inside(row, unit)) at[row].out[unit * c.out.stride] = states[here.place(row, unit)];
      });
  }
};

template <bool compensated, bool in_shared, int tiles>
__global__ void __launch_bounds__(mma::lanes* most_warps(tiles), 1)
    forward_kernel(GruTask<float> task, MmaPlan plan, const float* streamed) {
  char* shared = block_scratch<char>();
  const ColumnTask<float>& c = task.columns;
  auto* at = reinterpret_cast<RowPointers<float>*>(shared + plan.pointers);
  float* own = reinterpret_cast<float*>(shared + plan.weights);
  const int me = static_cast<int>(threadIdx.x), all = static_cast<int>(blockDim.x);
  if (in_shared) pack_weights<compensated>(own, task.weights, plan, me, all);
  const float* weights = in_shared ? own : streamed;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * plan.rows; first < c.space.columns();
       first += static_cast<int64_t>(gridDim.x) * plan.rows) {
    const int64_t left = c.space.columns() - first;
    const Here here(plan, static_cast<int>(left < plan.rows ? left : plan.rows));
    const ForwardRows<tiles> block{task, at, here};
    float *h = reinterpret_cast<float*>(shared), *next = h + plan.rows * plan.padded;
    __syncthreads();
    for (int row = me; row < plan.rows; row += all)
      point_at(at[row], task, first + (row < here.live ? row : here.live - 1));
    __syncthreads();
    block.load(h);
    Sides<tiles> sides;
    sides.load(here, at, task.gates, 0, here.warp);
    Kept kept(c.period);
    __syncthreads();
    for (int64_t j = 0, keep = 0; j < c.m; ++j) {
      const bool keeps = c.every.data && kept.next();
      for (int unit_tile = here.warp; unit_tile < plan.unit_tiles; unit_tile += plan.warps) {
        mma::Sums<compensated> sums[gru_gates][tiles];
        multiply(sums, here, weights, h, unit_tile);
        block.finish(sums, sides, h, next, j, keeps ? keep : -1, unit_tile);
        const bool last = unit_tile + plan.warps >= plan.unit_tiles;
        if (!last || j + 1 < c.m) sides.load(here, at, task.gates, j + last, last ? here.warp : unit_tile + plan.warps);
      }
      __syncthreads();
      float* const other = h;
      h = next, next = other, keep += keeps;
    }
    if (c.out.data) block.store(h);
  }
}

}  // namespace

std::size_t relax_gru_mma_workspace_bytes(const ConstView& u) { return mma_bytes_for(u, false); }

Status relax_gru_mma(const MutableView& out, const ConstView& u, const ConstView& gates, const ConstView& weight,
                     const ConstView& bias, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                     const EndNorms& norms, Precision precision, const Exec& exec) {
  const MmaPlan plan = mma_plan_for(u, false);
  if (plan.bytes > most_shared(u.device_id)) return too_wide(u, mma::rows);
  if (const Status status = mma::knows_tf32(u.device_id); !status.ok()) return status;

  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const GruTask<float> task(out, u, gates, weight, bias, m, f, g, every);
  const Status launched = with_kernel(precision, plan, [&](auto compensated, auto in_shared, auto tiles) {
    return launch_mma<compensated>("relax_gru", forward_kernel<compensated, in_shared, tiles>, task, plan,
                                   task.columns.space, exec);
  });
  return then_norms(launched, norms);
}

}  // namespace pyparareal::cuda
