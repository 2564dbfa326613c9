// SPDX-License-Identifier: BSD-3-Clause
// Argument checks of the public entry points: they run before any device call, and every message
// names the argument, what it got and what was expected.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <initializer_list>
#include <string>

#include "pyparareal/layout.h"
#include "pyparareal/types.h"

namespace pyparareal::validate {

// What the checks need of a view, whatever its pointer type.
struct Operand {
  const char* name;
  const void* data;
  DType dtype;
  Device device;
  int32_t device_id;
  int32_t ndim;
  const int64_t* shape;
  const int64_t* stride;

  template <class Pointer>
  Operand(const char* argument, const View<Pointer>& view)
      : name(argument),
        data(view.data),
        dtype(view.dtype),
        device(view.device),
        device_id(view.device_id),
        ndim(view.ndim),
        shape(view.shape),
        stride(view.stride) {}
};

std::size_t item_bytes(DType dtype);
const char* name_of(DType dtype);
std::string describe_shape(const Operand& operand);
std::string describe_device(const Operand& operand);

__attribute__((format(printf, 2, 3))) Status fail(StatusCode code, const char* format, ...);

Status state(const Operand& operand);                            // at least one axis, at most max_ndim
Status same_kind(const Operand& operand, const Operand& like);   // dtype and device
Status same_state(const Operand& operand, const Operand& like);  // dtype, device and shape
Status norms(const Operand& operand, const Operand& like);       // float64 [slices], unit stride, same device
Status writable(const Operand& output, std::initializer_list<Operand> inputs);
Status apart(const Operand& output, const Operand& input);  // no common element, not even as the same view
Status workspace(const char* op, std::size_t needed, const Exec& exec);

}  // namespace pyparareal::validate
