// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <pybind11/pybind11.h>

namespace pyparareal::bindings {

// _nvtx_push(name) and _nvtx_pop(), where the toolkit's header was found when this was built; otherwise nothing.
void define_nvtx(pybind11::module_& module);

}  // namespace pyparareal::bindings
