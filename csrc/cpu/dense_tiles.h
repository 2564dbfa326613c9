// SPDX-License-Identifier: BSD-3-Clause
// Residual dense layers on the CPU: neighbouring rows lie in neighbouring lanes of tiles [d][rows], so that a weight is
// one number for a whole vector, and no matrix is ever packed or transposed, forward or backward. Compiled once per
// instruction set, like tiles.h. Sums have the order of their index, so lanes, which do not meet, cannot change a bit.
#pragma once

#include "pyparareal/dense.h"

namespace pyparareal::cpu {

// Vectors of a tile, and tiles that take a step together, while its weights are in the caches.
inline constexpr int dense_vectors = 4, dense_group = 8;

inline constexpr int64_t dense_row_bytes = 64;  // the widest vector of any instruction set

// Elements of scratch per element of a state: itself, and what the product makes of it.
inline constexpr int64_t dense_tiles_of_scratch = 2;

template <class T>
struct DenseTiles {
  int lanes;  // rows of a vector
  // The rows [first, last) of a slice in tiles of `tile`, whole vectors, dense_group of them at most; scratch is
  // aligned.
  void (*forward)(const DenseTask<T>& task, int64_t slice, int64_t first, int64_t last, int tile, T* scratch);
  void (*adjoint)(const DenseAdjointTask<T>& task, int64_t slice, int64_t first, int64_t last, int tile, T* scratch);
};

}  // namespace pyparareal::cpu
