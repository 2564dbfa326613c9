// SPDX-License-Identifier: BSD-3-Clause
// The array caster: a borrowed view of any Python array, without a copy.
//
// In this order: the DLPack C exchange table of the array's type (torch >= 2.10 and whoever follows; no
// Python call), NumPy's own structure, __dlpack__ (older torch, JAX, ...), __cuda_array_interface__.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "dlpack/dlpack.h"
#include "pyparareal/types.h"

namespace pyparareal::bindings {

namespace py = pybind11;

// One array argument for the duration of a call. `owner` keeps a temporary export alive.
struct Array {
  MutableView view;
  bool read_only = false;
  bool copied = false;  // the producer exported a copy: what is written is lost
  const DLPackExchangeAPI* exchange = nullptr;
  py::object owner;

  ConstView input() const;
};

// Raises TypeError/ValueError naming `argument` where `object` is no array these kernels take.
Array borrow(py::handle object, const char* argument);

// As borrow, and refuses a read-only array.
Array borrow_output(py::handle object, const char* argument);

// As borrow; None gives an absent operand.
Array borrow_optional(py::handle object, const char* argument);

// As borrow, for int64 indices alone.
Array borrow_indices(py::handle object, const char* argument);

// Counts an in-place write of torch tensors, so that autograd refuses a backward pass that saved them before.
void mark_written(py::handle first, py::handle second = {});

}  // namespace pyparareal::bindings
