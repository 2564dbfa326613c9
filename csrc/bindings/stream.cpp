// SPDX-License-Identifier: BSD-3-Clause
#include "stream.h"

#include <list>
#include <string>
#include <vector>

#include "../backend.h"
#include "errors.h"

namespace pyparareal::bindings {
namespace {

uintptr_t handle_of(py::handle stream) {
  if (py::hasattr(stream, "__cuda_stream__")) {
    py::object protocol = stream.attr("__cuda_stream__");
    if (PyCallable_Check(protocol.ptr())) protocol = protocol();
    return py::tuple(protocol)[1].cast<uintptr_t>();
  }
  if (!PyLong_Check(stream.ptr()) || PyBool_Check(stream.ptr()))
    throw py::type_error(std::string("stream: got ") + Py_TYPE(stream.ptr())->tp_name +
                         ", expected None, an object with __cuda_stream__ or a non-negative int");
  const long long value = PyLong_AsLongLong(stream.ptr());
  const bool too_large = value == -1 && PyErr_Occurred();
  PyErr_Clear();
  if (value < 0)
    throw py::value_error("stream: got " + (too_large ? std::string(py::str(stream)) : std::to_string(value)) +
                          ", expected a non-negative int of 63 bits");
  return static_cast<uintptr_t>(value);
}

void* current_stream(const Array& array, py::handle object) {
  if (array.exchange && array.exchange->current_work_stream) {
    void* stream = nullptr;
    if (array.exchange->current_work_stream(kDLCUDA, array.view.device_id, &stream) != 0) throw py::error_already_set();
    return stream;
  }
  return reinterpret_cast<void*>(
      py::module_::import("pyparareal.streams").attr("current")(object, array.view.device_id).cast<uintptr_t>());
}

#if PYPARAREAL_WITH_CUDA
struct Held {
  cuda::Event event;
  std::vector<py::object> objects;
};

std::list<Held>& held() {
  static auto* calls = new std::list<Held>;  // not destroyed: the interpreter may be gone by then
  return *calls;
}

void let_go() {
  held().remove_if([](Held& call) { return call.event.done(); });
}
#endif

}  // namespace

Stream resolve_stream(py::handle stream, const Array& array, py::handle array_object) {
  const uintptr_t named = stream.is_none() ? 0 : handle_of(stream);
  if (array.view.device == Device::cpu) {
    if (!stream.is_none()) throw py::value_error("stream: got a stream, expected None because the arrays are on cpu");
    return {};
  }
  if (stream.is_none()) return {current_stream(array, array_object), false};
  Stream result{reinterpret_cast<void*>(named), true};
#if PYPARAREAL_WITH_CUDA
  int device = array.view.device_id;
  raise_unless_ok(cuda::stream_device(result.handle, array.view.device_id, &device));
  if (device != array.view.device_id)
    throw py::value_error("stream: got a stream of cuda:" + std::to_string(device) +
                          ", expected one of cuda:" + std::to_string(array.view.device_id) + " like the arrays");
#endif
  return result;
}

void keep_alive(const Stream& stream, const Array& array, std::initializer_list<py::handle> objects) {
#if PYPARAREAL_WITH_CUDA
  let_go();
  if (!stream.foreign) return;
  Held call;
  raise_unless_ok(call.event.record(stream.handle, array.view.device_id));
  for (py::handle object : objects)
    if (!object.is_none()) call.objects.push_back(py::reinterpret_borrow<py::object>(object));
  held().push_back(std::move(call));
#else
  (void)stream, (void)array, (void)objects;
#endif
}

std::size_t held_calls() {
#if PYPARAREAL_WITH_CUDA
  let_go();
  return held().size();
#else
  return 0;
#endif
}

}  // namespace pyparareal::bindings
