// SPDX-License-Identifier: BSD-3-Clause
// The bindings of relax_gru and its adjoint.
#include "calls.h"

namespace pyparareal::bindings {
namespace {

// Passes over a state, for as much work as the steps are: a product with the weights each.
int64_t passes_of(int64_t m, const Array& u) {
  const int64_t hidden = u.view.ndim ? u.view.shape[u.view.ndim - 1] : 0;
  return std::clamp<int64_t>(m, 1, 1 << 20) * std::clamp<int64_t>(3 * hidden, 1, 1 << 20);
}

Array optional_output(py::handle object, const char* name) {
  return object.is_none() ? Array{} : borrow_output(object, name);
}

}  // namespace

void relax_gru(py::handle out, py::handle u, py::handle gates, py::handle weight, py::handle bias, py::handle m,
               py::handle f, py::handle g, py::handle every, py::handle target, py::handle norms, int norm,
               py::handle stream, py::handle threads, int precision) {
  const Array sides = borrow(gates, "gates"), matrix = borrow(weight, "weight"), vector = borrow_optional(bias, "bias");
  const auto how = static_cast<Precision>(precision);
  Relaxation r(out, u, m, f, g, every, target, norms, norm, stream, threads);
  r.exec.threads = thread_count(threads, r.u, passes_of(r.m, r.u));
  const std::size_t bytes = relax_gru_workspace_bytes(r.u.input(), how, r.exec.threads);
  const Workspace scratch(bytes + r.norm_bytes(), r.u, u, r.exec);
  run([&] {
    return pyparareal::relax_gru(r.out.view, r.u.input(), sides.input(), matrix.input(), vector.input(), r.m,
                                 r.f.input(), r.g.input(), r.every.view, r.target.input(), r.norms.view, r.norm, how,
                                 r.exec);
  });
  r.finish(gates, weight, bias, scratch.object());
}

void relax_gru_adjoint(py::handle d_start, py::handle d_gates, py::handle d_hidden, py::handle u, py::handle gates,
                       py::handle weight, py::handle bias, py::handle d_end, py::handle d_every, py::handle stream,
                       py::handle threads, int precision) {
  const Array states = borrow(u, "u"), sides = borrow(gates, "gates"), matrix = borrow(weight, "weight");
  const Array vector = borrow_optional(bias, "bias"), end = borrow(d_end, "d_end");
  const Array each = borrow_optional(d_every, "d_every"), start = borrow_output(d_start, "d_start");
  const Array of_gates = optional_output(d_gates, "d_gates"), of_hidden = optional_output(d_hidden, "d_hidden");
  const Stream on = resolve_stream(stream, states, u);
  const auto how = static_cast<Precision>(precision);
  Exec exec{on.handle, thread_count(threads, states, 2 * passes_of(1, end)), nullptr, 0};
  const Workspace scratch(relax_gru_adjoint_workspace_bytes(end.input(), how, exec.threads), states, u, exec);
  run([&] {
    return pyparareal::relax_gru_adjoint(start.view, of_gates.view, of_hidden.view, states.input(), sides.input(),
                                         matrix.input(), vector.input(), end.input(), each.input(), how, exec);
  });
  keep_alive(on, states, {d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every, scratch.object()});
  mark_written(d_start, d_gates);
  mark_written(d_hidden);
}

}  // namespace pyparareal::bindings
