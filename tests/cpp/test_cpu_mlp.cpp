// SPDX-License-Identifier: BSD-3-Clause
// The CPU's relax_mlp_sgd against plain scalar loops, bit for bit, for random networks, alone and in lanes. Every
// operand, the workspace among them, ends at a page that may not be touched. Built and run by .ci/sanitize.
#include <cmath>
#include <cstdio>

#include "cpu/tiles.h"
#include "guarded_array.h"
#include "pyparareal/mlp.h"
#include "pyparareal/ops.h"

namespace pyparareal::testing {
namespace {

int passed = 0, failed = 0;

// Of numbers of (-1/2, 1/2).
template <class T>
struct Operand : Array {
  GuardedMemory memory;
  T* data;

  Operand(std::initializer_list<int64_t> shape, Random& random) {
    View<void*> dense;
    dense.dtype = sizeof(T) == 8 ? DType::float64 : DType::float32;
    int64_t count = 1;
    for (const int64_t size : shape) dense.shape[dense.ndim++] = size;
    for (int axis = dense.ndim - 1; axis >= 0; --axis) dense.stride[axis] = count, count *= dense.shape[axis];
    place(memory, dense, Form::odd_pitch);
    data = static_cast<T*>(view.data);
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<T>(random.below(1 << 20) - (1 << 19)) / T(1 << 20);
  }
};

struct Case {
  Mlp net;
  int64_t slices, m, examples;
  bool batches, sides;
};

std::vector<int64_t> starts(const Mlp& net) {
  std::vector<int64_t> at(1, 0);
  for (int l = 0; l < net.layers; ++l) at.push_back(at.back() + layer_weights(net, l));
  return at;
}

// One step: the gradient example by example, each sum a chain of fused multiply-adds, as ops.h specifies. Identity and
// rectifier only, since the bits of the others are the kernel's own.
template <class T>
void step(const Case& a, T* u, const T* x, const T* y, int64_t first, T rate, const T* f) {
  const Mlp& net = a.net;
  const auto at = starts(net);  // the first weights of every layer, and the end
  std::vector<T> gradient(static_cast<std::size_t>(at.back()), T(0));
  const auto cut = [&](int layer, T value, T passes) {  // `passes` unless the rectifier of `layer` gave 0
    return (layer == net.layers ? net.last : net.hidden) == Activation::relu && value <= 0 ? T(0) : passes;
  };
  for (int64_t e = 0; e < net.count; ++e) {
    const int64_t row = (first + e) % a.examples;
    std::vector<std::vector<T>> value{{x + row * net.sizes[0], x + (row + 1) * net.sizes[0]}};
    for (int l = 0; l < net.layers; ++l) {
      const int64_t in = net.sizes[l], outs = net.sizes[l + 1];
      value.emplace_back();
      for (int64_t o = 0; o < outs; ++o) {
        T sum = 0;
        for (int64_t i = 0; i < in; ++i) sum = std::fma(value[l][i], u[at[l] + o * in + i], sum);
        if (net.bias) sum += u[at[l] + in * outs + o];
        value[l + 1].push_back(cut(l + 1, sum, sum));
      }
    }
    std::vector<T> error;
    for (int64_t o = 0; o < net.sizes[net.layers]; ++o)
      error.push_back(cut(net.layers, value.back()[o], y[row * net.sizes[net.layers] + o] - value.back()[o]));
    for (int l = net.layers - 1; l >= 0; --l) {
      const int64_t in = net.sizes[l], outs = net.sizes[l + 1];
      std::vector<T> before;
      for (int64_t i = 0; i < in; ++i) {
        T sum = 0;
        for (int64_t o = 0; o < outs; ++o) sum = std::fma(error[o], u[at[l] + o * in + i], sum);
        before.push_back(cut(l, value[l][i], sum));
      }
      for (int64_t k = 0; k < in * outs; ++k)
        gradient[at[l] + k] = std::fma(error[k / in], value[l][k % in], gradient[at[l] + k]);
      for (int64_t o = 0; net.bias && o < outs; ++o) gradient[at[l] + in * outs + o] += error[o];
      error = before;
    }
  }
  for (int64_t i = 0; i < at.back(); ++i)
    u[i] = std::fma(rate, gradient[i], u[i]) + (f ? f[i] : T(-0.0));  // -0 changes no bit
}

template <class T>
void check(const Case& a, uint64_t seed, const char* set) {
  Random random(seed);
  const int64_t weights = starts(a.net).back();
  const Operand<T> u({a.slices, 1, weights}, random), out({a.slices, 1, weights}, random),
      f({a.slices, a.m, 1, weights}, random), every({a.slices, a.m, 1, weights}, random),
      x({a.examples, a.net.sizes[0]}, random), y({a.examples, a.net.sizes[a.net.layers]}, random);
  const Operand<double> rates({a.slices, a.m}, random);
  Operand<double> first({a.slices, a.m}, random);  // of as many bytes
  first.view.dtype = DType::int64;
  int64_t* const begin = static_cast<int64_t*>(first.view.data);
  for (int64_t i = 0; i < a.slices * a.m; ++i) begin[i] = random.below(a.examples);
  Exec exec;
  exec.threads = 2, exec.workspace_bytes = relax_mlp_sgd_workspace_bytes(u, a.net, exec.threads);
  GuardedMemory scratch;
  exec.workspace = scratch.last(exec.workspace_bytes);
  const ConstView none{}, own_rates = a.batches ? rates : none, own_first = a.batches ? first : none;
  const auto same = [&](const T* p, const T* q) { return std::memcmp(p, q, weights * sizeof(T)) == 0; };
  bool good = relax_mlp_sgd(out, u, a.net, x, y, own_rates, own_first, a.m, a.sides ? f : none, {}, every, {}, {},
                            Norm::sum_squares, exec)
                  .ok();
  for (int64_t n = 0; n < a.slices; ++n) {
    T* const state = u.data + n * weights;
    for (int64_t k = n * a.m; k < (n + 1) * a.m; ++k) {
      step(a, state, x.data, y.data, a.batches ? begin[k] : 0, static_cast<T>(a.batches ? rates.data[k] : a.net.alpha),
           a.sides ? f.data + k * weights : nullptr);
      good = good && same(state, every.data + k * weights);
    }
    good = good && same(state, out.data + n * weights);
  }
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s, %zu bytes, seed %d\n", set, sizeof(T), int(seed));
}

// Up to 4 layers of up to 4, 18 or 70 neurons, 40 slices, 80 examples, in both dtypes.
void check_both(uint64_t seed, const char* set) {
  Random random(seed);
  Case a;
  const Activation kinds[] = {Activation::identity, Activation::relu};
  const int64_t widest[] = {4, 18, 18, 70, 70}, most = widest[random.below(5)];
  a.net.layers = 1 + static_cast<int>(random.below(4));
  for (int l = 0; l <= a.net.layers; ++l) a.net.sizes[l] = 1 + random.below(most);
  a.net.bias = random.below(2), a.net.alpha = 0.05, a.sides = random.below(2);
  a.net.hidden = kinds[random.below(2)], a.net.last = kinds[random.below(2)], a.batches = random.below(2);
  a.examples = 1 + random.below(random.below(3) ? 9 : 80), a.m = 1 + random.below(3);
  a.slices = 1 + random.below(most < 70 && random.below(2) ? 40 : 3);
  a.net.count = a.batches ? 1 + random.below(a.examples) : a.examples;
  check<double>(a, seed, set), check<float>(a, seed, set);
}

}  // namespace
}  // namespace pyparareal::testing

int main() {
  using namespace pyparareal::testing;
  for (const char* set : {"baseline", "avx2", "avx512"})
    if (pyparareal::cpu::select_tiles(set))
      for (uint64_t seed = 1; seed <= 60; ++seed) check_both(seed, set);
  std::printf("relax_mlp_sgd: %d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
