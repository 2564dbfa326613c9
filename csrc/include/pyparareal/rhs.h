// SPDX-License-Identifier: BSD-3-Clause
// The right-hand sides of relax_rk, once, for host and device: each line rounds exactly as reference.py does.
// C is the dtype of the state, V a scalar or a vector of it; Math::square_root(x) takes a root in place.
// Constants are made on the host, in float64, and rounded once. The CPU kernels include this once per instruction set.
#pragma once

#include "pyparareal/formulas.h"
#include "pyparareal/types.h"

namespace pyparareal {

template <class C>
struct Dahlquist {
  static constexpr int components = 1;
  C rate;
  PYPARAREAL_HD explicit Dahlquist(const double* p) : rate(static_cast<C>(p[0])) {}

  template <class Math, class V>
  PYPARAREAL_HD void slope(const V* u, V* du) const {
    du[0] = rate * u[0];
  }
};

template <class C>
struct Lorenz {
  static constexpr int components = 3;
  C sigma, rho, beta;
  PYPARAREAL_HD explicit Lorenz(const double* p)
      : sigma(static_cast<C>(p[0])), rho(static_cast<C>(p[1])), beta(static_cast<C>(p[2])) {}

  template <class Math, class V>
  PYPARAREAL_HD void slope(const V* u, V* du) const {
    const V x = u[0], y = u[1], z = u[2];
    du[0] = sigma * (y - x);
    du[1] = rho * x - y - x * z;
    du[2] = x * y - beta * z;
  }
};

template <class C>
struct Brusselator {
  static constexpr int components = 2;
  C a, b, b_plus_one;
  PYPARAREAL_HD explicit Brusselator(const double* p)
      : a(static_cast<C>(p[0])), b(static_cast<C>(p[1])), b_plus_one(static_cast<C>(p[1] + 1)) {}

  template <class Math, class V>
  PYPARAREAL_HD void slope(const V* w, V* dw) const {
    const V u = w[0], v = w[1], autocatalysis = u * u * v;
    dw[0] = a + autocatalysis - b_plus_one * u;
    dw[1] = b * u - autocatalysis;
  }
};

template <class C>
struct FitzHughNagumo {
  static constexpr int components = 2;
  C a, b, c;
  PYPARAREAL_HD explicit FitzHughNagumo(const double* p)
      : a(static_cast<C>(p[0])), b(static_cast<C>(p[1])), c(static_cast<C>(p[2])) {}

  template <class Math, class V>
  PYPARAREAL_HD void slope(const V* w, V* dw) const {
    const V u = w[0], v = w[1];
    dw[0] = c * (u - u * u * u / C(3) + v);
    dw[1] = (u - a + b * v) / -c;
  }
};

template <class C>
struct VanDerPol {
  static constexpr int components = 2;
  C mu;
  PYPARAREAL_HD explicit VanDerPol(const double* p) : mu(static_cast<C>(p[0])) {}

  template <class Math, class V>
  PYPARAREAL_HD void slope(const V* u, V* du) const {
    const V x = u[0], y = u[1];
    du[0] = y;
    du[1] = mu * (C(1) - x * x) * y - x;
  }
};

template <class C>
struct Arenstorf {
  static constexpr int components = 4;
  C moon, earth;
  PYPARAREAL_HD explicit Arenstorf(const double* p) : moon(static_cast<C>(p[0])), earth(static_cast<C>(1 - p[0])) {}

  template <class Math, class V>
  PYPARAREAL_HD void slope(const V* u, V* du) const {
    const V x = u[0], y = u[1], vx = u[2], vy = u[3];
    const V x1 = x + moon, x2 = x - earth;
    V d1 = x1 * x1 + y * y, d2 = x2 * x2 + y * y;
    d1 = d1 * d1 * d1, d2 = d2 * d2 * d2;
    Math::square_root(d1), Math::square_root(d2);
    du[0] = vx;
    du[1] = vy;
    du[2] = x + C(2) * vy - earth * x1 / d1 - moon * x2 / d2;
    du[3] = y - C(2) * vx - earth * y / d1 - moon * y / d2;
  }
};

// Calls `body` with the right-hand side of `scheme` for states of dtype C.
template <class C, class Body>
auto with_rhs(const RungeKutta& scheme, Body&& body) {
  switch (scheme.rhs) {
    case RightHandSide::dahlquist:
      return body(Dahlquist<C>(scheme.parameters));
    case RightHandSide::lorenz:
      return body(Lorenz<C>(scheme.parameters));
    case RightHandSide::brusselator:
      return body(Brusselator<C>(scheme.parameters));
    case RightHandSide::fitzhugh_nagumo:
      return body(FitzHughNagumo<C>(scheme.parameters));
    case RightHandSide::van_der_pol:
      return body(VanDerPol<C>(scheme.parameters));
    default:  // functions have kernels of their own
      return body(Arenstorf<C>(scheme.parameters));
  }
}

inline int components_of(RightHandSide rhs) {
  RungeKutta scheme;
  scheme.rhs = rhs;
  return with_rhs<double>(scheme, [](const auto& f) { return f.components; });
}

}  // namespace pyparareal
