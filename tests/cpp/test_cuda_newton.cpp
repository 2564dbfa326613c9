// SPDX-License-Identifier: BSD-3-Clause
// CUDA's newton_gru, run thread by thread on the host, gives the bits of the CPU's: states, Jacobians and norms, with
// the shortest and the longest search for the last end, and what is not finite.
// Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include "cuda/launch.cuh"
#include "emulated_report.h"
#include "guarded_array.h"
#include "pyparareal/ops.h"

namespace pyparareal::testing {
namespace {

using emulate::Order, emulate::settings;

// Last axis fastest, with gaps, backward, or time axis fastest.
enum class Lay { dense, spaced, backward, transposed };

View<void*> lay_out(Lay lay, DType dtype, const std::vector<int64_t>& shape) {
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
  DType dtype;
  int64_t steps, batch, hidden;
  double factor;
  bool bias, jacobians, norms, special, far_starts;
  Lay lay;
  uint64_t seed;
};

enum Slot { U, PRODUCTS, GATES, DIAGONAL, BIAS, OUT, JACOBIANS, RESIDUALS, UPDATES, WORKSPACE, slots };

struct Side {
  GuardedMemory memory[slots];
  Array arrays[slots];
  bool present[slots];
  Status status;

  void make(Slot slot, bool wanted, const View<void*>& view, Device device, Random* values, bool special) {
    present[slot] = wanted;
    if (!wanted) return;
    arrays[slot].place(memory[slot], view, Form::odd_pitch);
    arrays[slot].view.device = device;
    arrays[slot].view.device_id = device == Device::cuda ? 1 : 0;
    arrays[slot].fill(0x5a, values, special);
  }

  ConstView input(Slot slot) const { return present[slot] ? ConstView(arrays[slot]) : ConstView{}; }
  MutableView output(Slot slot) { return present[slot] ? MutableView(arrays[slot]) : MutableView{}; }

  void run(const Case& a, Device device) {
    Random random(a.seed);
    const auto state = [&](int64_t rows, int64_t times) {
      return lay_out(a.lay, a.dtype, {rows, a.batch, times * a.hidden});
    };
    make(U, true, state(a.steps + 1, 1), device, &random, a.special);
    make(PRODUCTS, true, state(a.steps, 3), device, &random, a.special);
    make(GATES, true, state(a.steps, 3), device, &random, a.special);
    make(DIAGONAL, true, lay_out(a.lay, a.dtype, {3, a.hidden}), device, &random, false);
    make(BIAS, a.bias, lay_out(a.lay, a.dtype, {a.hidden}), device, &random, false);
    make(OUT, true, state(a.steps, 1), device, nullptr, false);
    make(JACOBIANS, a.jacobians, state(a.steps, 1), device, nullptr, false);
    for (const Slot slot : {RESIDUALS, UPDATES})
      make(slot, a.norms, lay_out(Lay::dense, DType::float64, {a.steps}), device, nullptr, false);
    Exec exec;
    exec.threads = 1;
    exec.workspace_bytes = newton_gru_workspace_bytes(input(U), 1);
    make(WORKSPACE, exec.workspace_bytes > 0,
         lay_out(Lay::dense, DType::float64, {static_cast<int64_t>(exec.workspace_bytes / 8)}), device, nullptr, false);
    exec.workspace = exec.workspace_bytes ? arrays[WORKSPACE].view.data : nullptr;
    status = newton_gru(output(OUT), output(JACOBIANS), output(RESIDUALS), output(UPDATES), input(U), input(PRODUCTS),
                        input(GATES), input(DIAGONAL), input(BIAS), a.factor, exec);
  }

  bool clean() {
    bool fine = true;
    for (int slot = 0; slot < slots; ++slot)
      fine = fine && (!present[slot] || (slot < OUT ? arrays[slot].unchanged() : arrays[slot].unchanged_outside()));
    return fine;
  }
};

void check(const Case& a) {
  static Side cpu, cuda;
  static int turn = 0;
  static const unsigned grids[] = {0x7fffffffu, 1, 3};
  ++turn;
  settings.order = static_cast<Order>(turn % 3);
  settings.most_blocks = grids[turn / 3 % 3];
  settings.seed = a.seed;
  settings.device = 0;
  settings.far_starts = a.far_starts;
  settings.launches.clear();
  std::snprintf(
      current, sizeof current,
      "dtype %d [%lld, %lld, %lld] factor %g bias %d jacobians %d norms %d special %d far %d lay %d seed %llu",
      static_cast<int>(a.dtype), static_cast<long long>(a.steps), static_cast<long long>(a.batch),
      static_cast<long long>(a.hidden), a.factor, a.bias, a.jacobians, a.norms, a.special, a.far_starts,
      static_cast<int>(a.lay), static_cast<unsigned long long>(a.seed));
  cpu.run(a, Device::cpu);
  cuda.run(a, Device::cuda);
  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  for (const Slot slot : {OUT, JACOBIANS, RESIDUALS, UPDATES})
    if (cpu.present[slot]) expect(same_values(cuda.arrays[slot], cpu.arrays[slot], true), "the bits differ");
  expect(cpu.clean(), "the CPU wrote something else");
  expect(cuda.clean(), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  expect(settings.launches.size() == 1, "not one launch");
}

Case random_case(Random& random, int64_t steps) {
  Case a = {};
  a.steps = steps;
  a.dtype = random.below(2) ? DType::float64 : DType::float32;
  a.batch = 1 + random.below(3), a.hidden = 1 + random.below(14);
  a.factor = random.below(2) ? 1.0 : 0.75;
  a.bias = random.below(2), a.jacobians = random.below(2), a.norms = random.below(3) > 0;
  a.special = random.below(4) == 0, a.far_starts = random.below(2);
  a.lay = static_cast<Lay>(random.below(4));
  a.seed = random.next();
  return a;
}

void check_shapes() {
  Random random(20261121);
  for (const int64_t steps : {1, 2, 15, 16, 17, 31, 255, 256, 257, 300, 511, 512, 513, 800})
    for (int repeat = 0; repeat < 16; ++repeat) check(random_case(random, steps));
}

// More groups than are looked at together.
void check_long() {
  Random random(7);
  for (const int64_t steps : {9 * 256, 20 * 256 + 100})
    for (int repeat = 0; repeat < 4; ++repeat) {
      Case a = random_case(random, steps);
      a.batch = 1, a.hidden = 1 + random.below(3);
      check(a);
    }
}

void check_failures() {
  Random random(3);
  const Case a = random_case(random, 600);
  std::snprintf(current, sizeof current, "failures");
  Side side;
  settings.fail_launches = 1;
  side.run(a, Device::cuda);
  expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "newton_gru"),
         side.status.message);
  settings.devices = 1;
  side.run(a, Device::cuda);
  expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "invalid device"),
         side.status.message);
  settings.devices = 2;
}

}  // namespace
}  // namespace pyparareal::testing

int main() {
  using namespace pyparareal::testing;
  catch_crashes();
  check_shapes();
  check_long();
  check_failures();
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
