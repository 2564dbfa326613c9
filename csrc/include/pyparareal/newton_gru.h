// SPDX-License-Identifier: BSD-3-Clause
// What a call of newton_gru works on, for host and device. A row is a step; its lanes are the units of all batch
// indices, as those of the scan that it is.
#pragma once

#include "pyparareal/columns.h"
#include "pyparareal/types.h"

namespace pyparareal {

template <class T>
struct NewtonGruTask {
  int64_t steps, lanes, hidden;
  T factor;
  ColumnOperand<const T> u, products, gates;  // slices are rows
  ColumnOperand<T> out, jacobians;
  const T *diagonal, *bias;  // [3, hidden]; [hidden] or null, which is zeros
  int64_t gate_stride, diagonal_stride, bias_stride;

  NewtonGruTask(const MutableView& out_view, const MutableView& jacobian_view, const ConstView& u_view,
                const ConstView& product_view, const ConstView& gate_view, const ConstView& diagonal_view,
                const ConstView& bias_view, double scale)
      : steps(out_view.shape[0]),
        lanes(column_space_of(out_view).batches * column_space_of(out_view).length),
        hidden(column_space_of(out_view).length),
        factor(static_cast<T>(scale)),
        u(column_operand<const T>(u_view, false)),
        products(column_operand<const T>(product_view, false)),
        gates(column_operand<const T>(gate_view, false)),
        out(column_operand<T>(out_view, false)),
        jacobians(column_operand<T>(jacobian_view, false)),
        diagonal(static_cast<const T*>(diagonal_view.data)),
        bias(bias_view.present() ? static_cast<const T*>(bias_view.data) : nullptr),
        gate_stride(diagonal_view.stride[0]),
        diagonal_stride(diagonal_view.stride[1]),
        bias_stride(bias_view.present() ? bias_view.stride[0] : 0) {}

  PYPARAREAL_HD T diagonal_at(int gate, int64_t i) const { return diagonal[gate * gate_stride + i * diagonal_stride]; }
  PYPARAREAL_HD T bias_at(int64_t i) const { return bias ? bias[i * bias_stride] : T(0); }
};

// |x| as a number that norms take the largest of; a NaN is the same one everywhere.
template <class T>
PYPARAREAL_HD double newton_magnitude(T x) {
  const double d = magnitude_of(static_cast<double>(x));
  if (d == d) return d;
  const uint64_t bits = 0x7ff8000000000000u;
  double nan;
  __builtin_memcpy(&nan, &bits, sizeof nan);
  return nan;
}

}  // namespace pyparareal
