// SPDX-License-Identifier: BSD-3-Clause
// CUDA's relax_dense and its adjoint, run thread by thread on the host, give the bits of the CPU's: matrices in one and
// several parts, fetched in packs and one by one, one and several outputs a thread, right-hand sides, in place, any
// strides. Built and run by tests/test_cuda_emulated.py; empty in every other build.
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
    const Exec exec =
        scratch(relax_dense_workspace_bytes(input(U), 1) + (a.norms ? slice_norms_workspace_bytes(input(U)) : 0));
    const MutableView out = a.in_place ? MutableView(arrays[U]) : output(OUT);
    if (a.adjoint)
      status = relax_dense_adjoint(out, input(U), input(WEIGHT), input(SLOPES), 1.7, a.m, input(F), input(G),
                                   output(EVERY), input(TARGET), output(NORMS), Norm::sum_squares, exec);
    else
      status = relax_dense(out, input(U), input(WEIGHT), input(BIAS), 0.3, a.activation, a.m, output(SLOPES), input(F),
                           input(G), output(EVERY), input(TARGET), output(NORMS), Norm::sum_squares, exec);
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

void check(const Case& a) {
  static Side cpu, cuda;
  static int turn = 0;
  static const unsigned grids[] = {0x7fffffffu, 1, 3};
  ++turn;
  settings.order = static_cast<Order>(turn % 3);
  settings.most_blocks = grids[turn / 3 % 3];
  settings.seed = a.seed;
  settings.device = 0;
  settings.launches.clear();
  std::snprintf(current, sizeof current,
                "adjoint %d dtype %d [%lld, %lld, %lld] m %lld kept %lld f %d g %d every %d out %d in place %d bias %d "
                "slopes %d activation %d lay %d weights %d seed %llu",
                a.adjoint, static_cast<int>(a.dtype), static_cast<long long>(a.slices), static_cast<long long>(a.batch),
                static_cast<long long>(a.d), static_cast<long long>(a.m), static_cast<long long>(a.kept), a.f, a.g,
                a.every, a.out, a.in_place, a.bias, a.slopes, static_cast<int>(a.activation), static_cast<int>(a.lay),
                static_cast<int>(a.weights), static_cast<unsigned long long>(a.seed));
  cpu.run(a, Device::cpu);
  cuda.run(a, Device::cuda);
  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  for (int slot = 0; slot < WORKSPACE; ++slot)
    if (cpu.present[slot]) expect(same_values(cuda.arrays[slot], cpu.arrays[slot], true), "an array differs");
  expect(cpu.clean(a), "the CPU wrote something else");
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  expect(a.norms || settings.launches.size() == 1, "not one launch");
}

Case random_case(Random& random, int64_t d) {
  Case a = {};
  a.d = d;
  a.adjoint = random.below(2), a.bias = random.below(3), a.slopes = random.below(3);
  a.dtype = random.below(2) ? DType::float64 : DType::float32;
  a.activation = static_cast<DenseActivation>(random.below(5));
  a.slices = 1 + random.below(4), a.batch = 1 + random.below(9), a.m = 1 + random.below(3);
  a.f = random.below(3), a.g = a.f && random.below(2);
  a.kept = a.m == 2 && random.below(2) ? 1 : a.m, a.norms = random.below(4) == 0;
  a.every = random.below(2), a.out = !a.every || random.below(4);
  a.in_place = a.out && random.below(3) == 0;
  a.lay = static_cast<Lay>(random.below(4));
  a.weights = random.below(2) ? Lay::dense : static_cast<Lay>(random.below(4));
  a.seed = random.next();
  return a;
}

void check_widths() {
  Random random(20251121);
  for (int repeat = 0; repeat < 10; ++repeat)
    for (const int64_t d : {1, 2, 3, 5, 8, 16, 17, 32, 33, 64, 70}) check(random_case(random, d));
}

// Blocks enough that a tile has several quads of rows, and a thread several outputs; and outputs that take turns.
void check_many_rows() {
  Random random(7);
  for (int repeat = 0; repeat < 6; ++repeat)
    for (const int64_t batch : {9, 16, 33}) {
      Case a = random_case(random, 1 + random.below(24));
      a.slices = 140, a.batch = batch, a.m = 1 + random.below(2), a.kept = a.m;
      check(a);
    }
  for (int repeat = 0; repeat < 2; ++repeat) {
    Case a = random_case(random, 130);
    a.slices = 67, a.batch = 16, a.m = 1, a.kept = 1;
    check(a);
    a = random_case(random, 260);
    a.slices = a.batch = 1, a.dtype = DType::float32;
    check(a);
  }
}

void check_failures() {
  Random random(3);
  for (const int64_t d : {4, 70}) {
    Case a = random_case(random, d);
    std::snprintf(current, sizeof current, "failures");
    Side side;
    settings.fail_launches = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "relax_dense"),
           side.status.message);
    settings.devices = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "invalid device"),
           side.status.message);
    settings.devices = 2;
  }
  Case a = random_case(random, 1000);  // of which three arrays of a quad are more than a block of the emulator has
  a.adjoint = true, a.slices = a.batch = a.m = a.kept = 1;
  Side side;
  side.run(a, Device::cuda);
  expect(side.status.code == StatusCode::invalid_value && std::strstr(side.status.message, "v: got 1000 features"),
         side.status.message);
}

}  // namespace
}  // namespace pyparareal::testing

int main() {
  using namespace pyparareal::testing;
  catch_crashes();
  check_widths();
  check_many_rows();
  check_failures();
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
