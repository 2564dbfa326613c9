// SPDX-License-Identifier: BSD-3-Clause
#include "tiles.h"

#include "tiles_body.h"

namespace pyparareal::cpu {

const TileSet& tiles_baseline() {
  static constexpr TileSet set = make_tile_set("baseline");
  return set;
}

}  // namespace pyparareal::cpu
