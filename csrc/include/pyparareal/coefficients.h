// SPDX-License-Identifier: BSD-3-Clause
// A Runge-Kutta scheme as the kernels of relax_rk read it.
#pragma once

#include "pyparareal/types.h"

namespace pyparareal {

inline constexpr int max_components = 4;  // of the right-hand sides in rhs.h

// The coefficients of a scheme as they are multiplied by slopes: row i of a, and b as the last row. Zeros are not
// used, whatever becomes of the others by rounding. With one step size they are products with it, rounded once.
template <class C>
struct Coefficients {
  int32_t stages;
  int64_t substeps;
  C value[max_stages + 1][max_stages];
  uint32_t used[max_stages + 1];  // bit j: coefficient j counts

  Coefficients(const RungeKutta& scheme, bool own_steps) : stages(scheme.stages), substeps(scheme.substeps) {
    const double h = own_steps ? 1.0 : scheme.dt / static_cast<double>(scheme.substeps);
    for (int row = 0; row <= max_stages; ++row) {
      used[row] = 0;
      const double* from = row < max_stages ? scheme.a[row] : scheme.b;
      const int count = row == max_stages ? stages : row < stages ? row : 0;
      for (int j = 0; j < max_stages; ++j) {
        value[row][j] = j < count ? static_cast<C>(from[j] * h) : C(0);
        if (j < count && from[j] != 0) used[row] |= 1u << j;
      }
    }
  }
};

}  // namespace pyparareal
