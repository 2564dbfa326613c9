// SPDX-License-Identifier: BSD-3-Clause
// The sum over slices on the host. In NumPy that of a few numbers takes as long as a short relaxation.
#include <string>

#include "../validate.h"
#include "calls.h"

namespace pyparareal::bindings {

// Neighbours (2i, 2i + 1) first, an odd one carried up. sums[j] holds that of 2^j values while count has bit j.
double tree_sum(py::handle numbers) {
  const Array values = borrow(numbers, "values");
  const MutableView& v = values.view;
  if (v.ndim != 1 || v.dtype != DType::float64 || v.device != Device::cpu)
    throw py::value_error("values: got " + std::to_string(v.ndim) + " axes of " + validate::name_of(v.dtype) +
                          (v.device == Device::cpu ? "" : " on a device") + ", expected float64 [slices] on the CPU");
  const double* next = static_cast<const double*>(v.data);
  double sums[64];
  for (int64_t count = 0; count < v.shape[0]; ++count, next += v.stride[0]) {
    double sum = *next;
    int level = 0;
    for (; count >> level & 1; ++level) sum = sums[level] + sum;
    sums[level] = sum;
  }
  double total = 0;
  bool carried = false;
  for (int level = 0; level < 63; ++level) {
    if (!(v.shape[0] >> level & 1)) continue;
    total = carried ? sums[level] + total : sums[level];
    carried = true;
  }
  return total;
}

}  // namespace pyparareal::bindings
