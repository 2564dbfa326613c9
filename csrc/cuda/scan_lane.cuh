// SPDX-License-Identifier: BSD-3-Clause
// The scans in one pass: a block takes a group of rows of some lanes, a thread one chunk of one lane, whose rows it
// keeps in registers while the state before them is found. That is the end of the last group that has one already, and
// the maps of the groups since (Merrill and Garland 2016, "Single-pass parallel prefix scan with decoupled look-back");
// applied in order, they give the same bits wherever the search ended.
#pragma once

#include <type_traits>

#include "../backend.h"
#include "launch.cuh"
#include "pyparareal/scan.h"

namespace pyparareal::cuda {

// Lanes of a block: as few as still are whole sectors of memory, so that some blocks read while others wait. Rows of
// blocks are read twice, the second time from L2.
inline constexpr int wide_lanes = 16, few_lanes = 8, in_flight = 8;

// What a group has told those after it.
enum : int { nothing = 0, its_map = 1, its_end = 2 };

// A number of every group and lane of a block: maps and ends [parts], flags, and the next block's number.
template <class T>
struct ScanScratch {
  T *maps = nullptr, *ends = nullptr;
  int *flags = nullptr, *ticket = nullptr;  // null: of one group alone there is nothing to tell
  int64_t items = 0, beside = 0;            // blocks, and those of the same rows
};

template <class T>
__device__ __forceinline__ bool finite(T x) {
  return x - x == T(0);
}

template <int d, class T>
__device__ __forceinline__ bool all_finite(const T* x) {
  bool good = true;
#pragma unroll
  for (int p = 0; p < d; ++p) good = good && finite(x[p]);
  return good;
}

template <class T>
__device__ __forceinline__ T seen(const T* at) {
  return *static_cast<const volatile T*>(at);
}

// One lane of a block, and what its groups tell each other. Its Rows have `steps`, read(row, a, b) of a row's factors
// and right side, no_start(index) of the first row, chunk or group without a state before it, and read_start(x).
template <class T, int d, int width, class Rows>
struct ScanLane {
  static constexpr int squares = d * d, parts = squares + d;
  const Rows& rows;
  const ScanScratch<T>& scratch;
  int64_t item, group;
  int at;  // within the block

  __device__ __forceinline__ int64_t slot(int64_t of_group) const {
    return (item + (of_group - group) * scratch.beside) * width + at;
  }
  __device__ __forceinline__ int told(int64_t of_group) const { return seen(scratch.flags + slot(of_group)); }

  __device__ __forceinline__ void tell(T* to, const T* numbers, int count, int flag) const {
    for (int e = 0; e < count; ++e) to[e * scratch.items * width + slot(group)] = numbers[e];
    __threadfence();
    *static_cast<volatile int*>(scratch.flags + slot(group)) = flag;
  }

  __device__ __forceinline__ void ask(T* numbers, const T* of, int count, int64_t of_group) const {
    for (int e = 0; e < count; ++e) numbers[e] = seen(of + e * scratch.items * width + slot(of_group));
  }

  // The last group before this one that may tell its end; -1 is the start of all.
  __device__ __forceinline__ int64_t nearest_end() const {
    int64_t before = group - 1;
    while (before >= 0) {
      int flags[in_flight];
#pragma unroll
      for (int i = 0; i < in_flight; ++i) flags[i] = before >= i ? told(before - i) : its_end;
#ifdef PYPARAREAL_EMULATE_CUDA
      if (emulate::settings.far_starts)  // there, every group before has ended
        for (int i = 0; i < in_flight; ++i) flags[i] = before >= i ? int(its_map) : int(its_end);
#endif
      int some = 0, other = its_map;
#pragma unroll
      for (int i = 0; i < in_flight; ++i)
        if (other == its_map) other = flags[i], some += other == its_map;
      before -= some;
      if (other == its_end) break;
    }
    return before < 0 ? -1 : before;
  }

  // The state before the group.
  __device__ void find_start(T* x) const {
    const int64_t from = nearest_end();
    if (from < 0) {
      rows.read_start(x);
    } else {
      __threadfence();
      ask(x, scratch.ends, d, from);
    }
    for (int64_t next = from + 1; next < group; ++next) {
      T map[parts], end[d];
      __threadfence();
      ask(map, scratch.maps, parts, next);
      scan_apply<d>(end, map, x, map + squares);
#pragma unroll
      for (int p = 0; p < d; ++p) end[p] = rows.no_start(next) ? map[squares + p] : end[p];
      if (!all_finite<d>(end)) {
        while (told(next) != its_end) continue;
        __threadfence();
        ask(end, scratch.ends, d, next);
      }
#pragma unroll
      for (int p = 0; p < d; ++p) x[p] = end[p];
    }
  }

