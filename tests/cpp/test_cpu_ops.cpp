// SPDX-License-Identifier: BSD-3-Clause
// The CPU kernels against plain scalar loops, without Python: for the sanitizers, and for debugging.
// Build: c++ -std=c++17 -ffp-contract=off -fopenmp -Icsrc/include -Icsrc tests/cpp/test_cpu_ops.cpp csrc/*.cpp
// csrc/cpu/*.cpp. Every operand is an allocation of exactly its size, so that a step outside is seen.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/tiles.h"
#include "pyparareal/formulas.h"
#include "pyparareal/layout.h"
#include "pyparareal/ops.h"

namespace pp = pyparareal;

namespace {

int passed = 0, failed = 0;
std::string context;

void check(bool good, const std::string& what) {
  good ? ++passed : ++failed;
  if (!good) std::printf("FAILED %s: %s\n", context.c_str(), what.c_str());
}

template <class T>
constexpr pp::DType dtype_of();
template <>
constexpr pp::DType dtype_of<double>() {
  return pp::DType::float64;
}
template <>
constexpr pp::DType dtype_of<float>() {
  return pp::DType::float32;
}
template <>
constexpr pp::DType dtype_of<pp::Half>() {
  return pp::DType::float16;
}
template <>
constexpr pp::DType dtype_of<pp::BFloat16>() {
  return pp::DType::bfloat16;
}

enum class Order { dense, padded, transposed, backward, every_other, repeated };

// A strided array of `shape` in memory that ends with its last element.
template <class T>
struct Array {
  std::vector<T> memory;
  pp::MutableView view;

  Array(const std::vector<int64_t>& shape, Order order = Order::dense) {
    view.dtype = dtype_of<T>();
    view.ndim = static_cast<int32_t>(shape.size());
    int64_t dense = 1;
    for (int k = 0; k < view.ndim; ++k) {
      // Transposed: the time axis is the fastest one.
      const int axis = order == Order::transposed ? k : view.ndim - 1 - k;
      view.shape[axis] = shape[axis];
      view.stride[axis] = dense;
      dense *= shape[axis] + (order == Order::padded && k == 0 ? 3 : 0);
      if (order == Order::every_other) dense *= 2;
    }
    if (order == Order::repeated) view.stride[0] = 0;
    int64_t low = 0, high = 0;
    bool empty = false;
    for (int axis = 0; axis < view.ndim; ++axis) {
      if (order == Order::backward) view.stride[axis] = -view.stride[axis];
      const int64_t reach = (shape[axis] - 1) * view.stride[axis];
      (reach < 0 ? low : high) += reach;
      empty = empty || shape[axis] == 0;
    }
    memory.resize(empty ? 0 : static_cast<std::size_t>(high - low + 1));
    view.data = empty ? nullptr : memory.data() - low;
  }

  int64_t slices() const { return view.shape[0]; }
  int64_t features() const { return pp::space_of(view).features; }

  // Element [slice, feature] by plain division, not by layout.h.
  T& at(int64_t slice, int64_t feature) const {
    int64_t offset = slice * view.stride[0];
    for (int axis = view.ndim - 1; axis > 0; --axis) {
      offset += feature % view.shape[axis] * view.stride[axis];
      feature /= view.shape[axis];
    }
    return static_cast<T*>(view.data)[offset];
  }

  void fill(std::mt19937& random) {
    std::normal_distribution<double> normal;
    for (T& element : memory) pp::store(element, static_cast<typename pp::Compute<T>::type>(normal(random)));
  }

