// SPDX-License-Identifier: BSD-3-Clause
// newton_gru of ops.h: validate, then hand over to the device the operands live on.
#include "pyparareal/gru.h"
#include "relax_checks.h"

namespace pyparareal {
namespace {

using validate::Operand;

// The operands; rows of `out` are one fewer than those of u.
struct NewtonGru {
  Operand out, jacobians, residuals, updates, u, products, gates, diagonal, bias;
  double factor;

  int64_t hidden() const { return u.shape[u.ndim - 1]; }

  Status valid_start() const {
    if (Status status = wide(u); !status.ok()) return status;
    if (u.shape[0] < 1)
      return validate::fail(StatusCode::invalid_value, "u: got shape %s, expected [steps + 1, batch, hidden]",
                            validate::describe_shape(u).c_str());
    if (!(factor - factor == 0.0))
      return validate::fail(StatusCode::invalid_value, "factor: got %g, expected a finite number", factor);
    return {};
  }

  // [steps, batch..., times hidden]
  Status like_steps(const Operand& operand, int64_t times, const char* expected) const {
    if (Status status = validate::same_kind(operand, u); !status.ok()) return status;
    bool same = operand.ndim == u.ndim && operand.shape[0] == u.shape[0] - 1;
    for (int axis = 1; same && axis < u.ndim - 1; ++axis) same = operand.shape[axis] == u.shape[axis];
    if (!same || operand.shape[operand.ndim - 1] != times * hidden())
      return validate::fail(StatusCode::invalid_value, "%s: got shape %s, expected %s of u [steps + 1, ..., hidden] %s",
                            operand.name, validate::describe_shape(operand).c_str(), expected,
                            validate::describe_shape(u).c_str());
    return {};
  }

  Status valid_weights() const {
    if (Status status = validate::same_kind(diagonal, u); !status.ok()) return status;
    if (diagonal.ndim != 2 || diagonal.shape[0] != gru_gates || diagonal.shape[1] != hidden())
      return validate::fail(StatusCode::invalid_value,
                            "diagonal: got shape %s, expected [3, %lld], of W_r, W_z and W_n",
                            validate::describe_shape(diagonal).c_str(), static_cast<long long>(hidden()));
    if (bias.ndim == 0) return {};
    if (Status status = validate::same_kind(bias, u); !status.ok()) return status;
    if (bias.ndim != 1 || bias.shape[0] != hidden())
      return validate::fail(StatusCode::invalid_value, "bias: got shape %s, expected [%lld], hidden",
                            validate::describe_shape(bias).c_str(), static_cast<long long>(hidden()));
    return {};
  }

  Status valid_output(const Operand& output) const {
    if (output.ndim == 0) return {};
    return first_failure(
        [&] { return validate::writable(output, {}); }, [&] { return validate::apart(output, u); },
        [&] { return validate::apart(output, products); }, [&] { return validate::apart(output, gates); },
        [&] { return validate::apart(output, diagonal); }, [&] { return validate::apart(output, bias); });
  }

  Status valid_outputs() const {
    const auto norms = [&](const Operand& of) { return of.ndim ? validate::norms(of, out) : Status{}; };
    return first_failure(
        [&] { return like_steps(out, 1, "[steps, ..., hidden]"); },
        [&] { return jacobians.ndim ? like_steps(jacobians, 1, "[steps, ..., hidden]") : Status{}; },
        [&] { return norms(residuals); }, [&] { return norms(updates); }, [&] { return valid_output(out); },
        [&] { return valid_output(jacobians); }, [&] { return valid_output(residuals); },
        [&] { return valid_output(updates); }, [&] { return validate::apart(jacobians, out); },
        [&] { return validate::apart(residuals, out); }, [&] { return validate::apart(residuals, jacobians); },
        [&] { return validate::apart(updates, out); }, [&] { return validate::apart(updates, jacobians); },
        [&] { return validate::apart(updates, residuals); });
  }
};

bool is_empty(const ConstView& u) { return u.shape[0] < 2 || no_elements(u); }

}  // namespace

std::size_t newton_gru_workspace_bytes(const ConstView& u, int32_t threads) {
  if (!wide(Operand("u", u)).ok() || is_empty(u)) return 0;
#if PYPARAREAL_WITH_CUDA
  if (u.device == Device::cuda) return cuda::newton_gru_workspace_bytes(u, threads);
#endif
  return cpu::newton_gru_workspace_bytes(u, threads);
}

Status newton_gru(MutableView out, MutableView jacobians, MutableView residuals, MutableView updates, ConstView u,
                  ConstView products, ConstView gates, ConstView diagonal, ConstView bias, double factor, Exec exec) {
  const NewtonGru all{
      {"out", out},           {"jacobians", jacobians}, {"residuals", residuals}, {"updates", updates}, {"u", u},
      {"products", products}, {"gates", gates},         {"diagonal", diagonal},   {"bias", bias},       factor};
  const Status status = first_failure(
      [&] { return all.valid_start(); },
      [&] { return all.like_steps(all.products, gru_gates, "[steps, ..., 3 hidden]"); },
      [&] { return all.like_steps(all.gates, gru_gates, "[steps, ..., 3 hidden]"); },
      [&] { return all.valid_weights(); }, [&] { return all.valid_outputs(); }, [&] { return valid_exec(exec); },
      [&] { return validate::workspace("newton_gru", newton_gru_workspace_bytes(u, 1), exec); });
  if (!status.ok()) return status;
  if (is_empty(u)) {
    const ConstView nothing = as_input(out);
    const Status done = norms_of_nothing(nothing, residuals, Norm::max_abs, exec);
    return done.ok() ? norms_of_nothing(nothing, updates, Norm::max_abs, exec) : done;
  }
  return on_device(
      u.device,
      [&] {
        return cpu::newton_gru(out, jacobians, residuals, updates, u, products, gates, diagonal, bias, factor, exec);
      },
      [&] {
        return cuda::newton_gru(out, jacobians, residuals, updates, u, products, gates, diagonal, bias, factor, exec);
      });
}

}  // namespace pyparareal
