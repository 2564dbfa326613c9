// SPDX-License-Identifier: BSD-3-Clause
// What the bindings have in common: arguments, scratch, the call itself, and the operands of relaxations.
#pragma once

#include <algorithm>
#include <memory>
#include <string>

#include "../backend.h"
#include "../cpu/parallel.h"
#include "array.h"
#include "errors.h"
#include "pyparareal/ops.h"
#include "stream.h"

namespace pyparareal::bindings {

// Calls without the GIL; the arrays are borrowed from arguments the caller holds.
template <class Call>
void run(const Call& call) {
  Status status;
  Py_BEGIN_ALLOW_THREADS;
  status = call();
  Py_END_ALLOW_THREADS;
  raise_unless_ok(status);
}

inline int64_t integer(py::handle value, const char* argument) {
  PyObject* index = PyNumber_Index(value.ptr());
  if (!index) {
    PyErr_Clear();
    throw py::type_error(std::string(argument) + ": got " + Py_TYPE(value.ptr())->tp_name + ", expected an int");
  }
  const long long result = PyLong_AsLongLong(index);
  Py_DECREF(index);
  if (result == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::value_error(std::string(argument) + ": got " + std::string(py::str(value)) +
                          ", expected at most 63 bits");
  }
  return result;
}

inline double number(py::handle value, const char* argument) {
  const double result = PyFloat_AsDouble(value.ptr());
  if (result == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(std::string(argument) + ": got " + Py_TYPE(value.ptr())->tp_name + ", expected a float");
  }
  return result;
}

// 0 follows torch.get_num_threads() where torch is loaded. Asked for only where a team could form: the op takes
// `passes` operands of the size of `like`.
inline int32_t thread_count(py::handle threads, const Array& like, int64_t passes) {
  const int64_t wanted = integer(threads, "threads");
  if (wanted < 0 || wanted > INT32_MAX)
    throw py::value_error("threads: got " + std::to_string(wanted) + ", expected 0 (the default) or more");
  const Space space = space_of(like.view);
  const int64_t enough = std::max<int64_t>(1, 2 * cpu::bytes_per_thread / 8 / std::max<int64_t>(1, passes));
  if (wanted > 0 || like.view.device != Device::cpu || space.slices * space.features < enough)
    return static_cast<int32_t>(wanted);
  PyObject* torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  if (!torch || !py::hasattr(torch, "get_num_threads")) return 0;
  return py::handle(torch).attr("get_num_threads")().cast<int32_t>();
}

// Scratch of one call: host memory here, device memory from the framework the output belongs to.
class Workspace {
 public:
  Workspace(std::size_t bytes, const Array& like, py::handle like_object, Exec& exec) {
    if (bytes == 0) return;
    exec.workspace_bytes = bytes;
    if (like.view.device == Device::cpu) {
      host_.reset(new double[bytes / sizeof(double)]);
      exec.workspace = host_.get();
    } else {
      device_ = py::module_::import("pyparareal.arrays").attr("device_scratch")(like_object, bytes);
      exec.workspace = borrow(device_, "workspace").view.data;
    }
  }
  py::handle object() const { return device_; }

 private:
  std::unique_ptr<double[]> host_;
  py::object device_ = py::none();
};

inline Norm norm_of(int norm) { return static_cast<Norm>(norm); }

// The arguments all relaxations have, and the end of their calls.
class Relaxation {
 public:
  const Array out, u, f, g, every, target, norms;
  const int64_t m;
  const Norm norm;
  const Stream on;
  Exec exec;

  Relaxation(py::handle out_object, py::handle u_object, py::handle steps, py::handle f_object, py::handle g_object,
             py::handle every_object, py::handle target_object, py::handle norms_object, int kind, py::handle stream,
             py::handle threads, const char* state = "u")
      : out(out_object.is_none() ? Array{} : borrow_output(out_object, "out")),
        u(borrow(u_object, state)),
        f(borrow_optional(f_object, "f")),
        g(borrow_optional(g_object, "g")),
        every(every_object.is_none() ? Array{} : borrow_output(every_object, "every")),
        target(borrow_optional(target_object, "target")),
        norms(norms_object.is_none() ? Array{} : borrow_output(norms_object, "norms")),
        m(integer(steps, "m")),
        norm(norm_of(kind)),
        on(resolve_stream(stream, u, u_object)),
        exec{on.handle, thread_count(threads, u, std::clamp<int64_t>(m, 0, 1 << 20) + 1), nullptr, 0},
        objects_{out_object, u_object, f_object, g_object, every_object, target_object, norms_object} {}

