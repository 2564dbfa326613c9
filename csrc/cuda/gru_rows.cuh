// SPDX-License-Identifier: BSD-3-Clause
// What the kernels of relax_gru and its adjoint have in common: rows, where their operands are, and how many bytes.
#pragma once

#include "launch.cuh"
#include "pyparareal/gru.h"

namespace pyparareal::cuda {

// Rows are spread over so many blocks before any gets more than it has to: the multiprocessors of an H100.
inline constexpr int64_t wanted_blocks = 132;

// Where a row of each operand is; null where there is none.
template <class T>
struct RowPointers {
  const T *u, *gates, *f, *g, *d_end, *d_every;
  T *every, *out, *d_gates, *d_hidden;
};

template <class Operand>
__device__ __forceinline__ auto row_of(const Operand& operand, int64_t slice, int64_t batch) {
  return operand.data ? operand.column(slice, batch) : decltype(operand.data){};
}

template <class T>
__device__ __forceinline__ void point_at(RowPointers<T>& at, const GruTask<T>& task, int64_t column) {
  const ColumnTask<T>& c = task.columns;
  const int64_t slice = column / c.space.batches, batch = column % c.space.batches;
  at.u = row_of(c.u, slice, batch), at.gates = row_of(task.gates, slice, batch);
  at.f = row_of(c.f, slice, batch), at.g = row_of(c.g, slice, batch);
  at.every = row_of(c.every, slice, batch), at.out = row_of(c.out, slice, batch);
}

template <class T>
__device__ __forceinline__ void point_at(RowPointers<T>& at, const GruAdjointTask<T>& task, int64_t column) {
  const int64_t slice = column / task.space.batches, batch = column % task.space.batches;
  at.u = row_of(task.u, slice, batch), at.gates = row_of(task.gates, slice, batch);
  at.d_end = row_of(task.d_end, slice, batch), at.d_every = row_of(task.d_every, slice, batch);
  at.d_gates = row_of(task.d_gates, slice, batch), at.d_hidden = row_of(task.d_hidden, slice, batch);
  at.out = row_of(task.d_start, slice, batch);
}

inline Status too_wide(const ConstView& states, int rows) {
  Status status;
  status.code = StatusCode::invalid_value;
  std::snprintf(status.message, sizeof status.message,
                "u: got %lld hidden units, expected fewer: the states of %d rows do not fit into shared memory",
                static_cast<long long>(states.shape[states.ndim - 1]), rows);
  return status;
}

}  // namespace pyparareal::cuda
