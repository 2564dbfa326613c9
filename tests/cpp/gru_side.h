// SPDX-License-Identifier: BSD-3-Clause
// A case of relax_gru or its adjoint, and its operands on one device.
#pragma once

#include <functional>

#include "guarded_array.h"
#include "pyparareal/ops.h"

namespace pyparareal::testing {

// Last axis fastest, with gaps, backward, or time axis fastest.
enum class Lay { dense, spaced, backward, transposed };

View<void*> lay_out(Lay lay, DType dtype, std::initializer_list<int64_t> shape) {
  View<void*> view;
  view.dtype = dtype;
  for (const int64_t size : shape) view.shape[view.ndim++] = size;
  int64_t stride = lay == Lay::spaced ? 2 : 1;
  for (int i = 0; i < view.ndim; ++i) {
    const int axis = lay == Lay::transposed ? i : view.ndim - 1 - i;
    view.stride[axis] = lay == Lay::backward ? -stride : stride;
    stride *= view.shape[axis] + (lay == Lay::spaced ? 1 : 0);
  }
  return view;
}

struct Case {
  bool adjoint, f, g, every, out, in_place, bias, norms, gradients;
  DType dtype;
  Precision precision;  // on CUDA
  int64_t hidden, slices, batch, m, kept;
  Lay lay;
  uint64_t seed;
};

enum Slot {
  U,
  GATES,
  WEIGHT,
  BIAS,
  F,
  G,
  EVERY,
  OUT,
  TARGET,
  NORMS,
  D_END,
  D_EVERY,
  D_GATES,
  D_HIDDEN,
  WORKSPACE,
  slots
};

struct Side {
  GuardedMemory memory[slots];
  Array arrays[slots];
  bool present[slots] = {};
  Device device = Device::cpu;
  Status status;

  void make(Slot slot, bool wanted, const View<void*>& view, Random* values) {
    present[slot] = wanted;
    if (!wanted) return;
    arrays[slot].place(memory[slot], view, Form::odd_pitch);
    arrays[slot].view.device = device;
    arrays[slot].view.device_id = device == Device::cuda ? 1 : 0;
    arrays[slot].fill(0x5a, values, false);
  }

  ConstView input(Slot slot) const { return present[slot] ? ConstView(arrays[slot]) : ConstView{}; }
  MutableView output(Slot slot) const { return present[slot] ? MutableView(arrays[slot]) : MutableView{}; }

  Exec scratch(std::size_t bytes) {
    make(WORKSPACE, bytes > 0, lay_out(Lay::dense, DType::float64, {static_cast<int64_t>(bytes / 8)}), nullptr);
    Exec exec;
    exec.threads = 1;
    exec.workspace = bytes ? arrays[WORKSPACE].view.data : nullptr;
    exec.workspace_bytes = bytes;
    return exec;
  }

  void weights(const Case& a, Random& random) {
    make(GATES, true, lay_out(a.lay, a.dtype, {a.slices, a.m, a.batch, 3 * a.hidden}), &random);
    make(WEIGHT, true, lay_out(a.lay, a.dtype, {3 * a.hidden, a.hidden}), &random);
    make(BIAS, a.bias, lay_out(a.lay, a.dtype, {a.hidden}), &random);
  }

  void forward(const Case& a) {
    Random random(a.seed);
    const auto state = lay_out(a.lay, a.dtype, {a.slices, a.batch, a.hidden});
    const auto steps = lay_out(a.lay, a.dtype, {a.slices, a.m, a.batch, a.hidden});
    weights(a, random);
    make(U, true, state, &random);
    make(F, a.f, steps, &random);
    make(G, a.g, steps, &random);
    make(EVERY, a.every, lay_out(a.lay, a.dtype, {a.slices, a.kept, a.batch, a.hidden}), nullptr);
    make(OUT, a.out && !a.in_place, state, nullptr);
    make(TARGET, a.norms, state, &random);
    make(NORMS, a.norms, lay_out(Lay::dense, DType::float64, {a.slices}), nullptr);
    if (prepare) prepare(*this, a);
    const Exec exec = scratch(relax_gru_workspace_bytes(input(U), precision(a), 1) +
                              (a.norms ? slice_norms_workspace_bytes(input(U)) : 0));
    status = relax_gru(a.in_place ? MutableView(arrays[U]) : output(OUT), input(U), input(GATES), input(WEIGHT),
                       input(BIAS), a.m, input(F), input(G), output(EVERY), input(TARGET), output(NORMS),
                       Norm::sum_squares, precision(a), exec);
  }

  void backward(const Case& a) {
    Random random(a.seed);
    const auto state = lay_out(a.lay, a.dtype, {a.slices, a.batch, a.hidden});
    const auto steps = lay_out(a.lay, a.dtype, {a.slices, a.m, a.batch, a.hidden});
    weights(a, random);
    make(U, true, steps, &random);
    make(D_END, true, state, &random);
    make(D_EVERY, a.every, steps, &random);
    make(OUT, !a.in_place, state, nullptr);
    make(D_GATES, a.gradients && !a.in_place, lay_out(a.lay, a.dtype, {a.slices, a.m, a.batch, 3 * a.hidden}), nullptr);
    make(D_HIDDEN, a.gradients && !a.in_place, steps, nullptr);
    if (prepare) prepare(*this, a);
    const bool own = a.gradients && a.in_place;
    const Exec exec = scratch(relax_gru_adjoint_workspace_bytes(input(D_END), precision(a), 1));
    status = relax_gru_adjoint(a.in_place ? MutableView(arrays[D_END]) : output(OUT),
                               own ? MutableView(arrays[GATES]) : output(D_GATES),
                               own ? MutableView(arrays[U]) : output(D_HIDDEN), input(U), input(GATES), input(WEIGHT),
                               input(BIAS), input(D_END), input(D_EVERY), precision(a), exec);
  }

  // After they were made: inputs as a test wants them.
  std::function<void(Side&, const Case&)> prepare;

  Precision precision(const Case& a) const { return device == Device::cuda ? a.precision : Precision::exact; }

  void run(const Case& a, Device where) {
    for (bool& slot : present) slot = false;
    device = where;
    a.adjoint ? backward(a) : forward(a);
  }

  // Inputs as they were, and nothing beside the outputs.
  bool clean(const Case& a) {
    bool fine = true;
    for (int slot = 0; slot < slots; ++slot) {
      const bool shared =
          a.in_place && (a.adjoint ? slot == D_END || (a.gradients && (slot == U || slot == GATES)) : slot == U);
      const bool written = shared || slot == EVERY || slot == OUT || slot == NORMS || slot == D_GATES ||
                           slot == D_HIDDEN || slot == WORKSPACE;
      if (present[slot]) fine = fine && (written ? arrays[slot].unchanged_outside() : arrays[slot].unchanged());
    }
    return fine;
  }
};

}  // namespace pyparareal::testing