  pp::ConstView input() const {
    pp::ConstView result;
    result.data = view.data;
    result.dtype = view.dtype;
    result.ndim = view.ndim;
    std::memcpy(result.shape, view.shape, sizeof result.shape);
    std::memcpy(result.stride, view.stride, sizeof result.stride);
    return result;
  }
};

// A scratch of exactly the bytes asked for.
struct Scratch {
  std::vector<char> memory;
  pp::Exec exec;
  Scratch(std::size_t bytes, int threads) : memory(bytes) {
    exec.threads = threads;
    exec.workspace = memory.data();
    exec.workspace_bytes = bytes;
  }
};

bool same(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); }
bool same(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0 || (a != a && b != b); }
template <class T>
bool same(T a, T b) {
  return a.bits == b.bits;
}

// The specification once more, as loops: lanes of 64 in chunks of 1024, folded, chunks by a tree.
double plain_norm(const std::function<double(int64_t)>& d, int64_t features, pp::Norm norm) {
  const auto join = [&](double a, double b) { return norm == pp::Norm::max_abs ? std::fmax(a, b) : a + b; };
  std::vector<double> chunks;
  for (int64_t first = 0; first < features; first += 1024) {
    double sums[64] = {};
    for (int64_t i = first; i < std::min(first + 1024, features); ++i)
      sums[(i - first) % 64] =
          join(sums[(i - first) % 64], norm == pp::Norm::sum_squares ? d(i) * d(i) : std::fabs(d(i)));
    for (int width = 32; width > 0; width /= 2)
      for (int lane = 0; lane < width; ++lane) sums[lane] = join(sums[lane], sums[lane + width]);
    chunks.push_back(sums[0]);
  }
  while (chunks.size() > 1) {
    std::vector<double> next;
    for (std::size_t i = 0; i < chunks.size(); i += 2)
      next.push_back(i + 1 < chunks.size() ? join(chunks[i], chunks[i + 1]) : chunks[i]);
    chunks = next;
  }
  return chunks.empty() ? 0.0 : chunks[0];
}

template <class T>
double widened(T x) {
  return static_cast<double>(pp::load(x));
}

template <class T>
void test_update(const std::vector<int64_t>& shape, Order order, pp::Norm norm, int alias, int threads) {
  std::mt19937 random(1);
  Array<T> operands[] = {{shape, order}, {shape, Order::dense}, {shape, order}, {shape, Order::padded}};
  for (auto& operand : operands) operand.fill(random);
  Array<T> own(shape, order == Order::repeated ? Order::dense : order);
  const pp::MutableView out = alias < 0 ? own.view : operands[alias].view;
  Array<double> jump({shape[0]});

  Array<T> expected(shape);
  std::vector<double> expected_jump;
  for (int64_t n = 0; n < expected.slices(); ++n) {
    for (int64_t i = 0; i < expected.features(); ++i) {
      const auto g = pp::load(operands[1].at(n, i)), h = pp::load(operands[2].at(n, i));
      pp::store(expected.at(n, i), pp::load(operands[0].at(n, i)) + (g - h));
    }
    expected_jump.push_back(
        plain_norm([&](int64_t i) { return widened(expected.at(n, i)) - widened(operands[3].at(n, i)); },
                   expected.features(), norm));
  }

  Scratch scratch(pp::parareal_update_workspace_bytes(operands[3].input()), threads);
  const pp::Status status = pp::parareal_update(out, operands[0].input(), operands[1].input(), operands[2].input(),
                                                operands[3].input(), jump.view, norm, scratch.exec);
  check(status.ok(), status.message);
  Array<T>& result = alias < 0 ? own : operands[alias];
  bool equal = true;
  for (int64_t n = 0; n < expected.slices(); ++n) {
    for (int64_t i = 0; i < expected.features(); ++i) equal = equal && same(result.at(n, i), expected.at(n, i));
    equal = equal && same(jump.memory[n], expected_jump[n]);
  }
  check(equal, "parareal_update with jump");

  Array<double> norms({shape[0]});
  Scratch more(pp::slice_norms_workspace_bytes(expected.input()), threads);
  check(pp::slice_norms(norms.view, expected.input(), {}, norm, more.exec).ok(), "slice_norms runs");
  for (int64_t n = 0; n < expected.slices(); ++n)
    check(same(norms.memory[n],
               plain_norm([&](int64_t i) { return widened(expected.at(n, i)); }, expected.features(), norm)),
          "slice_norms");
}

