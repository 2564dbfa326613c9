// SPDX-License-Identifier: BSD-3-Clause
// The scans from Python.
#include "calls.h"

namespace pyparareal::bindings {
namespace {

// A multiplication of blocks costs about what the traffic of its row does.
template <class Bytes, class Op>
void scan(const Bytes& workspace_bytes, const Op& op, py::handle out, py::handle a, py::handle b, py::handle start,
          bool reverse, py::handle stream, py::handle threads, int64_t passes) {
  const Array factors = borrow(a, "a"), rows = borrow(b, "b"), before = borrow_optional(start, "start");
  const Array u = borrow_output(out, "out");
  const Stream on = resolve_stream(stream, rows, b);
  Exec exec{on.handle, thread_count(threads, rows, passes), nullptr, 0};
  const Workspace scratch(workspace_bytes(rows.input(), exec.threads), rows, b, exec);
  run([&] { return op(u.view, factors.input(), rows.input(), before.input(), reverse, exec); });
  keep_alive(on, rows, {out, a, b, start, scratch.object()});
  mark_written(out);
}

}  // namespace

void scan_diag(py::handle out, py::handle a, py::handle b, py::handle start, bool reverse, py::handle stream,
               py::handle threads) {
  scan(scan_diag_workspace_bytes, pyparareal::scan_diag, out, a, b, start, reverse, stream, threads, 3);
}

void scan_block(py::handle out, py::handle a, py::handle b, py::handle start, bool reverse, py::handle stream,
                py::handle threads) {
  const Array rows = borrow(b, "b");
  const int64_t d = rows.view.ndim > 0 ? rows.view.shape[rows.view.ndim - 1] : 1;
  scan(scan_block_workspace_bytes, pyparareal::scan_block, out, a, b, start, reverse, stream, threads, d + 2);
}

}  // namespace pyparareal::bindings
