// SPDX-License-Identifier: BSD-3-Clause
// Index arithmetic of the time axis and of strided features, shared by host and device.
#pragma once

#ifndef __CUDACC_RTC__
#include <type_traits>
#endif

#include "pyparareal/formulas.h"
#include "pyparareal/types.h"

namespace pyparareal {

// The order of every sum (reference.py): slices of chunks of interleaved lanes.
inline constexpr int64_t lanes = 64;
inline constexpr int64_t chunk = 1024;

PYPARAREAL_HD int64_t chunks_of(int64_t features) { return (features + chunk - 1) / chunk; }

// One operand: where slice n starts, and where feature i lies within a slice. Neighbouring axes that
// are contiguous to each other are merged, so `ndim` is 1 and `stride[0]` is 1 on the fast path.
struct Layout {
  int64_t slice_stride = 0;
  int32_t ndim = 1;
  int64_t shape[max_ndim];
  int64_t stride[max_ndim];

  PYPARAREAL_HD Layout() { shape[0] = stride[0] = 1; }

  PYPARAREAL_HD bool contiguous() const { return ndim == 1 && stride[0] == 1; }

  PYPARAREAL_HD int64_t offset(int64_t feature) const {
    int64_t at = 0;
    PYPARAREAL_NO_UNROLL
    for (int axis = ndim - 1; axis > 0; --axis) {
      const int64_t rest = feature / shape[axis];
      at += (feature - rest * shape[axis]) * stride[axis];
      feature = rest;
    }
    return at + feature * stride[0];
  }
};

// The iteration space of an op: its operands have equal shapes, seen as [slices, features].
struct Space {
  int64_t slices = 0;
  int64_t features = 1;

  PYPARAREAL_HD int64_t chunks() const { return chunks_of(features); }
};

template <class Pointer>
Space space_of(const View<Pointer>& view) {
  Space space;
  space.slices = view.shape[0];
  for (int axis = 1; axis < view.ndim; ++axis) space.features *= view.shape[axis];
  return space;
}

template <class Pointer>
Layout layout_of(const View<Pointer>& view) {
  Layout layout;
  if (!view.present()) return layout;
  layout.slice_stride = view.stride[0];
  int axes = 0;
  for (int axis = 1; axis < view.ndim; ++axis) {
    const int64_t size = view.shape[axis], stride = view.stride[axis];
    if (size == 1) continue;
    if (axes > 0 && layout.stride[axes - 1] == size * stride) {
      layout.shape[axes - 1] *= size;
      layout.stride[axes - 1] = stride;
    } else {
      layout.shape[axes] = size;
      layout.stride[axes] = stride;
      ++axes;
    }
  }
  layout.ndim = axes == 0 ? 1 : axes;
  return layout;
}

#ifndef __CUDACC_RTC__
// The view of the C-points start, start + step, ... of a time grid: `count` slices of `view`.
template <class Pointer>
View<Pointer> time_points(View<Pointer> view, int64_t start, int64_t step, int64_t count, std::size_t item_bytes) {
  using Byte = typename std::conditional<std::is_const<typename std::remove_pointer<Pointer>::type>::value, const char,
                                         char>::type;
  if (count > 0) view.data = static_cast<Byte*>(view.data) + start * view.stride[0] * static_cast<int64_t>(item_bytes);
  if (count > 1) view.stride[0] *= step;  // else the step is never taken, and may be past any int64
  view.shape[0] = count;
  return view;
}
#endif

}  // namespace pyparareal
