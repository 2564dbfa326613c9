// SPDX-License-Identifier: BSD-3-Clause
// How threads share a scan: its lanes, or where they are few, groups of rows, in three steps: the map of every group,
// from group to group in order, and the rows of every group.
#pragma once

#include "parallel.h"
#include "tiles.h"

namespace pyparareal::cpu {

// Rows that threads share at once: fewer would wait for each other more often, more would leave the last-level cache
// between the first step and the third.
inline constexpr int64_t share_bytes = 4 << 20;

template <class T>
int64_t row_bytes(const ScanTask<T>& task) {
  return task.lanes * task.d * (task.d + 2) * static_cast<int64_t>(sizeof(T));
}

inline int64_t rank_in(int team) {
#ifdef _OPENMP
  return team > 1 ? omp_get_thread_num() : 0;
#else
  (void)team;
  return 0;
#endif
}

// Lanes fill the vectors of all threads, or else rows are shared.
template <class T>
bool shares_lanes(const ScanTask<T>& task, int team) {
  const int64_t groups = task.steps / scan_group;
  return team == 1 || task.lanes >= team * int64_t{scan_tiles_of<T>(tiles()).lanes} || groups < 2 * team;
}

// Groups in flight of a team that shares rows, and its scratch: their maps, their starts, and an end.
template <class T>
int64_t groups_at_once(const ScanTask<T>& task, int team) {
  return team * std::max<int64_t>(1, share_bytes / (scan_group * row_bytes(task)));
}

template <class T>
std::size_t scratch_of(const ScanTask<T>& task, int team) {
  if (task.d > scan_chunked) return static_cast<std::size_t>(2 * team * task.d) * 8;
  if (shares_lanes(task, team)) return 0;
  const int64_t groups = groups_at_once(task, team);
  return static_cast<std::size_t>((groups * (task.d * task.d + 2 * task.d) + 2 * task.d) * task.lanes) * 8;
}

template <class T>
int team_of(const ScanTask<T>& task, int32_t threads, int64_t bytes) {
  const int64_t items = task.d > scan_chunked ? task.lanes : task.lanes + task.steps / scan_group;
  return team_size(threads, items, bytes);
}

// Lane by lane from `state` over a group by its map; where that is not finite, by its rows.
template <class T, class Run>
void next_start(const ScanTask<T>& task, const Run& run, int64_t group, const T* map, const T* from, T* to, T* end,
                bool no_start) {
  const int64_t d = task.d, lanes = task.lanes;
  bool good = true;
  for (int64_t p = 0; p < d; ++p)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      T sum = map[p * d * lanes + lane] * from[lane];
      for (int64_t q = 1; q < d; ++q) sum = sum + map[(p * d + q) * lanes + lane] * from[q * lanes + lane];
      const T shift = map[(d * d + p) * lanes + lane];
      to[p * lanes + lane] = no_start ? shift : sum + shift;
      good = good && to[p * lanes + lane] - to[p * lanes + lane] == T(0);
    }
  if (good) return;
  ScanRun<T> part{0, lanes, group * scan_group, (group + 1) * scan_group, ScanPart::end};
  part.start = from, part.left = end;
  run(part);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    bool finite = true;
    for (int64_t p = 0; p < d; ++p) finite = finite && to[p * lanes + lane] - to[p * lanes + lane] == T(0);
    for (int64_t p = 0; !finite && p < d; ++p) to[p * lanes + lane] = end[p * lanes + lane];
  }
}

// run(part) is a run of the task.
template <class T, class Run>
void share_rows(const ScanTask<T>& task, int team, T* scratch, const Run& run) {
  const int64_t lanes = task.lanes, d = task.d, map = (d * d + d) * lanes, state = d * lanes;
  const int64_t groups = (task.steps + scan_group - 1) / scan_group, most = groups_at_once(task, team);
  T *const maps = scratch, *const starts = maps + most * map, *const end = starts + (most + 1) * state;
  for (int64_t p = 0; p < d; ++p)
    for (int64_t lane = 0; lane < lanes; ++lane)
      starts[p * lanes + lane] = task.start.data ? task.start.at(0, lane)[p * task.start.q] : T(-0.0);
  for (int64_t first = 0; first < groups; first += most) {
    const int64_t count = std::min(most, groups - first), whole = std::min(count, task.steps / scan_group - first);
    share(team, whole, [&](int64_t from, int64_t to) {
      if (from == to) return;
      ScanRun<T> part{0, lanes, (first + from) * scan_group, (first + to) * scan_group, ScanPart::maps};
      part.left = maps + from * map;
      run(part);
    });
    for (int64_t group = 0; group < whole; ++group)
      next_start(task, run, first + group, maps + group * map, starts + group * state, starts + (group + 1) * state,
                 end, first + group == 0 && !task.start.data);
    share(team, count, [&](int64_t from, int64_t to) {
      if (from == to) return;
      ScanRun<T> part{0, lanes, (first + from) * scan_group, std::min((first + to) * scan_group, task.steps)};
      part.start = starts + from * state;
      run(part);
    });
    if (whole == count) std::copy_n(starts + count * state, state, starts);
  }
}

// run(part, rank) is a run of the task by one member of the team.
template <class T, class Run>
void share_lanes(const ScanTask<T>& task, int team, const Run& run) {
  const int64_t line = std::max<int64_t>(scan_tiles_of<T>(tiles()).lanes, 64 / static_cast<int64_t>(sizeof(T)));
  share(team, (task.lanes + line - 1) / line, [&](int64_t first, int64_t last) {
    const ScanRun<T> part{first * line, std::min(last * line, task.lanes), 0, task.steps};
    if (first < last) run(part, rank_in(team));
  });
}

}  // namespace pyparareal::cpu
