// SPDX-License-Identifier: BSD-3-Clause
// pyparareal._core: borrow the arrays, find the stream, let go of the GIL, call ops.h, raise what went wrong.
// Arguments are positional and outputs are given; pyparareal/ops.py adds defaults and allocation.
#include <algorithm>
#include <memory>
#include <string>

#include "../backend.h"
#include "array.h"
#include "errors.h"
#include "pyparareal/capsule.h"
#include "pyparareal/ops.h"
#include "stream.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../cpu/parallel.h"
#include "../cpu/tiles.h"

#ifndef PYPARAREAL_VERSION
#define PYPARAREAL_VERSION "unknown"
#endif
#ifndef PYPARAREAL_CUDA_ARCHS
#define PYPARAREAL_CUDA_ARCHS ""
#endif

namespace pyparareal::bindings {
namespace {

// Calls without the GIL; the arrays are borrowed from arguments the caller holds.
template <class Call>
void run(const Call& call) {
  Status status;
  Py_BEGIN_ALLOW_THREADS;
  status = call();
  Py_END_ALLOW_THREADS;
  raise_unless_ok(status);
}

int64_t integer(py::handle value, const char* argument) {
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

double number(py::handle value, const char* argument) {
  const double result = PyFloat_AsDouble(value.ptr());
  if (result == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw py::type_error(std::string(argument) + ": got " + Py_TYPE(value.ptr())->tp_name + ", expected a float");
  }
  return result;
}

// 0 follows torch.get_num_threads() where torch is loaded. Asked for only where a team could form: the op takes
// `passes` operands of the size of `like`.
int32_t thread_count(py::handle threads, const Array& like, int64_t passes) {
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

Norm norm_of(int norm) { return static_cast<Norm>(norm); }

void parareal_update(py::handle out, py::handle f_old, py::handle g_new, py::handle g_old, py::handle u_old,
                     py::handle jump, int norm, py::handle stream, py::handle threads) {
  const Array f = borrow(f_old, "f_old"), g = borrow(g_new, "g_new"), h = borrow(g_old, "g_old");
  const Array old = borrow_optional(u_old, "u_old"), u = borrow_output(out, "out");
  const Array norms = jump.is_none() ? Array{} : borrow_output(jump, "jump");
  const Stream on = resolve_stream(stream, f, f_old);
  Exec exec{on.handle, thread_count(threads, f, 4), nullptr, 0};
  const Workspace scratch(parareal_update_workspace_bytes(old.input()), u, out, exec);
  run([&] {
    return pyparareal::parareal_update(u.view, f.input(), g.input(), h.input(), old.input(), norms.view, norm_of(norm),
                                       exec);
  });
  keep_alive(on, f, {out, f_old, g_new, g_old, u_old, jump, scratch.object()});
  mark_written(out, jump);
}

void slice_norms(py::handle out, py::handle u, py::handle u_old, int norm, py::handle stream, py::handle threads) {
  const Array state = borrow(u, "u"), old = borrow_optional(u_old, "u_old"), norms = borrow_output(out, "out");
  const Stream on = resolve_stream(stream, state, u);
  Exec exec{on.handle, thread_count(threads, state, 1), nullptr, 0};
  const Workspace scratch(slice_norms_workspace_bytes(state.input()), norms, out, exec);
  run([&] { return pyparareal::slice_norms(norms.view, state.input(), old.input(), norm_of(norm), exec); });
  keep_alive(on, state, {out, u, u_old, scratch.object()});
  mark_written(out);
}

void extract(py::handle out, py::handle u, py::handle start, py::handle step, py::handle stream, py::handle threads) {
  const Array fine = borrow(u, "u"), coarse = borrow_output(out, "out");
  const Stream on = resolve_stream(stream, fine, u);
  const Exec exec{on.handle, thread_count(threads, coarse, 2), nullptr, 0};
  const int64_t first = integer(start, "start"), pitch = integer(step, "step");
  run([&] { return pyparareal::extract(coarse.view, fine.input(), first, pitch, exec); });
  keep_alive(on, fine, {out, u});
  mark_written(out);
}

void inject(py::handle u, py::handle v, py::handle start, py::handle step, py::handle stream, py::handle threads) {
  const Array coarse = borrow(v, "v"), fine = borrow_output(u, "u");
  const Stream on = resolve_stream(stream, fine, u);
  const Exec exec{on.handle, thread_count(threads, coarse, 2), nullptr, 0};
  const int64_t first = integer(start, "start"), pitch = integer(step, "step");
  run([&] { return pyparareal::inject(fine.view, coarse.input(), first, pitch, exec); });
  keep_alive(on, fine, {u, v});
  mark_written(u);
}

void c_relax(py::handle out, py::handle phi, py::handle u, py::handle omega, py::handle stream, py::handle threads) {
  const Array left = borrow(phi, "phi"), right = borrow(u, "u"), result = borrow_output(out, "out");
  const Stream on = resolve_stream(stream, left, phi);
  const Exec exec{on.handle, thread_count(threads, left, 3), nullptr, 0};
  const double weight = number(omega, "omega");
  run([&] { return pyparareal::c_relax(result.view, left.input(), right.input(), weight, exec); });
  keep_alive(on, left, {out, phi, u});
  mark_written(out);
}

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
             py::handle threads)
      : out(out_object.is_none() ? Array{} : borrow_output(out_object, "out")),
        u(borrow(u_object, "u")),
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

void relax_diagonal(py::handle out, py::handle u, py::handle a, py::handle m, py::handle f, py::handle g,
                    py::handle every, py::handle target, py::handle norms, int norm, py::handle stream,
                    py::handle threads) {
  const Array factors = borrow(a, "a");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const Workspace scratch(r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_diagonal(r.out.view, r.u.input(), factors.input(), r.m, r.f.input(), r.g.input(),
                                      r.every.view, r.target.input(), r.norms.view, r.norm, r.exec);
  });
  r.finish(a, scratch.object(), py::none(), py::none());
}

void relax_tridiagonal(py::handle out, py::handle u, py::handle ratio, py::handle scale, py::handle coupling,
                       py::handle m, py::handle f, py::handle g, py::handle every, py::handle target, py::handle norms,
                       int norm, py::handle stream, py::handle threads) {
  const Array down = borrow(ratio, "ratio"), pivots = borrow(scale, "scale"), beside = borrow(coupling, "coupling");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const std::size_t bytes = relax_tridiagonal_workspace_bytes(r.u.input(), r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_tridiagonal(r.out.view, r.u.input(), down.input(), pivots.input(), beside.input(), r.m,
                                         r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm,
                                         r.exec);
  });
  r.finish(ratio, scale, coupling, scratch.object());
}

void relax_stencil(py::handle out, py::handle u, py::handle weights, int boundary, py::handle m, py::handle f,
                   py::handle g, py::handle every, py::handle target, py::handle norms, int norm, py::handle stream,
                   py::handle threads) {
  const Array w = borrow(weights, "weights");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const std::size_t bytes = relax_stencil_workspace_bytes(r.u.input(), r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_stencil(r.out.view, r.u.input(), w.input(), static_cast<Boundary>(boundary), r.m,
                                     r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm,
                                     r.exec);
  });
  r.finish(weights, scratch.object(), py::none(), py::none());
}

