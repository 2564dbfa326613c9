// SPDX-License-Identifier: BSD-3-Clause
// The CUDA relaxations, run thread by thread on the host, give the bits of the CPU ones: right-hand sides, `every`,
// layouts, aliases, scratch in shared memory and in the workspace, in several orders of the threads and grids.
// Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include "cuda/launch.cuh"
#include "emulated_report.h"
#include "guarded_array.h"
#include "pyparareal/layout.h"
#include "pyparareal/ops.h"
#include "pyparareal/rhs.h"

namespace pyparareal::testing {
namespace {

using emulate::Order, emulate::settings;

enum class Op { diagonal, tridiagonal, stencil, rk };
constexpr const char* op_names[] = {"relax_diagonal", "relax_tridiagonal", "relax_stencil", "relax_rk"};

// Where the axes of an array lie in memory: last axis fastest, with gaps, backward, or time axis fastest.
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
  Op op;
  DType dtype;
  int64_t slices, batch, length, m;
  int64_t rows;  // of `every`, 0: absent
  bool f, g, out, in_place, own_steps, norms;
  Norm norm;
  Lay lay;
  Boundary boundary;
  int64_t width;
  RungeKutta scheme;
  uint64_t seed;
};

enum Slot { U, F, G, EVERY, OUT, A, B, C, STEPS, TARGET, NORMS, WORKSPACE, slots };

struct Side {
  GuardedMemory memory[slots];
  Array arrays[slots];
  bool present[slots];
  Status status;

  void make(Slot slot, bool wanted, const View<void*>& view, Device device, Random* values) {
    present[slot] = wanted;
    if (!wanted) return;
    arrays[slot].place(memory[slot], view, Form::odd_pitch);
    arrays[slot].view.device = device;
    arrays[slot].view.device_id = device == Device::cuda ? 1 : 0;
    arrays[slot].fill(0x5a, values, false);
  }

  ConstView input(Slot slot) const { return present[slot] ? ConstView(arrays[slot]) : ConstView{}; }
  MutableView output(Slot slot) const { return present[slot] ? MutableView(arrays[slot]) : MutableView{}; }

  void run(const Case& a, Device device) {
    Random random(a.seed);
    const auto state = lay_out(a.lay, a.dtype, {a.slices, a.batch, a.length});
    const auto steps = lay_out(a.lay, a.dtype, {a.slices, a.m, a.batch, a.length});
    const auto numbers = lay_out(Lay::dense, a.dtype, {a.op == Op::stencil ? a.width : a.length});
    make(U, true, state, device, &random);
    make(F, a.f, steps, device, &random);
    make(G, a.g, steps, device, &random);
    make(EVERY, a.rows > 0, lay_out(a.lay, a.dtype, {a.slices, a.rows, a.batch, a.length}), device, nullptr);
    make(OUT, a.out && !a.in_place, state, device, nullptr);
    make(A, a.op != Op::rk, numbers, device, &random);
    make(B, a.op == Op::tridiagonal, numbers, device, &random);
    make(C, a.op == Op::tridiagonal, numbers, device, &random);
    make(STEPS, a.op == Op::rk && a.own_steps, lay_out(a.lay, DType::float64, {a.slices, a.m}), device, &random);
    make(TARGET, a.norms, state, device, &random);
    make(NORMS, a.norms, lay_out(Lay::dense, DType::float64, {a.slices}), device, nullptr);
    const std::size_t bytes = (a.op == Op::tridiagonal ? relax_tridiagonal_workspace_bytes(input(U), 1)
                               : a.op == Op::stencil   ? relax_stencil_workspace_bytes(input(U), 1)
                                                       : 0) +
                              (a.norms ? slice_norms_workspace_bytes(input(U)) : 0);
    make(WORKSPACE, bytes > 0, lay_out(Lay::dense, DType::float64, {static_cast<int64_t>(bytes / 8)}), device, nullptr);
    Exec exec;
    exec.threads = 1;
    exec.workspace = bytes ? arrays[WORKSPACE].view.data : nullptr;
    exec.workspace_bytes = bytes;
    const MutableView out = a.in_place ? MutableView(arrays[U]) : output(OUT);
    switch (a.op) {
      case Op::diagonal:
        status = relax_diagonal(out, input(U), input(A), a.m, input(F), input(G), output(EVERY), input(TARGET),
                                output(NORMS), a.norm, exec);
        break;
      case Op::tridiagonal:
        status = relax_tridiagonal(out, input(U), input(A), input(B), input(C), a.m, input(F), input(G), output(EVERY),
                                   input(TARGET), output(NORMS), a.norm, exec);
        break;
      case Op::stencil:
        status = relax_stencil(out, input(U), input(A), a.boundary, a.m, input(F), input(G), output(EVERY),
                               input(TARGET), output(NORMS), a.norm, exec);
        break;
      default:
        status = relax_rk(out, input(U), a.scheme, input(STEPS), {}, a.m, input(F), input(G), output(EVERY),
                          input(TARGET), output(NORMS), a.norm, exec);
    }
  }

