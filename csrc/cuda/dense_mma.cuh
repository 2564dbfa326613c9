// SPDX-License-Identifier: BSD-3-Clause
// Included by dense_mma.cu: how a block of it goes about its rows, the way of the weights, part by part, into shared
// memory, and what a lane has to do with its elements of the states.
#pragma once

#include <type_traits>

#include "../backend.h"
#include "dense_parts.cuh"
#include "fast_formulas.cuh"
#include "mma_tiles.cuh"
#include "pyparareal/dense_formulas.h"

namespace pyparareal::cuda {
namespace {

inline constexpr int most_tiles = 2;

// Warps of a block, and words of a part of the weights.
#ifdef PYPARAREAL_EMULATE_CUDA
inline constexpr int most_warps = 4, most_part = 1024;  // a few features take several rounds of several parts
#else
inline constexpr int most_warps = 16, most_part = 8192;
#endif

// How a block goes about it: the outputs take turns, `width` at a time, and of these the terms. Shared memory, offsets
// in bytes: the states, of this step and the next, as left factors [rows, padded] (the adjoint: products of slopes and
// states, and the states), two parts of weights, pointers.
struct TilePlan {
  int d, padded, unit_tiles, blocks;  // of outputs: tiles of 8; of terms: blocks of 16
  int tiles, rows;                    // of rows
  int warps, width, rounds;
  int terms, parts, pitch;  // of a part; its packed blocks from 8 rows of W to the next 8
  int64_t row_tiles;        // of a slice
  std::size_t weights, pointers, bytes;
  bool packed;  // weights come 16 bytes at a time

  TilePlan(const ColumnSpace& space, bool adjoint, std::size_t most)
      : d(static_cast<int>(space.length)),
        padded((d + mma::block - 1) / mma::block * mma::block),
        unit_tiles(padded / mma::columns),
        blocks(padded / mma::block),
        tiles(most_tiles),
        packed(false) {
    fill(space, adjoint, most_part);
    if (space.batches <= mma::rows || space.slices * row_tiles < wanted_blocks || bytes > most)
      tiles = 1, fill(space, adjoint, most_part);
    if (bytes > most) fill(space, adjoint, 0);
  }

  unsigned threads() const { return static_cast<unsigned>(mma::lanes * warps); }
  PYPARAREAL_HD int array() const { return rows * padded; }
  PYPARAREAL_HD int part() const { return width * terms; }

 private:
  void fill(const ColumnSpace& space, bool adjoint, int words) {
    rows = mma::rows * tiles;
    row_tiles = (space.batches + rows - 1) / rows;
    warps = unit_tiles < most_warps ? unit_tiles : most_warps;
    width = mma::columns * warps;
    rounds = (unit_tiles + warps - 1) / warps;
    const int many = words / width / mma::block * mma::block;
    terms = many < mma::block ? mma::block : many < padded ? many : padded;
    parts = (padded + terms - 1) / terms;
    pitch = (adjoint ? width : terms) / mma::block;
    weights = (adjoint ? 3 : 2) * sizeof(float) * static_cast<std::size_t>(array());
    pointers = weights + 2 * sizeof(float) * static_cast<std::size_t>(part());
    bytes = pointers + sizeof(RowPointers<float>) * static_cast<std::size_t>(rows);
  }
};

// Parts in their order.
struct Part {
  int64_t j = 0;
  int round = 0, index = 0;

