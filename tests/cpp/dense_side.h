// SPDX-License-Identifier: BSD-3-Clause
// A case of relax_dense or its adjoint, and its operands on one device.
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
  bool adjoint, f, g, every, out, in_place, bias, norms, slopes;
  DType dtype;
  Precision precision;  // on CUDA
  DenseActivation activation;
  int64_t d, slices, batch, m, kept;
  Lay lay, weights;
  uint64_t seed;
};

enum Slot { U, WEIGHT, BIAS, F, G, EVERY, OUT, SLOPES, TARGET, NORMS, WORKSPACE, slots };

struct Side {
  GuardedMemory memory[slots];
  Array arrays[slots];
  bool present[slots] = {};
  Device device = Device::cpu;
  Status status;
  double h = 0.3, scale = 1.7;
  // After they were made: inputs as a test wants them.
  std::function<void(Side&, const Case&)> prepare;

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

  void run(const Case& a, Device where) {
    for (bool& slot : present) slot = false;
    device = where;
    Random random(a.seed);
    const auto state = lay_out(a.lay, a.dtype, {a.slices, a.batch, a.d});
    const auto steps = lay_out(a.lay, a.dtype, {a.slices, a.m, a.batch, a.d});
    make(WEIGHT, true, lay_out(a.weights, a.dtype, {a.slices, a.m, a.d, a.d}), &random);
    make(BIAS, a.bias && !a.adjoint, lay_out(a.weights, a.dtype, {a.slices, a.m, a.d}), &random);
    make(U, true, state, &random);
    make(F, a.f, steps, &random);
    make(G, a.g, steps, &random);
    make(SLOPES, a.slopes || a.adjoint, steps, a.adjoint ? &random : nullptr);
    make(EVERY, a.every, lay_out(a.lay, a.dtype, {a.slices, a.kept, a.batch, a.d}), nullptr);
    make(OUT, a.out && !a.in_place, state, nullptr);
    make(TARGET, a.norms, state, &random);
    make(NORMS, a.norms, lay_out(Lay::dense, DType::float64, {a.slices}), nullptr);
    if (prepare) prepare(*this, a);
    const Precision precision = where == Device::cuda ? a.precision : Precision::exact;
    const Exec exec =
        scratch(relax_dense_workspace_bytes(input(U), 1) + (a.norms ? slice_norms_workspace_bytes(input(U)) : 0));
    const MutableView out = a.in_place ? MutableView(arrays[U]) : output(OUT);
    if (a.adjoint)
      status = relax_dense_adjoint(out, input(U), input(WEIGHT), input(SLOPES), scale, a.m, input(F), input(G),
                                   output(EVERY), input(TARGET), output(NORMS), Norm::sum_squares, precision, exec);
    else
      status = relax_dense(out, input(U), input(WEIGHT), input(BIAS), h, a.activation, a.m, output(SLOPES), input(F),
                           input(G), output(EVERY), input(TARGET), output(NORMS), Norm::sum_squares, precision, exec);
  }

  // Inputs as they were, and nothing beside the outputs.
  bool clean(const Case& a) {
    bool fine = true;
    for (int slot = 0; slot < slots; ++slot) {
      const bool written = (slot == U && a.in_place) || slot == EVERY || slot == OUT || slot == NORMS ||
                           (slot == SLOPES && !a.adjoint) || slot == WORKSPACE;
      if (present[slot]) fine = fine && (written ? arrays[slot].unchanged_outside() : arrays[slot].unchanged());
    }
    return fine;
  }
};

}  // namespace pyparareal::testing