template <class T>
void test_relax(const std::vector<int64_t>& shape, Order order, double omega, int threads) {
  using C = typename pp::Compute<T>::type;
  std::mt19937 random(2);
  Array<T> phi(shape, order), u(shape), out(shape, Order::padded);
  phi.fill(random), u.fill(random);
  pp::Exec exec;
  exec.threads = threads;
  check(pp::c_relax(out.view, phi.input(), u.input(), omega, exec).ok(), "c_relax runs");
  bool equal = true;
  for (int64_t n = 0; n < out.slices(); ++n)
    for (int64_t i = 0; i < out.features(); ++i) {
      T expected = phi.at(n, i);
      if (omega != 1.0)
        pp::store(expected,
                  static_cast<C>(omega) * pp::load(phi.at(n, i)) + static_cast<C>(1.0 - omega) * pp::load(u.at(n, i)));
      equal = equal && same(out.at(n, i), expected);
    }
  check(equal, "c_relax");
}

template <class T>
void test_transfer(const std::vector<int64_t>& shape, Order order, int64_t start, int64_t step) {
  std::mt19937 random(3);
  Array<T> u(shape, order), before(shape);
  u.fill(random);
  for (int64_t n = 0; n < u.slices(); ++n)
    for (int64_t i = 0; i < u.features(); ++i) before.at(n, i) = u.at(n, i);
  const int64_t count = start < shape[0] ? (shape[0] - 1 - start) / step + 1 : 0;
  std::vector<int64_t> coarse = shape;
  coarse[0] = count;
  Array<T> v(coarse, Order::every_other), w(coarse, Order::transposed);
  w.fill(random);
  check(pp::extract(v.view, u.input(), start, step, {}).ok(), "extract runs");
  check(pp::inject(u.view, w.input(), start, step, {}).ok(), "inject runs");
  bool equal = true;
  for (int64_t n = 0; n < u.slices(); ++n) {
    const bool is_coarse = n >= start && (n - start) % step == 0;
    for (int64_t i = 0; i < u.features(); ++i) {
      if (is_coarse) equal = equal && same(v.at((n - start) / step, i), before.at(n, i));
      equal = equal && same(u.at(n, i), is_coarse ? w.at((n - start) / step, i) : before.at(n, i));
    }
  }
  check(equal, "extract and inject");
}

template <class T>
void test_dtype(const char* name) {
  const std::vector<std::vector<int64_t>> shapes = {{0, 3},    {2, 0},    {4},          {1, 1},      {3, 63},
                                                    {2, 64},   {2, 65},   {3, 2, 5, 3}, {2, 1023},   {2, 1025},
                                                    {3, 2051}, {2, 5, 7}, {1, 5000},    {2, 3, 1501}};
  for (const auto& shape : shapes)
    for (Order order : {Order::dense, Order::padded, Order::transposed, Order::backward, Order::every_other}) {
      context = std::string(name) + " order " + std::to_string(static_cast<int>(order)) + " shape";
      for (int64_t size : shape) context += " " + std::to_string(size);
      for (int alias = -1; alias < 4; ++alias)
        test_update<T>(shape, order, static_cast<pp::Norm>((alias + 1) % 3), alias, 1 + (alias + 1) % 3);
      for (double omega : {1.0, 0.7}) test_relax<T>(shape, order, omega, 3);
      for (int64_t step : {1, 2, 3}) test_transfer<T>(shape, order, step / 2, step);
      test_transfer<T>(shape, order, 0, std::numeric_limits<int64_t>::max());
    }
  context = std::string(name) + " repeated slices";
  test_update<T>({4, 1500}, Order::repeated, pp::Norm::sum_abs, -1, 2);
}

