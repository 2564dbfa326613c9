// SPDX-License-Identifier: BSD-3-Clause
// relax_gru and its adjoint on tensor cores, run thread by thread on the host, whose tensor cores round every sum
// towards zero: where all products and sums are exact, the bits are those of the CPU; elsewhere errors are below the
// bounds that pyparareal/gru_ops.py states. Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include <cmath>
#include <limits>

#include "cuda/launch.cuh"
#include "emulated_report.h"
#include "gru_side.h"

namespace pyparareal::testing {
namespace {

using emulate::Order, emulate::settings;

constexpr double rounding = 0x1p-24;
constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> numbers(const Array& array) {
  std::vector<float> all;
  for (const uint64_t bits : array.values()) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    all.push_back(x);
  }
  return all;
}

double largest(const Array& array) {
  double most = 0;
  for (const float x : numbers(array)) most = std::fmax(most, std::fabs(static_cast<double>(x)));
  return most;
}

// Multiples of 1/8, and weights of 1/4 times a power of two, so small that those of a row add up to 2 at most. But for
// the last step z is 0 or 1 and n is 1 or -1: a state stays a multiple of 1/8, and all products and their sums are
// exact.
void make_exact(Side& side, const Case& a) {
  float scale = 1;
  while (scale * static_cast<float>(a.hidden) > 1) scale /= 2;
  for (const Slot slot : {U, F, G, D_END, D_EVERY})
    if (side.present[slot]) side.arrays[slot].change([](float x) { return std::nearbyint(x * 8) / 8; });
  side.arrays[WEIGHT].change([&](float x) { return std::nearbyint(x * 4) / 4 * scale; });
  if (a.adjoint) return;
  int64_t place = 0;  // last axis fastest: [slices, m, batch, gate, hidden]
  side.arrays[GATES].change([&](float x) {
    const int64_t gate = place / a.hidden % 3, step = place / (3 * a.hidden * a.batch) % a.m;
    ++place;
    return gate == 0 || step == a.m - 1 ? x : x < 0 ? -infinity : infinity;
  });
}

// Of a gradient after a product back. A step makes at most 7 of a gradient of 1, 6 of it by products with the weights,
// whose terms a precision gets to `relative`.
double bound_back(const Case& a, double most) {
  const double terms = 3 * static_cast<double>(a.hidden);
  const double own = a.precision == Precision::tf32 ? 0x1p-10 + 4 * terms * rounding : (terms / 16 + 48) * rounding;
  return 6 * (own + terms * rounding + 8 * rounding) * most * std::pow(7.0, static_cast<double>(a.m - 1));
}

bool close(const Array& got, const Array& expected, double bound) {
  const std::vector<float> left = numbers(got), right = numbers(expected);
  for (std::size_t i = 0; i < left.size(); ++i)
    if (!(std::fabs(static_cast<double>(left[i]) - static_cast<double>(right[i])) <= bound)) return false;
  return left.size() == right.size();
}

void describe(const Case& a) {
  std::snprintf(
      current, sizeof current,
      "precision %d adjoint %d [%lld, %lld, %lld] m %lld kept %lld f %d g %d every %d out %d in place %d bias "
      "%d gradients %d lay %d seed %llu",
      static_cast<int>(a.precision), a.adjoint, static_cast<long long>(a.slices), static_cast<long long>(a.batch),
      static_cast<long long>(a.hidden), static_cast<long long>(a.m), static_cast<long long>(a.kept), a.f, a.g, a.every,
      a.out, a.in_place, a.bias, a.gradients, static_cast<int>(a.lay), static_cast<unsigned long long>(a.seed));
}

long streamed = 0, in_shared = 0;

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
  for (int slot = 0; slot < WORKSPACE; ++slot) {
    if (!cpu.present[slot]) continue;
    const Array &got = cuda.arrays[slot], &expected = cpu.arrays[slot];
    const bool after_products = a.adjoint && (slot == OUT || slot == D_END || (a.m > 1 && slot != D_EVERY));
    if (!after_products)
      expect(same_values(got, expected, true), "an array differs");
    else
      expect(close(got, expected, bound_back(a, 4 + largest(expected))), "an array is further off than it may be");
  }
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  expect(a.norms || settings.launches.size() == (cuda.present[WORKSPACE] ? 2u : 1u), "not one launch a kernel");
  if (!a.norms) ++(cuda.present[WORKSPACE] ? streamed : in_shared);
}