  bool clean(const Case& a) {
    bool fine = a.in_place ? arrays[U].unchanged_outside() : arrays[U].unchanged();
    for (const Slot slot : {F, G, A, B, C, STEPS, TARGET}) fine = fine && (!present[slot] || arrays[slot].unchanged());
    for (const Slot slot : {EVERY, OUT, NORMS, WORKSPACE})
      fine = fine && (!present[slot] || arrays[slot].unchanged_outside());
    return fine;
  }
};

long in_workspace[4] = {};

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
  std::snprintf(
      current, sizeof current,
      "%s dtype %d [%lld, %lld, %lld] m %lld f %d g %d every %d out %d in place %d steps %d lay %d norms %d width %lld "
      "rhs %d stages %d seed %llu",
      op_names[static_cast<int>(a.op)], static_cast<int>(a.dtype), static_cast<long long>(a.slices),
      static_cast<long long>(a.batch), static_cast<long long>(a.length), static_cast<long long>(a.m), a.f, a.g,
      static_cast<int>(a.rows), a.out, a.in_place, a.own_steps, static_cast<int>(a.lay), a.norms,
      static_cast<long long>(a.width), static_cast<int>(a.scheme.rhs), a.scheme.stages,
      static_cast<unsigned long long>(a.seed));
  cpu.run(a, Device::cpu);
  cuda.run(a, Device::cuda);
  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  const Slot end = a.in_place ? U : OUT;
  if (a.out) expect(same_values(cuda.arrays[end], cpu.arrays[end], true), "the end states differ");
  if (a.rows) expect(same_values(cuda.arrays[EVERY], cpu.arrays[EVERY], true), "the states between differ");
  if (a.norms) expect(same_values(cuda.arrays[NORMS], cpu.arrays[NORMS], true), "the norms differ");
  expect(cpu.clean(a), "the CPU wrote something else");
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  const bool elements = a.slices * a.batch * a.length > 0;
  const std::size_t of_norms = a.norms ? 1 + (a.batch * a.length > chunk) : 0;  // chunks, and the tree of a slice
  if (elements || !a.norms) expect(settings.launches.size() == (elements ? 1 + of_norms : 0), "launches");
  in_workspace[static_cast<int>(a.op)] += cuda.present[WORKSPACE];
}

RungeKutta random_scheme(Random& random, int rhs) {
  RungeKutta scheme;
  scheme.rhs = static_cast<RightHandSide>(rhs);
  const int stages[] = {1, 2, 4, 5, 11};
  scheme.stages = stages[random.below(5)];
  scheme.substeps = 1 + random.below(3);
  scheme.dt = 0.01;
  const auto coefficient = [&] { return random.below(3) ? static_cast<double>(random.below(1000)) / 777 - 0.5 : 0.0; };
  for (int i = 0; i < scheme.stages; ++i) {
    for (int j = 0; j < i; ++j) scheme.a[i][j] = coefficient();
    scheme.b[i] = coefficient();
  }
  for (double& p : scheme.parameters) p = 0.25 + static_cast<double>(random.below(1000)) / 500;
  return scheme;
}

void check_ops() {
  Random random(20241103);
  const int64_t lengths[] = {0, 1, 2, 3, 8, 9, 17, 31, 32, 33, 40, 100, 170, 500};
  for (const int64_t length : lengths)
    for (const int64_t slices : {0, 1, 2, 5, 33, 70})
      for (const DType dtype : {DType::float64, DType::float32})
        for (int op = 0; op < 4; ++op)
          for (int repeat = 0; repeat < 4; ++repeat) {
            Case a = {};
            a.op = static_cast<Op>(op), a.dtype = dtype, a.slices = slices, a.length = length;
            a.batch = 1 + random.below(3);
            a.m = 1 + random.below(4);
            a.f = repeat > 0, a.g = a.f && random.below(2);
            a.rows = random.below(2) * (random.below(2) ? a.m : a.m == 4 ? 2 : 1), a.out = !a.rows || random.below(4);
            a.in_place = a.out && random.below(3) == 0;
            a.own_steps = random.below(2);
            a.norms = random.below(3) == 0, a.norm = static_cast<Norm>(random.below(3));
            a.lay = static_cast<Lay>(random.below(4));
            a.boundary = static_cast<Boundary>(random.below(2));
            a.width = 1 + 2 * random.below(5);
            a.seed = random.next();
            a.scheme = random_scheme(random, static_cast<int>(random.below(6)));
            if (a.op == Op::rk) a.length = components_of(a.scheme.rhs);
            check(a);
          }
  expect(in_workspace[1] > 20, "relax_tridiagonal hardly used the workspace");
}

// Long columns, whose scratch does not fit shared memory.
void check_long_columns() {
  Random random(2);
  for (const Op op : {Op::tridiagonal, Op::stencil})
    for (const int64_t length : {3000, 6001}) {
      Case a = {};
      a.op = op, a.dtype = DType::float64, a.slices = 3, a.batch = 1, a.length = length, a.m = 2;
      a.f = a.g = a.out = a.norms = true, a.rows = op == Op::stencil ? 1 : 2;
      a.width = 9, a.boundary = Boundary::periodic;
      a.seed = random.next();
      check(a);
      expect(in_workspace[static_cast<int>(op)] > 0, "not in the workspace");
    }
}

void check_failures() {
  std::snprintf(current, sizeof current, "failures");
  Random random(3);
  for (int op = 0; op < 4; ++op) {
    Case a = {};
    a.op = static_cast<Op>(op), a.dtype = DType::float64, a.slices = 3, a.batch = 1, a.length = 1, a.m = 1, a.width = 1;
    a.out = true;
    a.scheme = random_scheme(random, 0);
    Side side;
    settings.fail_launches = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, op_names[op]),
           side.status.message);
    settings.devices = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "invalid device"),
           side.status.message);
    settings.devices = 2;
  }
}

}  // namespace
}  // namespace pyparareal::testing

int main() {
  using namespace pyparareal::testing;
  catch_crashes();
  check_ops();
  check_long_columns();
  check_failures();
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
