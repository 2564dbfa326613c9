// SPDX-License-Identifier: BSD-3-Clause
// Included by each tiles_*.cpp after its target pragma; everything here has internal linkage, so that
// no copy compiled for a wide instruction set can be linked into code for a narrow one.

namespace pyparareal::cpu {
namespace {

template <class T>
void update_tile(T* u, const T* f_old, const T* g_new, const T* g_old, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) store(u[i], parareal_update_formula(load(f_old[i]), load(g_new[i]), load(g_old[i])));
}

template <class T>
void c_relax_tile(T* u_new, const T* phi, const T* u, typename Compute<T>::type omega,
                  typename Compute<T>::type one_minus_omega, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) store(u_new[i], c_relax_formula(load(phi[i]), load(u[i]), omega, one_minus_omega));
}

template <Norm norm, class T, bool with_old>
void add_row(double* sums, const T* u, const T* u_old, int64_t count) {
  for (int64_t lane = 0; lane < count; ++lane) {
    double d = static_cast<double>(load(u[lane]));
    if (with_old) d = d - static_cast<double>(load(u_old[lane]));
    sums[lane] = norm_combine<norm>(sums[lane], norm_term<norm>(d));
  }
}

template <Norm norm, class T, bool with_old>
double chunk_norm_tile(const T* u, const T* u_old, int64_t count) {
  alignas(64) double sums[lanes] = {};
  const int64_t whole = count - count % lanes;
  for (int64_t row = 0; row < whole; row += lanes)
    add_row<norm, T, with_old>(sums, u + row, with_old ? u_old + row : nullptr, lanes);
  add_row<norm, T, with_old>(sums, u + whole, with_old ? u_old + whole : nullptr, count - whole);
  // Lanes past a short chunk's end hold +0, which changes no bit: halves of zeros are not folded.
  int64_t width = lanes;
  while (width / 2 >= count && width > 1) width /= 2;
  while (width > 1) {
    width /= 2;
    for (int64_t lane = 0; lane < width; ++lane) sums[lane] = norm_combine<norm>(sums[lane], sums[lane + width]);
  }
  return sums[0];
}

template <Norm norm, class T>
double chunk_norm_tile(const T* u, const T* u_old, int64_t count) {
  return u_old ? chunk_norm_tile<norm, T, true>(u, u_old, count) : chunk_norm_tile<norm, T, false>(u, u_old, count);
}

template <class T>
constexpr Tiles<T> make_tiles() {
  return {update_tile<T>,
          c_relax_tile<T>,
          {chunk_norm_tile<Norm::sum_squares, T>, chunk_norm_tile<Norm::sum_abs, T>,
           chunk_norm_tile<Norm::max_abs, T>}};
}

constexpr TileSet make_tile_set(const char* name) {
  return {name, make_tiles<double>(), make_tiles<float>(), make_tiles<Half>(), make_tiles<BFloat16>()};
}

}  // namespace
}  // namespace pyparareal::cpu
