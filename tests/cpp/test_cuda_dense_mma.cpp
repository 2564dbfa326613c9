// SPDX-License-Identifier: BSD-3-Clause
// relax_dense and its adjoint on tensor cores, run thread by thread on the host, whose tensor cores round every sum
// towards zero: where all products and sums are exact, the bits are those of the CPU; elsewhere errors are below the
// bounds that pyparareal/dense_ops.py states. Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/launch.cuh"
#include "dense_side.h"
#include "emulated_report.h"

namespace pyparareal::testing {
namespace {

using emulate::Order, emulate::settings;

constexpr double rounding = 0x1p-24;

std::vector<float> numbers(const Array& array) {
  std::vector<float> all;
  for (const uint64_t bits : array.values()) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    all.push_back(x);
  }
  return all;
}

float in_units(float x, float unit) { return std::nearbyint(x / unit) * unit; }

// change(x, step, index) of [slices, m, row, inner], index within its step
template <class Change>
void change_steps(Array& array, int64_t m, int64_t of_step, const Change& change) {
  int64_t place = 0;
  array.change([&](float x) {
    const int64_t index = place % of_step, step = place / of_step % m;
    ++place;
    return change(x, step, index);
  });
}

// All products and their sums are exact, and the factors have 11 bits. States are multiples of 1/8 and the weights of
// the last step of 1/4 times a power of two, so small that those of a row add up to 2 at most. The steps before it have
// either, of the rectifier and of the adjoint, one weight of 1 or -1 a row; or a bias that saturates the activation.
void make_exact(Side& side, const Case& a) {
  side.h = side.scale = 0.5;
  float unit = 0.25f;
  while (unit * 4 * static_cast<float>(a.d) > 1) unit /= 2;
  const int64_t last = a.adjoint ? 0 : a.m - 1;
  const bool sparse = a.adjoint || a.activation == DenseActivation::relu;
  for (const Slot slot : {U, F, G})
    if (side.present[slot])
      side.arrays[slot].change([&](float x) {
        const float y = in_units(x, 0.125f);
        return slot == U && y == 0 ? 0.125f : y;
      });
  change_steps(side.arrays[WEIGHT], a.m, a.d * a.d, [&](float x, int64_t step, int64_t index) {
    if (step == last || !sparse) return in_units(x, 0.25f) * unit * 4;
    return index % a.d != (index / a.d + 1) % a.d ? 0.0f : x < 0 ? -1.0f : 1.0f;
  });
  if (a.adjoint) {
    change_steps(side.arrays[SLOPES], a.m, a.batch * a.d,
                 [](float x, int64_t step, int64_t) { return step ? in_units(x / 2, 1.0f) : in_units(x, 0.5f); });
    return;
  }
  if (!side.present[BIAS]) return;
  change_steps(side.arrays[BIAS], a.m, a.d, [&](float x, int64_t step, int64_t) {
    if (step == last || sparse) return in_units(x, 0.125f) == 0 ? 0.125f : in_units(x, 0.125f);
    if (a.activation == DenseActivation::tanh) return x < 0 ? -64.0f : 64.0f;
    return a.activation == DenseActivation::sigmoid ? 200.0f : -200.0f;
  });
}

void describe(const Case& a) {
  std::snprintf(
      current, sizeof current,
      "precision %d adjoint %d [%lld, %lld, %lld] m %lld kept %lld f %d g %d every %d out %d in place %d bias "
      "%d slopes %d activation %d lay %d weights %d seed %llu",
      static_cast<int>(a.precision), a.adjoint, static_cast<long long>(a.slices), static_cast<long long>(a.batch),
      static_cast<long long>(a.d), static_cast<long long>(a.m), static_cast<long long>(a.kept), a.f, a.g, a.every,
      a.out, a.in_place, a.bias, a.slopes, static_cast<int>(a.activation), static_cast<int>(a.lay),
      static_cast<int>(a.weights), static_cast<unsigned long long>(a.seed));
}

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
  describe(a);
  cpu.prepare = cuda.prepare = make_exact;
  cpu.run(a, Device::cpu);
  cuda.run(a, Device::cuda);
  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  for (int slot = 0; slot < WORKSPACE; ++slot)
    if (cpu.present[slot]) expect(same_values(cuda.arrays[slot], cpu.arrays[slot], true), "an array differs");
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  expect(a.norms || settings.launches.size() == 1, "not one launch");
}

Case random_case(Random& random, int64_t d) {
  Case a = {};
  a.d = d, a.dtype = DType::float32;
  a.precision = random.below(2) ? Precision::tf32x3 : Precision::tf32;
  a.adjoint = random.below(2), a.slopes = random.below(3);
  a.activation = static_cast<DenseActivation>(random.below(5));
  a.slices = 1 + random.below(4), a.batch = 1 + random.below(18), a.m = 1 + random.below(3);
  a.bias = random.below(3) || a.m > 1;
  a.f = random.below(3), a.g = a.f && random.below(2);
  a.kept = a.m == 2 && random.below(2) ? 1 : a.m, a.norms = random.below(4) == 0;
  a.every = random.below(2), a.out = !a.every || random.below(4);
  a.in_place = a.out && random.below(3) == 0;
  a.lay = static_cast<Lay>(random.below(4));
  a.weights = random.below(2) ? Lay::dense : static_cast<Lay>(random.below(4));
  a.seed = random.next();
  return a;
}

