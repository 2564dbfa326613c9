// SPDX-License-Identifier: BSD-3-Clause
// The CUDA kernels, run thread by thread on the host, give the bits of the CPU kernels: every dtype,
// norm, layout and alias, in several orders of the threads and on several sizes of the grid.
// Built and run by tests/test_cuda_emulated.py; empty in every other build.
#ifdef PYPARAREAL_EMULATE_CUDA

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>

#include "cuda/norm_tree.cuh"
#include "emulated_report.h"
#include "guarded_array.h"
#include "pyparareal/ops.h"

namespace pyparareal::testing {
namespace {

using emulate::Order, emulate::settings;

constexpr DType dtypes[] = {DType::float64, DType::float32, DType::float16, DType::bfloat16};
constexpr Norm norms[] = {Norm::sum_squares, Norm::sum_abs, Norm::max_abs};

enum class Op { update, update_with_jump, norms, norms_of_jump, relax, extract, inject };
constexpr const char* op_names[] = {
    "parareal_update", "parareal_update with jump", "slice_norms", "slice_norms of a jump", "c_relax", "extract",
    "inject"};
constexpr int inputs_of[] = {3, 4, 1, 2, 2, 1, 1};
constexpr int most_inputs = 4;

struct Case {
  Op op;
  DType dtype;
  Norm norm;
  int64_t slices, features;
  Form inputs[most_inputs], out;
  int alias;  // the input that is the output as well, or -1
  bool special;
  double omega;
  int64_t start, step, points;
  uint64_t seed;

  bool is_copy() const { return op == Op::extract || op == Op::inject; }
  bool has_state() const { return op != Op::norms && op != Op::norms_of_jump; }
  bool has_norms() const { return op == Op::update_with_jump || !has_state(); }
};

// One side of a comparison: its own operands, and its own poison.
struct Side {
  GuardedMemory memory[most_inputs + 3];
  Array inputs[most_inputs], out, norms, workspace;
  Status status;

  void lay_out(Array& array, int slot, View<void*> view, Form form, Device device) {
    array.place(memory[slot], view, form);
    array.view.device = device;
    array.view.device_id = device == Device::cuda ? 1 : 0;
  }

  void run(const Case& a, Device device, int poison) {
    Random random(a.seed);
    const int count = inputs_of[static_cast<int>(a.op)];
    for (int i = 0; i < count; ++i) {
      const int64_t slices = a.op == Op::inject ? a.points : a.slices;
      lay_out(inputs[i], i, view_of(a.inputs[i], a.dtype, slices, a.features), a.inputs[i], device);
      inputs[i].fill(poison, &random, a.special);
    }
    const int64_t out_slices = a.op == Op::extract ? a.points : a.slices;
    lay_out(out, most_inputs, view_of(a.out, a.dtype, out_slices, a.features), a.out, device);
    out.fill(poison, a.op == Op::inject ? &random : nullptr, false);
    lay_out(norms, most_inputs + 1, vector_of(a.slices), Form::odd_pitch, device);
    norms.fill(poison, nullptr, false);

    const ConstView state = inputs[0];
    const std::size_t bytes = a.op == Op::update_with_jump ? parareal_update_workspace_bytes(inputs[3])
                              : a.has_norms()              ? slice_norms_workspace_bytes(state)
                                                           : 0;
    lay_out(workspace, most_inputs + 2, vector_of(static_cast<int64_t>(bytes / 8)), Form::odd_pitch, device);
    workspace.fill(poison, nullptr, false);
    Exec exec;
    exec.workspace = bytes ? workspace.view.data : nullptr;
    exec.workspace_bytes = bytes;
    status = call(a, a.alias < 0 ? out : inputs[a.alias], exec);
  }

