// SPDX-License-Identifier: BSD-3-Clause
// CUDA's scans, run thread by thread on the host, give the bits of the CPU's: chunks, groups and the search for the
// last end, with its shortest and its longest way, products that are not finite, and blocks too large to be multiplied.
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
  int64_t d;  // 0: scan_diag
  DType dtype;
  int64_t steps, batch, features;
  bool start, reverse, in_place, special, far_starts;
  Lay lay;
  uint64_t seed;
};

enum Slot { A, B, START, OUT, WORKSPACE, slots };

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

  void run(const Case& a, Device device) {
    Random random(a.seed);
    std::vector<int64_t> rows{a.steps, a.batch, a.features}, row{a.batch, a.features};
    if (a.d) rows.push_back(a.d), row.push_back(a.d);
    std::vector<int64_t> factors = rows;
    if (a.d) factors.push_back(a.d);
    make(A, true, lay_out(a.lay, a.dtype, factors), device, &random, a.special);
    make(B, true, lay_out(a.lay, a.dtype, rows), device, &random, a.special);
    make(START, a.start, lay_out(a.lay, a.dtype, row), device, &random, false);
    make(OUT, !a.in_place, lay_out(a.lay, a.dtype, rows), device, nullptr, false);
    Exec exec;
    exec.threads = 1;
    exec.workspace_bytes = a.d ? scan_block_workspace_bytes(input(B), 1) : scan_diag_workspace_bytes(input(B), 1);
    make(WORKSPACE, exec.workspace_bytes > 0,
         lay_out(Lay::dense, DType::float64, {static_cast<int64_t>(exec.workspace_bytes / 8)}), device, nullptr, false);
    exec.workspace = exec.workspace_bytes ? arrays[WORKSPACE].view.data : nullptr;
    const MutableView out(arrays[a.in_place ? B : OUT]);
    status = a.d ? scan_block(out, input(A), input(B), input(START), a.reverse, exec)
                 : scan_diag(out, input(A), input(B), input(START), a.reverse, exec);
  }

  bool clean(const Case& a) {
    bool fine = a.in_place ? arrays[B].unchanged_outside() : arrays[B].unchanged() && arrays[OUT].unchanged_outside();
    for (const Slot slot : {A, START}) fine = fine && (!present[slot] || arrays[slot].unchanged());
    return fine && (!present[WORKSPACE] || arrays[WORKSPACE].unchanged_outside());
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
  std::snprintf(current, sizeof current,
                "d %lld dtype %d [%lld, %lld, %lld] start %d reverse %d in place %d special %d far %d lay %d seed %llu",
                static_cast<long long>(a.d), static_cast<int>(a.dtype), static_cast<long long>(a.steps),
                static_cast<long long>(a.batch), static_cast<long long>(a.features), a.start, a.reverse, a.in_place,
                a.special, a.far_starts, static_cast<int>(a.lay), static_cast<unsigned long long>(a.seed));
  cpu.run(a, Device::cpu);
  cuda.run(a, Device::cuda);
  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  const Slot end = a.in_place ? B : OUT;
  expect(same_values(cuda.arrays[end], cpu.arrays[end], true), "the states differ");
  expect(cpu.clean(a), "the CPU wrote something else");
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  expect(settings.launches.size() == 1, "not one launch");
}

Case random_case(Random& random, int64_t d, int64_t steps) {
  Case a = {};
  a.d = d, a.steps = steps;
  a.dtype = random.below(2) ? DType::float64 : DType::float32;
  a.batch = 1 + random.below(3), a.features = 1 + random.below(d ? 4 : 20);
  a.start = random.below(2), a.reverse = !a.start && random.below(2);
  a.in_place = random.below(3) == 0, a.special = random.below(4) == 0, a.far_starts = random.below(2);
  a.lay = static_cast<Lay>(random.below(4));
  a.seed = random.next();
  return a;
}

void check_shapes() {
  Random random(20251121);
  for (const int64_t steps : {1, 2, 15, 16, 17, 31, 255, 256, 257, 300, 511, 512, 513, 800})
    for (const int64_t d : {0, 1, 2, 3, 4, 5, 9})
      for (int repeat = 0; repeat < 6; ++repeat) check(random_case(random, d, steps));
}

// More groups than are looked at together.
void check_long() {
  Random random(7);
  for (const int64_t steps : {9 * 256, 20 * 256 + 100})
    for (const int64_t d : {0, 2})
      for (int repeat = 0; repeat < 8; ++repeat) {
        Case a = random_case(random, d, steps);
        a.batch = 1, a.features = 1 + random.below(3);
        check(a);
      }
}

void check_failures() {
  Random random(3);
  for (const int64_t d : {0, 3, 7}) {
    Case a = random_case(random, d, 600);
    std::snprintf(current, sizeof current, "failures");
    Side side;
    settings.fail_launches = 1;
    side.run(a, Device::cuda);
    expect(
        side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, d ? "scan_block" : "scan_diag"),
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
  check_shapes();
  check_long();
  check_failures();
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
