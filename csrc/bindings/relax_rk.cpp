// SPDX-License-Identifier: BSD-3-Clause
// The bindings of relax_rk, and of the kernels compiled at run time that take its arguments.
#include <tuple>
#include <vector>

#include "../entry.h"
#include "calls.h"
#include "pyparareal/rk_kernel.h"

namespace pyparareal::bindings {
namespace {

// The arguments of relax_rk that are not states. `tableau` is (a, b, c); `dt` is a number or an array; `times` is None,
// an array, or (t0, span, steps, first, stride) of UniformTimes.
class SchemeArguments {
 public:
  RungeKutta scheme;
  Array steps, times;
  py::object dt_object = py::none(), times_object = py::none();

  SchemeArguments(py::handle tableau, py::handle dt, py::handle times_given, py::handle substeps) {
    const auto [a, b, c] = tableau.cast<std::tuple<py::object, py::object, py::object>>();
    scheme.substeps = integer(substeps, "substeps");
    scheme.stages = numbers_of(b, scheme.b, max_stages, "tableau.b");
    for (int row = 0; row < scheme.stages; ++row)
      numbers_of(py::reinterpret_borrow<py::sequence>(a)[static_cast<std::size_t>(row)], scheme.a[row],
                 static_cast<std::size_t>(row), "tableau.a");
    if (!c.is_none()) numbers_of(c, scheme.c, static_cast<std::size_t>(scheme.stages), "tableau.c");
    if (py::isinstance<py::float_>(dt)) {
      scheme.dt = number(dt, "dt");
    } else {
      steps = borrow(dt, "dt");
      dt_object = py::reinterpret_borrow<py::object>(dt);
    }
    if (times_given.is_none()) return;
    if (PyTuple_Check(times_given.ptr())) {
      const auto [t0, span, count, first, stride] =
          times_given.cast<std::tuple<double, double, int64_t, int64_t, int64_t>>();
      scheme.times = {t0, span, count, first, stride};
    } else {
      times = borrow(times_given, "times");
      times_object = py::reinterpret_borrow<py::object>(times_given);
    }
  }
};

// Any count of numbers, in the dtype of a function. Zeros follow up to max_device_parameters: a function that is given
// fewer than it reads, or none, reads zeros, as on a device.
class Parameters {
 public:
  Parameters(py::handle sequence, DType dtype)
      : size_(py::len(sequence)), wide_(std::max<std::size_t>(size_, max_device_parameters)) {
    numbers_of(sequence, wide_.data(), size_, "parameters");
    if (dtype == DType::float32) narrow_.assign(wide_.begin(), wide_.end());
  }
  const void* data() const { return narrow_.empty() ? static_cast<const void*>(wide_.data()) : narrow_.data(); }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  std::vector<double> wide_;
  std::vector<float> narrow_;
};

}  // namespace

// `rhs` is the number of one compiled in, or (address, dtype, takes lanes, components) of a function.
void relax_rk(py::handle out, py::handle u, py::handle rhs, py::handle parameters, py::handle tableau, py::handle dt,
              py::handle m, py::handle substeps, py::handle times, py::handle f, py::handle g, py::handle every,
              py::handle target, py::handle norms, int norm, py::handle stream, py::handle threads) {
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  SchemeArguments given(tableau, dt, times, substeps);
  RungeKutta& scheme = given.scheme;
  std::unique_ptr<Parameters> own;
  if (PyTuple_Check(rhs.ptr())) {
    const auto [address, dtype, lanes, components] = rhs.cast<std::tuple<uintptr_t, int, bool, int64_t>>();
    scheme.rhs = RightHandSide::function;
    own = std::make_unique<Parameters>(parameters, static_cast<DType>(dtype));
    scheme.function = {reinterpret_cast<const void*>(address), static_cast<DType>(dtype), lanes, components,
                       own->data()};
  } else {
    scheme.rhs = static_cast<RightHandSide>(integer(rhs, "rhs"));
    numbers_of(parameters, scheme.parameters, max_parameters, "parameters");
  }
  const std::size_t bytes = relax_rk_workspace_bytes(r.u.input(), scheme, r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_rk(r.out.view, r.u.input(), scheme, given.steps.input(), given.times.input(), r.m,
                                r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm, r.exec);
  });
  r.finish(given.dt_object, given.times_object, scratch.object(), py::none());
}

// What a kernel compiled at run time is launched with: (arguments as bytes, columns, device, stream).
py::object rk_arguments(py::handle out, py::handle u, int64_t components, py::handle parameters, py::handle tableau,
                        py::handle dt, py::handle m, py::handle substeps, py::handle times, py::handle f, py::handle g,
                        py::handle every, py::handle target, py::handle norms, int norm, py::handle stream) {
  const Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, py::int_(0));
  const SchemeArguments given(tableau, dt, times, substeps);
  raise_unless_ok(valid_rk(r.out.view, r.u.input(), given.scheme, given.steps.input(), given.times.input(), r.m,
                           r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm, components));
  const Parameters own(parameters, r.u.view.dtype);
  if (own.size() > max_device_parameters)
    throw py::value_error("parameters: got " + std::to_string(own.size()) + " numbers, expected " +
                          std::to_string(max_device_parameters) + " at most");
  const ColumnSpace space = column_space_of(r.u.view);
  const auto pack = [&](auto zero) {
    using T = decltype(zero);
    RungeKuttaArguments<T> packed{{r.out.view, r.u.input(), r.m, r.f.input(), r.g.input(), r.every.view},
                                  Coefficients<T>(given.scheme, given.steps.view.present()),
                                  StepSizes(given.steps.input()),
                                  {StepSizes(given.times.input()), given.scheme.times},
                                  {}};
    std::copy_n(static_cast<const T*>(own.data()), own.size(), packed.parameters);
    return py::bytes(reinterpret_cast<const char*>(&packed), sizeof packed);
  };
  const py::bytes packed = r.u.view.dtype == DType::float64 ? pack(double{}) : pack(float{});
  return py::make_tuple(packed, no_elements(r.u.view) ? 0 : space.columns(), r.u.view.device_id,
                        reinterpret_cast<uintptr_t>(r.on.handle));
}

// To be called after the launch of what rk_arguments packed.
void rk_launched(py::handle out, py::handle u, py::handle dt, py::handle times, py::handle f, py::handle g,
                 py::handle every, py::handle stream) {
  const Relaxation r(out, u, py::int_(1), f, g, every, py::none(), py::none(), 0, stream, py::int_(0));
  r.finish(dt, times, py::none(), py::none());
}

}  // namespace pyparareal::bindings
