// SPDX-License-Identifier: BSD-3-Clause
// The adjoint of relax_gru on tensor cores, see gru_mma.cuh. A step back multiplies twice: the states it started from
// with the weights, for the gates, and the gradients of the gates with the transposed weights, which are read from the
// same packed copy.
#include "gru_mma.cuh"

namespace pyparareal::cuda {
namespace {

// d[tile] = back weight of 8 hidden units and all rows, of `back` as strided terms
template <bool compensated, int tiles>
__device__ __forceinline__ void multiply_back(mma::Sums<compensated> (&sums)[tiles], const Here& here,
                                              const float* weights, const float* back, int unit_tile) {
  const MmaPlan& plan = here.plan;
  const int first_column = unit_tile * mma::columns;
  const int64_t stride = packed_weights(1, 0, plan.blocks, 0);
#pragma unroll
  for (int gate = 0; gate < gru_gates; ++gate) {
    const float* packed = weights + packed_weights(0, gate, plan.blocks, first_column / mma::block);
#pragma unroll(compensated ? 2 : 4)
    for (int block = 0; block < plan.blocks; ++block) {
      const auto right = mma::Terms<compensated>::of(
          mma::transposed_quad(packed + 2 * block * stride, stride, first_column, here.lane), true);
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        mma::Terms<compensated> left[2];
        mma::load_left(left, back, tile, gru_gates * plan.blocks, gate * plan.blocks + block, here.lane.index);
        sums[tile].add(left, right);
      }
    }
  }
}

// A block's rows, and what a lane does with its elements of them. `d` of an element is of no other lane.
template <int tiles>
struct AdjointRows {
  const GruAdjointTask<float>& task;
  const RowPointers<float>* at;
  const Here& here;
  float *states, *back, *gradients;

  __device__ __forceinline__ float& d(int unit_tile, int tile, int i) const {
    const int round = unit_tile / here.plan.warps;
    return gradients[((round * tiles + tile) * 4 + i) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)];
  }

  template <class Visit>
  __device__ __forceinline__ void for_units(const Visit& visit) const {
    for (int unit_tile = here.warp; unit_tile < here.plan.unit_tiles; unit_tile += here.plan.warps)
      for_elements<tiles>(
          [&](int tile, int i) { visit(unit_tile, tile, i, here.row(tile, i), here.unit(unit_tile, i)); });
  }

  __device__ __forceinline__ float state_of(int64_t j, int row, int unit) const {
    return here.inside(row, unit) ? at[row].u[j * task.u.step_stride + unit * task.u.stride] : 0.0f;
  }

  __device__ __forceinline__ void begin() const {
    for_units([&](int unit_tile, int tile, int i, int row, int unit) {
      d(unit_tile, tile, i) = here.inside(row, unit) ? at[row].d_end[unit * task.d_end.stride] : 0.0f;
      states[here.place(row, unit)] = state_of(task.m - 1, row, unit);
    });
  }

  // The gradients of the gates, and d z in the place of d.
  template <bool compensated>
  __device__ __forceinline__ void differentiate(const mma::Sums<compensated> (&sums)[gru_gates][tiles],
                                                const Sides<tiles>& sides, const float (&h)[tiles][4], int64_t j,
                                                int unit_tile) const {
    for_elements<tiles>([&](int tile, int i) {
      const int row = here.row(tile, i), unit = here.unit(unit_tile, i);
      const bool inside = here.inside(row, unit);
      const float bias = unit < here.plan.hidden ? task.weights.bias_at(unit) : 0.0f;
      const GruGates<float, float> gates =
          fast_gates(sides.gate[0][tile][i], sides.gate[1][tile][i], sides.gate[2][tile][i], sums[0][tile].result(i),
                     sums[1][tile].result(i), sums[2][tile].result(i), bias);
      float& mine = d(unit_tile, tile, i);
      const float whole = task.d_every.data ? mine + sides.d_every[tile][i] : mine;
      const auto e = GruGradients<float, float>::of(gates, h[tile][i], whole);
      mine = whole * gates.z;
      const float gradients_of[gru_gates] = {e.r, e.z, e.s};
#pragma unroll
      for (int gate = 0; gate < gru_gates; ++gate)
        back[mma::left_place_strided(row, gate * here.plan.padded + unit, gru_gates * here.plan.blocks)] =
            inside ? gradients_of[gate] : 0.0f;
      if (inside) put(e, j, row, unit);
    });
  }

  __device__ __forceinline__ void put(const GruGradients<float, float>& e, int64_t j, int row, int64_t unit) const {
    if (task.d_gates.data) {
      float* to = at[row].d_gates + j * task.d_gates.step_stride;
      const int64_t hidden = here.plan.hidden, stride = task.d_gates.stride;
      to[unit * stride] = e.r, to[(hidden + unit) * stride] = e.z, to[(2 * hidden + unit) * stride] = e.n;
    }
    if (task.d_hidden.data) at[row].d_hidden[j * task.d_hidden.step_stride + unit * task.d_hidden.stride] = e.s;
  }

  __device__ __forceinline__ void store() const {
    for_units([&](int unit_tile, int tile, int i, int row, int unit) {
      if (here.inside(row, unit)) at[row].out[unit * task.d_start.stride] = d(unit_tile, tile, i);
    });
  }
};

