// SPDX-License-Identifier: BSD-3-Clause
// The scans, in one pass: a block takes a group of rows of some lanes, a thread one chunk of one lane, whose rows it
// keeps in registers while the state before them is found. That is the end of the last group that has one already, and
// the maps of the groups since (Merrill and Garland 2016, "Single-pass parallel prefix scan with decoupled look-back");
// applied in order, they give the same bits wherever the search ended.
#include <type_traits>

#include "../backend.h"
#include "launch.cuh"
#include "pyparareal/scan.h"

namespace pyparareal::cuda {
namespace {

// Lanes of a block: as few as still are whole sectors of memory, so that some blocks read while others wait. Rows of
// blocks are read twice, the second time from L2.
inline constexpr int wide_lanes = 16, few_lanes = 8, walk_threads = 128, in_flight = 8;

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

// One lane of a block, and what its groups tell each other.
template <class T, int d, int width>
struct ScanLane {
  static constexpr int squares = d * d, parts = squares + d;
  const ScanTask<T>& task;
  const ScanScratch<T>& scratch;
  int64_t item, group, lane;
  int at;  // within the block
  const T *a_lane, *b_lane;

  __device__ __forceinline__ bool no_start(int64_t index) const { return !task.start.data && index == 0; }
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

  __device__ __forceinline__ void read_start(T* x) const {
    const T* from = task.start.data ? task.start.at(0, lane) : nullptr;
#pragma unroll
    for (int p = 0; p < d; ++p) x[p] = from ? from[p * task.start.q] : T(-0.0);  // 0 * -0 + b is b
  }

  __device__ __forceinline__ void read_row(int64_t row, T* a, T* b) const {
    const T* const right = b_lane + row * task.b.lanes.slice_stride;
#pragma unroll
    for (int p = 0; p < d; ++p) b[p] = right[p * task.b.q];
    const bool there = !no_start(row);
    const T* const factors = a_lane + row * task.a.lanes.slice_stride;
#pragma unroll
    for (int e = 0; e < squares; ++e) a[e] = there ? factors[(e / d) * task.a.p + (e % d) * task.a.q] : T(0);
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
      read_start(x);
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
      for (int p = 0; p < d; ++p) end[p] = no_start(next) ? map[squares + p] : end[p];
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
      read_row(row + j, a, b);
      scan_apply<d>(y, a, x, b);
#pragma unroll
      for (int p = 0; p < d; ++p) x[p] = y[p];
    }
  }

  // From the maps of the chunks to their starts. `maps` and `starts` are of this lane.
  __device__ void chain(const T* maps, T* starts) const {
    const int64_t first = group * scan_group;
    const bool last = first + scan_group >= task.steps;
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
      if (first + (c + 1) * scan_rows >= task.steps) return;
      T next[d];
      for (int e = 0; e < parts; ++e) own[e] = maps[(e * scan_chunks + c) * width];
      scan_apply<d>(next, own, x, own + squares);
#pragma unroll
      for (int p = 0; p < d; ++p) next[p] = no_start(first + c) ? own[squares + p] : next[p];
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
    for (int p = 0; p < d; ++p) end[p] = no_start(group) ? whole[squares + p] : end[p];
    tell(scratch.ends, all_finite<d>(end) ? end : x, d, its_end);
  }
};

template <class T, int d, int width>
__global__ void __launch_bounds__(width* scan_chunks) scan_kernel(ScanTask<T> task, ScanScratch<T> scratch) {
  constexpr int squares = d * d, kept = d == 1 ? scan_rows : 1;
  __shared__ T maps[(squares + d) * scan_chunks * width], starts[d * scan_chunks * width];
  __shared__ int64_t ours;
  const int at = static_cast<int>(threadIdx.x) % width, chunk = static_cast<int>(threadIdx.x) / width;
  for (int64_t turn = blockIdx.x;; turn += gridDim.x) {
    // Numbers are given out in order: whoever waits, waits for blocks that run.
    if (threadIdx.x == 0) ours = scratch.ticket ? atomicAdd(scratch.ticket, 1) : turn;
    __syncthreads();
    const int64_t item = ours, group = item / scratch.beside, lane = item % scratch.beside * width + at;
    if (item >= scratch.items) return;
    const int64_t known = lane < task.lanes ? lane : 0;
    const ScanLane<T, d, width> own{task, scratch, item, group, lane, at, task.a.at(0, known), task.b.at(0, known)};
    T* const u_lane = task.u.at(0, known);
    const int64_t first = group * scan_group + chunk * scan_rows;
    const int rows = lane >= task.lanes || first >= task.steps ? 0
                     : task.steps - first < scan_rows          ? static_cast<int>(task.steps - first)
                                                               : scan_rows;
    T a[kept][squares], b[kept][d], A[squares] = {}, B[d] = {};
    if constexpr (d == 1) {
#pragma unroll
      for (int j = 0; j < scan_rows; ++j) {
        a[j][0] = b[j][0] = T(0);
        if (j < rows) own.read_row(first + j, a[j], b[j]);
      }
      A[0] = a[0][0], B[0] = b[0][0];
#pragma unroll
      for (int j = 1; j < scan_rows; ++j) scan_then<d>(A, B, a[j], b[j]);
    } else if (rows == scan_rows) {  // of fewer nobody asks
      own.read_row(first, A, B);
      for (int j = 1; j < scan_rows; ++j) {
        own.read_row(first + j, a[0], b[0]);
        scan_then<d>(A, B, a[0], b[0]);
      }
    }
#pragma unroll
    for (int e = 0; e < squares; ++e) maps[(e * scan_chunks + chunk) * width + at] = A[e];
#pragma unroll
    for (int p = 0; p < d; ++p) maps[((squares + p) * scan_chunks + chunk) * width + at] = B[p];
    __syncthreads();
    if (chunk == 0 && lane < task.lanes) own.chain(maps + at, starts + at);
    __syncthreads();
    T x[d], y[d];
#pragma unroll
    for (int p = 0; p < d; ++p) x[p] = starts[(p * scan_chunks + chunk) * width + at];
#pragma unroll(kept)
    for (int j = 0; j < scan_rows; ++j) {
      if (j >= rows) continue;
      if constexpr (d > 1) own.read_row(first + j, a[0], b[0]);
      scan_apply<d>(y, a[d == 1 ? j : 0], x, b[d == 1 ? j : 0]);
      T* const u = u_lane + (first + j) * task.u.lanes.slice_stride;
#pragma unroll
      for (int p = 0; p < d; ++p) u[p * task.u.q] = x[p] = y[p];
    }
  }
}

// Large blocks: a block per lane takes all steps, a thread some rows of each. The state is the row of u before.
template <class T>
__global__ void __launch_bounds__(walk_threads) walk_kernel(ScanTask<T> task) {
  for (int64_t lane = blockIdx.x; lane < task.lanes; lane += gridDim.x) {
    for (int64_t j = 0; j < task.steps; ++j) {
      const bool from_start = j == 0;
      const T* const x = !from_start ? task.u.at(j - 1, lane) : task.start.data ? task.start.at(0, lane) : nullptr;
      const int64_t pitch = from_start ? task.start.q : task.u.q;
      const T* const b = task.b.at(j, lane);
      T* const u = task.u.at(j, lane);
      for (int64_t p = threadIdx.x; p < task.d; p += blockDim.x) {
        T sum = b[p * task.b.q];
        if (x) {
          const T* const a = task.a.at(j, lane) + p * task.a.p;
          T product = a[0] * x[0];
          for (int64_t q = 1; q < task.d; ++q) product = product + a[q * task.a.q] * x[q * pitch];
          sum = product + sum;
        }
        u[p * task.u.q] = sum;
      }
      __syncthreads();
    }
  }
}

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
};

