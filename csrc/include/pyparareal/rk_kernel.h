// SPDX-License-Identifier: BSD-3-Clause
// relax_rk on a CUDA device: a thread per trajectory, all steps in registers. Included by csrc/cuda/relax.cu, and by
// what pyparareal/cuda_slopes.py compiles at run time, where no other header is to be had. Needs -fmad=false.
#pragma once

#include "pyparareal/coefficients.h"
#include "pyparareal/columns.h"

#ifdef __CUDACC__
#define PYPARAREAL_UNROLL _Pragma("unroll")
#else
#define PYPARAREAL_UNROLL
#endif

namespace pyparareal {

inline constexpr int rk_threads = 128;  // of a block
inline constexpr int few_stages = 4;    // there are kernels for schemes up to these, with fewer registers, and for all

// The numbers a right-hand side of the caller's may have on a device.
inline constexpr int max_device_parameters = 64;

// What a kernel compiled at run time gets, in one piece.
template <class T>
struct RungeKuttaArguments {
  ColumnTask<T> task;
  Coefficients<T> by;
  StepSizes steps;
  StepTimes times;
  T parameters[max_device_parameters];
};

// A right-hand side that knows the time has `timed` set and slope(t, u, du); the others slope<Math>(u, du).
template <class Math, bool timed, class Rhs, class T>
PYPARAREAL_HD void slope_of(const Rhs& rhs, T t, const T* u, T* du) {
  if constexpr (timed)
    rhs.slope(t, u, du);
  else
    rhs.template slope<Math>(u, du);
}

// One substep with the slopes in registers: their indices are known when compiling, whatever the scheme.
template <class Math, int most, bool own_steps, bool timed, class Rhs, class T>
PYPARAREAL_HD void rk_substep(T* u, const Rhs& rhs, const Coefficients<T>& by, T h, T t) {
  T k[most][Rhs::components];
  PYPARAREAL_UNROLL
  for (int stage = 0; stage < most; ++stage) {
    if (stage >= by.stages) break;
    T w[Rhs::components];
    PYPARAREAL_UNROLL
    for (int d = 0; d < Rhs::components; ++d) w[d] = u[d];
    PYPARAREAL_UNROLL
    for (int j = 0; j < stage; ++j) {
      if (!(by.used[stage] >> j & 1u)) continue;
      const T factor = own_steps ? by.value[stage][j] * h : by.value[stage][j];
      PYPARAREAL_UNROLL
      for (int d = 0; d < Rhs::components; ++d) w[d] = w[d] + factor * k[j][d];
    }
    T now = t;
    if (timed && (by.later >> stage & 1u)) now = t + (own_steps ? by.node[stage] * h : by.node[stage]);
    slope_of<Math, timed>(rhs, now, w, k[stage]);
  }
  PYPARAREAL_UNROLL
  for (int j = 0; j < most; ++j) {
    if (!(by.used[max_stages] >> j & 1u)) continue;
    const T factor = own_steps ? by.value[max_stages][j] * h : by.value[max_stages][j];
    PYPARAREAL_UNROLL
    for (int d = 0; d < Rhs::components; ++d) u[d] = u[d] + factor * k[j][d];
  }
}

// All substeps of one step, from time t; h is that of a substep where steps have their own.
template <class Math, int most, bool own_steps, bool timed, class Rhs, class T>
PYPARAREAL_HD void rk_step(T* u, const Rhs& rhs, const Coefficients<T>& by, T h, T t) {
  for (int64_t s = 0; s < by.substeps; ++s) {
    T begin = t;
    if (timed && s > 0) begin = t + (own_steps ? static_cast<T>(s) * h : static_cast<T>(static_cast<double>(s) * by.h));
    rk_substep<Math, most, own_steps, timed>(u, rhs, by, h, begin);
  }
}

// The columns first, first + stride, ...
template <class Math, int most, bool own_steps, bool timed, class Rhs, class T>
PYPARAREAL_HD void rk_columns(const ColumnTask<T>& task, const Rhs& rhs, const Coefficients<T>& by,
                              const StepSizes& steps, const StepTimes& times, int64_t first, int64_t stride) {
  constexpr int components = Rhs::components;
  const int64_t columns = task.space.columns();
  for (int64_t column = first; column < columns; column += stride) {
    const int64_t slice = column / task.space.batches, batch = column % task.space.batches;
    const T* start = task.u.column(slice, batch);
    const T* f = task.f.data ? task.f.column(slice, batch) : nullptr;
    const T* g = task.g.data ? task.g.column(slice, batch) : nullptr;
    T* every = task.every.data ? task.every.column(slice, batch) : nullptr;
    T u[components];
    PYPARAREAL_UNROLL
    for (int d = 0; d < components; ++d) u[d] = start[d * task.u.stride];
    Kept kept(task.period);
    for (int64_t j = 0; j < task.m; ++j) {
      const T h = own_steps ? steps.template at<T>(slice, j, by.substeps) : T(0);
      const T t = timed ? times.template at<T>(slice, j) : T(0);
      rk_step<Math, most, own_steps, timed>(u, rhs, by, h, t);
      PYPARAREAL_UNROLL
      for (int d = 0; d < components; ++d) {
        if (g)
          u[d] = f[j * task.f.step_stride + d * task.f.stride] + (u[d] - g[j * task.g.step_stride + d * task.g.stride]);
        else if (f)
          u[d] = u[d] + f[j * task.f.step_stride + d * task.f.stride];
      }
      if (!every || !kept.next()) continue;
      PYPARAREAL_UNROLL
      for (int d = 0; d < components; ++d) every[d * task.every.stride] = u[d];
      every += task.every.step_stride;
    }
    if (task.out.data) {
      T* end = task.out.column(slice, batch);
      PYPARAREAL_UNROLL
      for (int d = 0; d < components; ++d) end[d * task.out.stride] = u[d];
    }
  }
}

// A right-hand side compiled at run time, which gets its numbers by value: its columns first, first + stride, ...
template <class Rhs, int most, bool own_steps, class T>
PYPARAREAL_HD void rk_own(const RungeKuttaArguments<T>& a, int64_t first, int64_t stride) {
  rk_columns<void, most, own_steps, true>(a.task, Rhs{a.parameters}, a.by, a.steps, a.times, first, stride);
}

}  // namespace pyparareal
