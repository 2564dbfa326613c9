// SPDX-License-Identifier: BSD-3-Clause
#include "tiles.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define PYPARAREAL_F16C 16
#define PYPARAREAL_VECTOR_BYTES 64
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
#else
#define PYPARAREAL_VECTOR_BYTES 16
#endif

#include "tiles_body.h"

namespace pyparareal::cpu {

const TileSet& tiles_avx512() {
  static constexpr TileSet set = make_tile_set("avx512");
  return set;
}

}  // namespace pyparareal::cpu
