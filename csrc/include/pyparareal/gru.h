// SPDX-License-Identifier: BSD-3-Clause
// What a call of relax_gru, or of its adjoint, works on, for host and device. A row is one state [hidden] of one slice
// and batch index: a column of columns.h.
#pragma once

#include "pyparareal/columns.h"
#include "pyparareal/types.h"

namespace pyparareal {

inline constexpr int gru_gates = 3;  // r, z, n

// The weights of the hidden side, of any strides.
template <class T>
struct GruWeights {
  int64_t hidden;
  const T *weight, *bias;  // [3 hidden, hidden]; [hidden] or null, which is zeros
  int64_t row_stride, stride, bias_stride;

  GruWeights(const ConstView& weight_view, const ConstView& bias_view)
      : hidden(weight_view.shape[1]),
        weight(static_cast<const T*>(weight_view.data)),
        bias(bias_view.present() ? static_cast<const T*>(bias_view.data) : nullptr),
        row_stride(weight_view.stride[0]),
        stride(weight_view.stride[1]),
        bias_stride(bias_view.present() ? bias_view.stride[0] : 0) {}

  PYPARAREAL_HD T at(int64_t row, int64_t column) const { return weight[row * row_stride + column * stride]; }
  PYPARAREAL_HD T bias_at(int64_t i) const { return bias ? bias[i * bias_stride] : T(0); }
};

template <class T>
struct GruTask {
  ColumnTask<T> columns;
  ColumnOperand<const T> gates;
  GruWeights<T> weights;

  GruTask(const MutableView& out, const ConstView& u, const ConstView& gates_view, const ConstView& weight,
          const ConstView& bias, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every)
      : columns(out, u, m, f, g, every), gates(column_operand<const T>(gates_view, true)), weights(weight, bias) {}
};

template <class T>
struct GruAdjointTask {
  ColumnSpace space;
  int64_t m;
  ColumnOperand<const T> u, gates, d_end, d_every;
  ColumnOperand<T> d_start, d_gates, d_hidden;
  GruWeights<T> weights;

  GruAdjointTask(const MutableView& start, const MutableView& of_gates, const MutableView& of_hidden,
                 const ConstView& states, const ConstView& gates_view, const ConstView& weight, const ConstView& bias,
                 const ConstView& end, const ConstView& every)
      : space(column_space_of(end)),
        m(states.shape[1]),
        u(column_operand<const T>(states, true)),
        gates(column_operand<const T>(gates_view, true)),
        d_end(column_operand<const T>(end, false)),
        d_every(column_operand<const T>(every, true)),
        d_start(column_operand<T>(start, false)),
        d_gates(column_operand<T>(of_gates, true)),
        d_hidden(column_operand<T>(of_hidden, true)),
        weights(weight, bias) {}
};

}  // namespace pyparareal
