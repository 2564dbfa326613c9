// SPDX-License-Identifier: BSD-3-Clause
// relax_gru and its adjoint of ops.h: validate, then hand over to the device the operands live on.
#include "pyparareal/gru.h"
#include "pyparareal/ops.h"
#include "relax_checks.h"

namespace pyparareal {
namespace {

using validate::Operand;

Status valid_weights(const Operand& weight, const Operand& bias, const Operand& u) {
  const int64_t hidden = u.shape[u.ndim - 1];
  if (Status status = validate::same_kind(weight, u); !status.ok()) return status;
  if (weight.ndim != 2 || weight.shape[0] != gru_gates * hidden || weight.shape[1] != hidden)
    return validate::fail(StatusCode::invalid_value, "weight: got shape %s, expected [%lld, %lld], 3 hidden and hidden",
                          validate::describe_shape(weight).c_str(), static_cast<long long>(gru_gates * hidden),
                          static_cast<long long>(hidden));
  constexpr int64_t most = int64_t{1} << 14;  // the scratch has a copy of the weights
  if (hidden > most)
    return validate::fail(StatusCode::invalid_value, "u: got %lld hidden units, expected %lld at most",
                          static_cast<long long>(hidden), static_cast<long long>(most));
  if (bias.ndim == 0) return {};
  if (Status status = validate::same_kind(bias, u); !status.ok()) return status;
  if (bias.ndim != 1 || bias.shape[0] != hidden)
    return validate::fail(StatusCode::invalid_value, "bias: got shape %s, expected [%lld], hidden",
                          validate::describe_shape(bias).c_str(), static_cast<long long>(hidden));
  return {};
}

// [slices, m, batch..., width] where u is [slices, batch..., hidden]
Status valid_steps(const Operand& operand, const Operand& u, int64_t m, int64_t width, const char* meaning) {
  if (Status status = validate::same_kind(operand, u); !status.ok()) return status;
  bool same = operand.ndim == u.ndim + 1 && operand.shape[0] == u.shape[0] && operand.shape[1] == m;
  for (int axis = 1; same && axis < u.ndim - 1; ++axis) same = operand.shape[axis + 1] == u.shape[axis];
  if (!same || operand.shape[operand.ndim - 1] != width)
    return validate::fail(StatusCode::invalid_value,
                          "%s: got shape %s, expected [slices, m, ..., %lld], %s, of m = %lld steps of %s %s",
                          operand.name, validate::describe_shape(operand).c_str(), static_cast<long long>(width),
                          meaning, static_cast<long long>(m), u.name, validate::describe_shape(u).c_str());
  return {};
}

Status valid_gates(const Operand& gates, const Operand& u, int64_t m) {
  return valid_steps(gates, u, m, gru_gates * u.shape[u.ndim - 1], "3 hidden");
}

// The operands of the adjoint; states are like d_end.
struct Gradients {
  Operand d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every;

  int64_t m() const { return u.ndim > 1 ? u.shape[1] : 0; }

  Status valid_inputs() const {
    const int64_t hidden = d_end.shape[d_end.ndim - 1];
    return first_failure(
        [&] {
          return m() >= 1 ? Status{}
                          : validate::fail(StatusCode::invalid_value,
                                           "u: got shape %s, expected [slices, m, batch, hidden] of 1 step or more",
                                           validate::describe_shape(u).c_str());
        },
        [&] { return valid_steps(u, d_end, m(), hidden, "hidden"); }, [&] { return valid_gates(gates, d_end, m()); },
        [&] { return valid_weights(weight, bias, d_end); },
        [&] { return d_every.ndim ? valid_steps(d_every, d_end, m(), hidden, "hidden") : Status{}; });
  }

