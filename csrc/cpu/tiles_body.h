// SPDX-License-Identifier: BSD-3-Clause
// Included by each tiles_*.cpp after its target pragma; everything here has internal linkage, so that
// no copy compiled for a wide instruction set can be linked into code for a narrow one.
#include "mlp_body.h"
#include "scan_body.h"

#include "dense_body.h"
#include "gru_body.h"

#include "newton_gru_body.h"

namespace pyparareal::cpu {
namespace {

// Elements as what arithmetic is done in, and back. 16-bit tiles are widened whole: the conversions then
// vectorise, or are one instruction where the target has them (F16C rounds to nearest even, as store()).
template <class T>
void widen(typename Compute<T>::type* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = load(from[i]);
}

template <class T>
void narrow(T* to, const typename Compute<T>::type* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) store(to[i], from[i]);
}

// PYPARAREAL_F16C: floats per instruction, set by the including file (g++ defines no __F16C__ after a target pragma).
#ifdef PYPARAREAL_F16C
#if PYPARAREAL_F16C == 16
inline void widen_some(float* to, const Half* from) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
inline void narrow_some(Half* to, const float* from) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
#else
inline void widen_some(float* to, const Half* from) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void narrow_some(Half* to, const float* from) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT));
}
#endif

template <>
void widen<Half>(float* to, const Half* from, int64_t count) {
  int64_t i = 0;
  for (; i + PYPARAREAL_F16C <= count; i += PYPARAREAL_F16C) widen_some(to + i, from + i);
  for (; i < count; ++i) to[i] = load(from[i]);
}

template <>
void narrow<Half>(Half* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + PYPARAREAL_F16C <= count; i += PYPARAREAL_F16C) narrow_some(to + i, from + i);
  for (; i < count; ++i) store(to[i], from[i]);
}
#endif

template <class T>
inline constexpr bool is_narrow = !std::is_same_v<T, typename Compute<T>::type>;

template <class T>
void update_tile(T* u, const T* f_old, const T* g_new, const T* g_old, int64_t count) {
  if constexpr (is_narrow<T>) {
    alignas(64) float f[chunk], g[chunk], h[chunk];
    widen(f, f_old, count), widen(g, g_new, count), widen(h, g_old, count);
    update_tile(f, f, g, h, count);
    narrow(u, f, count);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) u[i] = parareal_update_formula(f_old[i], g_new[i], g_old[i]);
  }
}

template <class T>
void c_relax_tile(T* u_new, const T* phi, const T* u, typename Compute<T>::type omega,
                  typename Compute<T>::type one_minus_omega, int64_t count) {
  if constexpr (is_narrow<T>) {
    alignas(64) float left[chunk], right[chunk];
    widen(left, phi, count), widen(right, u, count);
    c_relax_tile(left, left, right, omega, one_minus_omega, count);
    narrow(u_new, left, count);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) u_new[i] = c_relax_formula(phi[i], u[i], omega, one_minus_omega);
  }
}

template <Norm norm, class C, bool with_old>
void add_row(double* sums, const C* u, const C* u_old, int64_t count) {
  for (int64_t lane = 0; lane < count; ++lane) {
    double d = static_cast<double>(u[lane]);
    if (with_old) d = d - static_cast<double>(u_old[lane]);
    sums[lane] = norm_combine<norm>(sums[lane], norm_term<norm>(d));
  }
}

// Lanes past a short chunk's end hold +0, which changes no bit: halves of zeros are not folded.
template <Norm norm>
double fold(double* sums, int64_t count) {
  int64_t width = lanes;
  while (width / 2 >= count && width > 1) width /= 2;
  while (width > 1) {
    width /= 2;
    for (int64_t lane = 0; lane < width; ++lane) sums[lane] = norm_combine<norm>(sums[lane], sums[lane + width]);
  }
  return sums[0];
}

template <Norm norm, class C, bool with_old>
double chunk_norm_wide(const C* u, const C* u_old, int64_t count) {
  alignas(64) double sums[lanes] = {};
  const int64_t whole = count - count % lanes;
  for (int64_t row = 0; row < whole; row += lanes)
    add_row<norm, C, with_old>(sums, u + row, with_old ? u_old + row : nullptr, lanes);
  add_row<norm, C, with_old>(sums, u + whole, with_old ? u_old + whole : nullptr, count - whole);
  return fold<norm>(sums, count);
}

template <Norm norm, class T>
double chunk_norm_tile(const T* u, const T* u_old, int64_t count) {
  using C = typename Compute<T>::type;
  if constexpr (is_narrow<T>) {
    alignas(64) C now[chunk], old[chunk];
    widen(now, u, count);
    if (u_old) widen(old, u_old, count);
    return chunk_norm_tile<norm, C>(now, u_old ? old : nullptr, count);
  } else {
    return u_old ? chunk_norm_wide<norm, C, true>(u, u_old, count) : chunk_norm_wide<norm, C, false>(u, u_old, count);
  }
}

// Row by row, so that the loads of all four operands are in flight together.
template <Norm norm, class T>
double update_norm_tile(T* u, const T* f_old, const T* g_new, const T* g_old, const T* u_old, int64_t count) {
  if constexpr (is_narrow<T>) {
    update_tile(u, f_old, g_new, g_old, count);
    return chunk_norm_tile<norm, T>(u, u_old, count);
  } else {
    alignas(64) double sums[lanes] = {};
    const int64_t whole = count - count % lanes;
    for (int64_t row = 0; row < whole; row += lanes) {
#pragma GCC ivdep
      for (int64_t i = row; i < row + lanes; ++i) u[i] = parareal_update_formula(f_old[i], g_new[i], g_old[i]);
      add_row<norm, T, true>(sums, u + row, u_old + row, lanes);
    }
    update_tile(u + whole, f_old + whole, g_new + whole, g_old + whole, count - whole);
    add_row<norm, T, true>(sums, u + whole, u_old + whole, count - whole);
    return fold<norm>(sums, count);
  }
}

template <class T>
constexpr Tiles<T> make_tiles() {
  return {
      update_tile<T>,
      {update_norm_tile<Norm::sum_squares, T>, update_norm_tile<Norm::sum_abs, T>, update_norm_tile<Norm::max_abs, T>},
      c_relax_tile<T>,
      {chunk_norm_tile<Norm::sum_squares, T>, chunk_norm_tile<Norm::sum_abs, T>, chunk_norm_tile<Norm::max_abs, T>}};
}

constexpr TileSet make_tile_set(const char* name) {
  return {name,
          make_tiles<double>(),
          make_tiles<float>(),
          make_tiles<Half>(),
          make_tiles<BFloat16>(),
          make_relax_tiles<double>(),
          make_relax_tiles<float>(),
          make_mlp_tiles<double>(),
          make_mlp_tiles<float>(),
          make_gru_tiles<double>(),
          make_gru_tiles<float>(),
          make_dense_tiles<double>(),
          make_dense_tiles<float>(),
          make_scan_tiles<double>(),
          make_scan_tiles<float>(),
          make_newton_gru_tiles<double>(),
          make_newton_gru_tiles<float>()};
}

}  // namespace
}  // namespace pyparareal::cpu
