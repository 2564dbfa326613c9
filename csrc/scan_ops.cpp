// SPDX-License-Identifier: BSD-3-Clause
// The scans of ops.h: validate, then hand over to the device the operands live on.
#include "entry.h"
#include "pyparareal/ops.h"
#include "pyparareal/scan.h"

namespace pyparareal {
namespace {

using validate::Operand;

Status valid_rows(const Operand& b, bool blocks) {
  if (b.dtype != DType::float64 && b.dtype != DType::float32)
    return validate::fail(StatusCode::invalid_type,
                          "b: got dtype %s, expected float64 or float32: scans do not round every step to 16 bits",
                          validate::name_of(b.dtype));
  const int most = blocks ? max_ndim - 1 : max_ndim;
  if (b.ndim < 2 || b.ndim > most)
    return validate::fail(StatusCode::invalid_value, "b: got %d axes, expected 2 to %d: [steps, batch, features...%s]",
                          b.ndim, most, blocks ? ", d" : "");
  return {};
}

// The shape of b, and for blocks its last axis once more.
Status valid_factors(const Operand& a, const Operand& b, bool blocks) {
  if (!blocks) return validate::same_state(a, b);
  if (Status status = validate::same_kind(a, b); !status.ok()) return status;
  bool same = a.ndim == b.ndim + 1 && a.shape[b.ndim] == b.shape[b.ndim - 1];
  for (int axis = 0; same && axis < b.ndim; ++axis) same = a.shape[axis] == b.shape[axis];
  if (!same)
    return validate::fail(StatusCode::invalid_value, "a: got shape %s, expected [steps, ..., d, d] of b %s",
                          validate::describe_shape(a).c_str(), validate::describe_shape(b).c_str());
  return {};
}

Status valid_start(const Operand& start, const Operand& b, bool present, bool reverse) {
  if (!present) return {};
  if (reverse)
    return validate::fail(StatusCode::invalid_value,
                          "start: got an array, expected none with reverse: the transposed system has no start");
  if (Status status = validate::same_kind(start, b); !status.ok()) return status;
  bool same = start.ndim == b.ndim - 1;
  for (int axis = 0; same && axis < start.ndim; ++axis) same = start.shape[axis] == b.shape[axis + 1];
  if (!same)
    return validate::fail(StatusCode::invalid_value, "start: got shape %s, expected that of a row of b %s",
                          validate::describe_shape(start).c_str(), validate::describe_shape(b).c_str());
  return {};
}

Status valid_scan(const MutableView& u, const ConstView& a, const ConstView& b, const ConstView& start, bool blocks,
                  bool reverse, const Exec& exec) {
  const Operand out("out", u), factors("a", a), rows("b", b), before("start", start);
  return first_failure([&] { return valid_rows(rows, blocks); }, [&] { return valid_factors(factors, rows, blocks); },
                       [&] { return valid_start(before, rows, start.present(), reverse); },
                       [&] { return validate::same_state(out, rows); }, [&] { return validate::writable(out, {rows}); },
                       [&] { return validate::apart(out, factors); }, [&] { return validate::apart(out, before); },
                       [&] { return valid_exec(exec); });
}

ConstView as_row(const ConstView& start) {
  if (!start.present()) return start;
  ConstView row = start;
  row.ndim = start.ndim + 1;
  row.shape[0] = 1, row.stride[0] = 0;
  for (int axis = 0; axis < start.ndim; ++axis) {
    row.shape[axis + 1] = start.shape[axis];
    row.stride[axis + 1] = start.stride[axis];
  }
  return row;
}

std::size_t workspace_bytes(const ConstView& b, bool blocks, int32_t threads) {
  const Operand rows("b", b);
  if (!valid_rows(rows, blocks).ok() || no_elements(b)) return 0;
#if PYPARAREAL_WITH_CUDA
  if (b.device == Device::cuda) return cuda::scan_workspace_bytes(b, blocks, threads);
#endif
  return cpu::scan_workspace_bytes(b, blocks, threads);
}

Status scan(const char* op, const MutableView& u, const ConstView& a, const ConstView& b, const ConstView& start,
            bool blocks, bool reverse, const Exec& exec) {
  const Status status = first_failure([&] { return valid_scan(u, a, b, start, blocks, reverse, exec); },
                                      [&] { return validate::workspace(op, workspace_bytes(b, blocks, 1), exec); });
  if (!status.ok() || no_elements(b)) return status;
  const ConstView before = as_row(start);
  return on_device(
      b.device, [&] { return cpu::scan(u, a, b, before, blocks, reverse, exec); },
      [&] { return cuda::scan(u, a, b, before, blocks, reverse, exec); });
}

}  // namespace

std::size_t scan_diag_workspace_bytes(const ConstView& b, int32_t threads) {
  return workspace_bytes(b, false, threads);
}

std::size_t scan_block_workspace_bytes(const ConstView& b, int32_t threads) {
  return workspace_bytes(b, true, threads);
}

Status scan_diag(MutableView u, ConstView a, ConstView b, ConstView start, bool reverse, Exec exec) {
  return scan("scan_diag", u, a, b, start, false, reverse, exec);
}

Status scan_block(MutableView u, ConstView a, ConstView b, ConstView start, bool reverse, Exec exec) {
  return scan("scan_block", u, a, b, start, true, reverse, exec);
}

}  // namespace pyparareal