Case random_case(Random& random, int64_t hidden) {
  Case a = {};
  a.hidden = hidden;
  a.precision = random.below(2) ? Precision::tf32x3 : Precision::tf32;
  a.adjoint = random.below(2), a.bias = random.below(3), a.gradients = random.below(3);
  a.dtype = DType::float32;
  a.slices = 1 + random.below(6), a.batch = 1 + random.below(5), a.m = 1 + random.below(3);
  a.f = random.below(3), a.g = a.f && random.below(2);
  a.kept = a.m == 2 && random.below(2) ? 1 : a.m, a.norms = !a.adjoint && random.below(4) == 0;
  a.every = random.below(2), a.out = !a.every || random.below(4);
  a.in_place = (a.adjoint || a.out) && random.below(3) == 0;
  a.lay = static_cast<Lay>(random.below(4));
  a.seed = random.next();
  return a;
}

void check_widths() {
  Random random(20251121);
  for (int repeat = 0; repeat < 12; ++repeat)
    for (const int64_t hidden : {1, 2, 5, 8, 15, 16, 17, 24, 31, 33, 40}) check(random_case(random, hidden));
  for (const int64_t hidden : {64, 70, 81}) check(random_case(random, hidden));
  expect(streamed > 10 && in_shared > 10, "hardly ever streamed, or hardly ever not");
}

// More rows than tiles for every multiprocessor: a block has two.
void check_many_rows() {
  Random random(7);
  for (const bool adjoint : {false, true})
    for (const int64_t hidden : {3, 18, 20}) {
      Case a = random_case(random, hidden);
      a.adjoint = adjoint, a.batch = 3, a.slices = 710, a.m = a.kept = hidden == 3 ? 2 : 1;
      a.every = true, a.in_place = false;
      check(a);
    }
}

// The first rows of many, two tiles a block, have the bits they have alone, with generic numbers and several steps.
void check_company() {
  const auto same_rows = [](Side& side, const Case&) {
    for (const Slot slot : {U, GATES, D_END, D_EVERY, WEIGHT, BIAS}) {
      if (!side.present[slot]) continue;
      uint64_t place = 0;
      side.arrays[slot].change([&](float) {
        Random own(++place * 31 + static_cast<uint64_t>(slot));
        own.next();
        return static_cast<float>(own.below(1 << 24) - (1 << 23)) * (slot == WEIGHT ? 0x1p-24f : 0x1p-22f);
      });
    }
  };
  for (const bool adjoint : {false, true})
    for (const Precision precision : {Precision::tf32x3, Precision::tf32}) {
      Case a = {};
      a.adjoint = adjoint, a.precision = precision, a.dtype = DType::float32, a.hidden = 19, a.m = a.kept = 2;
      a.every = a.out = a.bias = true, a.gradients = adjoint, a.seed = 5, a.batch = 1, a.lay = Lay::dense;
      describe(a);
      Side many, few;
      many.prepare = few.prepare = same_rows;
      settings.order = Order::shuffled, settings.most_blocks = 0x7fffffffu;
      a.slices = 2130;
      many.run(a, Device::cuda);
      a.slices = 21;
      few.run(a, Device::cuda);
      expect(many.status.ok() && few.status.ok(), "a call failed");
      for (const Slot slot : {OUT, EVERY, D_GATES, D_HIDDEN}) {
        if (!few.present[slot]) continue;
        const std::vector<uint64_t> alone = few.arrays[slot].values(), all = many.arrays[slot].values();
        expect(std::equal(alone.begin(), alone.end(), all.begin()), "a row's bits depend on its company");
      }
    }
}

