// SPDX-License-Identifier: BSD-3-Clause
// slice_norms: one pass over the state, chunk partials, fixed tree.
#include "../backend.h"
#include "norm_tree.cuh"
#include "rows.cuh"

namespace pyparareal::cuda {
namespace {

template <class T, bool packed, Norm norm, bool with_old>
__global__ void __launch_bounds__(threads_per_block, blocks_per_multiprocessor)
    norms_kernel(Space space, Operand<T, packed> u, Operand<T, packed> u_old, double* partials) {
  for_chunks<T>(space, [&](const Place& place, int first_lane) {
    const T* slice = u.slice(place.slice);
    const T* old_slice = with_old ? u_old.slice(place.slice) : nullptr;
    LaneSums<T, norm> sums;
    for_rows<packed>(place, [&](int row, auto is_whole) {
      constexpr bool whole = decltype(is_whole)::value;
      constexpr int rows = rows_of_step<whole>;
      const int64_t feature = place.begin + row * lanes + first_lane;
      Pack<T> now[rows], old[rows];
#pragma unroll
      for (int i = 0; i < rows; ++i) {
        load_pack<whole>(now[i], u, slice, feature + i * lanes, place.end);
        if (with_old) load_pack<whole>(old[i], u_old, old_slice, feature + i * lanes, place.end);
      }
#pragma unroll
      for (int i = 0; i < rows; ++i) sums.template add<with_old, whole>(now[i], old[i], feature + i * lanes, place.end);
    });
    const double total = sums.fold();
    if (first_lane == 0) partials[place.slice * space.chunks() + place.index] = total;
  });
}

template <class T>
Status norms_of(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm, const Exec& exec) {
  const Space space = space_of(u);
  if (Status status = check_tree("u", space); !status.ok()) return status;
  auto* result = static_cast<double*>(norms.data);
  auto* partials = space.chunks() > 1 ? static_cast<double*>(exec.workspace) : result;
  const auto launch_with = [&](auto packing, auto kind, auto with_old) {
    constexpr bool packed = decltype(packing)::value;
    return launch("slice_norms", norms_kernel<T, packed, decltype(kind)::value, decltype(with_old)::value>,
                  blocks_for_chunks<T>(space), threads_per_block, 0, exec.stream, space, operand_of<T, packed>(u),
                  operand_of<T, packed>(u_old), partials);
  };
  const Status status = with_packing<T>(
      [&](auto packing) {
        return with_norm(norm, [&](auto kind) {
          return u_old.present() ? launch_with(packing, kind, std::true_type{})
                                 : launch_with(packing, kind, std::false_type{});
        });
      },
      u, u_old);
  return status.ok() ? reduce_partials(result, space, norm, exec) : status;
}

}  // namespace

Status slice_norms(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm, const Exec& exec) {
  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();
  if (space_of(u).features == 0) return zero_norms(norms, exec);

  return with_storage_type(u.dtype, [&](auto zero) { return norms_of<decltype(zero)>(norms, u, u_old, norm, exec); });
}

}  // namespace pyparareal::cuda
