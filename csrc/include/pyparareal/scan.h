// SPDX-License-Identifier: BSD-3-Clause
// Operands and formulas of the scans, for host and device; pyparareal/reference_scan.py has the order of operations.
#pragma once

#include "pyparareal/layout.h"
#include "pyparareal/types.h"

#ifdef __CUDACC__
#define PYPARAREAL_UNROLL_BLOCK _Pragma("unroll")
#else
#define PYPARAREAL_UNROLL_BLOCK _Pragma("GCC unroll 4")
#endif

namespace pyparareal {

// Rows of a chunk, chunks of a group, and the largest blocks whose products are formed.
inline constexpr int scan_rows = 16, scan_chunks = 16, scan_chunked = 4;
inline constexpr int64_t scan_group = scan_rows * scan_chunks;

// A lane is one recurrence: an index of the batch and feature axes, of blocks without their own.
template <class T>
struct ScanOperand {
  T* data = nullptr;  // null: absent
  Layout lanes;       // rows are its slices
  int64_t p = 0, q = 0;

  PYPARAREAL_HD T* at(int64_t row, int64_t lane) const { return data + row * lanes.slice_stride + lanes.offset(lane); }

  // The same rows from the last on, `beyond` rows further.
  void reverse(int64_t steps, int64_t beyond) {
    data += (steps - 1 + beyond) * lanes.slice_stride;
    lanes.slice_stride = -lanes.slice_stride;
  }
};

template <class T, class Pointer>
ScanOperand<T> scan_operand(View<Pointer> view, int own_axes) {
  ScanOperand<T> operand;
  if (!view.present()) return operand;
  operand.data = static_cast<T*>(view.data);
  if (own_axes > 0) operand.p = view.stride[view.ndim - own_axes], operand.q = view.stride[view.ndim - 1];
  view.ndim -= own_axes;
  operand.lanes = layout_of(view);
  return operand;
}

// A recurrence that runs upwards: a reverse one has its rows from the last on, and its blocks transposed. `a` of row 0
// may not be read where `start` is absent: there is none.
template <class T>
struct ScanTask {
  int64_t steps, lanes = 1, d = 1;
  ScanOperand<const T> a, b, start;
  ScanOperand<T> u;

  // `start` has an axis of one row in front.
  ScanTask(const MutableView& u_view, const ConstView& a_view, const ConstView& b_view, const ConstView& start_view,
           bool blocks, bool reverse)
      : steps(b_view.shape[0]),
        a(scan_operand<const T>(a_view, blocks ? 2 : 0)),
        b(scan_operand<const T>(b_view, blocks ? 1 : 0)),
        start(scan_operand<const T>(start_view, blocks ? 1 : 0)),
        u(scan_operand<T>(u_view, blocks ? 1 : 0)) {
    const int last = b_view.ndim - (blocks ? 1 : 0);
    for (int axis = 1; axis < last; ++axis) lanes *= b_view.shape[axis];
    if (blocks) d = b_view.shape[last];
    if (!reverse) return;
    a.reverse(steps, 1), b.reverse(steps, 0), u.reverse(steps, 0);
    const int64_t p = a.p;
    a.p = a.q, a.q = p;
  }
};

// y = a x + b
template <int d, class V>
PYPARAREAL_HD void scan_apply(V* y, const V* a, const V* x, const V* b) {
  PYPARAREAL_UNROLL_BLOCK
  for (int p = 0; p < d; ++p) {
    V sum = a[p * d] * x[0];
    PYPARAREAL_UNROLL_BLOCK
    for (int q = 1; q < d; ++q) sum = sum + a[p * d + q] * x[q];
    y[p] = sum + b[p];
  }
}

// (A, B) becomes the map of (A, B) and then (a, b).
template <int d, class V>
PYPARAREAL_HD void scan_then(V* A, V* B, const V* a, const V* b) {
  V moved[d];
  PYPARAREAL_UNROLL_BLOCK
  for (int column = 0; column < d; ++column) {
    PYPARAREAL_UNROLL_BLOCK
    for (int p = 0; p < d; ++p) {
      V sum = a[p * d] * A[column];
      PYPARAREAL_UNROLL_BLOCK
      for (int q = 1; q < d; ++q) sum = sum + a[p * d + q] * A[q * d + column];
      moved[p] = sum;
    }
    PYPARAREAL_UNROLL_BLOCK
    for (int p = 0; p < d; ++p) A[p * d + column] = moved[p];
  }
  scan_apply<d>(moved, a, B, b);
  PYPARAREAL_UNROLL_BLOCK
  for (int p = 0; p < d; ++p) B[p] = moved[p];
}

}  // namespace pyparareal
