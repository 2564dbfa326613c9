// SPDX-License-Identifier: BSD-3-Clause
// newton_gru from Python.
#include "calls.h"

namespace pyparareal::bindings {
namespace {

Array optional_output(py::handle object, const char* name) {
  return object.is_none() ? Array{} : borrow_output(object, name);
}

}  // namespace

void newton_gru(py::handle out, py::handle jacobians, py::handle residuals, py::handle updates, py::handle u,
                py::handle products, py::handle gates, py::handle diagonal, py::handle bias, py::handle factor,
                py::handle stream, py::handle threads) {
  const Array states = borrow(u, "u"), of_u = borrow(products, "products"), sides = borrow(gates, "gates");
  const Array weights = borrow(diagonal, "diagonal"), vector = borrow_optional(bias, "bias");
  const Array next = borrow_output(out, "out"), of_steps = optional_output(jacobians, "jacobians");
  const Array before = optional_output(residuals, "residuals"), moved = optional_output(updates, "updates");
  const double scale = number(factor, "factor");
  const Stream on = resolve_stream(stream, states, u);
  Exec exec{on.handle, thread_count(threads, states, 20), nullptr, 0};
  const Workspace scratch(newton_gru_workspace_bytes(states.input(), exec.threads), states, u, exec);
  run([&] {
    return pyparareal::newton_gru(next.view, of_steps.view, before.view, moved.view, states.input(), of_u.input(),
                                  sides.input(), weights.input(), vector.input(), scale, exec);
  });
  keep_alive(on, states, {out, jacobians, residuals, updates, u, products, gates, diagonal, bias, scratch.object()});
  mark_written(out, jacobians);
  mark_written(residuals, updates);
}

}  // namespace pyparareal::bindings
