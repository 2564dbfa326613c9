// SPDX-License-Identifier: BSD-3-Clause
// relax_dense and its adjoint of ops.h: validate, then hand over to the device the operands live on.
#include "pyparareal/ops.h"
#include "relax_checks.h"

namespace pyparareal {
namespace {

using validate::Operand;

Status fits(const Operand& operand, const Operand& u, int64_t m, int matrix_axes) {
  const int64_t d = u.shape[u.ndim - 1];
  if (Status status = validate::same_kind(operand, u); !status.ok()) return status;
  bool same = operand.ndim == 2 + matrix_axes && operand.shape[0] == u.shape[0] && operand.shape[1] == m;
  for (int axis = 2; same && axis < operand.ndim; ++axis) same = operand.shape[axis] == d;
  if (!same)
    return validate::fail(StatusCode::invalid_value,
                          "%s: got shape %s, expected [slices, m, %s] of m = %lld steps of %s %s", operand.name,
                          validate::describe_shape(operand).c_str(), matrix_axes == 2 ? "d, d" : "d",
                          static_cast<long long>(m), u.name, validate::describe_shape(u).c_str());
  return {};
}

Status valid_weights(const Operand& weight, const Operand& bias, const Operand& u, int64_t m) {
  constexpr int64_t most = int64_t{1} << 14;  // the scratch has tiles of whole states
  const int64_t d = u.shape[u.ndim - 1];
  if (d > most)
    return validate::fail(StatusCode::invalid_value, "%s: got %lld features, expected %lld at most", u.name,
                          static_cast<long long>(d), static_cast<long long>(most));
  if (Status status = fits(weight, u, m, 2); !status.ok()) return status;
  return bias.ndim ? fits(bias, u, m, 1) : Status{};
}

Status valid_activation(DenseActivation kind) {
  const int32_t value = static_cast<int32_t>(kind);
  if (value < 0 || value > 4)
    return validate::fail(StatusCode::invalid_value,
                          "activation: got %d, expected tanh, relu, smooth_relu, sigmoid or silu", value);
  return {};
}

// No output may be where weights or slopes are.
Status apart_from(const Operand& output, std::initializer_list<Operand> others) {
  if (output.ndim == 0) return {};
  for (const Operand& other : others)
    if (other.ndim)
      if (Status status = validate::apart(output, other); !status.ok()) return status;
  return {};
}

}  // namespace

std::size_t relax_dense_workspace_bytes(const ConstView& u, int32_t threads) {
  if (u.ndim < 2 || u.ndim >= max_ndim || no_elements(u)) return 0;
#if PYPARAREAL_WITH_CUDA
  if (u.device == Device::cuda) return 0;
#endif
  return cpu::relax_dense_workspace_bytes(u, threads);
}

Status relax_dense(MutableView out, ConstView u, ConstView weight, ConstView bias, double h, DenseActivation activation,
                   int64_t m, MutableView slopes, ConstView f, ConstView g, MutableView every, ConstView target,
                   MutableView norms, Norm norm, Precision precision, Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand matrix("weight", weight), vector("bias", bias), derived("slopes", slopes);
  const Status status = first_failure(
      [&] { return wide(all.u); }, [&] { return valid_precision(precision, all.u); },
      [&] { return valid_relaxation(all, {matrix, vector}, exec); },
      [&] { return valid_weights(matrix, vector, all.u, m); }, [&] { return valid_activation(activation); },
      [&] { return like_steps(derived, all); },
      [&] { return derived.ndim ? validate::writable(derived, {}) : Status{}; },
      [&] {
        return apart_from(derived, {all.u, matrix, vector, all.f, all.g, all.out, all.every, all.target, all.norms});
      },
      [&] { return apart_from(all.out, {matrix, vector}); }, [&] { return apart_from(all.every, {matrix, vector}); },
      [&] { return valid_scratch("relax_dense", relax_dense_workspace_bytes(u, 1), u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  return on_device(
      u.device,
      [&] { return cpu::relax_dense(out, u, weight, bias, h, activation, m, slopes, f, g, every, ends, exec); },
      [&] {
        return precision == Precision::exact
                   ? cuda::relax_dense(out, u, weight, bias, h, activation, m, slopes, f, g, every, ends, exec)
                   : cuda::relax_dense_mma(out, u, weight, bias, h, activation, m, slopes, f, g, every, ends, precision,
                                           exec);
      });
}

Status relax_dense_adjoint(MutableView out, ConstView v, ConstView weight, ConstView slopes, double scale, int64_t m,
                           ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
                           Precision precision, Exec exec) {
  Operands all(out, v, m, f, g, every, target, norms, norm);
  all.u.name = "v";
  const ConstView none{};
  const Operand matrix("weight", weight), derived("slopes", slopes), vector("bias", none);
  const Status status = first_failure(
      [&] { return wide(all.u); }, [&] { return valid_precision(precision, all.u); },
      [&] { return valid_relaxation(all, {matrix, derived}, exec); },
      [&] { return valid_weights(matrix, vector, all.u, m); },
      [&] {
        return derived.ndim ? Status{}
                            : validate::fail(StatusCode::invalid_value, "slopes: got none, expected an array");
      },
      [&] { return like_steps(derived, all); }, [&] { return apart_from(all.out, {matrix, derived}); },
      [&] { return apart_from(all.every, {matrix, derived}); },
      [&] { return valid_scratch("relax_dense_adjoint", relax_dense_workspace_bytes(v, 1), v, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(v)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  return on_device(
      v.device, [&] { return cpu::relax_dense_adjoint(out, v, weight, slopes, scale, m, f, g, every, ends, exec); },
      [&] {
        return precision == Precision::exact
                   ? cuda::relax_dense_adjoint(out, v, weight, slopes, scale, m, f, g, every, ends, exec)
                   : cuda::relax_dense_adjoint_mma(out, v, weight, slopes, scale, m, f, g, every, ends, precision,
                                                   exec);
      });
}

}  // namespace pyparareal
