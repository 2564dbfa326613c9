// SPDX-License-Identifier: BSD-3-Clause
#include "tiles.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define PYPARAREAL_F16C 8
#define PYPARAREAL_VECTOR_BYTES 32
#pragma GCC target("avx2,fma,f16c,bmi2")
#else
#define PYPARAREAL_VECTOR_BYTES 16
#endif

#include "tiles_body.h"

namespace pyparareal::cpu {

const TileSet& tiles_avx2() {
  static constexpr TileSet set = make_tile_set("avx2");
  return set;
}

}  // namespace pyparareal::cpu
