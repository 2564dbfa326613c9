// SPDX-License-Identifier: BSD-3-Clause
// The relaxations of ops.h: validate, then hand over to the device the operands live on.
#include <algorithm>

#include "entry.h"
#include "pyparareal/ops.h"
#include "pyparareal/rhs.h"

namespace pyparareal {
namespace {

using validate::Operand;

// The operands every relaxation has.
struct Operands {
  Operand out, u, f, g, every, target, norms;
  int64_t m;
  Norm norm;

  Operands(const MutableView& out_view, const ConstView& u_view, int64_t steps, const ConstView& f_view,
           const ConstView& g_view, const MutableView& every_view, const ConstView& target_view,
           const MutableView& norms_view, Norm kind)
      : out("out", out_view),
        u("u", u_view),
        f("f", f_view),
        g("g", g_view),
        every("every", every_view),
        target("target", target_view),
        norms("norms", norms_view),
        m(steps),
        norm(kind) {}
};

Status wide(const Operand& operand) {
  if (operand.dtype != DType::float64 && operand.dtype != DType::float32)
    return validate::fail(
        StatusCode::invalid_type,
        "%s: got dtype %s, expected float64 or float32: relaxations do not round every step to 16 bits", operand.name,
        validate::name_of(operand.dtype));
  if (operand.ndim < 2 || operand.ndim >= max_ndim)
    return validate::fail(StatusCode::invalid_value, "%s: got %d axes, expected 2 to %d: [slices, batch, features...]",
                          operand.name, operand.ndim, max_ndim - 1);
  return {};
}

// [slices, m, batch, features...], or where only some states are kept, as many as divide m in place of m.
Status like_steps(const Operand& operand, const Operands& all, bool some = false) {
  if (operand.ndim == 0) return {};
  if (Status status = validate::same_kind(operand, all.u); !status.ok()) return status;
  const int64_t steps = operand.ndim > 1 ? operand.shape[1] : 0;
  const bool fits = steps == all.m || (some && steps >= 1 && all.m % steps == 0);
  bool same = operand.ndim == all.u.ndim + 1 && operand.shape[0] == all.u.shape[0] && fits;
  for (int axis = 1; same && axis < all.u.ndim; ++axis) same = operand.shape[axis + 1] == all.u.shape[axis];
  if (!same)
    return validate::fail(StatusCode::invalid_value,
                          "%s: got shape %s, expected [slices, m, ...] of m = %lld steps of u %s%s", operand.name,
                          validate::describe_shape(operand).c_str(), static_cast<long long>(all.m),
                          validate::describe_shape(all.u).c_str(), some ? ", or a divisor of m in place of m" : "");
  return {};
}

Status valid_outputs(const Operands& all, std::initializer_list<Operand> coefficients) {
  const auto check = [&](const Operand& output, const Operand& other) -> Status {
    if (output.ndim == 0) return {};
    if (Status status = validate::writable(output, {all.u, all.f, all.g, other}); !status.ok()) return status;
    return validate::writable(output, coefficients);
  };
  if (all.out.ndim == 0 && all.every.ndim == 0)
    return validate::fail(StatusCode::invalid_value, "out: got none, expected an array unless every is given");
  return first_failure([&] { return check(all.out, all.every); }, [&] { return check(all.every, all.out); });
}

Status valid_norms(const Operands& all, std::initializer_list<Operand> coefficients) {
  if ((all.target.ndim > 0) != (all.norms.ndim > 0))
    return validate::fail(StatusCode::invalid_value, "norms: got %s, expected %s", all.norms.ndim ? "an array" : "none",
                          all.norms.ndim ? "target as well" : "a float64 array, because target is given");
  if (all.target.ndim == 0) return {};
  return first_failure(
      [&] { return valid_norm(all.norm); }, [&] { return validate::same_state(all.target, all.u); },
      [&] { return validate::apart(all.out, all.target); }, [&] { return validate::apart(all.every, all.target); },
      [&] { return validate::norms(all.norms, all.u); },
      [&] { return validate::writable(all.norms, {all.u, all.f, all.g, all.target, all.out, all.every}); },
      [&] { return validate::writable(all.norms, coefficients); });
}

Status valid_relaxation(const Operands& all, std::initializer_list<Operand> coefficients, const Exec& exec) {
  return first_failure([&] { return wide(all.u); },
                       [&] {
                         return all.m >= 1
                                    ? Status{}
                                    : validate::fail(StatusCode::invalid_value, "m: got %lld, expected 1 or more",
                                                     static_cast<long long>(all.m));
                       },
                       [&] { return all.out.ndim ? validate::same_state(all.out, all.u) : Status{}; },
                       [&] { return like_steps(all.f, all); }, [&] { return like_steps(all.g, all); },
                       [&] { return like_steps(all.every, all, true); },
                       [&] {
                         return all.g.ndim == 0 || all.f.ndim > 0
                                    ? Status{}
                                    : validate::fail(StatusCode::invalid_value, "g: got an array, expected f as well");
                       },
                       [&] { return valid_outputs(all, coefficients); }, [&] { return valid_norms(all, coefficients); },
                       [&] { return valid_exec(exec); });
}

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

Status valid_scheme(const RungeKutta& scheme, const Operand& u) {
  const int32_t rhs = static_cast<int32_t>(scheme.rhs);
  if (rhs < 0 || rhs > static_cast<int32_t>(RightHandSide::arenstorf))
    return validate::fail(StatusCode::invalid_value, "rhs: got %d, expected one of the right-hand sides", rhs);
  if (scheme.stages < 1 || scheme.stages > max_stages)
    return validate::fail(StatusCode::invalid_value, "tableau: got %d stages, expected 1 to %d", scheme.stages,
                          max_stages);
  if (scheme.substeps < 1)
    return validate::fail(StatusCode::invalid_value, "substeps: got %lld, expected 1 or more",
                          static_cast<long long>(scheme.substeps));
  if (u.shape[u.ndim - 1] != components_of(scheme.rhs))
    return validate::fail(StatusCode::invalid_value, "u: got shape %s, expected %d components on the last axis",
                          validate::describe_shape(u).c_str(), components_of(scheme.rhs));
  return {};
}

Status valid_steps(const Operand& steps, const Operands& all) {
  if (steps.ndim == 0) return {};
  if (steps.dtype != DType::float64)
    return validate::fail(StatusCode::invalid_type, "dt: got dtype %s, expected float64",
                          validate::name_of(steps.dtype));
  if (steps.ndim != 2 || steps.shape[0] != all.u.shape[0] || steps.shape[1] != all.m)
    return validate::fail(StatusCode::invalid_value, "dt: got shape %s, expected [%lld, %lld], slices and m",
                          validate::describe_shape(steps).c_str(), static_cast<long long>(all.u.shape[0]),
                          static_cast<long long>(all.m));
  if (steps.device != all.u.device || steps.device_id != all.u.device_id)
    return validate::fail(StatusCode::invalid_value, "dt: got device %s, expected %s like u",
                          validate::describe_device(steps).c_str(), validate::describe_device(all.u).c_str());
  return {};
}

// `own` scratch of the op, and that of the norms.
Status valid_scratch(const char* op, std::size_t own, const ConstView& u, const Operands& all, const Exec& exec) {
  const std::size_t more = all.norms.ndim ? slice_norms_workspace_bytes(u) : 0;
  char names[64];
  std::snprintf(names, sizeof names, "%s%s%s", more ? "slice_norms" : "", more && own ? " and " : "", own ? op : "");
  return validate::workspace(names, own + more, exec);
}

ConstView as_input(const MutableView& view) {
  ConstView input;
  input.data = view.data, input.dtype = view.dtype, input.device = view.device, input.device_id = view.device_id;
  input.ndim = view.ndim;
  for (int axis = 0; axis < view.ndim; ++axis) {
    input.shape[axis] = view.shape[axis];
    input.stride[axis] = view.stride[axis];
  }
  return input;
}

// The norms that were asked for, with the first part of the scratch; the rest of it stays in `exec`.
EndNorms end_norms(const MutableView& out, const MutableView& every, const ConstView& target, const MutableView& norms,
                   Norm norm, Exec& exec) {
  EndNorms result;
  if (!norms.present()) return result;
  result.ends = as_input(out.present() ? out : every);
  if (!out.present()) {
    const int64_t last = (every.shape[1] - 1) * every.stride[1];
    result.ends.data =
        static_cast<const char*>(every.data) + last * static_cast<int64_t>(validate::item_bytes(every.dtype));
    result.ends = without_steps(result.ends);
  }
  result.target = target, result.norms = norms, result.norm = norm, result.exec = exec;
  const std::size_t bytes = slice_norms_workspace_bytes(target);
  exec.workspace_bytes -= std::min(bytes, exec.workspace_bytes);
  exec.workspace = exec.workspace_bytes ? static_cast<char*>(exec.workspace) + bytes : nullptr;
  return result;
}

// Of states without elements the norms are zero.
Status norms_of_nothing(const ConstView& target, const MutableView& norms, Norm norm, const Exec& exec) {
  return norms.present() ? slice_norms(norms, target, {}, norm, exec) : Status{};
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

Status relax_rk(MutableView out, ConstView u, const RungeKutta& scheme, ConstView steps, int64_t m, ConstView f,
                ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm, Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand dt("dt", steps);
  const Status status = first_failure(
      [&] { return wide(all.u); }, [&] { return valid_scheme(scheme, all.u); }, [&] { return valid_steps(dt, all); },
      [&] { return valid_relaxation(all, {dt}, exec); }, [&] { return valid_scratch("relax_rk", 0, u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  return on_device(
      u.device, [&] { return cpu::relax_rk(out, u, scheme, steps, m, f, g, every, ends, exec); },
      [&] { return cuda::relax_rk(out, u, scheme, steps, m, f, g, every, ends, exec); });
}

}  // namespace pyparareal
