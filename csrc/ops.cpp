// SPDX-License-Identifier: BSD-3-Clause
// The entry points of ops.h: validate, then hand over to the device the operands live on.
#include "pyparareal/ops.h"

#include "backend.h"
#include "entry.h"
#include "validate.h"

namespace pyparareal {
namespace {

using validate::Operand;

Status valid_points(const Operand& coarse, const Operand& fine, int64_t start, int64_t step) {
  const int64_t count = coarse.shape[0], slices = fine.shape[0];
  if (step < 1)
    return validate::fail(StatusCode::invalid_value, "step: got %lld, expected 1 or more",
                          static_cast<long long>(step));
  if (start < 0 || (start >= slices && count > 0))
    return validate::fail(StatusCode::invalid_value, "start: got %lld, expected 0 to %lld, a slice of %s",
                          static_cast<long long>(start), static_cast<long long>(slices - 1), fine.name);
  const int64_t room = start < slices ? (slices - 1 - start) / step + 1 : 0;
  bool fits = coarse.ndim == fine.ndim && count <= room;
  for (int axis = 1; fits && axis < fine.ndim; ++axis) fits = coarse.shape[axis] == fine.shape[axis];
  if (!fits)
    return validate::fail(StatusCode::invalid_value,
                          "%s: got shape %s, expected at most %lld slices shaped like those of %s %s", coarse.name,
                          describe_shape(coarse).c_str(), static_cast<long long>(room), fine.name,
                          describe_shape(fine).c_str());
  return {};
}

}  // namespace

std::size_t parareal_update_workspace_bytes(const ConstView& u_old) {
  return u_old.present() ? norm_workspace_bytes(space_of(u_old)) : 0;
}

std::size_t slice_norms_workspace_bytes(const ConstView& u) { return norm_workspace_bytes(space_of(u)); }

Status parareal_update(MutableView u, ConstView f_old, ConstView g_new, ConstView g_old, ConstView u_old,
                       MutableView jump, Norm norm, Exec exec) {
  const Operand out("out", u), f("f_old", f_old), g("g_new", g_new), h("g_old", g_old), old("u_old", u_old),
      norms("jump", jump);
  Status status =
      first_failure([&] { return validate::state(f); }, [&] { return validate::same_state(g, f); },
                    [&] { return validate::same_state(h, f); }, [&] { return validate::same_state(out, f); },
                    [&] { return u_old.present() ? validate::same_state(old, f) : Status{}; },
                    [&] { return validate::writable(out, {f, g, h, old}); }, [&] { return valid_norm(norm); },
                    [&] { return valid_exec(exec); });
  if (!status.ok()) return status;
  if (u_old.present() != jump.present())
    return validate::fail(StatusCode::invalid_value, "jump: got %s, expected %s", jump.present() ? "an array" : "none",
                          jump.present() ? "u_old as well" : "a float64 array, because u_old is given");
  if (jump.present()) {
    status = first_failure(
        [&] { return validate::norms(norms, f); }, [&] { return validate::writable(norms, {f, g, h, old, out}); },
        [&] { return validate::workspace("parareal_update", parareal_update_workspace_bytes(u_old), exec); });
    if (!status.ok()) return status;
  } else if (no_elements(u)) {
    return status;
  }
  return on_device(
      f_old.device, [&] { return cpu::parareal_update(u, f_old, g_new, g_old, u_old, jump, norm, exec); },
      [&] { return cuda::parareal_update(u, f_old, g_new, g_old, u_old, jump, norm, exec); });
}

Status slice_norms(MutableView norms, ConstView u, ConstView u_old, Norm norm, Exec exec) {
  const Operand out("out", norms), state("u", u), old("u_old", u_old);
  Status status =
      first_failure([&] { return validate::state(state); },
                    [&] { return u_old.present() ? validate::same_state(old, state) : Status{}; },
                    [&] { return validate::norms(out, state); }, [&] { return validate::writable(out, {state, old}); },
                    [&] { return valid_norm(norm); }, [&] { return valid_exec(exec); },
                    [&] { return validate::workspace("slice_norms", slice_norms_workspace_bytes(u), exec); });
  if (!status.ok() || u.shape[0] == 0) return status;
  return on_device(
      u.device, [&] { return cpu::slice_norms(norms, u, u_old, norm, exec); },
      [&] { return cuda::slice_norms(norms, u, u_old, norm, exec); });
}

Status extract(MutableView v, ConstView u, int64_t start, int64_t step, Exec exec) {
  const Operand coarse("out", v), fine("u", u);
  Status status =
      first_failure([&] { return validate::state(fine); }, [&] { return validate::state(coarse); },
                    [&] { return validate::same_kind(coarse, fine); },
                    [&] { return valid_points(coarse, fine, start, step); }, [&] { return valid_exec(exec); });
  if (!status.ok() || no_elements(v)) return status;
  const ConstView points = time_points(u, start, step, v.shape[0], validate::item_bytes(u.dtype));
  if (Status overlap = validate::writable(coarse, {Operand("u", points)}); !overlap.ok()) return overlap;
  return on_device(
      u.device, [&] { return cpu::copy_slices(v, points, exec); }, [&] { return cuda::copy_slices(v, points, exec); });
}

Status inject(MutableView u, ConstView v, int64_t start, int64_t step, Exec exec) {
  const Operand coarse("v", v), fine("u", u);
  Status status =
      first_failure([&] { return validate::state(fine); }, [&] { return validate::state(coarse); },
                    [&] { return validate::same_kind(coarse, fine); },
                    [&] { return valid_points(coarse, fine, start, step); }, [&] { return valid_exec(exec); });
  if (!status.ok() || no_elements(v)) return status;
  const MutableView points = time_points(u, start, step, v.shape[0], validate::item_bytes(u.dtype));
  status = first_failure([&] { return validate::writable(fine, {}); },
                         [&] { return validate::writable(Operand("u", points), {coarse}); });
  if (!status.ok()) return status;
  return on_device(
      u.device, [&] { return cpu::copy_slices(points, v, exec); }, [&] { return cuda::copy_slices(points, v, exec); });
}

Status c_relax(MutableView u_new, ConstView phi, ConstView u, double omega, Exec exec) {
  const Operand out("out", u_new), left("phi", phi), right("u", u);
  const Status status = first_failure(
      [&] { return validate::state(left); }, [&] { return validate::same_state(right, left); },
      [&] { return validate::same_state(out, left); }, [&] { return validate::writable(out, {left, right}); },
      [&] { return valid_exec(exec); },
      [&] {
        return omega - omega == 0.0
                   ? Status{}
                   : validate::fail(StatusCode::invalid_value, "omega: got %g, expected a finite weight", omega);
      });
  if (!status.ok() || no_elements(u_new)) return status;
  if (omega == 1.0) {
    return on_device(
        phi.device, [&] { return cpu::copy_slices(u_new, phi, exec); },
        [&] { return cuda::copy_slices(u_new, phi, exec); });
  }
  return on_device(
      phi.device, [&] { return cpu::c_relax(u_new, phi, u, omega, exec); },
      [&] { return cuda::c_relax(u_new, phi, u, omega, exec); });
}

}  // namespace pyparareal
