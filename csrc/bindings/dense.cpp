// SPDX-License-Identifier: BSD-3-Clause
// The bindings of relax_dense and its adjoint.
#include "calls.h"

namespace pyparareal::bindings {
namespace {

// Passes over a state, for as much work as the steps are: a product with the weights each.
int64_t passes_of(int64_t m, const Array& u) {
  const int64_t d = u.view.ndim ? u.view.shape[u.view.ndim - 1] : 0;
  return std::clamp<int64_t>(m, 1, 1 << 20) * std::clamp<int64_t>(d, 1, 1 << 20);
}

}  // namespace

void relax_dense(py::handle out, py::handle u, py::handle weight, py::handle bias, py::handle h, int activation,
                 py::handle m, py::handle slopes, py::handle f, py::handle g, py::handle every, py::handle target,
                 py::handle norms, int norm, py::handle stream, py::handle threads, int precision) {
  const Array matrix = borrow(weight, "weight"), vector = borrow_optional(bias, "bias");
  const Array derived = slopes.is_none() ? Array{} : borrow_output(slopes, "slopes");
  const double step = number(h, "h");
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  r.exec.threads = thread_count(threads, r.u, passes_of(r.m, r.u));
  const std::size_t bytes = relax_dense_workspace_bytes(r.u.input(), r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_dense(r.out.view, r.u.input(), matrix.input(), vector.input(), step,
                                   static_cast<DenseActivation>(activation), r.m, derived.view, r.f.input(),
                                   r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm,
                                   static_cast<Precision>(precision), r.exec);
  });
  r.finish(weight, bias, slopes, scratch.object());
  mark_written(slopes);
}

void relax_dense_adjoint(py::handle out, py::handle v, py::handle weight, py::handle slopes, py::handle scale,
                         py::handle m, py::handle f, py::handle g, py::handle every, py::handle target,
                         py::handle norms, int norm, py::handle stream, py::handle threads, int precision) {
  const Array matrix = borrow(weight, "weight"), derived = borrow(slopes, "slopes");
  const double factor = number(scale, "scale");
  Relaxation r(out, v, m, f, g, every, target, norms, norm, stream, threads, "v");
  r.exec.threads = thread_count(threads, r.u, passes_of(r.m, r.u));
  const std::size_t bytes = relax_dense_workspace_bytes(r.u.input(), r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, v, r.exec);
  run([&] {
    return pyparareal::relax_dense_adjoint(r.out.view, r.u.input(), matrix.input(), derived.input(), factor, r.m,
                                           r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view,
                                           r.norm, static_cast<Precision>(precision), r.exec);
  });
  r.finish(weight, slopes, scratch.object(), py::none());
}

}  // namespace pyparareal::bindings
