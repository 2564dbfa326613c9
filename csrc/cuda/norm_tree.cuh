// SPDX-License-Identifier: BSD-3-Clause
// The fixed binary tree that combines the chunks of a slice: one block per slice, neighbours first.
#pragma once

#include <type_traits>

#include "../backend.h"
#include "launch.cuh"
#include "pyparareal/layout.h"

namespace pyparareal::cuda {

inline constexpr int tree_threads = 1024;  // at most; a power of two
inline constexpr int tree_leaves = 16;     // per thread: an aligned subtree in registers
inline constexpr int tree_rounds = 2048;   // of a block: 2048 * 1024 * 16 chunks, 3.5e10 features of one slice

// The tree over `count` (a power of two) values in registers.
template <Norm norm, int count>
__device__ __forceinline__ double tree_of(const double* values) {
  if constexpr (count == 1)
    return values[0];
  else
    return norm_combine<norm>(tree_of<norm, count / 2>(values), tree_of<norm, count / 2>(values + count / 2));
}

template <Norm norm>
__global__ void __launch_bounds__(tree_threads)
    tree_kernel(double* norms, const double* partials, int64_t slices, int64_t chunks) {
  auto* block_values = block_scratch<double>();  // [blockDim.x leaves' sums, one sum per round]
  const int thread = static_cast<int>(threadIdx.x), width = static_cast<int>(blockDim.x);
  double* round_values = block_values + width;
  const int64_t per_round = static_cast<int64_t>(width) * tree_leaves;

  for (int64_t slice = blockIdx.x; slice < slices; slice += gridDim.x) {
    const double* values = partials + slice * chunks;
    int rounds = 0;
    for (int64_t first = 0; first < chunks; first += per_round, ++rounds) {
      double leaf[tree_leaves];
#pragma unroll
      for (int i = 0; i < tree_leaves; ++i) {
        const int64_t at = first + static_cast<int64_t>(thread) * tree_leaves + i;
        leaf[i] = at < chunks ? values[at] : 0.0;
      }
      block_values[thread] = tree_of<norm, tree_leaves>(leaf);
      __syncthreads();
      for (int half = width / 2; half > 0; half /= 2) {
        double sum = 0.0;
        if (thread < half) sum = norm_combine<norm>(block_values[2 * thread], block_values[2 * thread + 1]);
        __syncthreads();
        if (thread < half) block_values[thread] = sum;
        __syncthreads();
      }
      // No barrier: from here to the next one, only this thread uses what it reads and writes.
      if (thread == 0) round_values[rounds] = block_values[0];
    }
    if (thread == 0) {
      while (rounds > 1) {
        for (int i = 0; i < rounds / 2; ++i)
          round_values[i] = norm_combine<norm>(round_values[2 * i], round_values[2 * i + 1]);
        if (rounds % 2) round_values[rounds / 2] = round_values[rounds - 1];
        rounds = (rounds + 1) / 2;
      }
      norms[slice] = round_values[0];
    }
  }
}

// How the tree of one slice is cut.
struct TreeShape {
  unsigned threads = 32;
  int64_t rounds = 0;

  explicit TreeShape(int64_t chunks) {
    while (threads < tree_threads && static_cast<int64_t>(threads) * tree_leaves < chunks) threads *= 2;
    rounds = (chunks + per_round() - 1) / per_round();
  }
  int64_t per_round() const { return static_cast<int64_t>(threads) * tree_leaves; }
};

// Whether a block can reduce the chunks of a slice: asked before the kernel that makes them is launched.
inline Status check_tree(const char* argument, const Space& space) {
  const TreeShape shape(space.chunks());
  Status status;
  if (shape.rounds <= tree_rounds) return status;
  status.code = StatusCode::invalid_value;
  std::snprintf(status.message, sizeof status.message, "%s: got %lld features per slice, expected at most %lld",
                argument, static_cast<long long>(space.features),
                static_cast<long long>(tree_rounds * shape.per_round() * chunk));
  return status;
}

// Reduces the partials of `space` in exec.workspace to one norm per slice.
inline Status reduce_partials(double* norms, const Space& space, Norm norm, const Exec& exec) {
  const int64_t chunks = space.chunks();
  if (chunks == 1) return {};  // the chunk kernel wrote the norms themselves
  const TreeShape shape(chunks);
  const std::size_t shared = (shape.threads + static_cast<std::size_t>(shape.rounds)) * sizeof(double);
  const unsigned blocks = blocks_for(space.slices, 1);
  const auto* partials = static_cast<const double*>(exec.workspace);
  return norm == Norm::max_abs ? launch("slice tree", tree_kernel<Norm::max_abs>, blocks, shape.threads, shared,
                                        exec.stream, norms, partials, space.slices, chunks)
                               : launch("slice tree", tree_kernel<Norm::sum_abs>, blocks, shape.threads, shared,
                                        exec.stream, norms, partials, space.slices, chunks);
}

// The norms of slices without features.
inline Status zero_norms(const MutableView& norms, const Exec& exec) {
  if (!norms.present() || norms.shape[0] == 0) return {};
  return status_of(cudaMemsetAsync(norms.data, 0, static_cast<std::size_t>(norms.shape[0]) * sizeof(double),
                                   static_cast<cudaStream_t>(exec.stream)),
                   "cudaMemsetAsync");
}

// Calls `body` with the norm as a compile-time value.
template <class Body>
Status with_norm(Norm norm, const Body& body) {
  switch (norm) {
    case Norm::sum_squares:
      return body(std::integral_constant<Norm, Norm::sum_squares>{});
    case Norm::sum_abs:
      return body(std::integral_constant<Norm, Norm::sum_abs>{});
    default:
      return body(std::integral_constant<Norm, Norm::max_abs>{});
  }
}

}  // namespace pyparareal::cuda
