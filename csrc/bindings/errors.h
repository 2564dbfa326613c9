// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <pybind11/pybind11.h>

#include "pyparareal/types.h"

namespace pyparareal::bindings {

// The Python exception of a Status: ValueError, TypeError or pyparareal.errors.CudaError.
inline void raise_unless_ok(const Status& status) {
  namespace py = pybind11;
  switch (status.code) {
    case StatusCode::ok:
      return;
    case StatusCode::invalid_type:
      throw py::type_error(status.message);
    case StatusCode::invalid_value:
      throw py::value_error(status.message);
    default:
      PyErr_SetString(py::module_::import("pyparareal.errors").attr("CudaError").ptr(), status.message);
      throw py::error_already_set();
  }
}

}  // namespace pyparareal::bindings
