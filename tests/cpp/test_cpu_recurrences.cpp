// SPDX-License-Identifier: BSD-3-Clause
// The CPU's scans, relax_gru, its adjoint and newton_gru in any layout, by every instruction set and several threads:
// the bits of dense arrays by one thread without vectors, and not a byte beside their outputs. Every operand, the
// workspace among them, ends at a page that may not be touched. Built and run by .ci/sanitize.
#include <cstdio>
#include <functional>

#include "cpu/tiles.h"
#include "guarded_array.h"
#include "pyparareal/ops.h"

namespace pyparareal::testing {
namespace {

int passed = 0, failed = 0;

// Last axis fastest, with gaps, backward, or first axis fastest.
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

enum class Role { absent, input, output, norms, written };  // norms are float64; the last begin as inputs

struct Operand {
  Role role;
  std::vector<int64_t> shape;
};

constexpr int most_operands = 12;

struct Side {
  GuardedMemory memory[most_operands], scratch;
  Array arrays[most_operands];

  ConstView in(int i) const { return present(i) ? ConstView(arrays[i]) : ConstView{}; }
  MutableView out(int i) const { return present(i) ? MutableView(arrays[i]) : MutableView{}; }
  bool present(int i) const { return roles[i] != Role::absent; }

  void make(const std::vector<Operand>& operands, DType dtype, Lay lay, uint64_t seed, bool special) {
    Random random(seed);
    for (int i = 0; i < static_cast<int>(operands.size()); ++i) {
      roles[i] = operands[i].role;
      if (!present(i)) continue;
      const bool norms = roles[i] == Role::norms, values = roles[i] == Role::input || roles[i] == Role::written;
      arrays[i].place(memory[i], lay_out(norms ? Lay::dense : lay, norms ? DType::float64 : dtype, operands[i].shape),
                      Form::odd_pitch);
      arrays[i].fill(0x5a, values ? &random : nullptr, special);
    }
  }

  Exec exec(std::size_t bytes, int threads) {
    Exec exec;
    exec.threads = threads, exec.workspace_bytes = bytes;
    if (bytes) std::memset(exec.workspace = scratch.last(bytes), 0x5a, bytes);
    return exec;
  }

  bool clean(int i) { return roles[i] == Role::input ? arrays[i].unchanged() : arrays[i].unchanged_outside(); }

