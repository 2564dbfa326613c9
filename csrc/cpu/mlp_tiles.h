// SPDX-License-Identifier: BSD-3-Clause
// Gradient descent on networks, on the CPU: of small ones neighbouring columns lie in neighbouring lanes, of large ones
// a column is alone and neurons or weights do. Compiled once per instruction set, like tiles.h. Sums have the order of
// their index either way, so neither the choice nor the number of lanes can change a bit.
#pragma once

#include "pyparareal/mlp.h"

namespace pyparareal::cpu {

// Rows are multiples of this many bytes, the widest vector of any instruction set; tiles are of at most four vectors.
inline constexpr int64_t mlp_row_bytes = 64;
inline constexpr int mlp_tile_vectors = 4;

// Examples that go through a large network together: their states stay in L2 beside the weights.
inline constexpr int64_t mlp_block = 64;

template <class T>
struct MlpTiles {
  int lanes;  // columns of a vector
  // The columns [first, last) in tiles of `tile` columns, whole vectors; scratch is aligned.
  void (*narrow)(const MlpTask<T>& task, int64_t first, int64_t last, int tile, T* scratch);
  void (*wide)(const MlpTask<T>& task, int64_t first, int64_t last, T* scratch);
};

// Elements of the scratch of a column: weights as in the state and their gradient, each matrix transposed [in, out],
// and of a block of examples the values and errors of all neurons [examples, neurons].
struct WideScratch {
  int64_t gradient, transposed[max_layers], value[max_layers + 1], delta[max_layers + 1], pitch[max_layers + 1], block,
      elements;

  WideScratch(const Mlp& net, int64_t weights, int64_t size) : block(net.count < mlp_block ? net.count : mlp_block) {
    const int64_t row = mlp_row_bytes / size;
    const auto whole = [row](int64_t count) { return (count + row - 1) / row * row; };
    int64_t at = whole(weights) + row;  // vectors may read past the end
    gradient = at, at += whole(weights) + row;
    for (int layer = 0; layer <= net.layers; ++layer) {
      pitch[layer] = whole(net.sizes[layer] + (net.bias ? 1 : 0));
      // Rows a power of two apart share few sets of a cache.
      if (pitch[layer] * size % 512 == 0) pitch[layer] += row;
    }
    for (int layer = 0; layer < net.layers; ++layer)
      transposed[layer] = at, at += (net.sizes[layer] + (net.bias ? 1 : 0)) * pitch[layer + 1];
    for (int layer = 0; layer <= net.layers; ++layer) value[layer] = at, at += block * pitch[layer];
    for (int layer = 1; layer <= net.layers; ++layer) delta[layer] = at, at += block * pitch[layer];
    elements = at;
  }
};

}  // namespace pyparareal::cpu
