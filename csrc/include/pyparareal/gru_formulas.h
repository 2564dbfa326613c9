// SPDX-License-Identifier: BSD-3-Clause
// The formulas of relax_gru, its adjoint and newton_gru, once, for host and device: each line rounds exactly as
// reference_gru.py does. T is the dtype, V a scalar or a vector of it, Math as in mlp_formulas.h.
#pragma once

#include "pyparareal/mlp_formulas.h"

namespace pyparareal {

template <class T, class V>
struct GruGates {
  V r, z, s, n;

  // Input sides, and the sums of the hidden side.
  template <class Math>
  static PYPARAREAL_HD GruGates of(V in_r, V in_z, V in_n, V of_r, V of_z, V of_n, V bias) {
    GruGates g;
    g.r = sigmoid<T, Math>(in_r + of_r);
    g.z = sigmoid<T, Math>(in_z + of_z);
    g.s = of_n + bias;
    g.n = hyperbolic_tangent<T, Math>(in_n + g.r * g.s);
    return g;
  }

  template <class Math>
  PYPARAREAL_HD V next(V h) const {
    const V moved = Math::fma(z, h - n, n);
    return z == T(1) ? h : moved;
  }

  // d next / d h of the unit itself, by the diagonals of W_r, W_z and W_n.
  template <class Math>
  PYPARAREAL_HD V own_derivative(V h, V w_r, V w_z, V w_n) const {
    const V into_n = (T(1) - z) * (T(1) - n * n);
    V j = Math::fma((h - n) * (z * (T(1) - z)), w_z, z);
    j = Math::fma(into_n * s * (r * (T(1) - r)), w_r, j);
    j = Math::fma(into_n * r, w_n, j);
    return z == T(1) ? V{} + T(1) : j;
  }
};

template <class T, class V>
struct GruGradients {
  V r, z, n, s;

  static PYPARAREAL_HD GruGradients of(const GruGates<T, V>& g, V h, V d) {
    GruGradients e;
    e.n = d * (T(1) - g.z) * (T(1) - g.n * g.n);
    e.z = d * (h - g.n) * (g.z * (T(1) - g.z));
    e.r = e.n * g.s * (g.r * (T(1) - g.r));
    e.s = e.n * g.r;
    return e;
  }
};

}  // namespace pyparareal