  // The rows of a chunk one by one, where its map does not give the end.
  __device__ void follow(int64_t row, T* x) const {
    for (int j = 0; j < scan_rows; ++j) {
      T a[squares], b[d], y[d];
      rows.read(row + j, a, b);
      scan_apply<d>(y, a, x, b);
#pragma unroll
      for (int p = 0; p < d; ++p) x[p] = y[p];
    }
  }

  // From the maps of the chunks to their starts. `maps` and `starts` are of this lane.
  __device__ void chain(const T* maps, T* starts) const {
    const int64_t first = group * scan_group;
    const bool last = first + scan_group >= rows.steps;
    T whole[parts], own[parts], x[d], start[d];
    if (!last) {
      for (int e = 0; e < parts; ++e) whole[e] = maps[e * scan_chunks * width];
      for (int c = 1; c < scan_chunks; ++c) {
        for (int e = 0; e < parts; ++e) own[e] = maps[(e * scan_chunks + c) * width];
        scan_then<d>(whole, whole + squares, own, own + squares);
      }
      tell(scratch.maps, whole, parts, its_map);
    }
    find_start(x);
#pragma unroll
    for (int p = 0; p < d; ++p) start[p] = x[p];
    for (int c = 0; c < scan_chunks; ++c) {
      for (int p = 0; p < d; ++p) starts[(p * scan_chunks + c) * width] = x[p];
      if (first + (c + 1) * scan_rows >= rows.steps) return;
      T next[d];
      for (int e = 0; e < parts; ++e) own[e] = maps[(e * scan_chunks + c) * width];
      scan_apply<d>(next, own, x, own + squares);
#pragma unroll
      for (int p = 0; p < d; ++p) next[p] = rows.no_start(first + c) ? own[squares + p] : next[p];
      if (all_finite<d>(next)) {
#pragma unroll
        for (int p = 0; p < d; ++p) x[p] = next[p];
      } else {
        follow(first + c * scan_rows, x);
      }
    }
    T end[d];
    scan_apply<d>(end, whole, start, whole + squares);
#pragma unroll
    for (int p = 0; p < d; ++p) end[p] = rows.no_start(group) ? whole[squares + p] : end[p];
    tell(scratch.ends, all_finite<d>(end) ? end : x, d, its_end);
  }
};

// How a scan is cut: its blocks, and their scratch.
struct Cut {
  int64_t d, width, items, beside;
  bool tells;
  std::size_t flag_bytes, maps_bytes, ends_bytes;

  Cut(const ConstView& b, bool blocks) {
    const int item_bytes = b.dtype == DType::float64 ? 8 : 4;
    const int64_t steps = b.shape[0];
    int64_t lanes = 1;
    for (int axis = 1; axis < b.ndim - (blocks ? 1 : 0); ++axis) lanes *= b.shape[axis];
    d = blocks ? b.shape[b.ndim - 1] : 1;
    width = d > 1 || lanes <= few_lanes ? few_lanes : wide_lanes;
    const int64_t groups = (steps + scan_group - 1) / scan_group;
    beside = (lanes + width - 1) / width;
    items = groups * beside;
    tells = groups > 1 && d <= scan_chunked;
    const auto numbers = [&](int64_t count, int64_t bytes) {
      return tells ? static_cast<std::size_t>((count * items * width * bytes + 15) / 16 * 16) : 0;
    };
    flag_bytes = tells ? 16 + numbers(1, sizeof(int)) : 0;
    maps_bytes = numbers(d * d + d, item_bytes), ends_bytes = numbers(d, item_bytes);
  }
  std::size_t bytes() const { return flag_bytes + maps_bytes + ends_bytes; }
};

// The scratch of a call, where nothing has been told yet.
template <class T>
Status scratch_of(const Cut& cut, const Exec& exec, ScanScratch<T>& scratch) {
  scratch.items = cut.items, scratch.beside = cut.beside;
  if (!cut.tells) return {};
  char* const at = static_cast<char*>(exec.workspace);
  scratch.ticket = reinterpret_cast<int*>(at), scratch.flags = reinterpret_cast<int*>(at + 16);
  scratch.maps = reinterpret_cast<T*>(at + cut.flag_bytes);
  scratch.ends = reinterpret_cast<T*>(at + cut.flag_bytes + cut.maps_bytes);
  return status_of(cudaMemsetAsync(at, 0, cut.flag_bytes, static_cast<cudaStream_t>(exec.stream)), "cudaMemsetAsync");
}

// More blocks than can be numbered are refused.
inline Status countable(const Cut& cut, const char* name) {
  Status status;
  if (cut.items <= INT32_MAX) return status;
  status.code = StatusCode::invalid_value;
  std::snprintf(status.message, sizeof status.message,
                "%s: got %lld groups of rows and lanes, expected fewer than 2^31", name,
                static_cast<long long>(cut.items));
  return status;
}

}  // namespace pyparareal::cuda
