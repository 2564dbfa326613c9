// SPDX-License-Identifier: BSD-3-Clause
// A Runge-Kutta scheme as the kernels of relax_rk read it.
#pragma once

#include "pyparareal/formulas.h"
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
  double h;                       // of a substep; 1 where every step has its own
  C node[max_stages];             // c times h, for right-hand sides that know the time
  uint32_t later;                 // bit i: node i is not the beginning of the step

  Coefficients(const RungeKutta& scheme, bool own_steps)
      : stages(scheme.stages),
        substeps(scheme.substeps),
        h(own_steps ? 1.0 : scheme.dt / static_cast<double>(scheme.substeps)),
        later(0) {
    for (int i = 0; i < max_stages; ++i) {
      node[i] = i < stages ? static_cast<C>(scheme.c[i] * h) : C(0);
      if (i < stages && scheme.c[i] != 0) later |= 1u << i;
    }
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

// Step sizes, one for each step of each slice.
struct StepSizes {
  const double* data = nullptr;  // null: all are those of the scheme
  int64_t slice_stride = 0, step_stride = 0;

  StepSizes() = default;
  explicit StepSizes(const ConstView& steps) {
    if (!steps.present()) return;
    data = static_cast<const double*>(steps.data), slice_stride = steps.stride[0], step_stride = steps.stride[1];
  }

  template <class C>
  PYPARAREAL_HD C at(int64_t slice, int64_t j, int64_t substeps) const {
    return static_cast<C>(data[slice * slice_stride + j * step_stride] / static_cast<double>(substeps));
  }
};

// Where the steps of a slice start.
struct StepTimes {
  StepSizes own;
  UniformTimes uniform;

  template <class C>
  PYPARAREAL_HD C at(int64_t slice, int64_t j) const {
    if (own.data) return own.template at<C>(slice, j, 1);
    if (uniform.steps == 0) return static_cast<C>(as_float(0x7fc00000u));
    const double point = static_cast<double>(uniform.first + slice * uniform.stride + j);
    return static_cast<C>(uniform.t0 + uniform.span * (point / static_cast<double>(uniform.steps)));
  }
};

}  // namespace pyparareal
