// SPDX-License-Identifier: BSD-3-Clause
// CUDA's relax_dense and its adjoint, run thread by thread on the host, give the bits of the CPU's: matrices in one and
// several parts, fetched in packs and one by one, one and several outputs a thread, right-hand sides, in place, any
// strides. Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include "cuda/launch.cuh"
#include "dense_side.h"
#include "emulated_report.h"

namespace pyparareal::testing {
namespace {

using emulate::Order, emulate::settings;

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