// Numbers into an array of `most`; says how many there were.
int32_t numbers_of(py::handle sequence, double* to, std::size_t most, const char* argument) {
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

// `dt` is a number or an array.
void relax_rk(py::handle out, py::handle u, int rhs, py::handle parameters, py::handle a, py::handle b, py::handle dt,
              py::handle m, py::handle substeps, py::handle f, py::handle g, py::handle every, py::handle target,
              py::handle norms, int norm, py::handle stream, py::handle threads) {
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const Workspace scratch(r.norm_bytes(), r.u, u, r.exec);
  RungeKutta scheme;
  scheme.rhs = static_cast<RightHandSide>(rhs);
  scheme.substeps = integer(substeps, "substeps");
  numbers_of(parameters, scheme.parameters, max_parameters, "parameters");
  scheme.stages = numbers_of(b, scheme.b, max_stages, "tableau.b");
  for (int row = 0; row < scheme.stages; ++row)
    numbers_of(py::reinterpret_borrow<py::sequence>(a)[static_cast<std::size_t>(row)], scheme.a[row],
               static_cast<std::size_t>(row), "tableau.a");
  const bool own_steps = !py::isinstance<py::float_>(dt);
  const Array steps = own_steps ? borrow(dt, "dt") : Array{};
  if (!own_steps) scheme.dt = number(dt, "dt");
  run([&] {
    return pyparareal::relax_rk(r.out.view, r.u.input(), scheme, steps.input(), r.m, r.f.input(), r.g.input(),
                                r.every.view, r.target.input(), r.norms.view, r.norm, r.exec);
  });
  r.finish(own_steps ? dt : py::none(), scratch.object(), py::none(), py::none());
}

// `alpha` is a number or an array, `first` an array or None.
void relax_mlp_sgd(py::handle out, py::handle u, py::handle sizes, py::handle x, py::handle y, py::handle alpha,
                   py::handle first, py::handle count, int hidden, int last, bool bias, py::handle m, py::handle f,
                   py::handle g, py::handle every, py::handle target, py::handle norms, int norm, py::handle stream,
                   py::handle threads) {
  const Array inputs = borrow(x, "x"), outputs = borrow(y, "y");
  const Array batches = first.is_none() ? Array{} : borrow_indices(first, "first");
  Mlp net;
  double neurons[max_layers + 1];
  net.layers = numbers_of(sizes, neurons, max_layers + 1, "sizes") - 1;
  for (int i = 0; i <= net.layers; ++i)
    net.sizes[i] = integer(py::reinterpret_borrow<py::sequence>(sizes)[static_cast<std::size_t>(i)], "sizes");
  net.count = integer(count, "count");
  net.hidden = static_cast<Activation>(hidden), net.last = static_cast<Activation>(last), net.bias = bias;
  const bool own_rates = !py::isinstance<py::float_>(alpha);
  const Array rates = own_rates ? borrow(alpha, "alpha") : Array{};
  if (!own_rates) net.alpha = number(alpha, "alpha");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  const std::size_t bytes = relax_mlp_sgd_workspace_bytes(r.u.input(), net, r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_mlp_sgd(r.out.view, r.u.input(), net, inputs.input(), outputs.input(), rates.input(),
                                     batches.input(), r.m, r.f.input(), r.g.input(), r.every.view, r.target.input(),
                                     r.norms.view, r.norm, r.exec);
  });
  r.finish(x, y, own_rates ? alpha : py::none(), first, scratch.object());
}