// One and several rounds of warps, of one and several parts, the last of them shorter; in packs and one by one.
void check_widths() {
  Random random(20251121);
  for (int repeat = 0; repeat < 10; ++repeat)
    for (const int64_t d : {1, 2, 5, 8, 15, 16, 17, 24, 31, 32, 33, 40, 64}) check(random_case(random, d));
  for (const int64_t d : {70, 81, 128, 130})
    for (const bool adjoint : {false, true}) {
      Case a = random_case(random, d);
      a.adjoint = adjoint;
      check(a);
    }
}

// Tiles enough for every multiprocessor: a block has two, the second full, cut or, past the last rows, empty.
void check_many_rows() {
  Random random(7);
  for (const bool adjoint : {false, true})
    for (const int64_t batch : {17, 32, 33})
      for (const int64_t d : {3, 20, 36}) {
        Case a = random_case(random, d);
        a.adjoint = adjoint, a.batch = batch, a.slices = batch > 32 ? 66 : 132, a.m = a.kept = d == 36 ? 1 : 2;
        a.bias = true;
        check(a);
      }
}

// The first slices of many, two tiles a block, have the bits they have alone; and so have the first rows of a slice.
void check_company() {
  // Numbers of a place in a slice, in order of steps; the weights and slopes are the same in every slice.
  const auto same_rows = [](Side& side, const Case& a) {
    for (const Slot slot : {U, F, WEIGHT, BIAS, SLOPES}) {
      if (!side.present[slot] || (slot == SLOPES && !a.adjoint)) continue;
      const int64_t states = a.m * a.batch * a.d;
      const int64_t period = slot == WEIGHT ? a.m * a.d * a.d : slot == BIAS ? a.m * a.d : slot == SLOPES ? states : 0;
      uint64_t place = 0;
      side.arrays[slot].change([&](float) {
        Random own((period ? place % static_cast<uint64_t>(period) : place) * 31 + static_cast<uint64_t>(slot));
        ++place;
        own.next();
        return static_cast<float>(own.below(1 << 24) - (1 << 23)) * (slot == WEIGHT ? 0x1p-25f : 0x1p-22f);
      });
    }
  };
  const int64_t cases[][5] = {{134, 20, 3, 20, 2}, {1, 40, 1, 7, 1}, {140, 20, 2, 20, 1}};  // slices, batch; both; m
  for (const bool adjoint : {false, true})
    for (const Precision precision : {Precision::tf32x3, Precision::tf32})
      for (const auto& sizes : cases) {
        Case a = {};
        a.adjoint = adjoint, a.precision = precision, a.dtype = DType::float32, a.d = 41, a.m = a.kept = sizes[4];
        a.every = a.out = a.bias = a.slopes = a.f = true, a.seed = 5;
        describe(a);
        Side many, few;
        many.prepare = few.prepare = same_rows;
        settings.order = Order::shuffled, settings.most_blocks = 0x7fffffffu;
        a.slices = sizes[0], a.batch = sizes[1];
        many.run(a, Device::cuda);
        a.slices = sizes[2], a.batch = sizes[3];
        few.run(a, Device::cuda);
        expect(many.status.ok() && few.status.ok(), "a call failed");
        for (const Slot slot : {OUT, EVERY, SLOPES}) {
          const std::vector<uint64_t> alone = few.arrays[slot].values(), all = many.arrays[slot].values();
          expect(std::equal(alone.begin(), alone.end(), all.begin()), "a row's bits depend on its company");
        }
      }
}

// Products in float64, of the factors [d] with strides: the sum, and that of its sizes.
void sum_of(const float* x, const float* w, int64_t stride, int64_t d, double& sum, double& size) {
  sum = size = 0;
  for (int64_t k = 0; k < d; ++k) sum += double{x[k]} * w[k * stride], size += std::fabs(double{x[k]} * w[k * stride]);
}

