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

// A stored element as what arithmetic is done in, and back.
template <class T>
__device__ __forceinline__ typename Compute<T>::type widen(T x) {
  return load(x);
}

template <class T>
__device__ __forceinline__ T narrow(typename Compute<T>::type value) {
  T x;
  store(x, value);
  return x;
}

// One instruction instead of about ten, with the bits of load() and store(): the integer formulas alone
// would take longer than the memory. Arithmetic has made every NaN the canonical one by then.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ float widen<Half>(Half x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}

template <>
__device__ __forceinline__ Half narrow<Half>(float value) {
  Half x;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(x.bits) : "f"(value));
  return x;
}

template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float value) {
  BFloat16 x;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x.bits) : "f"(value));
  return x;
}
#endif

// Rows whose loads are issued before the first is used: 2 rows x 4 operands x 16 bytes of 256 threads
// are 32 KiB in flight a block. An H200 needs about 4.3 TB/s x 0.7 us / 132 multiprocessors = 23 KB on
// each; the second block, which 128 registers a thread leave room for, hides the arithmetic.
inline constexpr int rows_in_flight = 2;
inline constexpr int blocks_per_multiprocessor = 2;

// One operand of a kernel, on the fast path: every row of every slice starts on a 16-byte boundary.
template <class T, bool packed>
struct Operand {
  T* data;
  int64_t slice_stride;

  __device__ __forceinline__ T* slice(int64_t n) const { return data + n * slice_stride; }
  __device__ __forceinline__ int64_t offset(int64_t feature) const { return feature; }
};

// Any strides: element by element.
template <class T>
struct Operand<T, false> {
  T* data;
  Layout layout;

  __device__ __forceinline__ T* slice(int64_t n) const { return data + n * layout.slice_stride; }
  __device__ __forceinline__ int64_t offset(int64_t feature) const { return layout.offset(feature); }
};

template <class T, class Pointer>
bool is_packed(const View<Pointer>& view) {
  const Layout layout = layout_of(view);
  return !view.present() || (layout.contiguous() && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
                             (view.shape[0] == 1 || (layout.slice_stride * static_cast<int64_t>(sizeof(T))) % 16 == 0));
}

template <class T, bool packed, class Pointer>
Operand<T, packed> operand_of(const View<Pointer>& view) {
  T* data = static_cast<T*>(const_cast<void*>(static_cast<const void*>(view.data)));
  if constexpr (packed)
    return {data, view.present() ? view.stride[0] : 0};
  else
    return {data, layout_of(view)};
}

// Makes one slice of states without gaps between their slices, for ops without a result per slice:
// short slices, as of an ODE, would leave most threads of their groups idle.
template <class... Views>
void merge_slices(Views&... views) {
  const auto dense = [](const auto& view) {
    return layout_of(view).contiguous() && (view.shape[0] == 1 || view.stride[0] == space_of(view).features);
  };
  const auto merge = [](auto& view) {
    const Space space = space_of(view);
    view.ndim = 2;
    view.shape[0] = 1, view.shape[1] = space.slices * space.features;
    view.stride[0] = view.shape[1], view.stride[1] = 1;
  };
  if ((... && dense(views))) (merge(views), ...);
}

// Calls `body` with std::true_type where all operands are on the fast path.
template <class T, class Body, class... Views>
Status with_packing(const Body& body, const Views&... views) {
  return (... && is_packed<T>(views)) ? body(std::true_type{}) : body(std::false_type{});
}

// Loads the lanes feature..feature+width of a slice. Unless they are known to be `whole`, lanes at or
// past `end` are left alone.
template <bool whole, class T, bool packed>
__device__ __forceinline__ void load_pack(Pack<T>& pack, const Operand<T, packed>& operand, const T* slice,
                                          int64_t feature, int64_t end) {
  if constexpr (whole) {
    pack = *reinterpret_cast<const Pack<T>*>(slice + feature);
  } else if (packed && feature + Pack<T>::width <= end) {
    pack = *reinterpret_cast<const Pack<T>*>(slice + feature);
  } else {
#pragma unroll
    for (int lane = 0; lane < Pack<T>::width; ++lane)
      if (feature + lane < end) pack.value[lane] = slice[operand.offset(feature + lane)];
  }
}

template <bool whole, class T, bool packed>
__device__ __forceinline__ void store_pack(const Operand<T, packed>& operand, T* slice, int64_t feature, int64_t end,
                                           const Pack<T>& pack) {
  if constexpr (whole) {
    *reinterpret_cast<Pack<T>*>(slice + feature) = pack;
  } else if (packed && feature + Pack<T>::width <= end) {
    *reinterpret_cast<Pack<T>*>(slice + feature) = pack;
  } else {
#pragma unroll
    for (int lane = 0; lane < Pack<T>::width; ++lane)
      if (feature + lane < end) slice[operand.offset(feature + lane)] = pack.value[lane];
  }
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

template <bool whole>
inline constexpr int rows_of_step = whole ? rows_in_flight : 1;

// step(row, is_whole) for the rows of a chunk: several at a time while they are whole and packed, then
// one by one. A whole step has no branch between its loads, so that all are in flight together; after
// a branch, 16-bit lanes would be unpacked, and so waited for, load by load.
template <bool packed, class Step>
__device__ __forceinline__ void for_rows(const Place& place, const Step& step) {
  int row = 0;
  const int features = static_cast<int>(place.end - place.begin);
  if constexpr (packed) {
#pragma unroll 1
    for (; (row + rows_in_flight) * lanes <= features; row += rows_in_flight) step(row, std::true_type{});
  }
#pragma unroll 1
  for (; row * lanes < features; ++row) step(row, std::false_type{});
}

// The lanes' sums of one thread.
template <class T, Norm norm>
struct LaneSums {
  double value[Pack<T>::width] = {};

  // Adds |u - u_old| of one row as the norm says; `old` is used where with_old.
  template <bool with_old, bool whole>
  __device__ __forceinline__ void add(const Pack<T>& u, const Pack<T>& u_old, int64_t feature, int64_t end) {
#pragma unroll
    for (int lane = 0; lane < Pack<T>::width; ++lane) {
      double d = static_cast<double>(widen(u.value[lane]));
      if (with_old) d = d - static_cast<double>(widen(u_old.value[lane]));
      if (whole || feature + lane < end) value[lane] = norm_combine<norm>(value[lane], norm_term<norm>(d));
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
