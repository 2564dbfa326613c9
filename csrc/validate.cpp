// SPDX-License-Identifier: BSD-3-Clause
#include "validate.h"

#include <algorithm>
#include <cstdlib>

namespace pyparareal::validate {
namespace {

// Bytes [low, high) touched by an operand, and the reach of one slice.
struct Extent {
  int64_t low = 0, high = 0, slice_low = 0, slice_high = 0;
};

Extent extent_of(const Operand& operand) {
  const int64_t size = static_cast<int64_t>(item_bytes(operand.dtype));
  Extent extent;
  for (int axis = 1; axis < operand.ndim; ++axis) {
    const int64_t reach = (operand.shape[axis] - 1) * operand.stride[axis] * size;
    (reach < 0 ? extent.slice_low : extent.slice_high) += reach;
  }
  extent.slice_high += size;
  extent.low = extent.slice_low;
  extent.high = extent.slice_high;
  const int64_t reach = (operand.shape[0] - 1) * operand.stride[0] * size;
  (reach < 0 ? extent.low : extent.high) += reach;
  const int64_t base = static_cast<int64_t>(reinterpret_cast<intptr_t>(operand.data));
  extent.low += base;
  extent.high += base;
  return extent;
}

bool empty(const Operand& operand) {
  for (int axis = 0; axis < operand.ndim; ++axis)
    if (operand.shape[axis] == 0) return true;
  return false;
}

bool same_strides(const Operand& a, const Operand& b) {
  if (a.ndim != b.ndim) return false;
  for (int axis = 0; axis < a.ndim; ++axis)
    if (a.shape[axis] != b.shape[axis] || (a.shape[axis] > 1 && a.stride[axis] != b.stride[axis])) return false;
  return true;
}

// Whether two indices of a view may name one element. Exact for every view made by slicing and
// transposing, whose axes nest; interleaved axes (as_strided) count as repeating.
bool may_repeat(const Operand& operand) {
  int order[max_ndim], axes = 0;
  for (int axis = 0; axis < operand.ndim; ++axis)
    if (operand.shape[axis] > 1) order[axes++] = axis;
  std::sort(order, order + axes,
            [&](int a, int b) { return std::abs(operand.stride[a]) < std::abs(operand.stride[b]); });
  int64_t reach = 0;
  for (int i = 0; i < axes; ++i) {
    const int64_t stride = std::abs(operand.stride[order[i]]);
    if (stride <= reach) return true;
    reach += (operand.shape[order[i]] - 1) * stride;
  }
  return false;
}

// Interleaved slices, such as u[0::2] and u[1::2], touch the same range but no common byte.
bool slices_interleave(const Operand& a, const Operand& b, const Extent& ea, const Extent& eb) {
  if (a.stride[0] != b.stride[0] || a.stride[0] == 0) return false;
  const int64_t pitch = std::abs(a.stride[0]) * static_cast<int64_t>(item_bytes(a.dtype));
  const int64_t distance = reinterpret_cast<intptr_t>(b.data) - reinterpret_cast<intptr_t>(a.data);
  const int64_t shift = ((distance + eb.slice_low - ea.slice_low) % pitch + pitch) % pitch;
  return shift >= ea.slice_high - ea.slice_low && shift + (eb.slice_high - eb.slice_low) <= pitch;
}

bool overlap(const Operand& a, const Operand& b) {
  if (a.device != b.device || a.device_id != b.device_id) return false;
  const Extent ea = extent_of(a), eb = extent_of(b);
  if (ea.high <= eb.low || eb.high <= ea.low) return false;
  return !slices_interleave(a, b, ea, eb);
}

bool same_view(const Operand& a, const Operand& b) {
  return a.data == b.data && a.dtype == b.dtype && same_strides(a, b);
}

}  // namespace

std::size_t item_bytes(DType dtype) {
  return dtype == DType::float64 || dtype == DType::int64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return "float64";
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::int64:
      return "int64";
    default:
      return "bfloat16";
  }
}

std::string describe_shape(const Operand& operand) {
  std::string text = "[";
  for (int axis = 0; axis < operand.ndim; ++axis) text += (axis ? ", " : "") + std::to_string(operand.shape[axis]);
  return text + "]";
}

std::string describe_device(const Operand& operand) {
  return operand.device == Device::cpu ? "cpu" : "cuda:" + std::to_string(operand.device_id);
}

