// SPDX-License-Identifier: BSD-3-Clause
// The scans: large blocks lane by lane, the others as scan_share.h says.
#include "../backend.h"
#include "scan_share.h"

namespace pyparareal::cpu {
namespace {

template <class T>
Status scan_as(const ScanTask<T>& task, bool apart, const Exec& exec) {
  const int64_t bytes = task.steps * row_bytes(task);
  int team = team_of(task, exec.threads, bytes);
  while (team > 1 && scratch_of(task, team) > exec.workspace_bytes) --team;
  T* const scratch = static_cast<T*>(exec.workspace);
  const auto run = task.d > scan_chunked ? nullptr : scan_tiles_of<T>(tiles()).run[task.d - 1];
  if (task.d > scan_chunked) {
    share(team, task.lanes, [&](int64_t first, int64_t last) {
      scan_tiles_of<T>(tiles()).walk(task, first, last, scratch + rank_in(team) * 2 * task.d);
    });
  } else if (shares_lanes(task, team)) {
    const int64_t written = task.steps * task.lanes * static_cast<int64_t>(sizeof(T));
    const bool around = task.d == 1 && apart && task.u.lanes.contiguous() && written >= streaming_bytes;
    share_lanes(task, team, [&](ScanRun<T> part, int64_t) {
      part.around_caches = around;
      run(task, part);
    });
  } else {
    share_rows(task, team, scratch, [&](const ScanRun<T>& part) { run(task, part); });
  }
  return {};
}

}  // namespace

std::size_t scan_workspace_bytes(const ConstView& b, bool blocks, int32_t threads) {
  return with_wide_type(b.dtype, [&](auto zero) {
    using T = decltype(zero);
    MutableView u;
    u.ndim = 0;
    ScanTask<T> task(u, {}, b, {}, blocks, false);
    const int team = team_of(task, threads, INT64_MAX);
    std::size_t most = 0;
    for (int members = 1; members <= team; ++members) most = std::max(most, scratch_of(task, members));
    return most;
  });
}

Status scan(const MutableView& u, const ConstView& a, const ConstView& b, const ConstView& start, bool blocks,
            bool reverse, const Exec& exec) {
  return with_wide_type(b.dtype, [&](auto zero) {
    using T = decltype(zero);
    return scan_as(ScanTask<T>(u, a, b, start, blocks, reverse), u.data != b.data, exec);
  });
}

}  // namespace pyparareal::cpu