  Status valid_outputs() const {
    const int64_t hidden = d_end.shape[d_end.ndim - 1];
    const auto apart = [&](const Operand& output, const Operand& one, const Operand& other) {
      if (output.ndim == 0) return Status{};
      return validate::writable(output, {u, gates, weight, bias, d_end, d_every, one, other});
    };
    return first_failure(
        [&] { return validate::same_state(d_start, d_end); },
        [&] { return d_gates.ndim ? valid_gates(d_gates, d_end, m()) : Status{}; },
        [&] { return d_hidden.ndim ? valid_steps(d_hidden, d_end, m(), hidden, "hidden") : Status{}; },
        [&] { return apart(d_start, d_gates, d_hidden); }, [&] { return apart(d_gates, d_start, d_hidden); },
        [&] { return apart(d_hidden, d_start, d_gates); }, [&] { return validate::apart(d_start, weight); });
  }
};

}  // namespace

std::size_t relax_gru_workspace_bytes(const ConstView& u, [[maybe_unused]] Precision precision, int32_t threads) {
  if (u.ndim < 2 || u.ndim >= max_ndim || no_elements(u)) return 0;
#if PYPARAREAL_WITH_CUDA
  if (u.device == Device::cuda)
    return precision == Precision::exact ? cuda::relax_gru_workspace_bytes(u, threads)
                                         : cuda::relax_gru_mma_workspace_bytes(u);
#endif
  return cpu::relax_gru_workspace_bytes(u, threads);
}

std::size_t relax_gru_adjoint_workspace_bytes(const ConstView& d_end, [[maybe_unused]] Precision precision,
                                              int32_t threads) {
  if (d_end.ndim < 2 || d_end.ndim >= max_ndim || no_elements(d_end)) return 0;
#if PYPARAREAL_WITH_CUDA
  if (d_end.device == Device::cuda)
    return precision == Precision::exact ? cuda::relax_gru_adjoint_workspace_bytes(d_end, threads)
                                         : cuda::relax_gru_adjoint_mma_workspace_bytes(d_end);
#endif
  return cpu::relax_gru_adjoint_workspace_bytes(d_end, threads);
}

Status relax_gru(MutableView out, ConstView u, ConstView gates, ConstView weight, ConstView bias, int64_t m,
                 ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
                 Precision precision, Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand sides("gates", gates), matrix("weight", weight), vector("bias", bias);
  const Status status = first_failure(
      [&] { return wide(all.u); }, [&] { return valid_precision(precision, all.u); },
      [&] { return valid_weights(matrix, vector, all.u); },
      [&] { return valid_relaxation(all, {sides, matrix, vector}, exec); },
      [&] { return valid_gates(sides, all.u, m); }, [&] { return validate::apart(all.out, matrix); },
      [&] { return valid_scratch("relax_gru", relax_gru_workspace_bytes(u, precision, 1), u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  return on_device(
      u.device, [&] { return cpu::relax_gru(out, u, gates, weight, bias, m, f, g, every, ends, exec); },
      [&] {
        return precision == Precision::exact
                   ? cuda::relax_gru(out, u, gates, weight, bias, m, f, g, every, ends, exec)
                   : cuda::relax_gru_mma(out, u, gates, weight, bias, m, f, g, every, ends, precision, exec);
      });
}

Status relax_gru_adjoint(MutableView d_start, MutableView d_gates, MutableView d_hidden, ConstView u, ConstView gates,
                         ConstView weight, ConstView bias, ConstView d_end, ConstView d_every, Precision precision,
                         Exec exec) {
  const Gradients all{{"d_start", d_start}, {"d_gates", d_gates}, {"d_hidden", d_hidden}, {"u", u},
                      {"gates", gates},     {"weight", weight},   {"bias", bias},         {"d_end", d_end},
                      {"d_every", d_every}};
  const Status status = first_failure(
      [&] { return wide(all.d_end); }, [&] { return valid_precision(precision, all.d_end); },
      [&] { return all.valid_inputs(); }, [&] { return all.valid_outputs(); }, [&] { return valid_exec(exec); },
      [&] {
        return validate::workspace("relax_gru_adjoint", relax_gru_adjoint_workspace_bytes(d_end, precision, 1), exec);
      });
  if (!status.ok() || no_elements(d_end)) return status;
  return on_device(
      u.device,
      [&] { return cpu::relax_gru_adjoint(d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every, exec); },
      [&] {
        return precision == Precision::exact
                   ? cuda::relax_gru_adjoint(d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every, exec)
                   : cuda::relax_gru_adjoint_mma(d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every,
                                                 precision, exec);
      });
}

}  // namespace pyparareal
