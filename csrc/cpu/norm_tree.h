// SPDX-License-Identifier: BSD-3-Clause
// Partial norms, one per chunk, and the fixed binary tree that combines the chunks of a slice.
#pragma once

#include "parallel.h"

namespace pyparareal::cpu {

// Writes straight to the result where a slice is one chunk, else to the caller's scratch.
class NormPartials {
 public:
  NormPartials(const Space& space, double* norms, const Exec& exec)
      : chunks_(space.chunks()), norms_(norms), partials_(chunks_ > 1 ? static_cast<double*>(exec.workspace) : norms) {}

  double& at(int64_t slice, int64_t index) { return partials_[slice * chunks_ + index]; }

  // Serial: one addition per thousand elements of the pass before it, less than a second fork-join costs.
  void reduce(Norm norm, int64_t first, int64_t last) {
    if (chunks_ == 1) return;
    for (int64_t slice = first; slice < last; ++slice) {
      double* values = partials_ + slice * chunks_;
      norms_[slice] = chunks_ == 0            ? 0.0
                      : norm == Norm::max_abs ? tree<Norm::max_abs>(values, chunks_)
                                              : tree<Norm::sum_abs>(values, chunks_);
    }
  }

 private:
  // In place: neighbours first, an odd one carried up.
  template <Norm norm>
  static double tree(double* values, int64_t count) {
    while (count > 1) {
      for (int64_t i = 0; i < count / 2; ++i) values[i] = norm_combine<norm>(values[2 * i], values[2 * i + 1]);
      if (count % 2) values[count / 2] = values[count - 1];
      count = (count + 1) / 2;
    }
    return values[0];
  }

  int64_t chunks_;
  double* norms_;
  double* partials_;
};

}  // namespace pyparareal::cpu