  Status call(const Case& a, const Array& u, const Exec& exec) {
    const ConstView none = {};
    switch (a.op) {
      case Op::update:
        return parareal_update(u, inputs[0], inputs[1], inputs[2], none, MutableView{}, a.norm, exec);
      case Op::update_with_jump:
        return parareal_update(u, inputs[0], inputs[1], inputs[2], inputs[3], norms, a.norm, exec);
      case Op::norms:
        return slice_norms(norms, inputs[0], none, a.norm, exec);
      case Op::norms_of_jump:
        return slice_norms(norms, inputs[0], inputs[1], a.norm, exec);
      case Op::relax:
        return c_relax(u, inputs[0], inputs[1], a.omega, exec);
      case Op::extract:
        return extract(u, inputs[0], a.start, a.step, exec);
      default:
        return inject(u, inputs[0], a.start, a.step, exec);
    }
  }

  static View<void*> vector_of(int64_t length) {
    View<void*> view;
    view.ndim = 1;
    view.shape[0] = length, view.stride[0] = 1;
    return view;
  }

  bool clean(const Case& a) {
    bool fine = out.unchanged_outside() && norms.unchanged_outside() && workspace.unchanged_outside();
    for (int i = 0; i < inputs_of[static_cast<int>(a.op)]; ++i)
      fine = fine && (i == a.alias ? inputs[i].unchanged_outside() : inputs[i].unchanged());
    return fine;
  }
};

// Which kernels the last call launched: their packing is in the mangled type of an Operand.
bool launched(const char* packing) {
  for (const auto& [name, count] : settings.launches)
    if (count > 0 && name.find("Operand") != std::string::npos && name.find(packing) != std::string::npos) return true;
  return false;
}

long packed_calls[7][4] = {}, element_calls[7][4] = {};

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
      "%s dtype %d norm %d [%lld, %lld] inputs %d %d %d %d out %d alias %d order %d blocks %u start %lld step "
      "%lld points %lld seed %llu",
      op_names[static_cast<int>(a.op)], static_cast<int>(a.dtype), static_cast<int>(a.norm),
      static_cast<long long>(a.slices), static_cast<long long>(a.features), static_cast<int>(a.inputs[0]),
      static_cast<int>(a.inputs[1]), static_cast<int>(a.inputs[2]), static_cast<int>(a.inputs[3]),
      static_cast<int>(a.out), a.alias, static_cast<int>(settings.order), settings.most_blocks,
      static_cast<long long>(a.start), static_cast<long long>(a.step), static_cast<long long>(a.points),
      static_cast<unsigned long long>(a.seed));
  cpu.run(a, Device::cpu, 0x5a);
  cuda.run(a, Device::cuda, 0xa5);

  expect(cpu.status.ok(), cpu.status.message);
  expect(cuda.status.ok(), cuda.status.message);
  const Array& expected = a.alias < 0 ? cpu.out : cpu.inputs[a.alias];
  const Array& got = a.alias < 0 ? cuda.out : cuda.inputs[a.alias];
  if (a.has_state()) expect(same_values(got, expected, !a.is_copy()), "the states differ");
  if (a.has_norms()) expect(same_values(cuda.norms, cpu.norms, true), "the norms differ");
  expect(cuda.clean(a), "something else was written");
  expect(settings.device == 0, "the caller's device was not restored");

  const bool packed = launched("Lb1E"), elements = launched("Lb0E");
  if (packed || elements) expect(settings.last_launch_device == 1, "launched on the wrong device");
  packed_calls[static_cast<int>(a.op)][static_cast<int>(a.dtype)] += packed;
  element_calls[static_cast<int>(a.op)][static_cast<int>(a.dtype)] += elements;
  bool aligned = true;
  for (int i = 0; i < inputs_of[static_cast<int>(a.op)]; ++i) aligned = aligned && a.inputs[i] < Form::dense;
  if (aligned && (a.out < Form::dense || a.alias >= 0 || !a.has_state())) expect(!elements, "aligned, but not packed");
}

Form any_form(Random& random, int count) { return static_cast<Form>(random.below(count)); }

