// SPDX-License-Identifier: BSD-3-Clause
// The relaxations of ops.h: validate, then hand over to the device the operands live on.
#include "pyparareal/ops.h"
#include "pyparareal/rhs.h"
#include "relax_checks.h"

namespace pyparareal {
namespace {

using validate::Operand;

// A contiguous vector of numbers for the last axis of u, or of any odd length up to that of the widest stencil.
Status vector(const Operand& operand, const Operand& u, bool stencil) {
  if (Status status = validate::same_kind(operand, u); !status.ok()) return status;
  const int64_t length = u.shape[u.ndim - 1];
  const bool fits = operand.ndim == 1 && (stencil ? operand.shape[0] % 2 == 1 && operand.shape[0] <= max_stencil
                                                  : operand.shape[0] == length);
  if (!fits && stencil)
    return validate::fail(StatusCode::invalid_value, "%s: got shape %s, expected an odd number of weights up to %d",
                          operand.name, validate::describe_shape(operand).c_str(), max_stencil);
  if (!fits)
    return validate::fail(StatusCode::invalid_value, "%s: got shape %s, expected [%lld], the last axis of u",
                          operand.name, validate::describe_shape(operand).c_str(), static_cast<long long>(length));
  if (operand.shape[0] > 1 && operand.stride[0] != 1)
    return validate::fail(StatusCode::invalid_value, "%s: got stride %lld, expected a contiguous array", operand.name,
                          static_cast<long long>(operand.stride[0]));
  return {};
}

// Numbers for the last axes of u.
Status trailing(const Operand& operand, const Operand& u) {
  if (Status status = validate::same_kind(operand, u); !status.ok()) return status;
  bool fits = operand.ndim >= 1 && operand.ndim < u.ndim;
  for (int axis = 1; fits && axis <= operand.ndim; ++axis)
    fits = operand.shape[operand.ndim - axis] == u.shape[u.ndim - axis];
  if (!fits)
    return validate::fail(StatusCode::invalid_value, "%s: got shape %s, expected the last axes of u %s", operand.name,
                          validate::describe_shape(operand).c_str(), validate::describe_shape(u).c_str());
  return {};
}

// `a` with the axes of `u`; those it lacks repeat it.
ConstView broadcast(const ConstView& a, const ConstView& u) {
  ConstView wide_view = a;
  wide_view.ndim = u.ndim;
  for (int axis = 0; axis < u.ndim; ++axis) {
    const int own = axis - (u.ndim - a.ndim);
    wide_view.shape[axis] = u.shape[axis];
    wide_view.stride[axis] = own < 0 ? 0 : a.stride[own];
  }
  return wide_view;
}

Status valid_boundary(Boundary boundary) {
  const int32_t value = static_cast<int32_t>(boundary);
  if (value < 0 || value > 1)
    return validate::fail(StatusCode::invalid_value, "boundary: got %d, expected zero or periodic", value);
  return {};
}

Status has_components(const Operand& u, int64_t components) {
  if (u.shape[u.ndim - 1] != components)
    return validate::fail(StatusCode::invalid_value, "u: got shape %s, expected %lld components on the last axis",
                          validate::describe_shape(u).c_str(), static_cast<long long>(components));
  return {};
}

Status valid_function(const SlopeFunction& function, const Operand& u) {
  if (!function.address) return validate::fail(StatusCode::invalid_value, "rhs: got a null address of a function");
  if (function.dtype != u.dtype)
    return validate::fail(StatusCode::invalid_type, "rhs: got a function of %s, expected %s like u",
                          validate::name_of(function.dtype), validate::name_of(u.dtype));
  if (u.device != Device::cpu)
    return validate::fail(StatusCode::invalid_value, "rhs: got a function of the CPU, expected u on cpu, got %s",
                          validate::describe_device(u).c_str());
  return has_components(u, function.components);
}

Status valid_rhs(const RungeKutta& scheme, const Operand& u) {
  const int32_t rhs = static_cast<int32_t>(scheme.rhs);
  if (rhs < 0 || rhs > static_cast<int32_t>(RightHandSide::function))
    return validate::fail(StatusCode::invalid_value, "rhs: got %d, expected one of the right-hand sides", rhs);
  if (scheme.rhs == RightHandSide::function) return valid_function(scheme.function, u);
  return has_components(u, components_of(scheme.rhs));
}

Status valid_scheme(const RungeKutta& scheme) {
  if (scheme.stages < 1 || scheme.stages > max_stages)
    return validate::fail(StatusCode::invalid_value, "tableau: got %d stages, expected 1 to %d", scheme.stages,
                          max_stages);
  if (scheme.substeps < 1)
    return validate::fail(StatusCode::invalid_value, "substeps: got %lld, expected 1 or more",
                          static_cast<long long>(scheme.substeps));
  return {};
}

// Numbers of the steps, [slices, m].
Status valid_steps(const Operand& steps, const Operands& all) {
  if (steps.ndim == 0) return {};
  if (steps.dtype != DType::float64)
    return validate::fail(StatusCode::invalid_type, "%s: got dtype %s, expected float64", steps.name,
                          validate::name_of(steps.dtype));
  if (steps.ndim != 2 || steps.shape[0] != all.u.shape[0] || steps.shape[1] != all.m)
    return validate::fail(StatusCode::invalid_value, "%s: got shape %s, expected [%lld, %lld], slices and m",
                          steps.name, validate::describe_shape(steps).c_str(), static_cast<long long>(all.u.shape[0]),
                          static_cast<long long>(all.m));
  if (steps.device != all.u.device || steps.device_id != all.u.device_id)
    return validate::fail(StatusCode::invalid_value, "%s: got device %s, expected %s like u", steps.name,
                          validate::describe_device(steps).c_str(), validate::describe_device(all.u).c_str());
  return {};
}

bool has_columns(const ConstView& u) { return u.ndim >= 2; }

}  // namespace

std::size_t relax_tridiagonal_workspace_bytes(const ConstView& u, int32_t threads) {
  if (!has_columns(u) || no_elements(u)) return 0;
  const ColumnSpace space = column_space_of(u);
#if PYPARAREAL_WITH_CUDA
  if (u.device == Device::cuda) return cuda::relax_tridiagonal_workspace_bytes(space, u.dtype, threads);
#endif
  return cpu::relax_tridiagonal_workspace_bytes(space, u.dtype, threads);
}

std::size_t relax_stencil_workspace_bytes(const ConstView& u, int32_t threads) {
  if (!has_columns(u) || no_elements(u)) return 0;
  const ColumnSpace space = column_space_of(u);
#if PYPARAREAL_WITH_CUDA
  if (u.device == Device::cuda) return cuda::relax_stencil_workspace_bytes(space, u.dtype, threads);
#endif
  return cpu::relax_stencil_workspace_bytes(space, u.dtype, threads);
}

Status relax_diagonal(MutableView out, ConstView u, ConstView a, int64_t m, ConstView f, ConstView g, MutableView every,
                      ConstView target, MutableView norms, Norm norm, Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand factors("a", a);
  const Status status = first_failure([&] { return wide(all.u); }, [&] { return trailing(factors, all.u); },
                                      [&] { return valid_relaxation(all, {factors}, exec); },
                                      [&] { return valid_scratch("relax_diagonal", 0, u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  const ConstView repeated = broadcast(a, u);
  return on_device(
      u.device, [&] { return cpu::relax_diagonal(out, u, repeated, m, f, g, every, ends, exec); },
      [&] { return cuda::relax_diagonal(out, u, repeated, m, f, g, every, ends, exec); });
}

Status relax_tridiagonal(MutableView out, ConstView u, ConstView ratio, ConstView scale, ConstView coupling, int64_t m,
                         ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
                         Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand r("ratio", ratio), s("scale", scale), c("coupling", coupling);
  const Status status = first_failure(
      [&] { return wide(all.u); }, [&] { return vector(r, all.u, false); }, [&] { return vector(s, all.u, false); },
      [&] { return vector(c, all.u, false); }, [&] { return valid_relaxation(all, {r, s, c}, exec); },
      [&] { return valid_scratch("relax_tridiagonal", relax_tridiagonal_workspace_bytes(u, 1), u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  return on_device(
      u.device, [&] { return cpu::relax_tridiagonal(out, u, ratio, scale, coupling, m, f, g, every, ends, exec); },
      [&] { return cuda::relax_tridiagonal(out, u, ratio, scale, coupling, m, f, g, every, ends, exec); });
}

Status relax_stencil(MutableView out, ConstView u, ConstView weights, Boundary boundary, int64_t m, ConstView f,
                     ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm, Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand w("weights", weights);
  const Status status =
      first_failure([&] { return wide(all.u); }, [&] { return vector(w, all.u, true); },
                    [&] { return valid_boundary(boundary); }, [&] { return valid_relaxation(all, {w}, exec); },
                    [&] { return valid_scratch("relax_stencil", relax_stencil_workspace_bytes(u, 1), u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  return on_device(
      u.device, [&] { return cpu::relax_stencil(out, u, weights, boundary, m, f, g, every, ends, exec); },
      [&] { return cuda::relax_stencil(out, u, weights, boundary, m, f, g, every, ends, exec); });
}

std::size_t relax_rk_workspace_bytes(const ConstView& u, const RungeKutta& scheme, int32_t threads) {
  if (scheme.rhs != RightHandSide::function || !has_columns(u) || no_elements(u)) return 0;
  return cpu::relax_function_workspace_bytes(column_space_of(u), scheme, threads);
}

Status valid_rk(const MutableView& out, const ConstView& u, const RungeKutta& scheme, const ConstView& steps,
                const ConstView& times, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                const ConstView& target, const MutableView& norms, Norm norm, int64_t components) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand dt("dt", steps), t("times", times);
  return first_failure([&] { return wide(all.u); }, [&] { return valid_scheme(scheme); },
                       [&] { return has_components(all.u, components); }, [&] { return valid_steps(dt, all); },
                       [&] { return valid_steps(t, all); }, [&] { return valid_relaxation(all, {dt, t}, {}); });
}

Status relax_rk(MutableView out, ConstView u, const RungeKutta& scheme, ConstView steps, ConstView times, int64_t m,
                ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
                Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand dt("dt", steps), t("times", times);
  const Status status =
      first_failure([&] { return wide(all.u); }, [&] { return valid_scheme(scheme); },
                    [&] { return valid_rhs(scheme, all.u); }, [&] { return valid_steps(dt, all); },
                    [&] { return valid_steps(t, all); }, [&] { return valid_relaxation(all, {dt, t}, exec); },
                    [&] { return valid_scratch("relax_rk", relax_rk_workspace_bytes(u, scheme, 1), u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  if (scheme.rhs == RightHandSide::function)
    return cpu::relax_function(out, u, scheme, steps, times, m, f, g, every, ends, exec);
  return on_device(
      u.device, [&] { return cpu::relax_rk(out, u, scheme, steps, m, f, g, every, ends, exec); },
      [&] { return cuda::relax_rk(out, u, scheme, steps, m, f, g, every, ends, exec); });
}

}  // namespace pyparareal
