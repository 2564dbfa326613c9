// SPDX-License-Identifier: BSD-3-Clause
// The element formulas, once, for host and device. No contraction (-ffp-contract=off, -fmad=false):
// each line rounds exactly as pyparareal/reference.py does.
#pragma once

#include "pyparareal/types.h"

#ifdef __CUDACC__
#define PYPARAREAL_HD __host__ __device__ __forceinline__
#else
#define PYPARAREAL_HD inline __attribute__((always_inline))
#endif

// Unrolled, rarely taken loops cost registers on the device.
#ifdef __CUDA_ARCH__
#define PYPARAREAL_NO_UNROLL _Pragma("unroll 1")
#else
#define PYPARAREAL_NO_UNROLL
#endif

#ifdef __CUDACC_RTC__
#define PYPARAREAL_COPY memcpy
#else
#define PYPARAREAL_COPY __builtin_memcpy
#endif

namespace pyparareal {

// 16-bit floats are storage only: arithmetic is float32, rounded once to nearest even.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

PYPARAREAL_HD float as_float(uint32_t bits) {
  float value;
  PYPARAREAL_COPY(&value, &bits, sizeof value);
  return value;
}

PYPARAREAL_HD uint32_t as_bits(float value) {
  uint32_t bits;
  PYPARAREAL_COPY(&bits, &value, sizeof bits);
  return bits;
}

PYPARAREAL_HD double load(double x) { return x; }
PYPARAREAL_HD float load(float x) { return x; }
PYPARAREAL_HD float load(BFloat16 x) { return as_float(static_cast<uint32_t>(x.bits) << 16); }

// Branch-free, so that it vectorises. A subnormal half is a multiple of 2^-24: written into the
// mantissa of a float with exponent 2^-14 it is off by exactly 2^-14, which is subtracted. No float
// subnormal is touched, so the result does not depend on flush-to-zero modes.
PYPARAREAL_HD float load(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t payload = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t exponent = payload & 0x0f800000u;
  const uint32_t normal = payload + (112u << 23);
  const uint32_t infinite_or_nan = payload + (224u << 23);
  const uint32_t subnormal = as_bits(as_float(payload + (113u << 23)) - as_float(113u << 23));
  const uint32_t magnitude = exponent == 0 ? subnormal : exponent == 0x0f800000u ? infinite_or_nan : normal;
  return as_float(sign | magnitude);
}

PYPARAREAL_HD void store(double& x, double value) { x = value; }
PYPARAREAL_HD void store(float& x, float value) { x = value; }

PYPARAREAL_HD void store(BFloat16& x, float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x0040u;
  x.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// Adding 0.5 to a magnitude below 2^-14 leaves exactly the half's subnormal steps (2^-24) in the
// float's mantissa, rounded to nearest even by the addition itself.
PYPARAREAL_HD void store(Half& x, float value) {
  const uint32_t bits = as_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t quiet_nan = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
  const uint32_t overflow = magnitude > 0x7f800000u ? quiet_nan : 0x7c00u;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  x.bits = static_cast<uint16_t>(sign | (magnitude >= 0x47800000u ? overflow : finite));
}

// What arithmetic on a stored T is done in.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

template <class C>
PYPARAREAL_HD C parareal_update_formula(C f_old, C g_new, C g_old) {
  return f_old + (g_new - g_old);
}

template <class C>
PYPARAREAL_HD C c_relax_formula(C phi, C u, C omega, C one_minus_omega) {
  return omega * phi + one_minus_omega * u;
}

PYPARAREAL_HD double magnitude_of(double d) { return d < 0.0 ? -d : (d == 0.0 ? 0.0 : d); }

template <Norm norm>
PYPARAREAL_HD double norm_term(double d) {
  return norm == Norm::sum_squares ? d * d : magnitude_of(d);
}

// Combines two partial norms. Both are >= +0 or NaN, so combining with +0 changes no bit.
template <Norm norm>
PYPARAREAL_HD double norm_combine(double a, double b) {
  if (norm == Norm::max_abs) return (a > b || a != a) ? a : b;
  return a + b;
}

}  // namespace pyparareal
