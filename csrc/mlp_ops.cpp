// SPDX-License-Identifier: BSD-3-Clause
// relax_mlp_sgd of ops.h: validate, then hand over to the device the operands live on.
#include <cmath>

#include "pyparareal/mlp.h"
#include "pyparareal/ops.h"
#include "relax_checks.h"

namespace pyparareal {
namespace {

using validate::Operand;

Status valid_net(const Mlp& net, const Operand& u) {
  if (net.layers < 1 || net.layers > max_layers)
    return validate::fail(StatusCode::invalid_value, "sizes: got %d layers, expected 1 to %d", net.layers, max_layers);
  constexpr int64_t most = int64_t{1} << 20, most_weights = int64_t{1} << 28;  // scratch has indices of 32 bits
  int64_t weights = 0;
  for (int layer = 0; layer <= net.layers; ++layer)
    if (net.sizes[layer] < 1 || net.sizes[layer] > most)
      return validate::fail(StatusCode::invalid_value, "sizes: got %lld, expected 1 to %lld neurons",
                            static_cast<long long>(net.sizes[layer]), static_cast<long long>(most));
  for (int layer = 0; layer < net.layers; ++layer) weights += layer_weights(net, layer);
  if (weights > most_weights)
    return validate::fail(StatusCode::invalid_value, "sizes: got %lld weights, expected %lld at most",
                          static_cast<long long>(weights), static_cast<long long>(most_weights));
  if (u.shape[u.ndim - 1] != weights)
    return validate::fail(StatusCode::invalid_value,
                          "u: got shape %s, expected %lld weights on the last axis as of sizes",
                          validate::describe_shape(u).c_str(), static_cast<long long>(weights));
  for (const Activation kind : {net.hidden, net.last})
    if (static_cast<int32_t>(kind) < 0 || static_cast<int32_t>(kind) > 3)
      return validate::fail(StatusCode::invalid_value, "activation: got %d, expected one of the four",
                            static_cast<int>(kind));
  return {};
}

// x [K, sizes[0]] and y [K, sizes[layers]]
Status valid_examples(const Operand& examples, int64_t features, int64_t count, const Operand& u) {
  if (Status status = validate::same_kind(examples, u); !status.ok()) return status;
  if (examples.ndim != 2 || examples.shape[0] < 1 || examples.shape[0] != count || examples.shape[1] != features)
    return validate::fail(StatusCode::invalid_value, "%s: got shape %s, expected [%lld, %lld], examples and neurons",
                          examples.name, validate::describe_shape(examples).c_str(),
                          static_cast<long long>(count < 1 ? 1 : count), static_cast<long long>(features));
  return {};
}

Status valid_per_step(const Operand& numbers, DType dtype, const Operands& all) {
  if (numbers.dtype != dtype)
    return validate::fail(StatusCode::invalid_type, "%s: got dtype %s, expected %s", numbers.name,
                          validate::name_of(numbers.dtype), validate::name_of(dtype));
  if (numbers.ndim != 2 || numbers.shape[0] != all.u.shape[0] || numbers.shape[1] != all.m)
    return validate::fail(StatusCode::invalid_value, "%s: got shape %s, expected [%lld, %lld], slices and m",
                          numbers.name, validate::describe_shape(numbers).c_str(),
                          static_cast<long long>(all.u.shape[0]), static_cast<long long>(all.m));
  if (numbers.device != all.u.device || numbers.device_id != all.u.device_id)
    return validate::fail(StatusCode::invalid_value, "%s: got device %s, expected %s like u", numbers.name,
                          validate::describe_device(numbers).c_str(), validate::describe_device(all.u).c_str());
  return {};
}

// visit(value) for numbers in host memory; those of a device cannot be looked at without waiting for it.
template <class T, class Visit>
Status each(const Operand& numbers, const Visit& visit) {
  if (numbers.device != Device::cpu) return {};
  const PerStep<T> values{static_cast<const T*>(numbers.data), numbers.stride[0], numbers.stride[1]};
  for (int64_t slice = 0; slice < numbers.shape[0]; ++slice)
    for (int64_t step = 0; step < numbers.shape[1]; ++step)
      if (Status status = visit(values.at(slice, step)); !status.ok()) return status;
  return {};
}

Status finite_rate(double rate) {
  if (std::isfinite(rate)) return {};
  return validate::fail(StatusCode::invalid_value, "alpha: got %g, expected finite learning rates", rate);
}

Status valid_rates(const Operand& alpha, const Mlp& net, const Operands& all) {
  if (alpha.ndim == 0) return finite_rate(net.alpha);
  if (Status status = valid_per_step(alpha, DType::float64, all); !status.ok()) return status;
  return each<double>(alpha, finite_rate);
}

Status valid_batches(const Operand& first, const Mlp& net, int64_t examples, const Operands& all) {
  if (first.ndim == 0 && net.count != examples)
    return validate::fail(StatusCode::invalid_value, "count: got %lld without first, expected all %lld examples",
                          static_cast<long long>(net.count), static_cast<long long>(examples));
  if (first.ndim == 0) return {};
  if (net.count < 1 || net.count > examples)
    return validate::fail(StatusCode::invalid_value, "count: got %lld, expected 1 to the %lld examples",
                          static_cast<long long>(net.count), static_cast<long long>(examples));
  if (Status status = valid_per_step(first, DType::int64, all); !status.ok()) return status;
  return each<int64_t>(first, [=](int64_t index) {
    if (index >= 0 && index < examples) return Status{};
    return validate::fail(StatusCode::invalid_value, "first: got example %lld, expected 0 to %lld",
                          static_cast<long long>(index), static_cast<long long>(examples - 1));
  });
}

}  // namespace

std::size_t relax_mlp_sgd_workspace_bytes(const ConstView& u, const Mlp& net, int32_t threads) {
  const Operand state("u", u);
  if (u.ndim < 2 || no_elements(u) || !valid_net(net, state).ok()) return 0;
#if PYPARAREAL_WITH_CUDA
  if (u.device == Device::cuda) return cuda::relax_mlp_sgd_workspace_bytes(u, net, threads);
#endif
  return cpu::relax_mlp_sgd_workspace_bytes(u, net, threads);
}

Status relax_mlp_sgd(MutableView out, ConstView u, const Mlp& net, ConstView x, ConstView y, ConstView alpha,
                     ConstView first, int64_t m, ConstView f, ConstView g, MutableView every, ConstView target,
                     MutableView norms, Norm norm, Exec exec) {
  const Operands all(out, u, m, f, g, every, target, norms, norm);
  const Operand inputs("x", x), outputs("y", y), rates("alpha", alpha), batches("first", first);
  const Status status = first_failure(
      [&] { return wide(all.u); }, [&] { return valid_net(net, all.u); },
      [&] { return valid_examples(inputs, net.sizes[0], inputs.ndim ? inputs.shape[0] : 1, all.u); },
      [&] { return valid_examples(outputs, net.sizes[net.layers], inputs.shape[0], all.u); },
      [&] { return valid_relaxation(all, {inputs, outputs, rates, batches}, exec); },
      [&] { return valid_rates(rates, net, all); }, [&] { return valid_batches(batches, net, inputs.shape[0], all); },
      [&] { return valid_scratch("relax_mlp_sgd", relax_mlp_sgd_workspace_bytes(u, net, 1), u, all, exec); });
  if (!status.ok()) return status;
  if (no_elements(u)) return norms_of_nothing(target, norms, norm, exec);
  const EndNorms ends = end_norms(out, every, target, norms, norm, exec);
  return on_device(
      u.device, [&] { return cpu::relax_mlp_sgd(out, u, net, x, y, alpha, first, m, f, g, every, ends, exec); },
      [&] { return cuda::relax_mlp_sgd(out, u, net, x, y, alpha, first, m, f, g, every, ends, exec); });
}

}  // namespace pyparareal
