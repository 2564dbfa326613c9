// SPDX-License-Identifier: BSD-3-Clause
// Which stream a call runs on, and the arrays it must keep alive until that stream is done with them.
#pragma once

#include <initializer_list>

#include "array.h"

namespace pyparareal::bindings {

struct Stream {
  void* handle = nullptr;
  bool foreign = false;  // named by the caller: may differ from the stream the memory was allocated on
};

// None is the caller's current stream on the array's device; an object with __cuda_stream__ or a
// non-negative int is that stream. Raises for anything else, for a stream given with CPU arrays, and
// for a stream of another device.
Stream resolve_stream(py::handle stream, const Array& array, py::handle array_object);

// Holds the objects until the work queued on the stream so far is done (an event says so).
void keep_alive(const Stream& stream, const Array& array, std::initializer_list<py::handle> objects);

// How many calls' arrays are still held; finished ones are let go first.
std::size_t held_calls();

}  // namespace pyparareal::bindings