  __device__ __forceinline__ void next(const TilePlan& plan) {
    if (++index < plan.parts) return;
    index = 0;
    if (++round < plan.rounds) return;
    round = 0, ++j;
  }
};

template <int words>
__device__ __forceinline__ void copy_or_zero(float* to, const float* from, bool inside) {
  if (inside) return copy_async<words * sizeof(float)>(to, from);
#pragma unroll
  for (int i = 0; i < words; ++i) to[i] = 0.0f;
}

// A part of the matrix of a step, zeros around it. A warp has a packed block at a time: 8 rows of W, 16 columns.
template <bool adjoint>
__device__ __forceinline__ void fetch_part(float* to, const TilePlan& plan, const DenseWeights<float>& w, int64_t slice,
                                           const Part& at) {
  const int output = at.round * plan.width, term = at.index * plan.terms;
  const int outputs = output + plan.width < plan.padded ? plan.width : plan.padded - output;
  const int terms = term + plan.terms < plan.padded ? plan.terms : plan.padded - term;
  const int tiles = (adjoint ? terms : outputs) / mma::columns, blocks = (adjoint ? outputs : terms) / mma::block;
  const int lane = static_cast<int>(threadIdx.x) % mma::lanes;
  const float* from = w.weight_of(slice, at.j);
  for (int i = static_cast<int>(threadIdx.x) / mma::lanes; i < tiles * blocks; i += plan.warps) {
    const int tile = i / blocks, block = i % blocks;
    const int first_row = (adjoint ? term : output) + tile * mma::columns;
    const int first_column = (adjoint ? output : term) + block * mma::block;
    float* packed = to + (tile * plan.pitch + block) * mma::packed_block;
    const auto copy = [&](auto words, int row, int column) {
      const bool inside = first_row + row < plan.d && first_column + column < plan.d;
      const float* source = from + (first_row + row) * w.out_stride + (first_column + column) * w.in_stride;
      copy_or_zero<decltype(words)::value>(packed + mma::packed_place(row, column), source, inside);
    };
    if (plan.packed) {
      copy(std::integral_constant<int, 4>{}, lane / 4, lane % 4 * 4);
    } else {
#pragma unroll
      for (int k = 0; k < mma::packed_block / mma::lanes; ++k)
        copy(std::integral_constant<int, 1>{}, 2 * k + lane / mma::block, lane % mma::block);
    }
  }
}

// act(z) and act'(z), quotients approximate.
template <class Activation>
__device__ __forceinline__ Activated<float> activated(Activation, float z) {
  if constexpr (std::is_same_v<Activation, DenseTanh>) {
    const float a = fast_tanh(z);
    return {a, 1.0f - a * a};
  } else if constexpr (std::is_same_v<Activation, DenseSigmoid>) {
    const float a = fast_sigmoid(z);
    return {a, a * (1.0f - a)};
  } else if constexpr (std::is_same_v<Activation, DenseSilu>) {
    const float s = fast_sigmoid(z), a = (z < Exponential<float>::lowest ? Exponential<float>::lowest : z) * s;
    return {a, ScalarMlpMath::fma(a, 1.0f - s, s)};
  } else {
    return Activation::template of<float, ScalarMlpMath>(z);
  }
}

// What a step adds to a lane's elements, read before the sums: right-hand sides; forward the bias, backward the slopes
// of the next step. Zeros beside the rows and features there are.
template <int tiles>
struct Sides {
  float f[tiles][4], g[tiles][4], own[tiles][4];
};

// Rows of one slice, and what a lane does with its elements of them.
template <int tiles>
struct Rows {
  const ColumnTask<float>& c;
  const TilePlan& plan;
  const RowPointers<float>* at;
  int64_t slice;
  int live, warp;
  mma::Lane lane;

  __device__ __forceinline__ Rows(const ColumnTask<float>& columns, const TilePlan& p, const RowPointers<float>* where,
                                  int64_t of_slice, int live_rows)
      : c(columns),
        plan(p),
        at(where),
        slice(of_slice),
        live(live_rows),
        warp(static_cast<int>(threadIdx.x) / mma::lanes),
        lane(static_cast<int>(threadIdx.x)) {}

  // visit(tile, i, row, feature, inside)
  template <class Visit>
  __device__ __forceinline__ void for_tile(int unit_tile, const Visit& visit) const {
    mma::for_elements<tiles>([&](int tile, int i) {
      const int row = tile * mma::rows + lane.row(i), feature = unit_tile * mma::columns + lane.column(i);
      visit(tile, i, row, feature, row < live && feature < plan.d);
    });
  }
  template <class Visit>
  __device__ __forceinline__ void for_all(const Visit& visit) const {
    for (int unit_tile = warp; unit_tile < plan.unit_tiles; unit_tile += plan.warps) for_tile(unit_tile, visit);
  }

  __device__ __forceinline__ void load(Sides<tiles>& sides, int64_t j, int unit_tile) const {
    for_tile(unit_tile, [&](int tile, int i, int row, int feature, bool inside) {
      sides.f[tile][i] = c.f.data && inside ? at[row].f[j * c.f.step_stride + feature * c.f.stride] : 0.0f;
      sides.g[tile][i] = c.g.data && inside ? at[row].g[j * c.g.step_stride + feature * c.g.stride] : 0.0f;
    });
  }
  // f + (u - g), or u + f
  __device__ __forceinline__ float with_sides(const Sides<tiles>& sides, int tile, int i, float u) const {
    const float f = sides.f[tile][i];
    return c.g.data ? f + (u - sides.g[tile][i]) : c.f.data ? u + f : u;
  }
  __device__ __forceinline__ void put(float u, int64_t j, int64_t keep, int row, int feature) const {
    if (keep >= 0) at[row].every[keep * c.every.step_stride + feature * c.every.stride] = u;
    if (c.out.data && j + 1 == c.m) at[row].out[feature * c.out.stride] = u;
  }
};

}  // namespace
}  // namespace pyparareal::cuda
