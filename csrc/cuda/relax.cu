// SPDX-License-Identifier: BSD-3-Clause
// relax_diagonal, a thread per element, and relax_rk, a thread per trajectory: all steps in registers.
#include <cmath>
#include <type_traits>

#include "../backend.h"
#include "launch.cuh"
#include "pyparareal/rhs.h"
#include "pyparareal/rk_kernel.h"

namespace pyparareal::cuda {
namespace {

inline constexpr int relax_threads = 128;

template <class T>
struct DiagonalTask {
  Space space;
  int64_t m, period;  // of `every`
  ElementOperand<const T> u, a, f, g;
  ElementOperand<T> every, out;
};

// Where an element of an operand is at step 0.
template <class T>
__device__ __forceinline__ T* element(const ElementOperand<T>& operand, int64_t slice, int64_t feature) {
  return operand.data + slice * operand.layout.slice_stride + operand.layout.offset(feature);
}

template <class T>
__global__ void __launch_bounds__(relax_threads, 8) diagonal_kernel(DiagonalTask<T> task) {
  const int64_t elements = task.space.slices * task.space.features;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t slice = i / task.space.features, feature = i % task.space.features;
    T x = *element(task.u, slice, feature);
    const T a = *element(task.a, slice, feature);
    const T* f = task.f.data ? element(task.f, slice, feature) : nullptr;
    const T* g = task.g.data ? element(task.g, slice, feature) : nullptr;
    T* every = task.every.data ? element(task.every, slice, feature) : nullptr;
    Kept kept(task.period);
    for (int64_t j = 0; j < task.m; ++j) {
      x = a * x;
      if (g)
        x = f[j * task.f.step_stride] + (x - g[j * task.g.step_stride]);
      else if (f)
        x = x + f[j * task.f.step_stride];
      if (every && kept.next()) *every = x, every += task.every.step_stride;
    }
    if (task.out.data) *element(task.out, slice, feature) = x;
  }
}

struct ScalarMath {
  static PYPARAREAL_HD void square_root(double& x) { x = ::sqrt(x); }
  static PYPARAREAL_HD void square_root(float& x) { x = ::sqrtf(x); }
};

template <int most, bool own_steps, class Rhs, class T>
__global__ void __launch_bounds__(rk_threads)
    rk_kernel(ColumnTask<T> task, Rhs rhs, Coefficients<T> by, StepSizes steps) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  rk_columns<ScalarMath, most, own_steps, false>(task, rhs, by, steps, StepTimes{}, first,
                                                 static_cast<int64_t>(gridDim.x) * blockDim.x);
}

}  // namespace

Status relax_diagonal(const MutableView& out, const ConstView& u, const ConstView& a, int64_t m, const ConstView& f,
                      const ConstView& g, const MutableView& every, const EndNorms& norms, const Exec& exec) {
  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const Status launched = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const DiagonalTask<T> task{space_of(u), m,         period_of(every, m), {u, false},  {a, false},
                               {f, true},   {g, true}, {every, true},       {out, false}};
    return launch("relax_diagonal", diagonal_kernel<T>,
                  blocks_for(task.space.slices * task.space.features, relax_threads), relax_threads, 0, exec.stream,
                  task);
  });
  return then_norms(launched, norms);
}

Status relax_rk(const MutableView& out, const ConstView& u, const RungeKutta& scheme, const ConstView& steps, int64_t m,
                const ConstView& f, const ConstView& g, const MutableView& every, const EndNorms& norms,
                const Exec& exec) {
  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const bool own_steps = steps.present();
  const StepSizes sizes(steps);
  const Status launched = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ColumnTask<T> task(out, u, m, f, g, every);
    const Coefficients<T> by(scheme, own_steps);
    const auto launch_this = [&](auto* kernel, const auto& rhs) {
      return launch("relax_rk", kernel, blocks_for(task.space.columns(), rk_threads), rk_threads, 0, exec.stream, task,
                    rhs, by, sizes);
    };
    return with_rhs<T>(scheme, [&](const auto& rhs) {
      using Rhs = std::decay_t<decltype(rhs)>;
      if (scheme.stages <= few_stages)
        return own_steps ? launch_this(rk_kernel<few_stages, true, Rhs, T>, rhs)
                         : launch_this(rk_kernel<few_stages, false, Rhs, T>, rhs);
      return own_steps ? launch_this(rk_kernel<max_stages, true, Rhs, T>, rhs)
                       : launch_this(rk_kernel<max_stages, false, Rhs, T>, rhs);
    });
  });
  return then_norms(launched, norms);
}

}  // namespace pyparareal::cuda