  std::size_t norm_bytes() const {
    return norms.view.present() && u.view.present() ? slice_norms_workspace_bytes(u.input()) : 0;
  }

  void finish(py::handle a, py::handle b, py::handle c, py::handle d, py::handle e = py::none()) const {
    keep_alive(
        on, u,
        {objects_[0], objects_[1], objects_[2], objects_[3], objects_[4], objects_[5], objects_[6], a, b, c, d, e});
    mark_written(objects_[0], objects_[4]);
    mark_written(objects_[6]);
  }
  py::handle u_object() const { return objects_[1]; }

 private:
  py::handle objects_[7];
};

// Numbers into an array of `most`; says how many there were.
inline int32_t numbers_of(py::handle sequence, double* to, std::size_t most, const char* argument) {
  if (!PySequence_Check(sequence.ptr()))
    throw py::type_error(std::string(argument) + ": got " + Py_TYPE(sequence.ptr())->tp_name +
                         ", expected a sequence of floats");
  const auto values = py::reinterpret_borrow<py::sequence>(sequence);
  if (values.size() > most)
    throw py::value_error(std::string(argument) + ": got " + std::to_string(values.size()) + " numbers, expected " +
                          std::to_string(most) + " at most");
  for (std::size_t i = 0; i < values.size(); ++i) to[i] = number(values[i], argument);
  return static_cast<int32_t>(values.size());
}

// tree.cpp
double tree_sum(py::handle numbers);

// relax_rk.cpp
void relax_rk(py::handle out, py::handle u, py::handle rhs, py::handle parameters, py::handle tableau, py::handle dt,
              py::handle m, py::handle substeps, py::handle times, py::handle f, py::handle g, py::handle every,
              py::handle target, py::handle norms, int norm, py::handle stream, py::handle threads);
py::object rk_arguments(py::handle out, py::handle u, int64_t components, py::handle parameters, py::handle tableau,
                        py::handle dt, py::handle m, py::handle substeps, py::handle times, py::handle f, py::handle g,
                        py::handle every, py::handle target, py::handle norms, int norm, py::handle stream);
void rk_launched(py::handle out, py::handle u, py::handle dt, py::handle times, py::handle f, py::handle g,
                 py::handle every, py::handle stream);

// gru.cpp
void relax_gru(py::handle out, py::handle u, py::handle gates, py::handle weight, py::handle bias, py::handle m,
               py::handle f, py::handle g, py::handle every, py::handle target, py::handle norms, int norm,
               py::handle stream, py::handle threads, int precision);
void relax_gru_adjoint(py::handle d_start, py::handle d_gates, py::handle d_hidden, py::handle u, py::handle gates,
                       py::handle weight, py::handle bias, py::handle d_end, py::handle d_every, py::handle stream,
                       py::handle threads, int precision);

// dense.cpp
void relax_dense(py::handle out, py::handle u, py::handle weight, py::handle bias, py::handle h, int activation,
                 py::handle m, py::handle slopes, py::handle f, py::handle g, py::handle every, py::handle target,
                 py::handle norms, int norm, py::handle stream, py::handle threads, int precision);
void relax_dense_adjoint(py::handle out, py::handle v, py::handle weight, py::handle slopes, py::handle scale,
                         py::handle m, py::handle f, py::handle g, py::handle every, py::handle target,
                         py::handle norms, int norm, py::handle stream, py::handle threads, int precision);

// scan.cpp
void scan_diag(py::handle out, py::handle a, py::handle b, py::handle start, bool reverse, py::handle stream,
               py::handle threads);
void scan_block(py::handle out, py::handle a, py::handle b, py::handle start, bool reverse, py::handle stream,
                py::handle threads);

// newton.cpp
void newton_gru(py::handle out, py::handle jacobians, py::handle residuals, py::handle updates, py::handle u,
                py::handle products, py::handle gates, py::handle diagonal, py::handle bias, py::handle factor,
                py::handle stream, py::handle threads);

}  // namespace pyparareal::bindings
