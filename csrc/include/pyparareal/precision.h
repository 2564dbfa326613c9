// SPDX-License-Identifier: BSD-3-Clause
// How the kernels that multiply matrices do so, where there is a choice.
#pragma once

#include "pyparareal/types.h"

namespace pyparareal {

// How products of float32 are formed. `exact`: fused multiply-adds in the order of the index, the same bits on every
// device. On tensor cores, on CUDA alone: `tf32x3`, three products of numbers split in two, as accurate as float32, and
// `tf32`, one product of numbers of 11 significant bits.
enum class Precision : int32_t { exact = 0, tf32x3 = 1, tf32 = 2 };

}  // namespace pyparareal