void test_streaming() {
  // From 8 MiB of output on results are written around the caches.
  context = "streaming";
  test_update<float>({3, 700001}, Order::dense, pp::Norm::sum_squares, -1, 2);
  test_relax<double>({5, 220007}, Order::dense, 0.3, 2);
}

void refuses(const pp::Status& status, pp::StatusCode code, const char* message) {
  check(status.code == code && std::strcmp(status.message, message) == 0, std::string("status: ") + status.message);
}

void test_refusals() {
  context = "refusals";
  const auto value = pp::StatusCode::invalid_value, type = pp::StatusCode::invalid_type;
  Array<double> u({3, 4}), wide({3, 5}), norms({3}), big({2, 5000});
  Array<float> single({3, 4});
  const auto update = [](const pp::MutableView& out, const pp::ConstView& f, const pp::ConstView& g) {
    return pp::parareal_update(out, f, g, g, {}, {}, pp::Norm::sum_squares, {});
  };
  refuses(update(u.view, u.input(), wide.input()), value, "g_new: got shape [3, 5], expected [3, 4] like f_old");
  refuses(update(u.view, u.input(), single.input()), type, "g_new: got dtype float32, expected float64 like f_old");
  refuses(update(u.view, {}, u.input()), value, "f_old: got 0 axes, expected 1 to 8: [slices, batch, features...]");
  pp::ConstView far = u.input();
  far.device = pp::Device::cuda, far.device_id = 1;
  refuses(update(u.view, u.input(), far), value, "g_new: got device cuda:1, expected cpu like f_old");
  pp::MutableView repeated = u.view;
  repeated.stride[0] = 0;
  refuses(update(repeated, wide.input(), wide.input()), value, "out: got shape [3, 4], expected [3, 5] like f_old");
  refuses(update(repeated, u.input(), u.input()), value,
          "out: got a zero stride on axis 0, expected an output without repetition");
  pp::MutableView shifted = u.view;
  shifted.shape[0] = 2, shifted.data = u.memory.data() + 4;
  pp::ConstView head = u.input();
  head.shape[0] = 2;
  refuses(update(shifted, head, head), value,
          "out: overlaps f_old partially, expected the same view or no common element");
  refuses(pp::parareal_update(u.view, u.input(), u.input(), u.input(), u.input(), {}, pp::Norm::sum_abs, {}), value,
          "jump: got none, expected a float64 array, because u_old is given");
  refuses(pp::slice_norms(norms.view, u.input(), {}, static_cast<pp::Norm>(7), {}), value,
          "norm: got 7, expected sum_squares, sum_abs or max_abs");
  Array<double> two({2});
  refuses(pp::slice_norms(two.view, big.input(), {}, pp::Norm::sum_abs, {}), value,
          "workspace: got 0 bytes, expected 80 as slice_norms_workspace_bytes says");
  pp::Exec exec;
  exec.threads = -1;
  refuses(pp::c_relax(u.view, u.input(), u.input(), 0.5, exec), value,
          "threads: got -1, expected 0 (the default) or more");
  refuses(pp::c_relax(u.view, u.input(), u.input(), std::nan(""), {}), value,
          "omega: got nan, expected a finite weight");
  refuses(pp::extract(wide.view, u.input(), 0, 0, {}), value, "step: got 0, expected 1 or more");
  refuses(pp::inject(u.view, single.input(), 0, 1, {}), type, "v: got dtype float32, expected float64 like u");
}

}  // namespace

int main() {
  for (const char* set : {"baseline", "avx2", "avx512"}) {
    if (!pp::cpu::select_tiles(set)) {
      std::printf("skipped: no %s on this processor\n", set);
      continue;
    }
    test_dtype<double>("float64");
    test_dtype<float>("float32");
    test_dtype<pp::Half>("float16");
    test_dtype<pp::BFloat16>("bfloat16");
    test_streaming();
  }
  test_refusals();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
