// SPDX-License-Identifier: BSD-3-Clause
// Operands of the relaxations. A column is one state [length] of one slice and batch index, along the last axis.
// Right-hand sides and `every` have an axis of steps after that of the slices.
#pragma once

#include "pyparareal/layout.h"
#include "pyparareal/types.h"

namespace pyparareal {

struct ColumnSpace {
  int64_t slices = 0, batches = 1, length = 1;

  PYPARAREAL_HD int64_t columns() const { return slices * batches; }
};

template <class Pointer>
ColumnSpace column_space_of(const View<Pointer>& u) {
  ColumnSpace space;
  space.slices = u.shape[0];
  for (int axis = 1; axis < u.ndim - 1; ++axis) space.batches *= u.shape[axis];
  space.length = u.shape[u.ndim - 1];
  return space;
}

template <class T>
struct ColumnOperand {
  T* data = nullptr;  // null: absent
  int64_t step_stride = 0, stride = 1;
  Layout batch;  // slices, and the axes between them and the last

  PYPARAREAL_HD T* column(int64_t slice, int64_t index) const {
    return data + (slice * batch.slice_stride + batch.offset(index));
  }
};

// The view without its axis of steps.
template <class Pointer>
View<Pointer> without_steps(View<Pointer> view) {
  if (!view.present()) return view;
  for (int axis = 1; axis + 1 < view.ndim; ++axis) {
    view.shape[axis] = view.shape[axis + 1];
    view.stride[axis] = view.stride[axis + 1];
  }
  --view.ndim;
  return view;
}

template <class T, class Pointer>
ColumnOperand<T> column_operand(View<Pointer> view, bool has_steps) {
  ColumnOperand<T> operand;
  if (!view.present()) return operand;
  operand.data = static_cast<T*>(view.data);
  if (has_steps) {
    operand.step_stride = view.stride[1];
    view = without_steps(view);
  }
  operand.stride = view.stride[view.ndim - 1];
  --view.ndim;
  operand.batch = layout_of(view);
  return operand;
}

// Steps between the states that `every` receives, and after which of m steps it does.
struct Kept {
  int64_t period, left;

  PYPARAREAL_HD explicit Kept(int64_t steps_between) : period(steps_between), left(steps_between) {}
  PYPARAREAL_HD bool next() {
    if (--left > 0) return false;
    left = period;
    return true;
  }
};

inline int64_t period_of(const MutableView& every, int64_t m) { return every.present() ? m / every.shape[1] : 1; }

// An operand of relax_diagonal, where features do not meet.
template <class T>
struct ElementOperand {
  T* data;  // null: absent
  int64_t step_stride = 0;
  Layout layout;

  template <class Pointer>
  ElementOperand(const View<Pointer>& view, bool has_steps)
      : data(view.present() ? static_cast<T*>(view.data) : nullptr),
        step_stride(has_steps && view.present() ? view.stride[1] : 0),
        layout(layout_of(has_steps ? without_steps(view) : view)) {}
};

// What every relaxation of columns has.
template <class T>
struct ColumnTask {
  ColumnSpace space;
  int64_t m = 0, period = 1;  // of `every`
  ColumnOperand<const T> u, f, g;
  ColumnOperand<T> every, out;

  ColumnTask(const MutableView& out_view, const ConstView& u_view, int64_t steps, const ConstView& f_view,
             const ConstView& g_view, const MutableView& every_view)
      : space(column_space_of(u_view)),
        m(steps),
        period(period_of(every_view, steps)),
        u(column_operand<const T>(u_view, false)),
        f(column_operand<const T>(f_view, true)),
        g(column_operand<const T>(g_view, true)),
        every(column_operand<T>(every_view, true)),
        out(column_operand<T>(out_view, false)) {}
};

}  // namespace pyparareal
