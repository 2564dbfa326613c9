// SPDX-License-Identifier: BSD-3-Clause
// What a call of relax_dense, or of its adjoint, works on, for host and device. A row is one state [d] of one slice and
// batch index: a column of columns.h.
#pragma once

#include "pyparareal/columns.h"
#include "pyparareal/types.h"

namespace pyparareal {

// The same [slices, m, ...] with the last step of the last slice first.
template <class Pointer>
View<Pointer> last_to_first(View<Pointer> view) {
  if (!view.present()) return view;
  using Byte = typename std::conditional<std::is_const<typename std::remove_pointer<Pointer>::type>::value, const char,
                                         char>::type;
  const int64_t size = view.dtype == DType::float64 ? 8 : 4;
  for (int axis = 0; axis < 2; ++axis) {
    view.data = static_cast<Byte*>(view.data) + (view.shape[axis] - 1) * view.stride[axis] * size;
    view.stride[axis] = -view.stride[axis];
  }
  return view;
}

// The weights of all steps, of any strides.
template <class T>
struct DenseWeights {
  int64_t d;
  const T *weight, *bias;  // [slices, m, d, d], element (out, in); [slices, m, d] or null, which is zeros
  int64_t slice_stride, step_stride, out_stride, in_stride;
  int64_t bias_slice_stride, bias_step_stride, bias_stride;

  DenseWeights(const ConstView& w, const ConstView& b)
      : d(w.shape[3]),
        weight(static_cast<const T*>(w.data)),
        bias(b.present() ? static_cast<const T*>(b.data) : nullptr),
        slice_stride(w.stride[0]),
        step_stride(w.stride[1]),
        out_stride(w.stride[2]),
        in_stride(w.stride[3]),
        bias_slice_stride(bias ? b.stride[0] : 0),
        bias_step_stride(bias ? b.stride[1] : 0),
        bias_stride(bias ? b.stride[2] : 0) {}

  PYPARAREAL_HD const T* weight_of(int64_t slice, int64_t j) const {
    return weight + slice * slice_stride + j * step_stride;
  }
  PYPARAREAL_HD const T* bias_of(int64_t slice, int64_t j) const {
    return bias ? bias + slice * bias_slice_stride + j * bias_step_stride : nullptr;
  }
  PYPARAREAL_HD bool contiguous() const { return in_stride == 1 && out_stride == d; }
};

// u <- u + h act(W u + b)
template <class T>
struct DenseTask {
  ColumnTask<T> columns;
  DenseWeights<T> weights;
  ColumnOperand<T> slopes;  // h act'(W u + b)
  T h;
  DenseActivation activation;

  DenseTask(const MutableView& out, const ConstView& u, const ConstView& weight, const ConstView& bias, double step,
            DenseActivation kind, int64_t m, const MutableView& slopes_view, const ConstView& f, const ConstView& g,
            const MutableView& every)
      : columns(out, u, m, f, g, every),
        weights(weight, bias),
        slopes(column_operand<T>(slopes_view, true)),
        h(static_cast<T>(step)),
        activation(kind) {}
};

// v <- v + scale W^T (slopes * v), the weights and slopes from last to first
template <class T>
struct DenseAdjointTask {
  ColumnTask<T> columns;
  DenseWeights<T> weights;
  ColumnOperand<const T> slopes;
  T scale;

  DenseAdjointTask(const MutableView& out, const ConstView& v, const ConstView& weight, const ConstView& slopes_view,
                   double factor, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every)
      : columns(out, v, m, f, g, every),
        weights(last_to_first(weight), ConstView{}),
        slopes(column_operand<const T>(last_to_first(slopes_view), true)),
        scale(static_cast<T>(factor)) {}
};

}  // namespace pyparareal
