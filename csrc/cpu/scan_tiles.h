// SPDX-License-Identifier: BSD-3-Clause
// The scans on the CPU: chunks of neighbouring lanes, or where lanes are few, neighbouring chunks of all lanes, lie in
// the lanes of vectors. Compiled once per instruction set, like tiles.h; the order of operations is that of
// reference_scan.py whatever the vectors hold.
#pragma once

#include "pyparareal/scan.h"

namespace pyparareal::cpu {

// What a run leaves behind: the states, the maps of its groups, or where its last row is without the map of the group.
enum class ScanPart { states, maps, end };

// Lanes [first_lane, last_lane), rows [first_row, last_row), from the beginning of a group on.
template <class T>
struct ScanRun {
  int64_t first_lane, last_lane, first_row, last_row;
  ScanPart part = ScanPart::states;
  bool around_caches = false;  // states are written past them
  const T* start = nullptr;    // [d, lanes] of the task before first_row; null: that of the task
  T* left = nullptr;           // maps [groups, d d + d, lanes], or end [d, lanes]
};

template <class T>
struct ScanTiles {
  int lanes;                                                         // of a vector
  void (*run[scan_chunked])(const ScanTask<T>&, const ScanRun<T>&);  // by d - 1
  // Large blocks: every step of the lanes [first, last); x has room for 2 d.
  void (*walk)(const ScanTask<T>&, int64_t first, int64_t last, T* x);
};

}  // namespace pyparareal::cpu
