// SPDX-License-Identifier: BSD-3-Clause
// CUDA's relax_mlp_sgd, run thread by thread on the host, gives the bits of the CPU's: a thread per column, a block per
// column with scratch in shared memory and in the workspace, batches in one and in several blocks, right-hand sides.
// Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include "cuda/launch.cuh"
#include "emulated_report.h"
#include "guarded_array.h"
#include "pyparareal/mlp.h"
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
  Mlp net;
  DType dtype;
  int64_t slices, batch, m, examples;
  bool f, g, every, out, in_place, own_rates, own_batches, norms;
  int64_t kept;
  Lay lay;
  uint64_t seed;

  int64_t weights() const {
    int64_t sum = 0;
    for (int layer = 0; layer < net.layers; ++layer) sum += layer_weights(net, layer);
    return sum;
  }
};

enum Slot { U, F, G, EVERY, OUT, X, Y, RATES, TARGET, NORMS, WORKSPACE, slots };

struct Side {
  GuardedMemory memory[slots];
  Array arrays[slots];
  bool present[slots];
  std::vector<int64_t> first;
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

  ConstView batches(const Case& a, Device device, Random& random) {
    ConstView view;
    if (!a.own_batches) return view;
    first.resize(static_cast<std::size_t>(a.slices * a.m));
    for (int64_t& index : first) index = random.below(a.examples);
    view.data = first.data(), view.dtype = DType::int64, view.ndim = 2;
    view.shape[0] = a.slices, view.shape[1] = a.m, view.stride[0] = a.m, view.stride[1] = 1;
    view.device = device, view.device_id = device == Device::cuda ? 1 : 0;
    return view;
  }

  void run(const Case& a, Device device) {
    Random random(a.seed);
    const int64_t weights = a.weights();
    const auto state = lay_out(a.lay, a.dtype, {a.slices, a.batch, weights});
    const auto steps = lay_out(a.lay, a.dtype, {a.slices, a.m, a.batch, weights});
    make(U, true, state, device, &random);
    make(F, a.f, steps, device, &random);
    make(G, a.g, steps, device, &random);
    make(EVERY, a.every, lay_out(a.lay, a.dtype, {a.slices, a.kept, a.batch, weights}), device, nullptr);
    make(OUT, a.out && !a.in_place, state, device, nullptr);
    make(X, true, lay_out(a.lay, a.dtype, {a.examples, a.net.sizes[0]}), device, &random);
    make(Y, true, lay_out(a.lay, a.dtype, {a.examples, a.net.sizes[a.net.layers]}), device, &random);
    make(RATES, a.own_rates, lay_out(a.lay, DType::float64, {a.slices, a.m}), device, &random);
    make(TARGET, a.norms, state, device, &random);
    make(NORMS, a.norms, lay_out(Lay::dense, DType::float64, {a.slices}), device, nullptr);
    const ConstView indices = batches(a, device, random);
    const std::size_t bytes =
        relax_mlp_sgd_workspace_bytes(input(U), a.net, 1) + (a.norms ? slice_norms_workspace_bytes(input(U)) : 0);
    make(WORKSPACE, bytes > 0, lay_out(Lay::dense, DType::float64, {static_cast<int64_t>(bytes / 8)}), device, nullptr);
    Exec exec;
    exec.threads = 1;
    exec.workspace = bytes ? arrays[WORKSPACE].view.data : nullptr;
    exec.workspace_bytes = bytes;
    status = relax_mlp_sgd(a.in_place ? MutableView(arrays[U]) : output(OUT), input(U), a.net, input(X), input(Y),
                           input(RATES), indices, a.m, input(F), input(G), output(EVERY), input(TARGET), output(NORMS),
                           Norm::sum_squares, exec);
  }

  bool clean(const Case& a) {
    bool fine = a.in_place ? arrays[U].unchanged_outside() : arrays[U].unchanged();
    for (const Slot slot : {F, G, X, Y, RATES, TARGET}) fine = fine && (!present[slot] || arrays[slot].unchanged());
    for (const Slot slot : {EVERY, OUT, NORMS, WORKSPACE})
      fine = fine && (!present[slot] || arrays[slot].unchanged_outside());
    return fine;
  }
};

long in_workspace = 0;

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
                "dtype %d [%lld, %lld, %lld] m %lld examples %lld count %lld layers %d bias %d kinds %d %d f %d g %d "
                "every %d out %d in place %d rates %d batches %d lay %d seed %llu",
                static_cast<int>(a.dtype), static_cast<long long>(a.slices), static_cast<long long>(a.batch),
                static_cast<long long>(a.weights()), static_cast<long long>(a.m), static_cast<long long>(a.examples),
                static_cast<long long>(a.net.count), a.net.layers, a.net.bias, static_cast<int>(a.net.hidden),
                static_cast<int>(a.net.last), a.f, a.g, a.every, a.out, a.in_place, a.own_rates, a.own_batches,
                static_cast<int>(a.lay), static_cast<unsigned long long>(a.seed));
  cpu.run(a, Device::cpu);
  cuda.run(a, Device::cuda);
  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  const Slot end = a.in_place ? U : OUT;
  if (a.out) expect(same_values(cuda.arrays[end], cpu.arrays[end], true), "the end states differ");
  if (a.every) expect(same_values(cuda.arrays[EVERY], cpu.arrays[EVERY], true), "the states between differ");
  if (a.norms) expect(same_values(cuda.arrays[NORMS], cpu.arrays[NORMS], true), "the norms differ");
  expect(cpu.clean(a), "the CPU wrote something else");
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");
  expect(a.norms || settings.launches.size() == (a.slices ? 1u : 0u), "not one launch");
  in_workspace += cuda.present[WORKSPACE];
}