// All operands on 16-byte rows, or each in any layout.
Case case_of(Op op, DType dtype, Norm norm, int64_t slices, int64_t features, bool aligned, Random& random) {
  Case a = {};
  a.op = op, a.dtype = dtype, a.norm = norm, a.slices = slices, a.features = features;
  for (Form& form : a.inputs) form = any_form(random, aligned ? 2 : forms);
  a.out = any_form(random, aligned ? 2 : output_forms);
  a.special = random.below(3) == 0;
  a.seed = random.next();
  const double weights[] = {0.7, 2.0 / 3.0, 0.0, -1.25, 1.0};
  a.omega = weights[random.below(5)];
  a.step = 1 + random.below(3);
  a.start = slices > 0 ? random.below(slices) : 0;
  const int64_t room = slices > 0 ? (slices - 1 - a.start) / a.step + 1 : 0;
  a.points = room > 0 && random.below(3) == 0 ? random.below(room + 1) : room;
  a.alias = -1;
  if (a.has_state() && !a.is_copy() && random.below(2) == 0) {
    a.alias = static_cast<int>(random.below(inputs_of[static_cast<int>(op)]));
    if (static_cast<int>(a.inputs[a.alias]) >= output_forms) a.inputs[a.alias] = any_form(random, output_forms);
  }
  return a;
}

void check_ops() {
  const int64_t lengths[] = {0, 1, 2, 3, 7, 8, 63, 64, 65, 127, 1000, 1023, 1024, 1025, 2048, 5000};
  Random random(20240607);
  for (const int64_t features : lengths)
    for (const int64_t slices : {0, 1, 2, 3, 17})
      for (const DType dtype : dtypes)
        for (const bool aligned : {true, false})
          for (int op = 0; op < 7; ++op) {
            const bool has_norms = op == 1 || op == 2 || op == 3;
            for (const Norm norm : norms)
              if (has_norms || norm == Norm::sum_squares)
                check(case_of(static_cast<Op>(op), dtype, norm, slices, features, aligned, random));
          }
  for (int op = 0; op < 7; ++op)
    for (int dtype = 0; dtype < 4; ++dtype) {
      std::snprintf(current, sizeof current, "%s dtype %d", op_names[op], dtype);
      expect(packed_calls[op][dtype] > 20, "the packed path was hardly taken");
      expect(element_calls[op][dtype] > 20, "the element path was hardly taken");
    }
}

// Every input as the output, on both paths and across chunks.
void check_aliases() {
  Random random(3);
  for (const DType dtype : dtypes)
    for (const Op op : {Op::update, Op::update_with_jump, Op::relax})
      for (int alias = 0; alias < inputs_of[static_cast<int>(op)]; ++alias)
        for (const Form form : {Form::padded, Form::shifted, Form::reversed, Form::transposed}) {
          Case a = case_of(op, dtype, Norm::sum_squares, 3, 1030, true, random);
          a.alias = alias;
          a.inputs[alias] = form;
          check(a);
        }
}

// Many short slices without gaps: one slice where no norm is asked for, and so packed; a norm needs each.
void check_short_slices() {
  Random random(7);
  for (const DType dtype : dtypes)
    for (const int64_t features : {1, 3, 5, 30}) {
      for (const Op op : {Op::update, Op::relax, Op::extract, Op::update_with_jump}) {
        Case a = case_of(op, dtype, Norm::sum_abs, 700, features, true, random);
        for (Form& form : a.inputs) form = Form::dense;
        a.out = Form::dense;
        a.omega = 0.5;
        a.start = 0, a.step = 1, a.points = a.slices;
        check(a);
        if (op != Op::update_with_jump) expect(launched("Lb1E"), "dense, but not packed");
      }
    }
}

// A slice longer than one round of the tree, with the kernels before it: 16 388 chunks.
void check_long_slice() {
  Random random(4);
  Case a = case_of(Op::norms, DType::float16, Norm::sum_squares, 1, 1024 * 16387 + 5, true, random);
  a.inputs[0] = Form::padded;
  a.special = false;
  check(a);
  a.inputs[0] = Form::same_feature;
  check(a);
}

// reference.py's tree_sum of one slice.
template <Norm norm>
double tree_of_slice(std::vector<double> values) {
  while (values.size() > 1) {
    if (values.size() % 2) values.push_back(0.0);
    for (std::size_t i = 0; i < values.size() / 2; ++i)
      values[i] = norm_combine<norm>(values[2 * i], values[2 * i + 1]);
    values.resize(values.size() / 2);
  }
  return values[0];
}