// One step: barriers are between who writes states or gradients of gates and who reads them. Where both have the same
// place, all have read the states before anybody writes there.
template <bool compensated, int tiles>
__device__ __forceinline__ void step_back(const AdjointRows<tiles>& block, const float* weights, Sides<tiles>& sides,
                                          int64_t j) {
  const Here& here = block.here;
  const MmaPlan& plan = here.plan;
  const GruAdjointTask<float>& task = block.task;
  __syncthreads();
  for (int round = 0; round < plan.rounds; ++round) {
    const int unit_tile = round * plan.warps + here.warp;
    const bool busy = unit_tile < plan.unit_tiles;
    mma::Sums<compensated> sums[gru_gates][tiles];
    float h[tiles][4];
    if (busy) {
      for_elements<tiles>(
          [&](int tile, int i) { h[tile][i] = block.states[here.place(here.row(tile, i), here.unit(unit_tile, i))]; });
      multiply(sums, here, weights, block.states, unit_tile);
    }
    if (plan.overlaid) __syncthreads();
    if (!busy) continue;
    block.differentiate(sums, sides, h, j, unit_tile);
    const bool last = unit_tile + plan.warps >= plan.unit_tiles;
    if (!last || j > 0) {
      const int next_tile = last ? here.warp : unit_tile + plan.warps;
      sides.load(here, block.at, task.gates, j - last, next_tile);
      sides.load_gradients(here, block.at, task.d_every, j - last, next_tile);
    }
  }
  __syncthreads();
  float next[tiles][4];  // of the states the step before started from, where a warp has no more than one unit tile
  if (plan.overlaid && j > 0)
    for_elements<tiles>(
        [&](int tile, int i) { next[tile][i] = block.state_of(j - 1, here.row(tile, i), here.unit(here.warp, i)); });
  for (int unit_tile = here.warp; unit_tile < plan.unit_tiles; unit_tile += plan.warps) {
    mma::Sums<compensated> sums[tiles];
    multiply_back(sums, here, weights, block.back, unit_tile);
    for_elements<tiles>([&](int tile, int i) { block.d(unit_tile, tile, i) += sums[tile].result(i); });
  }
  if (j == 0) return;
  if (plan.overlaid) {
    __syncthreads();
    for_elements<tiles>(
        [&](int tile, int i) { block.states[here.place(here.row(tile, i), here.unit(here.warp, i))] = next[tile][i]; });
  } else {
    block.for_units([&](int, int, int, int row, int unit) {
      block.states[here.place(row, unit)] = block.state_of(j - 1, row, unit);
    });
  }
}

template <bool compensated, bool in_shared, int tiles>
__global__ void __launch_bounds__(mma::lanes* most_warps(tiles), 1)
    adjoint_kernel(GruAdjointTask<float> task, MmaPlan plan, const float* streamed) {
  char* shared = block_scratch<char>();
  auto* at = reinterpret_cast<RowPointers<float>*>(shared + plan.pointers);
  float* own = reinterpret_cast<float*>(shared + plan.weights);
  const int me = static_cast<int>(threadIdx.x), all = static_cast<int>(blockDim.x);
  if (in_shared) pack_weights<compensated>(own, task.weights, plan, me, all);
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * plan.rows; first < task.space.columns();
       first += static_cast<int64_t>(gridDim.x) * plan.rows) {
    const int64_t left = task.space.columns() - first;
    const Here here(plan, static_cast<int>(left < plan.rows ? left : plan.rows));
    const AdjointRows<tiles> block{task,
                                   at,
                                   here,
                                   reinterpret_cast<float*>(shared + plan.states),
                                   reinterpret_cast<float*>(shared),
                                   reinterpret_cast<float*>(shared + plan.gradients)};
    __syncthreads();
    for (int row = me; row < plan.rows; row += all)
      point_at(at[row], task, first + (row < here.live ? row : here.live - 1));
    __syncthreads();
    block.begin();
    Sides<tiles> sides;
    sides.load(here, at, task.gates, task.m - 1, here.warp);
    sides.load_gradients(here, at, task.d_every, task.m - 1, here.warp);
    for (int64_t j = task.m - 1; j >= 0; --j)
      step_back<compensated, tiles>(block, in_shared ? own : streamed, sides, j);
    block.store();
  }
}

}  // namespace

std::size_t relax_gru_adjoint_mma_workspace_bytes(const ConstView& d_end) { return mma_bytes_for(d_end, true); }

Status relax_gru_adjoint_mma(const MutableView& d_start, const MutableView& d_gates, const MutableView& d_hidden,
                             const ConstView& u, const ConstView& gates, const ConstView& weight, const ConstView& bias,
                             const ConstView& d_end, const ConstView& d_every, Precision precision, const Exec& exec) {
  const MmaPlan plan = mma_plan_for(d_end, true);
  if (plan.bytes > most_shared(u.device_id)) return too_wide(d_end, mma::rows);
  if (const Status status = mma::knows_tf32(u.device_id); !status.ok()) return status;

  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const GruAdjointTask<float> task(d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every);
  return with_kernel(precision, plan, [&](auto compensated, auto in_shared, auto tiles) {
    return launch_mma<compensated>("relax_gru_adjoint", adjoint_kernel<compensated, in_shared, tiles>, task, plan,
                                   task.space, exec);
  });
}

}  // namespace pyparareal::cuda
