// SPDX-License-Identifier: BSD-3-Clause
// newton_gru: shared among threads as a scan is. Where they share lanes, each has norms of its own, of which the
// largest count.
#include "../backend.h"
#include "scan_share.h"

namespace pyparareal::cpu {
namespace {

// The scan of what newton_gru computes: its steps and lanes.
template <class T>
ScanTask<T> chain_of(const ConstView& u) {
  ConstView rows = u;
  --rows.shape[0];
  return ScanTask<T>({}, {}, rows, {}, false, false);
}

// Norms of all members but the first, in doubles.
template <class T>
std::size_t norm_numbers(const ScanTask<T>& chain, int team) {
  return shares_lanes(chain, team) ? static_cast<std::size_t>(2 * chain.steps * (team - 1)) : 0;
}

template <class T>
std::size_t bytes_of(const ScanTask<T>& chain, int team) {
  return scratch_of(chain, team) + norm_numbers(chain, team) * sizeof(double);
}

void add_norms(double* to, const double* from, int64_t rows) {
  for (int64_t row = 0; to && row < rows; ++row) to[row] = norm_combine<Norm::max_abs>(to[row], from[row]);
}

template <class T>
void solve(const NewtonGruTask<T>& task, const ScanTask<T>& chain, const NewtonNorms& norms, const Exec& exec) {
  // Three exponentials cost about what the traffic of an element does, which is of ten operands.
  const int64_t steps = chain.steps, bytes = 20 * steps * chain.lanes * static_cast<int64_t>(sizeof(T));
  int team = team_of(chain, exec.threads, bytes);
  while (team > 1 && bytes_of(chain, team) > exec.workspace_bytes) --team;
  const auto run = newton_gru_tiles_of<T>(tiles()).run;
  for (double* const to : {norms.residuals, norms.updates})
    if (to) std::fill_n(to, steps, 0.0);
  if (!shares_lanes(chain, team)) {
    share_rows(chain, team, static_cast<T*>(exec.workspace),
               [&](const ScanRun<T>& part) { run(task, chain, part, norms); });
    return;
  }
  double* const more = static_cast<double*>(exec.workspace);
  if (team > 1) std::fill_n(more, norm_numbers(chain, team), 0.0);
  share_lanes(chain, team, [&](const ScanRun<T>& part, int64_t rank) {
    if (rank == 0) return run(task, chain, part, norms);
    double* const at = more + 2 * steps * (rank - 1);
    run(task, chain, part, {norms.residuals ? at : nullptr, norms.updates ? at + steps : nullptr});
  });
  for (int64_t rank = 1; rank < team; ++rank) {
    add_norms(norms.residuals, more + 2 * steps * (rank - 1), steps);
    add_norms(norms.updates, more + 2 * steps * (rank - 1) + steps, steps);
  }
}

}  // namespace

std::size_t newton_gru_workspace_bytes(const ConstView& u, int32_t threads) {
  return with_wide_type(u.dtype, [&](auto zero) {
    const auto chain = chain_of<decltype(zero)>(u);
    const int team = team_of(chain, threads, INT64_MAX);
    std::size_t most = 0;
    for (int members = 1; members <= team; ++members) most = std::max(most, bytes_of(chain, members));
    return most;
  });
}

Status newton_gru(const MutableView& out, const MutableView& jacobians, const MutableView& residuals,
                  const MutableView& updates, const ConstView& u, const ConstView& products, const ConstView& gates,
                  const ConstView& diagonal, const ConstView& bias, double factor, const Exec& exec) {
  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const NewtonGruTask<T> task(out, jacobians, u, products, gates, diagonal, bias, factor);
    solve(task, chain_of<T>(u), {static_cast<double*>(residuals.data), static_cast<double*>(updates.data)}, exec);
    return Status{};
  });
}

}  // namespace pyparareal::cpu