// h' = tanh(W_n h), of r = 1 and z = 0, against sums in float64: the bounds of gru_ops.py, and 4 units of rounding for
// tanh. tf32 misses the bound of tf32x3: the test sees the difference.
void check_accuracy() {
  double worst[2] = {0, 0};
  for (const Precision precision : {Precision::tf32x3, Precision::tf32})
    for (const int64_t hidden : {7, 48, 100}) {
      Case a = {};
      a.precision = precision, a.dtype = DType::float32, a.hidden = hidden, a.m = a.kept = 1, a.out = true, a.seed = 3;
      a.slices = 9, a.batch = 2, a.lay = Lay::dense;
      describe(a);
      Side side;
      side.prepare = [](Side& s, const Case& c) {
        int64_t place = 0;
        s.arrays[GATES].change([&](float) {
          const int64_t gate = place++ / c.hidden % 3;
          return gate == 0 ? infinity : gate == 1 ? -infinity : 0.0f;
        });
        s.arrays[WEIGHT].change([&](float x) { return x / static_cast<float>(c.hidden); });
      };
      side.run(a, Device::cuda);
      expect(side.status.ok(), side.status.message);
      const std::vector<float> u = numbers(side.arrays[U]), w = numbers(side.arrays[WEIGHT]);
      const std::vector<float> got = numbers(side.arrays[OUT]);
      const auto n = static_cast<std::size_t>(hidden);
      bool within = true;
      for (std::size_t i = 0; i < got.size(); ++i) {
        const float *h = &u[i / n * n], *row = &w[(2 * n + i % n) * n];
        double sum = 0, size = 0;
        for (std::size_t k = 0; k < n; ++k) sum += double{h[k]} * row[k], size += std::fabs(double{h[k]} * row[k]);
        const double error = std::fabs(static_cast<double>(got[i]) - std::tanh(sum)) - 4 * rounding;
        const double fine = (static_cast<double>(hidden) / 16 + 48) * rounding * size;
        const double coarse = (0x1p-10 + 0x1p-22 * static_cast<double>(hidden)) * size;
        within = within && error <= (precision == Precision::tf32 ? coarse : fine);
        double& most = worst[precision == Precision::tf32];
        most = std::fmax(most, error / fine);
      }
      expect(within, "an error is beyond its bound");
    }
  std::snprintf(current, sizeof current, "largest errors %.3g and %.3g of the bound of tf32x3", worst[0], worst[1]);
  expect(worst[1] > 1, "tf32 is as accurate as tf32x3: the test sees nothing");
}

// A row that is NaN or infinite stays by itself, and z = 1 keeps a state whatever else there is.
void check_special() {
  for (const Precision precision : {Precision::tf32x3, Precision::tf32}) {
    Case a = {};
    a.precision = precision, a.dtype = DType::float32, a.hidden = 21, a.m = a.kept = 2, a.out = true, a.seed = 3;
    a.slices = 6, a.batch = 1, a.lay = Lay::dense;
    std::snprintf(current, sizeof current, "special values, precision %d", static_cast<int>(precision));
    Side plain, special;
    special.prepare = [](Side& s, const Case& c) {
      int64_t place = 0, at = 0;
      s.arrays[U].change([&](float x) {
        const int64_t row = place / c.hidden, k = place % c.hidden;
        ++place;
        const uint32_t canonical = 0x7fffffff;  // what a GPU makes of every NaN
        float of_gpu;
        std::memcpy(&of_gpu, &canonical, sizeof of_gpu);
        return row == 1 && k == 3 ? of_gpu : row == 2 && k == 4 ? infinity : x;
      });
      s.arrays[GATES].change([&](float x) {
        const int64_t gate = at / c.hidden % 3, row = at / (6 * c.hidden);
        ++at;
        return row != 4 || gate == 0 ? x : gate == 1 ? infinity : nan;
      });
    };
    plain.run(a, Device::cuda);
    special.run(a, Device::cuda);
    const std::vector<float> start = numbers(special.arrays[U]), one = numbers(plain.arrays[OUT]);
    const std::vector<float> other = numbers(special.arrays[OUT]);
    bool others = true, poisoned = true, kept = true;
    for (std::size_t i = 0; i < one.size(); ++i) {
      const std::size_t row = i / 21;
      if (row == 1 || (row == 2 && precision == Precision::tf32x3)) poisoned = poisoned && std::isnan(other[i]);
      if (row == 0 || row == 3 || row == 5) others = others && one[i] == other[i];
      if (row == 4) kept = kept && std::memcmp(&other[i], &start[i], sizeof other[i]) == 0;
    }
    expect(others, "a NaN has left its row");
    expect(poisoned, "a NaN was lost");
    expect(kept, "a state was not kept");
  }
}

void check_refusals() {
  Random random(3);
  Case a = random_case(random, 4);
  std::snprintf(current, sizeof current, "refusals");
  Side side;
  a.adjoint = false, a.dtype = DType::float64;
  side.run(a, Device::cuda);
  expect(side.status.code == StatusCode::invalid_value &&
             std::strstr(side.status.message, "for u of float64 on CUDA, expected exact"),
         side.status.message);
  a.dtype = DType::float32;
  for (const bool adjoint : {false, true}) {
    a.adjoint = adjoint;
    settings.fail_launches = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "relax_gru"),
           side.status.message);
  }
  a = random_case(random, 400);  // of which the states and gradients of a tile are more than the emulator's block has
  a.adjoint = true, a.slices = a.batch = a.m = 1;
  side.run(a, Device::cuda);
  expect(side.status.code == StatusCode::invalid_value && std::strstr(side.status.message, "u: got 400 hidden units"),
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