template <class T, int d, int width>
Status launch_scan(const char* name, const ScanTask<T>& task, const Cut& cut, const Exec& exec) {
  ScanScratch<T> scratch;
  scratch.items = cut.items, scratch.beside = cut.beside;
  if (cut.tells) {
    char* const at = static_cast<char*>(exec.workspace);
    scratch.ticket = reinterpret_cast<int*>(at), scratch.flags = reinterpret_cast<int*>(at + 16);
    scratch.maps = reinterpret_cast<T*>(at + cut.flag_bytes);
    scratch.ends = reinterpret_cast<T*>(at + cut.flag_bytes + cut.maps_bytes);
    const Status cleared =
        status_of(cudaMemsetAsync(at, 0, cut.flag_bytes, static_cast<cudaStream_t>(exec.stream)), "cudaMemsetAsync");
    if (!cleared.ok()) return cleared;
  }
  return launch(name, scan_kernel<T, d, width>, blocks_for(cut.items, 1), width * scan_chunks, 0, exec.stream, task,
                scratch);
}

template <class T>
Status launch_as(const ScanTask<T>& task, const Cut& cut, bool blocks, const Exec& exec) {
  const char* const name = blocks ? "scan_block" : "scan_diag";
  if (cut.d > scan_chunked)
    return launch(name, walk_kernel<T>, blocks_for(task.lanes, 1), walk_threads, 0, exec.stream, task);
  if (cut.width == wide_lanes) return launch_scan<T, 1, wide_lanes>(name, task, cut, exec);
  if (cut.d == 1) return launch_scan<T, 1, few_lanes>(name, task, cut, exec);
  if (cut.d == 2) return launch_scan<T, 2, few_lanes>(name, task, cut, exec);
  if (cut.d == 3) return launch_scan<T, 3, few_lanes>(name, task, cut, exec);
  return launch_scan<T, 4, few_lanes>(name, task, cut, exec);
}

}  // namespace

std::size_t scan_workspace_bytes(const ConstView& b, bool blocks, int32_t) {
  const Cut cut(b, blocks);
  return cut.flag_bytes + cut.maps_bytes + cut.ends_bytes;
}

Status scan(const MutableView& u, const ConstView& a, const ConstView& b, const ConstView& start, bool blocks,
            bool reverse, const Exec& exec) {
  const DeviceGuard guard(b.device_id);
  if (!guard.status().ok()) return guard.status();
  const Cut cut(b, blocks);
  if (cut.items > INT32_MAX) {
    Status status;
    status.code = StatusCode::invalid_value;
    std::snprintf(status.message, sizeof status.message,
                  "b: got %lld groups of rows and lanes, expected fewer than 2^31", static_cast<long long>(cut.items));
    return status;
  }
  return with_wide_type(b.dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch_as(ScanTask<T>(u, a, b, start, blocks, reverse), cut, blocks, exec);
  });
}

}  // namespace pyparareal::cuda