// The tree on its own: whole and partial threads, blocks and rounds.
template <Norm norm>
void check_tree(int64_t slices, int64_t chunks, Random& random) {
  Space space;
  space.slices = slices;
  space.features = (chunks - 1) * chunk + 1 + random.below(chunk);
  std::vector<double> partials, expected, got(static_cast<std::size_t>(slices), -1.0);
  for (int64_t slice = 0; slice < slices; ++slice) {
    std::vector<double> values;
    for (int64_t i = 0; i < chunks; ++i)
      values.push_back(static_cast<double>(random.below(1 << 20)) / static_cast<double>(1 + random.below(999)));
    if (random.below(4) == 0) values[static_cast<std::size_t>(random.below(chunks))] = HUGE_VAL;
    expected.push_back(tree_of_slice<norm>(values));
    partials.insert(partials.end(), values.begin(), values.end());
  }
  Exec exec;
  exec.workspace = partials.data();
  settings.most_blocks = random.below(2) ? 0x7fffffffu : 2;
  for (const Order order : {Order::forward, Order::reverse, Order::shuffled}) {
    settings.order = order;
    std::snprintf(current, sizeof current, "tree of %lld slices, %lld chunks, norm %d, order %d",
                  static_cast<long long>(slices), static_cast<long long>(chunks), static_cast<int>(norm),
                  static_cast<int>(order));
    expect(cuda::reduce_partials(got.data(), space, norm, exec).ok(), "refused");
    expect(std::memcmp(got.data(), expected.data(), got.size() * sizeof(double)) == 0, "the norms differ");
  }
}

void check_trees() {
  Random random(5);
  for (const int64_t chunks : {2, 3, 15, 16, 17, 31, 33, 255, 256, 257, 511, 512, 513, 1000, 1025, 4097, 16383}) {
    check_tree<Norm::sum_squares>(3, chunks, random);
    check_tree<Norm::max_abs>(1, chunks, random);
  }
  for (const int64_t chunks : {16384, 16385, 2 * 16384 + 1, 3 * 16384, 5 * 16384 + 77, 7 * 16384}) {
    check_tree<Norm::sum_abs>(1, chunks, random);
    check_tree<Norm::max_abs>(1, chunks, random);
  }
}

// A slice that no block could reduce is refused before anything is written: one element, repeated.
void check_long_refusal() {
  std::snprintf(current, sizeof current, "a slice too long to reduce");
  double element = 7.0, norm = 7.0;
  MutableView output, norms;
  output.data = &element, output.ndim = 2, output.stride[0] = output.stride[1] = 0;
  output.shape[0] = 1, output.shape[1] = (int64_t{cuda::tree_rounds} * 1024 * cuda::tree_leaves) * chunk + 1;
  norms.data = &norm, norms.ndim = 1, norms.shape[0] = norms.stride[0] = 1;
  ConstView input;
  input.data = &element, input.ndim = 2, input.stride[0] = input.stride[1] = 0;
  input.shape[0] = 1, input.shape[1] = output.shape[1];
  settings.launches.clear();
  for (const Status& status : {cuda::parareal_update(output, input, input, input, input, norms, Norm::sum_abs, Exec{}),
                               cuda::slice_norms(norms, input, ConstView{}, Norm::sum_abs, Exec{})})
    expect(status.code == StatusCode::invalid_value && std::strstr(status.message, "features per slice"),
           status.message);
  expect(settings.launches.empty() && element == 7.0 && norm == 7.0, "a refused call had an effect");
  --input.shape[1];
  expect(cuda::check_tree("u", space_of(input)).ok(), "a slice that can be reduced was refused");
}

// Arrays of a captured call are held until the capture is over, and asking for that does not end it.
void check_captures() {
  std::snprintf(current, sizeof current, "captures");
  auto* stream = reinterpret_cast<void*>(std::uintptr_t{16});
  {
    cuda::Event before, within;
    expect(before.record(stream, 0).ok(), "an event outside a capture");
    settings.capturing = true;
    expect(before.done() && within.record(stream, 0).ok() && !within.done(), "held while the capture lasts");
    settings.capturing = false;
    expect(within.done() && cuda::Event(std::move(within)).done() && !settings.capture_ended, "the capture goes on");
    expect(emulated_events == 1, "one event, of before the capture");
  }
  expect(emulated_events == 0 && emulated_mode == cudaStreamCaptureModeGlobal, "something was left behind");
}

