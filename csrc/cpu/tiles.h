// SPDX-License-Identifier: BSD-3-Clause
// The inner loops of the CPU kernels on contiguous tiles of at most `chunk` elements. They are compiled
// once per instruction set (tiles_*.cpp) and chosen at run time, so that one portable binary is fast
// everywhere. Vector width cannot change a bit: every sum has the lane order of layout.h.
#pragma once

#include <type_traits>
#include <utility>

#include "dense_tiles.h"
#include "gru_tiles.h"
#include "mlp_tiles.h"
#include "newton_gru_tiles.h"
#include "pyparareal/layout.h"
#include "relax_tiles.h"
#include "scan_tiles.h"

namespace pyparareal::cpu {

template <class T>
struct Tiles {
  using C = typename Compute<T>::type;
  // u = f_old + (g_new - g_old); u may be an input
  void (*parareal_update)(T* u, const T* f_old, const T* g_new, const T* g_old, int64_t count);
  // the same, and the norm of u - u_old, by Norm; u may be an input, but not u_old
  double (*parareal_update_norm[3])(T* u, const T* f_old, const T* g_new, const T* g_old, const T* u_old,
                                    int64_t count);
  // u_new = omega * phi + (1 - omega) * u; u_new may be an input
  void (*c_relax)(T* u_new, const T* phi, const T* u, C omega, C one_minus_omega, int64_t count);
  // norm of one chunk of u - u_old (u_old may be null), by Norm
  double (*chunk_norm[3])(const T* u, const T* u_old, int64_t count);
};

struct TileSet {
  const char* name;
  Tiles<double> float64;
  Tiles<float> float32;
  Tiles<Half> float16;
  Tiles<BFloat16> bfloat16;
  RelaxTiles<double> relax_float64;
  RelaxTiles<float> relax_float32;
  MlpTiles<double> mlp_float64;
  MlpTiles<float> mlp_float32;
  GruTiles<double> gru_float64;
  GruTiles<float> gru_float32;
  DenseTiles<double> dense_float64;
  DenseTiles<float> dense_float32;
  ScanTiles<double> scan_float64;
  ScanTiles<float> scan_float32;
  NewtonGruTiles<double> newton_gru_float64;
  NewtonGruTiles<float> newton_gru_float32;
};

const TileSet& tiles_baseline();
const TileSet& tiles_avx2();
const TileSet& tiles_avx512();

// The set in use: the widest this processor runs, or the one select_tiles() asked for.
const TileSet& tiles();

// Chooses a set by name ("baseline", "avx2", "avx512") or the widest with "best"; false where this
// processor or build lacks it. For tests and measurements; not while an op is running.
bool select_tiles(const char* name);

template <class T>
const Tiles<T>& tiles_of(const TileSet& set);
template <>
inline const Tiles<double>& tiles_of(const TileSet& set) {
  return set.float64;
}
template <>
inline const Tiles<float>& tiles_of(const TileSet& set) {
  return set.float32;
}
template <>
inline const Tiles<Half>& tiles_of(const TileSet& set) {
  return set.float16;
}
template <>
inline const Tiles<BFloat16>& tiles_of(const TileSet& set) {
  return set.bfloat16;
}

template <class T>
const RelaxTiles<T>& relax_tiles_of(const TileSet& set);
template <>
inline const RelaxTiles<double>& relax_tiles_of(const TileSet& set) {
  return set.relax_float64;
}
template <>
inline const RelaxTiles<float>& relax_tiles_of(const TileSet& set) {
  return set.relax_float32;
}

template <class T>
const MlpTiles<T>& mlp_tiles_of(const TileSet& set);
template <>
inline const MlpTiles<double>& mlp_tiles_of(const TileSet& set) {
  return set.mlp_float64;
}
template <>
inline const MlpTiles<float>& mlp_tiles_of(const TileSet& set) {
  return set.mlp_float32;
}

template <class T>
const GruTiles<T>& gru_tiles_of(const TileSet& set);
template <>
inline const GruTiles<double>& gru_tiles_of(const TileSet& set) {
  return set.gru_float64;
}
template <>
inline const GruTiles<float>& gru_tiles_of(const TileSet& set) {
  return set.gru_float32;
}

template <class T>
const DenseTiles<T>& dense_tiles_of(const TileSet& set);
template <>
inline const DenseTiles<double>& dense_tiles_of(const TileSet& set) {
  return set.dense_float64;
}
template <>
inline const DenseTiles<float>& dense_tiles_of(const TileSet& set) {
  return set.dense_float32;
}

template <class T>
const ScanTiles<T>& scan_tiles_of(const TileSet& set);
template <>
inline const ScanTiles<double>& scan_tiles_of(const TileSet& set) {
  return set.scan_float64;
}
template <>
inline const ScanTiles<float>& scan_tiles_of(const TileSet& set) {
  return set.scan_float32;
}

template <class T>
const NewtonGruTiles<T>& newton_gru_tiles_of(const TileSet& set);
template <>
inline const NewtonGruTiles<double>& newton_gru_tiles_of(const TileSet& set) {
  return set.newton_gru_float64;
}
template <>
inline const NewtonGruTiles<float>& newton_gru_tiles_of(const TileSet& set) {
  return set.newton_gru_float32;
}

}  // namespace pyparareal::cpu