py::dict build_info() {
  py::dict info;
  info["version"] = PYPARAREAL_VERSION;
  info["compiler"] = __VERSION__;
  info["cuda"] = static_cast<bool>(PYPARAREAL_WITH_CUDA);
#if PYPARAREAL_WITH_CUDA
  info["cuda_version"] = cuda::runtime_version();
#else
  info["cuda_version"] = py::none();
#endif
  info["cuda_archs"] = PYPARAREAL_CUDA_ARCHS;
#if defined(_OPENMP)
  info["openmp"] = true;
  info["threads"] = omp_get_max_threads();
#else
  info["openmp"] = false;
  info["threads"] = 1;
#endif
  info["simd"] = cpu::tiles().name;
  return info;
}

void select_simd(const std::string& name) {
  if (!cpu::select_tiles(name.c_str()))
    throw py::value_error("name: got '" + name +
                          "', expected best, baseline, avx2 or avx512, as far as this "
                          "processor runs it");
}

OpsTable ops_table = {ops_table_version,
                      sizeof(OpsTable),
                      pyparareal::parareal_update,
                      pyparareal::parareal_update_workspace_bytes,
                      pyparareal::slice_norms,
                      pyparareal::slice_norms_workspace_bytes,
                      pyparareal::extract,
                      pyparareal::inject,
                      pyparareal::c_relax,
                      pyparareal::relax_diagonal,
                      pyparareal::relax_tridiagonal,
                      pyparareal::relax_tridiagonal_workspace_bytes,
                      pyparareal::relax_stencil,
                      pyparareal::relax_stencil_workspace_bytes,
                      pyparareal::relax_rk,
                      pyparareal::relax_mlp_sgd,
                      pyparareal::relax_mlp_sgd_workspace_bytes};

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The kernels of ops.h on borrowed arrays; see pyparareal.ops for the documented functions.";
  module.def("parareal_update", parareal_update, py::arg("out"), py::arg("f_old"), py::arg("g_new"), py::arg("g_old"),
             py::arg("u_old").none(true), py::arg("jump").none(true), py::arg("norm"), py::arg("stream").none(true),
             py::arg("threads"));
  module.def("slice_norms", slice_norms, py::arg("out"), py::arg("u"), py::arg("u_old").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("extract", extract, py::arg("out"), py::arg("u"), py::arg("start"), py::arg("step"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("inject", inject, py::arg("u"), py::arg("v"), py::arg("start"), py::arg("step"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("c_relax", c_relax, py::arg("out"), py::arg("phi"), py::arg("u"), py::arg("omega"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_diagonal", relax_diagonal, py::arg("out").none(true), py::arg("u"), py::arg("a"), py::arg("m"),
             py::arg("f").none(true), py::arg("g").none(true), py::arg("every").none(true),
             py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"), py::arg("stream").none(true),
             py::arg("threads"));
  module.def("relax_tridiagonal", relax_tridiagonal, py::arg("out").none(true), py::arg("u"), py::arg("ratio"),
             py::arg("scale"), py::arg("coupling"), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_stencil", relax_stencil, py::arg("out").none(true), py::arg("u"), py::arg("weights"),
             py::arg("boundary"), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_rk", relax_rk, py::arg("out").none(true), py::arg("u"), py::arg("rhs"), py::arg("parameters"),
             py::arg("a"), py::arg("b"), py::arg("dt"), py::arg("m"), py::arg("substeps"), py::arg("f").none(true),
             py::arg("g").none(true), py::arg("every").none(true), py::arg("target").none(true),
             py::arg("norms").none(true), py::arg("norm"), py::arg("stream").none(true), py::arg("threads"));
  module.def("relax_mlp_sgd", relax_mlp_sgd, py::arg("out").none(true), py::arg("u"), py::arg("sizes"), py::arg("x"),
             py::arg("y"), py::arg("alpha"), py::arg("first").none(true), py::arg("count"), py::arg("hidden"),
             py::arg("last"), py::arg("bias"), py::arg("m"), py::arg("f").none(true), py::arg("g").none(true),
             py::arg("every").none(true), py::arg("target").none(true), py::arg("norms").none(true), py::arg("norm"),
             py::arg("stream").none(true), py::arg("threads"));
  module.def("build_info", build_info, "What this extension was built with.");
  module.def("select_simd", select_simd, py::arg("name"), "Choose the instruction set of the CPU kernels.");
  module.def("held_calls", held_calls, "Calls on foreign streams whose arrays are still held.");
#if PYPARAREAL_WITH_CUDA
  module.def("cuda_device_count", cuda::device_count, "CUDA devices the driver offers; 0 without a usable driver.");
  module.def("cuda_driver_version", cuda::driver_version, "CUDA version of the driver, e.g. 13000; 0 without one.");
#else
  module.def("cuda_device_count", [] { return 0; }, "CUDA devices; always 0 in this CPU-only build.");
  module.def("cuda_driver_version", [] { return 0; }, "CUDA version of the driver; always 0 in this CPU-only build.");
#endif
  module.attr("ops_table") = py::capsule(&ops_table, ops_capsule_name);
}

}  // namespace pyparareal::bindings