  Role roles[most_operands] = {};
};

using Call = std::function<Status(Side&, int threads)>;

void check(const char* name, const std::vector<Operand>& operands, DType dtype, Random& random, const Call& call) {
  static Side plain, other;
  const uint64_t seed = random.next();
  const bool special = random.below(4) == 0;
  cpu::select_tiles("baseline");
  plain.make(operands, dtype, Lay::dense, seed, special);
  const bool done = call(plain, 1).ok();
  for (const char* set : {"baseline", "avx2", "avx512"}) {
    if (!cpu::select_tiles(set)) continue;
    const Lay lay = static_cast<Lay>(random.below(4));
    const int threads = 1 + static_cast<int>(random.below(3));
    other.make(operands, dtype, lay, seed, special);
    bool good = done && call(other, threads).ok();
    for (int i = 0; good && i < static_cast<int>(operands.size()); ++i)
      if (other.present(i)) good = other.clean(i) && same_values(plain.arrays[i], other.arrays[i], true);
    ++(good ? passed : failed);
    if (good) continue;
    std::printf("FAILED %s, %s, %d bytes, %d threads, layout %d, special %d, shapes", name, set, int(size_of(dtype)),
                threads, int(lay), special);
    for (const Operand& operand : operands) {
      std::printf(" [");
      for (const int64_t size : operand.shape) std::printf(" %d", int(size));
      std::printf(" ]%s", operand.role == Role::absent ? " absent" : "");
    }
    std::printf("\n");
  }
}

Role maybe(Random& random, Role role) { return random.below(3) ? role : Role::absent; }

void check_scan(Random& random, DType dtype, int64_t d, int64_t steps, int64_t batch, int64_t lanes) {
  std::vector<int64_t> rows{steps, batch, lanes};
  if (d) rows.push_back(d);
  std::vector<int64_t> factors = rows, row(rows.begin() + 1, rows.end());
  if (d) factors.push_back(d);
  const bool in_place = random.below(3) == 0, start = random.below(2), reverse = !start && random.below(2);
  const auto call = [=](Side& side, int threads) {
    const MutableView to = side.out(in_place ? 1 : 3);
    const ConstView b = side.in(1);
    const Exec exec =
        side.exec(d ? scan_block_workspace_bytes(b, threads) : scan_diag_workspace_bytes(b, threads), threads);
    return d ? scan_block(to, side.in(0), b, side.in(2), reverse, exec)
             : scan_diag(to, side.in(0), b, side.in(2), reverse, exec);
  };
  check(d ? "scan_block" : "scan_diag",
        {{Role::input, factors},
         {in_place ? Role::written : Role::input, rows},
         {start ? Role::input : Role::absent, row},
         {in_place ? Role::absent : Role::output, rows}},
        dtype, random, call);
}

void check_newton(Random& random, DType dtype, int64_t steps, int64_t batch, int64_t hidden) {
  const auto rows = [&](int64_t count, int64_t times) { return std::vector<int64_t>{count, batch, times * hidden}; };
  const auto call = [=](Side& side, int threads) {
    const Exec exec = side.exec(newton_gru_workspace_bytes(side.in(4), threads), threads);
    return newton_gru(side.out(0), side.out(1), side.out(2), side.out(3), side.in(4), side.in(5), side.in(6),
                      side.in(7), side.in(8), 0.75, exec);
  };
  check("newton_gru",
        {{Role::output, rows(steps, 1)},
         {maybe(random, Role::output), rows(steps, 1)},
         {maybe(random, Role::norms), {steps}},
         {maybe(random, Role::norms), {steps}},
         {Role::input, rows(steps + 1, 1)},
         {Role::input, rows(steps, 3)},
         {Role::input, rows(steps, 3)},
         {Role::input, {3, hidden}},
         {maybe(random, Role::input), {hidden}}},
        dtype, random, call);
}

void check_gru(Random& random, DType dtype, int64_t slices, int64_t m, int64_t batch, int64_t hidden) {
  const std::vector<int64_t> state{slices, batch, hidden}, steps{slices, m, batch, hidden},
      sides{slices, m, batch, 3 * hidden}, matrix{3 * hidden, hidden};
  const Role f = maybe(random, Role::input), g = f == Role::absent ? f : maybe(random, Role::input),
             every = maybe(random, Role::output);
  const auto forward = [=](Side& side, int threads) {
    const Exec exec = side.exec(relax_gru_workspace_bytes(side.in(1), Precision::exact, threads), threads);
    return relax_gru(side.out(0), side.in(1), side.in(2), side.in(3), side.in(4), m, side.in(5), side.in(6),
                     side.out(7), {}, {}, Norm::max_abs, Precision::exact, exec);
  };
  check("relax_gru",
        {{every == Role::absent ? Role::output : maybe(random, Role::output), state},
         {Role::input, state},
         {Role::input, sides},
         {Role::input, matrix},
         {maybe(random, Role::input), {hidden}},
         {f, steps},
         {g, steps},
         {every, steps}},
        dtype, random, forward);
  const bool in_place = random.below(2);  // the gradients take the places of what they are of
  const auto backward = [=](Side& side, int threads) {
    const Exec exec = side.exec(relax_gru_adjoint_workspace_bytes(side.in(7), Precision::exact, threads), threads);
    return relax_gru_adjoint(side.out(in_place ? 7 : 0), side.out(in_place ? 4 : 1), side.out(in_place ? 3 : 2),
                             side.in(3), side.in(4), side.in(5), side.in(6), side.in(7), side.in(8), Precision::exact,
                             exec);
  };
  const Role apart = in_place ? Role::absent : Role::output, given = in_place ? Role::written : Role::input;
  check("relax_gru_adjoint",
        {{apart, state},
         {in_place ? apart : maybe(random, apart), sides},
         {in_place ? apart : maybe(random, apart), steps},
         {given, steps},
         {given, sides},
         {Role::input, matrix},
         {maybe(random, Role::input), {hidden}},
         {given, state},
         {maybe(random, Role::input), steps}},
        dtype, random, backward);
}

void check_all() {
  Random random(20251121);
  for (const DType dtype : {DType::float64, DType::float32}) {
    for (const int64_t steps : {1, 2, 15, 16, 17, 255, 256, 257, 530})
      for (const int64_t d : {0, 1, 2, 3, 4, 5, 18})
        for (int repeat = 0; repeat < 2; ++repeat)
          check_scan(random, dtype, d, steps, 1 + random.below(2), 1 + random.below(d ? 4 : 40));
    for (const int64_t steps : {1, 15, 16, 17, 256, 257, 530})
      for (int repeat = 0; repeat < 4; ++repeat)
        check_newton(random, dtype, steps, 1 + random.below(3), 1 + random.below(40));
    // Enough for teams, that share lanes or groups of rows.
    check_scan(random, dtype, 0, 20 * 256 + 7, 1, 5), check_scan(random, dtype, 0, 300, 2, 100);
    check_scan(random, dtype, 2, 12 * 256 + 1, 2, 1), check_scan(random, dtype, 5, 300, 1, 20);
    check_scan(random, dtype, 4, 16 * 256 + 1, 1, 7);  // more groups than the scratch is for at once
    check_scan(random, dtype, 4, 16 * 256 + 1, 1, 15);
    check_newton(random, dtype, 12 * 256 + 3, 1, 3), check_newton(random, dtype, 260, 2, 70);
    for (int repeat = 0; repeat < 24; ++repeat)
      check_gru(random, dtype, 1 + random.below(9), 1 + random.below(4), 1 + random.below(4), 1 + random.below(70));
  }
}

}  // namespace
}  // namespace pyparareal::testing

int main() {
  using namespace pyparareal::testing;
  check_all();
  std::printf("recurrences: %d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
