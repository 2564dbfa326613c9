// SPDX-License-Identifier: BSD-3-Clause
// Gated recurrent units on the CPU: several rows go through all steps together, with the weights, transposed and packed
// once per call, in the caches. Compiled once per instruction set, like tiles.h. Sums have the order of their index, so
// neither the number of lanes nor that of rows can change a bit.
#pragma once

#include "pyparareal/gru.h"

namespace pyparareal::cpu {

// Rows of a tile: those of the weights that come from L2 or L3 are then used so many times a step.
inline constexpr int gru_tile_rows = 16;

inline constexpr int64_t gru_row_bytes = 64;  // the widest vector of any instruction set

// Elements of the scratch. Rows of `pitch` elements, whole vectors, of which the first `hidden` are of the state and
// the others stay zero. For all: the bias, the weights in slabs of columns, and as rows [3 hidden, pitch] for the
// adjoint. For each member of a team: states, sums and the gates of a tile; for the adjoint the gradients as well.
struct GruScratch {
  int64_t pitch, sums_pitch, back_pitch;
  int64_t slabs, rows_of_weight, shared;     // offsets of what all read, and its elements
  int64_t state, sums, gates, d, back, own;  // of what one member has

  GruScratch(int64_t hidden, int64_t tile, bool adjoint, int64_t size) {
    const int64_t row = gru_row_bytes / size;
    pitch = (hidden + row - 1) / row * row;
    sums_pitch = gru_gates * pitch;
    back_pitch = gru_gates * pitch;
    slabs = pitch;
    rows_of_weight = slabs + gru_gates * pitch * hidden;
    shared = rows_of_weight + (adjoint ? gru_gates * hidden * pitch : 0);
    state = 0;
    sums = state + tile * pitch;
    gates = sums + tile * sums_pitch;
    d = gates + tile * gru_gates * pitch;
    back = d + (adjoint ? tile * pitch : 0);
    own = back + (adjoint ? tile * back_pitch : 0);
  }
};

template <class T>
struct GruTiles {
  void (*pack)(const GruWeights<T>& weights, bool adjoint, T* shared);
  // The rows [first, last) in tiles of `tile`; scratch is aligned.
  void (*forward)(const GruTask<T>& task, const T* shared, int64_t first, int64_t last, int tile, T* scratch);
  void (*adjoint)(const GruAdjointTask<T>& task, const T* shared, int64_t first, int64_t last, int tile, T* scratch);
};

}  // namespace pyparareal::cpu