void check_refusals() {
  std::snprintf(current, sizeof current, "refusals");
  Random random(6);
  Case a = case_of(Op::update_with_jump, DType::float32, Norm::sum_squares, 3, 3000, true, random);
  Side side;
  settings.fail_launches = 1;
  side.run(a, Device::cuda, 0xa5);
  expect(side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "parareal_update: unspecified"),
         side.status.message);
  settings.devices = 1;
  side.run(a, Device::cuda, 0xa5);
  expect(
      side.status.code == StatusCode::cuda_error && std::strstr(side.status.message, "cudaSetDevice: invalid device"),
      side.status.message);
  expect(side.out.unchanged_outside() && settings.device == 0, "a refused call had an effect");
  settings.devices = 2;
  side.run(a, Device::cuda, 0xa5);
  expect(side.status.ok(), "the next call reported an error of the last one");
}

// What the emulation itself is for: wrong kernels must not pass.
template <class Kernel>
bool aborts(unsigned threads, const Kernel& kernel) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    (void)!freopen("/dev/null", "w", stderr);
    emulate_launch(1, threads, 64, kernel);
    _exit(0);
  }
  int state = 0;
  waitpid(child, &state, 0);
  return WIFSIGNALED(state) && WTERMSIG(state) == SIGABRT;
}

void check_emulation() {
  std::snprintf(current, sizeof current, "emulation");
  settings.order = Order::forward;
  expect(!aborts(64, [] { __syncthreads(); }), "a plain barrier");
  expect(aborts(64,
                [] {
                  if (threadIdx.x < 32) __syncthreads();
                }),
         "a barrier half the block does not reach");
  expect(aborts(64,
                [] {
                  if (threadIdx.x < 32)
                    __syncthreads();
                  else
                    __syncthreads();
                }),
         "two barriers for one");
  expect(aborts(32, [] { __shfl_down_sync(0xfffeu, 1.0, 1, 16); }), "a thread outside its mask");
  expect(aborts(16, [] { __shfl_down_sync(0xffffffffu, 1.0, 1, 32); }), "a mask beyond the block");
  expect(aborts(32,
                [] {
                  if (threadIdx.x != 5) __shfl_down_sync(0xffffffffu, 1.0, 1, 32);
                }),
         "a member that never comes");
  expect(aborts(32, [] { static_cast<unsigned char*>(emulated_block_scratch())[64] = 1; }), "too much shared memory");

  int received[64];
  emulate_launch(1, 64, 0, [&] {
    const unsigned members = 0xffu << (threadIdx.x % 32 / 8 * 8);
    received[threadIdx.x] = __shfl_down_sync(members, static_cast<int>(threadIdx.x), 3, 8);
  });
  for (int i = 0; i < 64; ++i) expect(received[i] == (i % 8 + 3 < 8 ? i + 3 : i), "shuffle down by 3 in groups of 8");

  // A missing barrier shows as a difference between orders.
  int sums[2];
  for (const Order order : {Order::forward, Order::reverse}) {
    settings.order = order;
    emulate_launch(1, 32, 256, [&] {
      auto* shared = static_cast<int*>(emulated_block_scratch());
      shared[threadIdx.x] = 1;
      if (threadIdx.x == 0) sums[static_cast<int>(order)] = shared[31];
    });
  }
  expect(sums[0] != sums[1], "a race");
}

}  // namespace
}  // namespace pyparareal::testing

int main() {
  using namespace pyparareal::testing;
  catch_crashes();
  check_emulation();
  check_ops();
  check_aliases();
  check_short_slices();
  check_trees();
  check_long_slice();
  check_refusals();
  check_long_refusal();
  check_captures();
  std::printf("%ld passed, %ld failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

#endif