Case random_case(Random& random, std::initializer_list<int64_t> sizes) {
  Case a = {};
  for (const int64_t size : sizes) a.net.sizes[a.net.layers++] = size;
  --a.net.layers;
  a.net.bias = random.below(2);
  a.net.hidden = static_cast<Activation>(random.below(4)), a.net.last = static_cast<Activation>(random.below(4));
  a.net.alpha = 0.25;
  a.dtype = random.below(2) ? DType::float64 : DType::float32;
  a.examples = 1 + random.below(9);
  a.own_batches = random.below(2), a.own_rates = random.below(2);
  a.net.count = a.own_batches ? 1 + random.below(a.examples) : a.examples;
  a.slices = 1 + random.below(3), a.batch = 1 + random.below(2), a.m = 1 + random.below(3);
  a.f = random.below(3), a.g = a.f && random.below(2);
  a.kept = a.m == 2 && random.below(2) ? 1 : a.m, a.norms = random.below(3) == 0;
  a.every = random.below(2), a.out = !a.every || random.below(4);
  a.in_place = a.out && random.below(3) == 0;
  a.lay = static_cast<Lay>(random.below(4));
  a.seed = random.next();
  return a;
}

void check_nets() {
  Random random(20251121);
  for (int repeat = 0; repeat < 40; ++repeat)
    for (const auto& sizes : {std::initializer_list<int64_t>{3, 4, 1},
                              {1, 1},
                              {2, 5, 3, 2},
                              {7, 9},
                              {20, 13, 3},
                              {24, 33, 17, 12},
                              {5, 40, 40, 2},
                              {30, 80, 40, 3}}) {
      Case a = random_case(random, sizes);
      if (a.net.sizes[0] < 10) a.slices = random.below(70);
      check(a);
    }
  expect(in_workspace > 5, "hardly ever in the workspace");
}

// More examples than go through the network together, by one more and by several blocks.
void check_batches() {
  Random random(5);
  for (const int64_t examples : {63, 64, 65, 130, 200})
    for (const auto& sizes : {std::initializer_list<int64_t>{3, 4, 1}, {20, 13, 3}, {5, 40, 40, 2}, {20, 60, 40}})
      for (const bool own_batches : {false, true}) {
        Case a = random_case(random, sizes);
        a.examples = examples, a.own_batches = own_batches;
        a.net.count = own_batches ? 1 + random.below(examples) : examples;
        check(a);
      }
}

// An index outside is refused where it can be seen, and taken modulo the examples on the device.
void check_indices() {
  std::snprintf(current, sizeof current, "indices");
  double u[3][2] = {{1, 2}, {3, 4}, {5, 6}}, x[3] = {1, 2, 3}, y[3] = {3, 2, 1}, out[3][2] = {};
  int64_t first[3] = {-1, 3, 2};
  const auto view_of = [](auto* data, DType dtype, int64_t rows, int64_t columns, auto view) {
    view.data = data, view.dtype = dtype, view.ndim = 2;
    view.shape[0] = rows, view.shape[1] = view.stride[0] = columns, view.stride[1] = 1;
    view.device = Device::cuda;
    return view;
  };
  Mlp net;
  net.layers = 1, net.bias = true, net.sizes[0] = net.sizes[1] = 1, net.alpha = 0.5;
  net.last = Activation::identity;
  const auto call = [&](Device device) {
    ConstView views[] = {view_of(&u[0][0], DType::float64, 3, 2, ConstView{}),
                         view_of(x, DType::float64, 3, 1, ConstView{}), view_of(y, DType::float64, 3, 1, ConstView{}),
                         view_of(first, DType::int64, 3, 1, ConstView{})};
    MutableView to = view_of(&out[0][0], DType::float64, 3, 2, MutableView{});
    for (ConstView& view : views) view.device = device;
    to.device = device;
    std::vector<char> scratch(relax_mlp_sgd_workspace_bytes(views[0], net, 1) + 1);
    Exec exec;
    exec.workspace = scratch.data(), exec.workspace_bytes = scratch.size();
    return relax_mlp_sgd(to, views[0], net, views[1], views[2], {}, views[3], 1, {}, {}, {}, {}, {}, Norm::sum_squares,
                         exec);
  };
  expect(call(Device::cpu).code == StatusCode::invalid_value, "an index outside was not refused");
  expect(call(Device::cuda).ok(), "the device refused");
  double on_device[3][2];
  std::memcpy(on_device, out, sizeof out);
  first[0] = 2, first[1] = 0;
  expect(call(Device::cpu).ok(), "refused");
  expect(std::memcmp(on_device, out, sizeof out) == 0, "not modulo the examples");
}

void check_failures() {
  Random random(3);
  for (const auto& sizes : {std::initializer_list<int64_t>{3, 4, 1}, {24, 33, 17, 12}}) {
    Case a = random_case(random, sizes);
    std::snprintf(current, sizeof current, "failures");
    Side side;
    settings.fail_launches = 1;
    side.run(a, Device::cuda);
    expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "relax_mlp_sgd"),
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
  check_nets();
  check_batches();
  check_indices();
  check_failures();
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
