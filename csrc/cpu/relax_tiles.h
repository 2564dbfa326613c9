// SPDX-License-Identifier: BSD-3-Clause
// The relaxations on the CPU: neighbouring columns lie in neighbouring lanes of a scratch tile [length][lanes], where
// all steps are taken before the end states are written back. Compiled once per instruction set, like tiles.h; lanes do
// not meet, so their number cannot change a bit.
#pragma once

#include "pyparareal/coefficients.h"
#include "pyparareal/columns.h"

namespace pyparareal::cpu {

// Bytes of a row of the widest tile of any instruction set.
inline constexpr int64_t relax_row_bytes = 512, relax_alignment = 64;

// Components of a state that is gathered from the tile for a function of one column.
inline constexpr int most_gathered = 16;

template <class T>
struct TridiagonalTask {
  ColumnTask<T> columns;
  const T *ratio, *scale, *coupling;
};

template <class T>
struct StencilTask {
  ColumnTask<T> columns;
  const T* weights;
  int width;
  Boundary boundary;
};

template <class T>
struct RungeKuttaTask {
  ColumnTask<T> columns;
  RungeKutta scheme;
  Coefficients<T> coefficients;
  StepSizes steps;
  StepTimes times;  // of functions alone
};

template <class T>
struct RelaxTiles {
  int lanes, wide, side_by_side;  // columns of a vector, of the widest tile, and of a part that is solved at once
  // x = a * x, `times` times
  void (*scale)(T* x, const T* a, int64_t count, int64_t times);
  // x = x + f, or f + (x - g) where g is not null
  void (*add)(T* x, const T* f, const T* g, int64_t count);
  // The columns [first, last) in tiles of `tile` columns, whole vectors; scratch is aligned.
  void (*tridiagonal)(const TridiagonalTask<T>& task, int64_t first, int64_t last, int tile, T* scratch);
  void (*stencil)(const StencilTask<T>& task, int64_t first, int64_t last, int tile, T* scratch);
  void (*runge_kutta)(const RungeKuttaTask<T>& task, int64_t first, int64_t last, int tile, T* scratch);
  void (*function)(const RungeKuttaTask<T>& task, int64_t first, int64_t last, int tile, T* scratch);
};

}  // namespace pyparareal::cpu
