// SPDX-License-Identifier: BSD-3-Clause
// parareal_update and c_relax: elementwise combinations of states, with the jump norm in the same pass.
#include "../backend.h"
#include "norm_tree.cuh"
#include "rows.cuh"

namespace pyparareal::cuda {
namespace {

// All loads of several rows come before their first store: u may be the same view as an input,
// so the compiler could not reorder them itself.
template <class T, bool packed, Norm norm, bool with_jump>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    update_kernel(Space space, Operand<T, packed> u, Operand<T, packed> f_old, Operand<T, packed> g_new,
                  Operand<T, packed> g_old, Operand<T, packed> u_old, double* partials) {
  for_chunks<T>(space, [&](const Place& place, int first_lane) {
    T* u_slice = u.slice(place.slice);
    const T* f_slice = f_old.slice(place.slice);
    const T* g_slice = g_new.slice(place.slice);
    const T* h_slice = g_old.slice(place.slice);
    const T* old_slice = with_jump ? u_old.slice(place.slice) : nullptr;
    LaneSums<T, norm> sums;
    for_rows<packed>(place, [&](int row, auto is_whole) {
      constexpr bool whole = decltype(is_whole)::value;
      constexpr int rows = rows_of_step<whole>;
      const int64_t feature = place.begin + row * lanes + first_lane;
      Pack<T> f[rows], g[rows], h[rows], old[rows];
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        load_pack<whole>(f[i], f_old, f_slice, feature + i * lanes, place.end);
        load_pack<whole>(g[i], g_new, g_slice, feature + i * lanes, place.end);
        load_pack<whole>(h[i], g_old, h_slice, feature + i * lanes, place.end);
        if (with_jump) load_pack<whole>(old[i], u_old, old_slice, feature + i * lanes, place.end);
      }
#pragma unroll
      for (int i = 0; i < rows; ++i) {
#pragma unroll
        for (int lane = 0; lane < Pack<T>::width; ++lane)
          f[i].value[lane] = narrow<T>(
              parareal_update_formula(widen(f[i].value[lane]), widen(g[i].value[lane]), widen(h[i].value[lane])));
        store_pack<whole>(u, u_slice, feature + i * lanes, place.end, f[i]);
        if (with_jump) sums.template add<true, whole>(f[i], old[i], feature + i * lanes, place.end);
      }
    });
    if (with_jump) {
      const double total = sums.fold();
      if (first_lane == 0) partials[place.slice * space.chunks() + place.index] = total;
    }
  });
}

template <class T, bool packed>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    c_relax_kernel(Space space, Operand<T, packed> u_new, Operand<T, packed> phi, Operand<T, packed> u,
                   typename Compute<T>::type omega, typename Compute<T>::type one_minus_omega) {
  for_chunks<T>(space, [&](const Place& place, int first_lane) {
    const T* phi_slice = phi.slice(place.slice);
    const T* u_slice = u.slice(place.slice);
    for_rows<packed>(place, [&](int row, auto is_whole) {
      constexpr bool whole = decltype(is_whole)::value;
      constexpr int rows = rows_of_step<whole>;
      const int64_t feature = place.begin + row * lanes + first_lane;
      Pack<T> left[rows], right[rows];
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        load_pack<whole>(left[i], phi, phi_slice, feature + i * lanes, place.end);
        load_pack<whole>(right[i], u, u_slice, feature + i * lanes, place.end);
      }
#pragma unroll
      for (int i = 0; i < rows; ++i) {
#pragma unroll
        for (int lane = 0; lane < Pack<T>::width; ++lane)
          left[i].value[lane] = narrow<T>(
              c_relax_formula(widen(left[i].value[lane]), widen(right[i].value[lane]), omega, one_minus_omega));
        store_pack<whole>(u_new, u_new.slice(place.slice), feature + i * lanes, place.end, left[i]);
      }
    });
  });
}

template <class T>
Status update(MutableView u, ConstView f_old, ConstView g_new, ConstView g_old, const ConstView& u_old,
              const MutableView& jump, Norm norm, const Exec& exec) {
  if (!u_old.present()) merge_slices(u, f_old, g_new, g_old);
  const Space space = space_of(f_old);
  if (Status status = u_old.present() ? check_tree("u_old", space) : Status{}; !status.ok()) return status;
  auto* norms = static_cast<double*>(jump.data);
  auto* partials = space.chunks() > 1 ? static_cast<double*>(exec.workspace) : norms;
  const auto launch_with = [&](auto packing, auto kind, auto with_jump) {
    constexpr bool packed = decltype(packing)::value;
    return launch("parareal_update", update_kernel<T, packed, decltype(kind)::value, decltype(with_jump)::value>,
                  blocks_for_chunks<T>(space), threads_per_block, 0, exec.stream, space, operand_of<T, packed>(u),
                  operand_of<T, packed>(f_old), operand_of<T, packed>(g_new), operand_of<T, packed>(g_old),
                  operand_of<T, packed>(u_old), partials);
  };
  const Status status = with_packing<T>(
      [&](auto packing) {
        if (!u_old.present())
          return launch_with(packing, std::integral_constant<Norm, Norm::sum_squares>{}, std::false_type{});
        return with_norm(norm, [&](auto kind) { return launch_with(packing, kind, std::true_type{}); });
      },
      u, f_old, g_new, g_old, u_old);
  return status.ok() && u_old.present() ? reduce_partials(norms, space, norm, exec) : status;
}

template <class T>
Status relax(MutableView u_new, ConstView phi, ConstView u, double omega, const Exec& exec) {
  using C = typename Compute<T>::type;
  merge_slices(u_new, phi, u);
  const Space space = space_of(phi);
  return with_packing<T>(
      [&](auto packing) {
        constexpr bool packed = decltype(packing)::value;
        return launch("c_relax", c_relax_kernel<T, packed>, blocks_for_chunks<T>(space), threads_per_block, 0,
                      exec.stream, space, operand_of<T, packed>(u_new), operand_of<T, packed>(phi),
                      operand_of<T, packed>(u), static_cast<C>(omega), static_cast<C>(1.0 - omega));
      },
      u_new, phi, u);
}

}  // namespace

Status parareal_update(const MutableView& u, const ConstView& f_old, const ConstView& g_new, const ConstView& g_old,
                       const ConstView& u_old, const MutableView& jump, Norm norm, const Exec& exec) {
  const DeviceGuard guard(f_old.device_id);
  if (!guard.status().ok()) return guard.status();
  if (space_of(f_old).features == 0) return zero_norms(jump, exec);

  return with_storage_type(
      f_old.dtype, [&](auto zero) { return update<decltype(zero)>(u, f_old, g_new, g_old, u_old, jump, norm, exec); });
}

Status c_relax(const MutableView& u_new, const ConstView& phi, const ConstView& u, double omega, const Exec& exec) {
  const DeviceGuard guard(phi.device_id);
  if (!guard.status().ok()) return guard.status();

  return with_storage_type(phi.dtype, [&](auto zero) { return relax<decltype(zero)>(u_new, phi, u, omega, exec); });
}

}  // namespace pyparareal::cuda
