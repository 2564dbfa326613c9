// SPDX-License-Identifier: BSD-3-Clause
// What a call of relax_mlp_sgd works on, for host and device.
#pragma once

#include "pyparareal/columns.h"
#include "pyparareal/types.h"

namespace pyparareal {

// Examples [K, features], of any strides.
template <class T>
struct Examples {
  const T* data = nullptr;
  int64_t row_stride = 0, stride = 0;

  PYPARAREAL_HD T at(int64_t row, int64_t i) const { return data[row * row_stride + i * stride]; }
};

// Numbers of a slice and step, or none.
template <class T>
struct PerStep {
  const T* data = nullptr;
  int64_t slice_stride = 0, step_stride = 0;

  PYPARAREAL_HD T at(int64_t slice, int64_t step) const { return data[slice * slice_stride + step * step_stride]; }
};

// What a call of relax_mlp_sgd has.
template <class T>
struct MlpTask {
  ColumnTask<T> columns;
  Mlp net;
  Examples<T> x, y;
  int64_t examples;
  PerStep<double> alpha;
  PerStep<int64_t> first;

  MlpTask(const MutableView& out, const ConstView& u, const Mlp& of, const ConstView& x_view, const ConstView& y_view,
          const ConstView& alpha_view, const ConstView& first_view, int64_t m, const ConstView& f, const ConstView& g,
          const MutableView& every)
      : columns(out, u, m, f, g, every),
        net(of),
        x{static_cast<const T*>(x_view.data), x_view.stride[0], x_view.stride[1]},
        y{static_cast<const T*>(y_view.data), y_view.stride[0], y_view.stride[1]},
        examples(x_view.shape[0]) {
    if (alpha_view.present())
      alpha = {static_cast<const double*>(alpha_view.data), alpha_view.stride[0], alpha_view.stride[1]};
    if (first_view.present())
      first = {static_cast<const int64_t*>(first_view.data), first_view.stride[0], first_view.stride[1]};
  }

  PYPARAREAL_HD T rate(int64_t slice, int64_t step) const {
    return static_cast<T>(alpha.data ? alpha.at(slice, step) : net.alpha);
  }
  // Where a batch begins; only on the device can an index lie outside.
  PYPARAREAL_HD int64_t begin(int64_t slice, int64_t step) const {
    if (!first.data) return 0;
    const int64_t at = first.at(slice, step) % examples;
    return at < 0 ? at + examples : at;
  }
  PYPARAREAL_HD int64_t batch() const { return net.count; }
  PYPARAREAL_HD Activation kind(int layer) const { return layer + 1 == net.layers ? net.last : net.hidden; }
};

// Weights of layer `layer`, its biases included.
PYPARAREAL_HD int64_t layer_weights(const Mlp& net, int layer) {
  return (net.sizes[layer] + (net.bias ? 1 : 0)) * net.sizes[layer + 1];
}

// Rows of scratch where a column is one of many, in a lane or a thread: weights, their gradient, and of one example the
// values and errors of all neurons.
struct NarrowScratch {
  int64_t gradient, value[max_layers + 1], delta[max_layers + 1], rows;

  NarrowScratch(const Mlp& net, int64_t weights) : gradient(weights), rows(2 * weights) {
    for (int layer = 0; layer <= net.layers; ++layer) value[layer] = rows, rows += net.sizes[layer];
    for (int layer = 1; layer <= net.layers; ++layer) delta[layer] = rows, rows += net.sizes[layer];
  }
};

}  // namespace pyparareal
