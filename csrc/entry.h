// SPDX-License-Identifier: BSD-3-Clause
// What the entry points of ops.h have in common: checks in order, and the way to the device of the operands.
#pragma once

#include "backend.h"
#include "validate.h"

namespace pyparareal {

// What relax_rk checks of its arguments, whatever the right-hand side of `components` is.
Status valid_rk(const MutableView& out, const ConstView& u, const RungeKutta& scheme, const ConstView& steps,
                const ConstView& times, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                const ConstView& target, const MutableView& norms, Norm norm, int64_t components);

// The first failed check, or ok.
template <class... Checks>
Status first_failure(const Checks&... checks) {
  Status status;
  (void)((status = checks(), status.ok()) && ...);
  return status;
}

inline Status valid_norm(Norm norm) {
  const int32_t value = static_cast<int32_t>(norm);
  if (value < 0 || value > 2)
    return validate::fail(StatusCode::invalid_value, "norm: got %d, expected sum_squares, sum_abs or max_abs", value);
  return {};
}

inline Status valid_exec(const Exec& exec) {
  if (exec.threads < 0)
    return validate::fail(StatusCode::invalid_value, "threads: got %d, expected 0 (the default) or more", exec.threads);
  return {};
}

template <class Pointer>
bool no_elements(const View<Pointer>& view) {
  const Space space = space_of(view);
  return space.slices == 0 || space.features == 0;
}

// Runs `on_cpu` or `on_cuda` by where the operands live.
template <class OnCpu, class OnCuda>
Status on_device(Device device, const OnCpu& on_cpu, const OnCuda& on_cuda) {
  if (device == Device::cpu) return on_cpu();
#if PYPARAREAL_WITH_CUDA
  return on_cuda();
#else
  (void)on_cuda;
  return validate::fail(StatusCode::invalid_value,
                        "device: got cuda, but this build has no CUDA kernels: rebuild with PYPARAREAL_CUDA=1");
#endif
}

}  // namespace pyparareal
