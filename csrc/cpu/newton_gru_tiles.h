// SPDX-License-Identifier: BSD-3-Clause
// The tiles of newton_gru on the CPU: those of a scan, whose rows are computed where they are needed. Compiled once per
// instruction set, like tiles.h.
#pragma once

#include "pyparareal/newton_gru.h"
#include "scan_tiles.h"

namespace pyparareal::cpu {

// Where the norms of rows go, or null; a run takes the larger of what is there and what it finds.
struct NewtonNorms {
  double *residuals = nullptr, *updates = nullptr;
};

template <class T>
struct NewtonGruTiles {
  // `chain` has the steps and lanes of the scan, and no operands.
  void (*run)(const NewtonGruTask<T>& task, const ScanTask<T>& chain, const ScanRun<T>& of, const NewtonNorms& norms);
};

}  // namespace pyparareal::cpu
