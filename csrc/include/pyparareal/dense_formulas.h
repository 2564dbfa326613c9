// SPDX-License-Identifier: BSD-3-Clause
// The activations of relax_dense and their derivatives, once, for host and device: each line rounds exactly as
// reference_dense.py does. T is the dtype, V a scalar or a vector of it, Math as in mlp_formulas.h.
#pragma once

#include "pyparareal/mlp_formulas.h"

namespace pyparareal {

// act(z) and act'(z).
template <class V>
struct Activated {
  V value, slope;
};

struct DenseTanh {
  template <class T, class Math, class V>
  static PYPARAREAL_HD Activated<V> of(V z) {
    const V a = hyperbolic_tangent<T, Math>(z);
    return {a, T(1) - a * a};
  }
};

struct DenseRelu {
  template <class T, class Math, class V>
  static PYPARAREAL_HD Activated<V> of(V z) {
    return {z <= T(0) ? V{} : z, z <= T(0) ? V{} : V{} + T(1)};
  }
};

// z^2 / (4 eta) + z / 2 + eta / 4 for |z| < eta = 0.1, else that of the rectifier.
struct DenseSmoothRelu {
  template <class T, class Math, class V>
  static PYPARAREAL_HD Activated<V> of(V z) {
    constexpr T eta = T(0.1);
    const V value = Math::fma(Math::fma(z, V{} + T(2.5), V{} + T(0.5)), z, V{} + T(0.025));
    const V slope = Math::fma(z, V{} + T(5), V{} + T(0.5));
    const V above = z >= eta ? z : value, steep = z >= eta ? V{} + T(1) : slope;
    return {z <= -eta ? V{} : above, z <= -eta ? V{} : steep};
  }
};

struct DenseSigmoid {
  template <class T, class Math, class V>
  static PYPARAREAL_HD Activated<V> of(V z) {
    const V a = sigmoid<T, Math>(z);
    return {a, a * (T(1) - a)};
  }
};

// z s(z), whose z stops where s is no longer smaller: beyond that the product would grow again.
struct DenseSilu {
  template <class T, class Math, class V>
  static PYPARAREAL_HD Activated<V> of(V z) {
    const V s = sigmoid<T, Math>(z);
    const V a = (z < Exponential<T>::lowest ? V{} + Exponential<T>::lowest : z) * s;
    return {a, Math::fma(a, T(1) - s, s)};
  }
};

// Calls `body` with the activation of this kind.
template <class Body>
PYPARAREAL_HD void with_dense_activation(DenseActivation kind, const Body& body) {
  switch (kind) {
    case DenseActivation::relu:
      return body(DenseRelu{});
    case DenseActivation::smooth_relu:
      return body(DenseSmoothRelu{});
    case DenseActivation::sigmoid:
      return body(DenseSigmoid{});
    case DenseActivation::silu:
      return body(DenseSilu{});
    default:
      return body(DenseTanh{});
  }
}

}  // namespace pyparareal
