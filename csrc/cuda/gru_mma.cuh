// SPDX-License-Identifier: BSD-3-Clause
// relax_gru and its adjoint on tensor cores, what both have in common. A block takes one or two tiles of 16 rows
// through all steps. A warp has 8 hidden units at a time, and of them the sums of all three gates, so that a gate needs
// nothing of another lane. The weights are packed once: into shared memory where they fit (of sm_90 up to 128 hidden
// units), else into the workspace, from where they come out of L2 at every step.
//
// Every sum has the order of its terms' blocks, whatever the number of rows and wherever the weights are: the bits of a
// row do not depend on its company.
#pragma once

#include "../backend.h"
#include "fast_formulas.cuh"
#include "gru_rows.cuh"
#include "mma_tiles.cuh"
#include "pyparareal/gru_formulas.h"

namespace pyparareal::cuda {

inline constexpr int most_tiles = 2;

// A warp of two tiles has twice the sums, so twice the registers.
PYPARAREAL_HD constexpr int most_warps(int tiles) {
#ifdef PYPARAREAL_EMULATE_CUDA
  return tiles == 1 ? 4 : 2;  // a few units take several rounds
#else
  return tiles == 1 ? 16 : 8;
#endif
}

// The layout of a block's shared memory: states (forward two of them; adjoint the states and the gradients of the
// gates, which take the states' place where every warp has one tile of units), the packed weights, the adjoint's
// gradients of the states, where every thread has its own, and pointers. Offsets in bytes.
struct MmaPlan {
  int hidden, padded, unit_tiles, blocks, warps, rounds;  // of terms: blocks; of units: tiles, in rounds of warps
  int tiles, rows;                                        // of rows
  bool in_shared, overlaid;
  std::size_t states, weights, gradients, pointers, bytes;

  MmaPlan(const ColumnSpace& space, bool adjoint, std::size_t most)
      : hidden(static_cast<int>(space.length)),
        padded((hidden + mma::block - 1) / mma::block * mma::block),
        unit_tiles(padded / mma::columns),
        blocks(padded / mma::block),
        tiles(most_tiles) {
    const bool many = space.columns() > mma::rows * wanted_blocks;
    for (in_shared = true; tiles > 1 && (!many || place(adjoint) > most); --tiles) {
    }
    if (place(adjoint) <= most) return;
    for (in_shared = false, tiles = many ? most_tiles : 1; tiles > 1 && place(adjoint) > most; --tiles) {
    }
    place(adjoint);
  }

  std::size_t weight_bytes() const {
    return static_cast<std::size_t>(gru_gates) * static_cast<std::size_t>(padded) * static_cast<std::size_t>(padded) *
           sizeof(float);
  }
  unsigned threads() const { return static_cast<unsigned>(mma::lanes * warps); }

 private:
  std::size_t place(bool adjoint) {
    rows = mma::rows * tiles;
    warps = unit_tiles < most_warps(tiles) ? unit_tiles : most_warps(tiles);
    rounds = (unit_tiles + warps - 1) / warps;
    overlaid = adjoint && rounds == 1;
    const std::size_t narrow = static_cast<std::size_t>(rows * padded) * sizeof(float);
    const std::size_t wide = gru_gates * narrow;
    states = adjoint && !overlaid ? wide : 0;
    weights = adjoint ? (overlaid ? wide : wide + narrow) : 2 * narrow;
    gradients = weights + (in_shared ? weight_bytes() : 0);
    pointers = gradients + (adjoint ? rounds * tiles * 4 * threads() * sizeof(float) : 0);
    return bytes = pointers + static_cast<std::size_t>(rows) * sizeof(RowPointers<float>);
  }
};

// Where packed weights have the block of these units and terms.
PYPARAREAL_HD int64_t packed_weights(int unit_tile, int gate, int blocks, int block) {
  return (static_cast<int64_t>(unit_tile * gru_gates + gate) * blocks + block) * mma::packed_block;
}

// Packs weight[gate * hidden + unit, term], with zeros around it. Neighbouring threads read neighbouring terms.
template <bool compensated>
__device__ __forceinline__ void pack_weights(float* to, const GruWeights<float>& w, const MmaPlan& plan, int64_t first,
                                             int64_t step) {
  const int64_t count = static_cast<int64_t>(gru_gates) * plan.padded * plan.padded;
  for (int64_t i = first; i < count; i += step) {
    const int term = static_cast<int>(i % plan.padded), row = static_cast<int>(i / plan.padded);
    const int unit = row % plan.padded, gate = row / plan.padded;
    const bool inside = unit < plan.hidden && term < plan.hidden;
    const float value = inside ? w.at(static_cast<int64_t>(gate) * plan.hidden + unit, term) : 0.0f;
    to[packed_weights(unit / mma::columns, gate, plan.blocks, term / mma::block) + mma::packed_place(unit, term)] =
        compensated ? value : as_float(mma::to_tf32(value));
  }
}

inline constexpr int pack_threads = 256;

template <bool compensated>
__global__ void __launch_bounds__(pack_threads) pack_kernel(GruWeights<float> weights, MmaPlan plan, float* to) {
  pack_weights<compensated>(to, weights, plan, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
                            static_cast<int64_t>(gridDim.x) * blockDim.x);
}

using mma::for_elements;

// Rows and units of the lane.
struct Here {
  const MmaPlan& plan;
  mma::Lane lane;
  int warp, live;

