// SPDX-License-Identifier: BSD-3-Clause
// How the CUDA kernels walk [slices, features]: one group of threads per chunk, each thread owning the
// same few neighbouring lanes of every row, so that a row is one coalesced access of 16 bytes a thread
// and the lane sums of layout.h stay in registers.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "pyparareal/layout.h"

namespace pyparareal::cuda {

// `width` lanes of a thread: 16 bytes.
template <class T>
struct alignas(16) Pack {
  static constexpr int width = 16 / static_cast<int>(sizeof(T));
  T value[width];
};

template <class T>
inline constexpr int group_size = static_cast<int>(lanes) / Pack<T>::width;  // 32, 16 or 8 threads

inline constexpr int rows_per_chunk = static_cast<int>(chunk / lanes);

// Rows whose loads are issued before the first is used: 2 rows x 4 operands x 16 bytes of 256 threads
// are 32 KiB in flight a block, and registers leave room for at least two blocks on a multiprocessor.
// An H200 needs about 4.3 TB/s x 0.7 us / 132 multiprocessors = 23 KB in flight on each.
inline constexpr int rows_in_flight = 2;

// One operand of a kernel, on the fast path: every row of every slice starts on a 16-byte boundary.
template <class T, bool packed>
struct Operand {
  T* data;
  int64_t slice_stride;

  static constexpr int rows = rows_in_flight;
  __device__ __forceinline__ T* slice(int64_t n) const { return data + n * slice_stride; }
  __device__ __forceinline__ int64_t offset(int64_t feature) const { return feature; }
};

// Any strides: element by element, one row at a time.
template <class T>
struct Operand<T, false> {
  T* data;
  Layout layout;

  static constexpr int rows = 1;
  __device__ __forceinline__ T* slice(int64_t n) const { return data + n * layout.slice_stride; }
  __device__ __forceinline__ int64_t offset(int64_t feature) const { return layout.offset(feature); }
};

template <class T, class Pointer>
bool is_packed(const View<Pointer>& view) {
  const Layout layout = layout_of(view);
  return !view.present() || (layout.contiguous() && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
                             (layout.slice_stride * static_cast<int64_t>(sizeof(T))) % 16 == 0);
}

template <class T, bool packed, class Pointer>
Operand<T, packed> operand_of(const View<Pointer>& view) {
  T* data = static_cast<T*>(const_cast<void*>(static_cast<const void*>(view.data)));
  if constexpr (packed)
    return {data, view.present() ? view.stride[0] : 0};
  else
    return {data, layout_of(view)};
}

// Calls `body` with std::true_type where all operands are on the fast path.
template <class T, class Body, class... Views>
Status with_packing(const Body& body, const Views&... views) {
  return (... && is_packed<T>(views)) ? body(std::true_type{}) : body(std::false_type{});
}

// Loads the lanes feature..feature+width of a slice; lanes at or past `end` are left alone.
template <class T, bool packed>
__device__ __forceinline__ void load_pack(Pack<T>& pack, const Operand<T, packed>& operand, const T* slice,
                                          int64_t feature, int64_t end) {
  if (packed && feature + Pack<T>::width <= end) {
    pack = *reinterpret_cast<const Pack<T>*>(slice + feature);
    return;
  }
#pragma unroll
  for (int lane = 0; lane < Pack<T>::width; ++lane)
    if (feature + lane < end) pack.value[lane] = slice[operand.offset(feature + lane)];
}

template <class T, bool packed>
__device__ __forceinline__ void store_pack(const Operand<T, packed>& operand, T* slice, int64_t feature, int64_t end,
                                           const Pack<T>& pack) {
  if (packed && feature + Pack<T>::width <= end) {
    *reinterpret_cast<Pack<T>*>(slice + feature) = pack;
    return;
  }
#pragma unroll
  for (int lane = 0; lane < Pack<T>::width; ++lane)
    if (feature + lane < end) slice[operand.offset(feature + lane)] = pack.value[lane];
}

// A thread's place: which chunk its group works on, and which lanes are its own.
struct Place {
  int64_t slice, index, begin, end;  // features [begin, end) of a slice
};

__device__ __forceinline__ Place place_of(const Space& space, int64_t item) {
  const int64_t chunks = space.chunks();
  Place place;
  place.slice = item / chunks;
  place.index = item - place.slice * chunks;
  place.begin = place.index * chunk;
  place.end = place.begin + chunk < space.features ? place.begin + chunk : space.features;
  return place;
}

// body(place, first_lane) for the chunks of this thread's group.
template <class T, class Body>
__device__ __forceinline__ void for_chunks(const Space& space, const Body& body) {
  constexpr int group = group_size<T>;
  const int64_t items = space.slices * space.chunks();
  const int64_t groups = static_cast<int64_t>(gridDim.x) * (blockDim.x / group);
  const int member = static_cast<int>(threadIdx.x) % group;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * (blockDim.x / group) + threadIdx.x / group; item < items;
       item += groups)
    body(place_of(space, item), member * Pack<T>::width);
}

// The lanes' sums of one thread.
template <class T, Norm norm>
struct LaneSums {
  double value[Pack<T>::width] = {};

  // Adds |u - u_old| of one row as the norm says; `old` is used where with_old.
  template <bool with_old>
  __device__ __forceinline__ void add(const Pack<T>& u, const Pack<T>& u_old, int64_t feature, int64_t end) {
#pragma unroll
    for (int lane = 0; lane < Pack<T>::width; ++lane) {
      double d = static_cast<double>(load(u.value[lane]));
      if (with_old) d = d - static_cast<double>(load(u_old.value[lane]));
      if (feature + lane < end) value[lane] = norm_combine<norm>(value[lane], norm_term<norm>(d));
    }
  }

  // The fold of layout.h: halves across threads first, then within a thread. Valid in a group's first thread.
  __device__ __forceinline__ double fold() {
    constexpr int group = group_size<T>;
    const unsigned in_warp = threadIdx.x % 32u;
    const unsigned members = group == 32 ? 0xffffffffu : ((1u << group) - 1u) << (in_warp - in_warp % group);
#pragma unroll
    for (int distance = group / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int lane = 0; lane < Pack<T>::width; ++lane)
        value[lane] = norm_combine<norm>(value[lane], __shfl_down_sync(members, value[lane], distance, group));
    }
#pragma unroll
    for (int half = Pack<T>::width / 2; half > 0; half /= 2) {
#pragma unroll
      for (int lane = 0; lane < half; ++lane) value[lane] = norm_combine<norm>(value[lane], value[lane + half]);
    }
    return value[0];
  }
};

template <class T>
unsigned blocks_for_chunks(const Space& space) {
  return blocks_for(space.slices * space.chunks() * group_size<T>, threads_per_block);
}

}  // namespace pyparareal::cuda
