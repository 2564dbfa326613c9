// SPDX-License-Identifier: BSD-3-Clause
// The checks and the norms all relaxations have in common.
#pragma once

#include <algorithm>

#include "entry.h"
#include "pyparareal/ops.h"

namespace pyparareal {

// The operands every relaxation has.
struct Operands {
  validate::Operand out, u, f, g, every, target, norms;
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

inline Status wide(const validate::Operand& operand) {
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
inline Status like_steps(const validate::Operand& operand, const Operands& all, bool some = false) {
  if (operand.ndim == 0) return {};
  if (Status status = validate::same_kind(operand, all.u); !status.ok()) return status;
  const int64_t steps = operand.ndim > 1 ? operand.shape[1] : 0;
  const bool fits = steps == all.m || (some && steps >= 1 && all.m % steps == 0);
  bool same = operand.ndim == all.u.ndim + 1 && operand.shape[0] == all.u.shape[0] && fits;
  for (int axis = 1; same && axis < all.u.ndim; ++axis) same = operand.shape[axis + 1] == all.u.shape[axis];
  if (!same)
    return validate::fail(StatusCode::invalid_value,
                          "%s: got shape %s, expected [slices, m, ...] of m = %lld steps of %s %s%s", operand.name,
                          validate::describe_shape(operand).c_str(), static_cast<long long>(all.m), all.u.name,
                          validate::describe_shape(all.u).c_str(), some ? ", or a divisor of m in place of m" : "");
  return {};
}

// Of the operand that says where and in what the products are.
inline Status valid_precision(Precision precision, const validate::Operand& operand) {
  static const char* const names[] = {"exact", "tf32x3", "tf32"};
  const int code = static_cast<int>(precision);
  if (code < 0 || code > 2)
    return validate::fail(StatusCode::invalid_value,
                          "precision: got code %d, expected 0 (exact), 1 (tf32x3) or 2 (tf32)", code);
  if (precision == Precision::exact || (operand.device == Device::cuda && operand.dtype == DType::float32)) return {};
  return validate::fail(
      StatusCode::invalid_value, "precision: got %s for %s of %s on %s, expected exact, or float32 on CUDA",
      names[code], operand.name, validate::name_of(operand.dtype), operand.device == Device::cuda ? "CUDA" : "the CPU");
}

inline Status valid_outputs(const Operands& all, std::initializer_list<validate::Operand> coefficients) {
  const auto check = [&](const validate::Operand& output, const validate::Operand& other) -> Status {
    if (output.ndim == 0) return {};
    if (Status status = validate::writable(output, {all.u, all.f, all.g, other}); !status.ok()) return status;
    return validate::writable(output, coefficients);
  };
  if (all.out.ndim == 0 && all.every.ndim == 0)
    return validate::fail(StatusCode::invalid_value, "out: got none, expected an array unless every is given");
  return first_failure([&] { return check(all.out, all.every); }, [&] { return check(all.every, all.out); });
}

inline Status valid_norms(const Operands& all, std::initializer_list<validate::Operand> coefficients) {
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

inline Status valid_relaxation(const Operands& all, std::initializer_list<validate::Operand> coefficients,
                               const Exec& exec) {
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

// `own` scratch of the op, and that of the norms.
inline Status valid_scratch(const char* op, std::size_t own, const ConstView& u, const Operands& all,
                            const Exec& exec) {
  const std::size_t more = all.norms.ndim ? slice_norms_workspace_bytes(u) : 0;
  char names[64];
  std::snprintf(names, sizeof names, "%s%s%s", more ? "slice_norms" : "", more && own ? " and " : "", own ? op : "");
  return validate::workspace(names, own + more, exec);
}

inline ConstView as_input(const MutableView& view) {
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
inline EndNorms end_norms(const MutableView& out, const MutableView& every, const ConstView& target,
                          const MutableView& norms, Norm norm, Exec& exec) {
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
inline Status norms_of_nothing(const ConstView& target, const MutableView& norms, Norm norm, const Exec& exec) {
  return norms.present() ? slice_norms(norms, target, {}, norm, exec) : Status{};
}

}  // namespace pyparareal
