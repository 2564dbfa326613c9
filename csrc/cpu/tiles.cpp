// SPDX-License-Identifier: BSD-3-Clause
#include "tiles.h"

#include <atomic>
#include <cstring>

namespace pyparareal::cpu {
namespace {

// tiles_avx2.cpp and tiles_avx512.cpp are what their names say only where their pragma is understood.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool runs_avx512() {
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool runs_avx2() { return false; }
bool runs_avx512() { return false; }
#endif

const TileSet& widest() { return runs_avx512() ? tiles_avx512() : runs_avx2() ? tiles_avx2() : tiles_baseline(); }

std::atomic<const TileSet*>& selected() {
  static std::atomic<const TileSet*> set{&widest()};
  return set;
}

}  // namespace

const TileSet& tiles() { return *selected().load(std::memory_order_acquire); }

bool select_tiles(const char* name) {
  const TileSet* set = nullptr;
  if (std::strcmp(name, "best") == 0) set = &widest();
  if (std::strcmp(name, "baseline") == 0) set = &tiles_baseline();
  if (std::strcmp(name, "avx2") == 0 && runs_avx2()) set = &tiles_avx2();
  if (std::strcmp(name, "avx512") == 0 && runs_avx512()) set = &tiles_avx512();
  if (set == nullptr) return false;
  selected().store(set, std::memory_order_release);
  return true;
}

}  // namespace pyparareal::cpu