Status fail(StatusCode code, const char* format, ...) {
  Status status;
  status.code = code;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(status.message, sizeof status.message, format, arguments);
  va_end(arguments);
  return status;
}

Status state(const Operand& operand) {
  if (operand.ndim < 1 || operand.ndim > max_ndim)
    return fail(StatusCode::invalid_value, "%s: got %d axes, expected 1 to %d: [slices, batch, features...]",
                operand.name, operand.ndim, max_ndim);
  if (operand.dtype == DType::int64)
    return fail(StatusCode::invalid_type, "%s: got dtype int64, expected a floating point dtype", operand.name);
  return {};
}

Status same_kind(const Operand& operand, const Operand& like) {
  if (operand.dtype != like.dtype)
    return fail(StatusCode::invalid_type, "%s: got dtype %s, expected %s like %s", operand.name, name_of(operand.dtype),
                name_of(like.dtype), like.name);
  if (operand.device != like.device || operand.device_id != like.device_id)
    return fail(StatusCode::invalid_value, "%s: got device %s, expected %s like %s", operand.name,
                describe_device(operand).c_str(), describe_device(like).c_str(), like.name);
  return {};
}

Status same_state(const Operand& operand, const Operand& like) {
  if (Status status = same_kind(operand, like); !status.ok()) return status;
  bool same = operand.ndim == like.ndim;
  for (int axis = 0; same && axis < like.ndim; ++axis) same = operand.shape[axis] == like.shape[axis];
  if (!same)
    return fail(StatusCode::invalid_value, "%s: got shape %s, expected %s like %s", operand.name,
                describe_shape(operand).c_str(), describe_shape(like).c_str(), like.name);
  return {};
}

Status norms(const Operand& operand, const Operand& like) {
  if (operand.dtype != DType::float64)
    return fail(StatusCode::invalid_type, "%s: got dtype %s, expected float64", operand.name, name_of(operand.dtype));
  if (operand.ndim != 1 || operand.shape[0] != like.shape[0])
    return fail(StatusCode::invalid_value, "%s: got shape %s, expected [%lld], one norm per slice of %s", operand.name,
                describe_shape(operand).c_str(), static_cast<long long>(like.shape[0]), like.name);
  if (operand.shape[0] > 1 && operand.stride[0] != 1)
    return fail(StatusCode::invalid_value, "%s: got stride %lld, expected a contiguous array", operand.name,
                static_cast<long long>(operand.stride[0]));
  if (operand.device != like.device || operand.device_id != like.device_id)
    return fail(StatusCode::invalid_value, "%s: got device %s, expected %s like %s", operand.name,
                describe_device(operand).c_str(), describe_device(like).c_str(), like.name);
  return {};
}

Status writable(const Operand& output, std::initializer_list<Operand> inputs) {
  if (empty(output)) return {};
  for (int axis = 0; axis < output.ndim; ++axis)
    if (output.shape[axis] > 1 && output.stride[axis] == 0)
      return fail(StatusCode::invalid_value, "%s: got a zero stride on axis %d, expected an output without repetition",
                  output.name, axis);
  if (may_repeat(output))
    return fail(StatusCode::invalid_value, "%s: overlaps itself, expected an output without repetition", output.name);
  for (const Operand& input : inputs)
    if (input.ndim > 0 && !empty(input) && !same_view(output, input) && overlap(output, input))
      return fail(StatusCode::invalid_value, "%s: overlaps %s partially, expected the same view or no common element",
                  output.name, input.name);
  return {};
}

Status apart(const Operand& output, const Operand& input) {
  if (output.ndim > 0 && input.ndim > 0 && !empty(output) && !empty(input) && overlap(output, input))
    return fail(StatusCode::invalid_value, "%s: overlaps %s, expected no common element", output.name, input.name);
  return {};
}

Status workspace(const char* op, std::size_t needed, const Exec& exec) {
  if (exec.workspace_bytes < needed || (needed > 0 && exec.workspace == nullptr))
    return fail(StatusCode::invalid_value, "workspace: got %zu bytes, expected %zu as %s_workspace_bytes says",
                exec.workspace ? exec.workspace_bytes : std::size_t{0}, needed, op);
  return {};
}

}  // namespace pyparareal::validate
