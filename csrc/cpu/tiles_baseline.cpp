// SPDX-License-Identifier: BSD-3-Clause
#include "tiles.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif
#define PYPARAREAL_VECTOR_BYTES 16

#include "tiles_body.h"

namespace pyparareal::cpu {

const TileSet& tiles_baseline() {
  static constexpr TileSet set = make_tile_set("baseline");
  return set;
}

}  // namespace pyparareal::cpu
