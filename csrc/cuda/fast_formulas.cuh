// SPDX-License-Identifier: BSD-3-Clause
// sigmoid and tanh of mlp_formulas.h with an approximate quotient, for kernels that do not promise the CPU's bits: a
// reciprocal of 1 ulp and a product, 2 ulp together, instead of a division, which takes several times as long.
#pragma once

#include "launch.cuh"
#include "pyparareal/mlp_formulas.h"

namespace pyparareal::cuda {

// a / b for b from 1 to 2.
__device__ __forceinline__ float fast_quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// 1 where the exact formula has it: whoever keeps a state there keeps it.
__device__ __forceinline__ float fast_sigmoid(float z) {
  float p, power;
  expm1_parts<float, ScalarMlpMath>(z < 0 ? z : -z, p, power);
  const float e = ScalarMlpMath::fma(power, p, power), below = e + 1;
  return z >= 0 && below == 1 ? 1.0f : fast_quotient(z < 0 ? e : 1.0f, below);
}

__device__ __forceinline__ float fast_tanh(float z) {
  float p, power;
  expm1_parts<float, ScalarMlpMath>((z < 0 ? z : -z) * 2, p, power);
  const float e = ScalarMlpMath::fma(power, p, power - 1), t = fast_quotient(-e, e + 2);
  return z < 0 ? -t : t;
}

}  // namespace pyparareal::cuda
