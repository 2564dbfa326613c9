// SPDX-License-Identifier: BSD-3-Clause
// The formulas of relax_mlp_sgd, once, for host and device: each line rounds exactly as reference_mlp.py does, and
// nothing is of a library but the fused multiply-add. T is the dtype, V a scalar or a vector of it; Math has
// fma(a, b, c) and power_of_two(shifted). Comparisons of vectors are masks, by which ?: selects.
#pragma once

#include "pyparareal/formulas.h"
#include "pyparareal/types.h"

namespace pyparareal {

template <class T>
struct Exponential;

// expm1(r) = r + r^2 q(r) for |r| <= ln(2)/2: q by Chebyshev interpolation, to 0.004 units in the last place.
template <>
struct Exponential<double> {
  static constexpr double log2e = 0x1.71547652b82fep+0, ln2 = 0x1.62e42fefa39efp-1, ln2_rest = 0x1.abc9e3b39803fp-56;
  static constexpr double shift = 6755399441055744.0, lowest = -708.0;  // 1.5 * 2^52; of a normal result

  template <class Math, class V>
  static PYPARAREAL_HD V q(V r) {
    V sum = Math::fma(V{} + 0x1.1f731ea5352cap-29, r, V{} + 0x1.af4e196027428p-26);
    sum = Math::fma(sum, r, V{} + 0x1.27e4db57442fbp-22);
    sum = Math::fma(sum, r, V{} + 0x1.71de021a90822p-19);
    sum = Math::fma(sum, r, V{} + 0x1.a01a01a6dcaffp-16);
    sum = Math::fma(sum, r, V{} + 0x1.a01a01abef415p-13);
    sum = Math::fma(sum, r, V{} + 0x1.6c16c16c162ccp-10);
    sum = Math::fma(sum, r, V{} + 0x1.11111111100cep-7);
    sum = Math::fma(sum, r, V{} + 0x1.5555555555556p-5);
    sum = Math::fma(sum, r, V{} + 0x1.5555555555557p-3);
    return Math::fma(sum, r, V{} + 0x1.0p-1);
  }
};

template <>
struct Exponential<float> {
  static constexpr float log2e = 0x1.715476p+0f, ln2 = 0x1.62e43p-1f, ln2_rest = -0x1.05c61p-29f;
  static constexpr float shift = 12582912.0f, lowest = -87.0f;  // 1.5 * 2^23

  template <class Math, class V>
  static PYPARAREAL_HD V q(V r) {
    V sum = Math::fma(V{} + 0x1.a12528p-13f, r, V{} + 0x1.6d4362p-10f);
    sum = Math::fma(sum, r, V{} + 0x1.1110e0p-7f);
    sum = Math::fma(sum, r, V{} + 0x1.5554e8p-5f);
    sum = Math::fma(sum, r, V{} + 0x1.555556p-3f);
    return Math::fma(sum, r, V{} + 0x1.0p-1f);
  }
};

// expm1(r) and 2^n of z = n ln 2 + r, z <= 0.
template <class T, class Math, class V>
PYPARAREAL_HD void expm1_parts(V z, V& p, V& power) {
  using E = Exponential<T>;
  z = z < E::lowest ? V{} + E::lowest : z;
  const V shifted = Math::fma(z, V{} + E::log2e, V{} + E::shift), n = shifted - E::shift;
  const V r = Math::fma(n, V{} - E::ln2_rest, Math::fma(n, V{} - E::ln2, z));
  p = Math::fma(r * r, E::template q<Math, V>(r), r);
  power = Math::power_of_two(shifted);
}

// 1 / (1 + exp(-z)), of exp(-|z|): nothing overflows.
template <class T, class Math, class V>
PYPARAREAL_HD V sigmoid(V z) {
  V p, power;
  expm1_parts<T, Math>(z < T(0) ? z : -z, p, power);
  const V e = Math::fma(power, p, power);
  return (z < T(0) ? e : V{} + T(1)) / (e + T(1));
}

// tanh(z), of expm1(-2 |z|): nothing cancels.
template <class T, class Math, class V>
PYPARAREAL_HD V hyperbolic_tangent(V z) {
  V p, power;
  expm1_parts<T, Math>((z < T(0) ? z : -z) * T(2), p, power);
  const V e = Math::fma(power, p, power - T(1));
  const V t = (V{} - e) / (e + T(2));
  return z < T(0) ? -t : t;
}

// Each with the error times its derivative as a function of its value. A NaN stays one.
struct Identity {
  template <class T, class Math, class V>
  static PYPARAREAL_HD V value(V z) {
    return z;
  }
  template <class T, class V>
  static PYPARAREAL_HD V delta(V, V error) {
    return error;
  }
};

struct Relu {
  template <class T, class Math, class V>
  static PYPARAREAL_HD V value(V z) {
    return z <= T(0) ? V{} : z;
  }
  template <class T, class V>
  static PYPARAREAL_HD V delta(V a, V error) {
    return a <= T(0) ? V{} : error;
  }
};

struct Sigmoid {
  template <class T, class Math, class V>
  static PYPARAREAL_HD V value(V z) {
    return sigmoid<T, Math>(z);
  }
  template <class T, class V>
  static PYPARAREAL_HD V delta(V a, V error) {
    return error * (a * (T(1) - a));
  }
};

struct Tanh {
  template <class T, class Math, class V>
  static PYPARAREAL_HD V value(V z) {
    return hyperbolic_tangent<T, Math>(z);
  }
  template <class T, class V>
  static PYPARAREAL_HD V delta(V a, V error) {
    return error * (T(1) - a * a);
  }
};

// Calls `body` with the activation of this kind.
template <class Body>
PYPARAREAL_HD void with_activation(Activation kind, const Body& body) {
  switch (kind) {
    case Activation::identity:
      return body(Identity{});
    case Activation::relu:
      return body(Relu{});
    case Activation::sigmoid:
      return body(Sigmoid{});
    default:
      return body(Tanh{});
  }
}

struct ScalarMlpMath {
#ifdef __CUDA_ARCH__
  static PYPARAREAL_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
  static PYPARAREAL_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
#else
  static PYPARAREAL_HD double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
  static PYPARAREAL_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#endif

  // The low bits of `shifted` are n; they become the exponent.
  static PYPARAREAL_HD double power_of_two(double shifted) {
    uint64_t bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 52) + 0x3ff0000000000000u;
    __builtin_memcpy(&shifted, &bits, sizeof bits);
    return shifted;
  }
  static PYPARAREAL_HD float power_of_two(float shifted) { return as_float((as_bits(shifted) << 23) + 0x3f800000u); }
};

}  // namespace pyparareal