  __device__ __forceinline__ Here(const MmaPlan& p, int live_rows)
      : plan(p),
        lane(static_cast<int>(threadIdx.x)),
        warp(static_cast<int>(threadIdx.x) / mma::lanes),
        live(live_rows) {}
  __device__ __forceinline__ int row(int tile, int i) const { return tile * mma::rows + lane.row(i); }
  // Where a left factor of the states has the element.
  __device__ __forceinline__ int place(int row_at, int unit_at) const {
    return mma::left_place(row_at, unit_at, plan.blocks);
  }
  __device__ __forceinline__ int unit(int unit_tile, int i) const { return unit_tile * mma::columns + lane.column(i); }
  __device__ __forceinline__ bool inside(int row_at, int unit_at) const {
    return row_at < live && unit_at < plan.hidden;
  }
};

// The input sides, and what else a step adds to a lane's elements: read before the sums they are added to. Zeros beside
// the rows and units there are.
template <int tiles>
struct Sides {
  float gate[gru_gates][tiles][4], d_every[tiles][4];

  __device__ __forceinline__ void load(const Here& here, const RowPointers<float>* at,
                                       const ColumnOperand<const float>& gates, int64_t j, int unit_tile) {
    for_elements<tiles>([&](int tile, int i) {
      const int row = here.row(tile, i), unit = here.unit(unit_tile, i);
      const bool inside = here.inside(row, unit);
      const float* from = at[row].gates + j * gates.step_stride + unit * gates.stride;
#pragma unroll
      for (int g = 0; g < gru_gates; ++g)
        gate[g][tile][i] = inside ? from[static_cast<int64_t>(g) * here.plan.hidden * gates.stride] : 0.0f;
    });
  }
  __device__ __forceinline__ void load_gradients(const Here& here, const RowPointers<float>* at,
                                                 const ColumnOperand<const float>& each, int64_t j, int unit_tile) {
    for_elements<tiles>([&](int tile, int i) {
      const int row = here.row(tile, i), unit = here.unit(unit_tile, i);
      d_every[tile][i] =
          each.data && here.inside(row, unit) ? at[row].d_every[j * each.step_stride + unit * each.stride] : 0.0f;
    });
  }
};

// sums[gate][tile] = weight h of 8 units and all rows
template <bool compensated, int tiles>
__device__ __forceinline__ void multiply(mma::Sums<compensated> (&sums)[gru_gates][tiles], const Here& here,
                                         const float* weights, const float* states, int unit_tile) {
  const MmaPlan& plan = here.plan;
  const float* packed = weights + packed_weights(unit_tile, 0, plan.blocks, 0);
  const int gate_stride = plan.blocks * mma::packed_block;
  mma::Quad ahead[gru_gates];
#pragma unroll
  for (int gate = 0; gate < gru_gates; ++gate) ahead[gate] = mma::right_quad(packed + gate * gate_stride, here.lane);
#pragma unroll 1
  for (int block = 0; block < plan.blocks; ++block) {
    mma::Terms<compensated> right[gru_gates];
    const int next = block + 1 < plan.blocks ? block + 1 : block;
#pragma unroll
    for (int gate = 0; gate < gru_gates; ++gate) {
      right[gate] = mma::Terms<compensated>::of(ahead[gate], true);
      ahead[gate] = mma::right_quad(packed + gate * gate_stride + next * mma::packed_block, here.lane);
    }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      mma::Terms<compensated> left[2];
      mma::load_left(left, states, tile, plan.blocks, block, here.lane.index);
#pragma unroll
      for (int gate = 0; gate < gru_gates; ++gate) sums[gate][tile].add(left, right[gate]);
    }
  }
}

// As GruGates::of, with the approximate quotients.
__device__ __forceinline__ GruGates<float, float> fast_gates(float in_r, float in_z, float in_n, float of_r, float of_z,
                                                             float of_n, float bias) {
  GruGates<float, float> g;
  g.r = fast_sigmoid(in_r + of_r);
  g.z = fast_sigmoid(in_z + of_z);
  g.s = of_n + bias;
  g.n = fast_tanh(in_n + g.r * g.s);
  return g;
}

// The weights where they have to be streamed, then the steps.
template <bool compensated, class Task>
Status launch_mma(const char* name, void (*kernel)(Task, MmaPlan, const float*), const Task& task, const MmaPlan& plan,
                  const ColumnSpace& space, const Exec& exec) {
  float* streamed = static_cast<float*>(exec.workspace);
  if (!plan.in_shared) {
    const Status packed =
        launch(name, pack_kernel<compensated>, blocks_for(static_cast<int64_t>(plan.weight_bytes() / 4), pack_threads),
               pack_threads, 0, exec.stream, task.weights, plan, streamed);
    if (!packed.ok()) return packed;
  }
  if (const Status status = allow_shared(name, kernel, plan.bytes); !status.ok()) return status;
  return launch(name, kernel, blocks_for(space.columns(), plan.rows), plan.threads(), plan.bytes, exec.stream, task,
                plan, streamed);
}

// Calls body(compensated, in_shared, tiles) with constants.
template <class Body>
Status with_kernel(Precision precision, const MmaPlan& plan, const Body& body) {
  const auto with_place = [&](auto compensated) {
    const auto with_tiles = [&](auto in_shared) {
      return plan.tiles == 1 ? body(compensated, in_shared, std::integral_constant<int, 1>{})
                             : body(compensated, in_shared, std::integral_constant<int, 2>{});
    };
    return plan.in_shared ? with_tiles(std::true_type{}) : with_tiles(std::false_type{});
  };
  return precision == Precision::tf32 ? with_place(std::false_type{}) : with_place(std::true_type{});
}

inline MmaPlan mma_plan_for(const ConstView& states, bool adjoint) {
  return {column_space_of(states), adjoint, most_shared(states.device_id)};
}

inline std::size_t mma_bytes_for(const ConstView& states, bool adjoint) {
  const MmaPlan plan = mma_plan_for(states, adjoint);
  return plan.in_shared ? 0 : plan.weight_bytes();
}

}  // namespace pyparareal::cuda