// A step against sums in float64: the bounds of dense_ops.py, and 4 roundings of the result. tf32 misses the bound of
// tf32x3: the test sees the difference.
void check_accuracy() {
  double worst[2] = {0, 0};
  for (const bool adjoint : {false, true})
    for (const Precision precision : {Precision::tf32x3, Precision::tf32})
      for (const int64_t d : {7, 48, 100}) {
        Case a = {};
        a.adjoint = adjoint, a.precision = precision, a.dtype = DType::float32, a.d = d, a.m = a.kept = 1;
        a.activation = DenseActivation::relu, a.out = true, a.seed = 3, a.slices = 2, a.batch = 9;
        describe(a);
        Side side;
        side.h = side.scale = 0.5;
        side.run(a, Device::cuda);
        expect(side.status.ok(), side.status.message);
        const std::vector<float> u = numbers(side.arrays[U]), w = numbers(side.arrays[WEIGHT]);
        const std::vector<float> got = numbers(side.arrays[OUT]);
        std::vector<float> x = u;
        if (adjoint) {  // slice n takes the slopes of the last but n
          const std::vector<float> slopes = numbers(side.arrays[SLOPES]);
          const std::size_t half = u.size() / 2;
          for (std::size_t i = 0; i < u.size(); ++i) x[i] = slopes[(i + half) % u.size()] * u[i];
        }
        bool within = true;
        for (int64_t i = 0; i < static_cast<int64_t>(got.size()); ++i) {
          const int64_t slice = i / (a.batch * d), column = i % d, matrix = (adjoint ? 1 - slice : slice) * d * d;
          double sum, size;
          sum_of(&x[static_cast<std::size_t>(i - column)],
                 &w[static_cast<std::size_t>(matrix + (adjoint ? column : column * d))], adjoint ? d : 1, d, sum, size);
          const auto at = static_cast<std::size_t>(i);
          const double result = double{u[at]} + 0.5 * (adjoint ? sum : std::fmax(sum, 0.0));
          const double error = std::fabs(double{got[at]} - result) - 4 * rounding * (std::fabs(result) + size);
          const double fine = 0.5 * (static_cast<double>(d) / 16 + 48) * rounding * size;
          const double coarse = 0.5 * (0x1p-10 + 0x1p-22 * static_cast<double>(d)) * size;
          within = within && error <= (precision == Precision::tf32 ? coarse : fine);
          double& most = worst[precision == Precision::tf32];
          most = std::fmax(most, error / fine);
        }
        expect(within, "an error is beyond its bound");
      }
  std::snprintf(current, sizeof current, "largest errors %.3g and %.3g of the bound of tf32x3", worst[0], worst[1]);
  expect(worst[1] > 1, "tf32 is as accurate as tf32x3: the test sees nothing");
}

// A row that is NaN stays by itself, and slopes of zero keep the gradients whatever the weights are.
void check_special() {
  for (const Precision precision : {Precision::tf32x3, Precision::tf32})
    for (const bool adjoint : {false, true}) {
      Case a = {};
      a.adjoint = adjoint, a.precision = precision, a.dtype = DType::float32, a.d = 21, a.m = a.kept = 2, a.out = true;
      a.seed = 3, a.slices = 2, a.batch = 3;
      std::snprintf(current, sizeof current, "special values, precision %d", static_cast<int>(precision));
      Side plain, special;
      special.prepare = [](Side& s, const Case& c) {
        int64_t place = 0;
        s.arrays[U].change([&](float x) { return place++ / c.d == 1 ? std::numeric_limits<float>::quiet_NaN() : x; });
      };
      plain.run(a, Device::cuda);
      special.run(a, Device::cuda);
      const std::vector<float> one = numbers(plain.arrays[OUT]), other = numbers(special.arrays[OUT]);
      bool others = true, poisoned = true;
      for (std::size_t i = 0; i < one.size(); ++i)
        if (i / 21 == 1)
          poisoned = poisoned && std::isnan(other[i]);
        else
          others = others && one[i] == other[i];
      expect(others, "a NaN has left its row");
      expect(poisoned, "a NaN was lost");
      if (!adjoint) continue;
      plain.prepare = [](Side& s, const Case&) { s.arrays[SLOPES].change([](float) { return 0.0f; }); };
      plain.run(a, Device::cuda);
      expect(numbers(plain.arrays[OUT]) == numbers(plain.arrays[U]), "gradients were not kept");
    }
}

void check_refusals() {
  Random random(3);
  Case a = random_case(random, 4);
  std::snprintf(current, sizeof current, "refusals");
  Side side;
  for (const bool adjoint : {false, true}) {
    a.adjoint = adjoint, a.dtype = DType::float64;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::invalid_value &&
               std::strstr(side.status.message, adjoint ? "for v of float64 on CUDA, expected exact"
                                                        : "for u of float64 on CUDA, expected exact"),
           side.status.message);
    a.dtype = DType::float32;
    settings.fail_launches = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "relax_dense"),
           side.status.message);
  }
  a = random_case(random, 400);  // of which three arrays of a tile are more than a block of the emulator has
  a.adjoint = true, a.slices = a.batch = a.m = a.kept = 1;
  side.run(a, Device::cuda);
  expect(side.status.code == StatusCode::invalid_value && std::strstr(side.status.message, "v: got 400 features"),
         side.status.message);
}

}  // namespace
}  // namespace pyparareal::testing

int main() {
  using namespace pyparareal::testing;
  catch_crashes();
  check_widths();
  check_many_rows();
  check_company();
  check_accuracy();
  check_special();
  check_refusals();
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
