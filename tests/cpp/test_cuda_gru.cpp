// SPDX-License-Identifier: BSD-3-Clause
// CUDA's relax_gru and its adjoint, run thread by thread on the host, give the bits of the CPU's: weights in shared
// memory and streamed from the workspace, one and several quads of rows, right-hand sides, in place, any strides.
// Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include "cuda/launch.cuh"
#include "emulated_report.h"
#include "gru_side.h"

namespace pyparareal::testing {
namespace {

using emulate::Order, emulate::settings;

long streamed = 0;

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
                "gradients %d lay %d seed %llu",
                a.adjoint, static_cast<int>(a.dtype), static_cast<long long>(a.slices), static_cast<long long>(a.batch),
                static_cast<long long>(a.hidden), static_cast<long long>(a.m), static_cast<long long>(a.kept), a.f, a.g,
                a.every, a.out, a.in_place, a.bias, a.gradients, static_cast<int>(a.lay),
                static_cast<unsigned long long>(a.seed));
  cpu.run(a, Device::cpu);
  cuda.run(a, Device::cuda);
  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  for (int slot = 0; slot < WORKSPACE; ++slot)
    if (cpu.present[slot]) expect(same_values(cuda.arrays[slot], cpu.arrays[slot], true), "an array differs");
  expect(cpu.clean(a), "the CPU wrote something else");
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  expect(a.norms || settings.launches.size() == (cuda.present[WORKSPACE] ? 2u : 1u), "not one launch a kernel");
  streamed += cuda.present[WORKSPACE] && !a.norms;
}

Case random_case(Random& random, int64_t hidden) {
  Case a = {};
  a.hidden = hidden;
  a.adjoint = random.below(2), a.bias = random.below(3), a.gradients = random.below(3);
  a.dtype = random.below(2) ? DType::float64 : DType::float32;
  a.slices = 1 + random.below(4), a.batch = 1 + random.below(3), a.m = 1 + random.below(3);
  a.f = random.below(3), a.g = a.f && random.below(2);
  a.kept = a.m == 2 && random.below(2) ? 1 : a.m, a.norms = !a.adjoint && random.below(4) == 0;
  a.every = random.below(2), a.out = !a.every || random.below(4);
  a.in_place = (a.adjoint || a.out) && random.below(3) == 0;
  a.lay = static_cast<Lay>(random.below(4));
  a.seed = random.next();
  return a;
}

void check_widths() {
  Random random(20251122);
  for (int repeat = 0; repeat < 12; ++repeat)
    for (const int64_t hidden : {1, 2, 3, 5, 8, 17, 31, 40, 64, 70}) check(random_case(random, hidden));
  expect(streamed > 5, "hardly ever streamed");
}

// More rows than quads for every multiprocessor, so that a block has several.
void check_many_rows() {
  Random random(7);
  for (int repeat = 0; repeat < 6; ++repeat)
    for (const int64_t rows : {600, 1100, 2300}) {
      Case a = random_case(random, 1 + random.below(4));
      a.slices = rows / a.batch, a.m = 1, a.kept = 1;
      check(a);
    }
}

void check_failures() {
  Random random(3);
  for (const int64_t hidden : {4, 70}) {
    Case a = random_case(random, hidden);
    std::snprintf(current, sizeof current, "failures");
    Side side;
    settings.fail_launches = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "relax_gru"),
           side.status.message);
    settings.devices = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "invalid device"),
           side.status.message);
    settings.devices = 2;
  }
  Case a = random_case(random, 800);  // of which six arrays of a quad are more than a block of the emulator has
  a.adjoint = true, a.slices = a.batch = a.m = 1;
  Side side;
  side.run(a, Device::cuda);
  expect(side.status.code == StatusCode::invalid_value && std::strstr(side.status.message, "u: got 800 hidden units"),
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
