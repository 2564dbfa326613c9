// SPDX-License-Identifier: BSD-3-Clause
// scan_diag and scan_block in one pass (scan_lane.cuh). Rows of blocks are read twice, the second time from L2.
#include "scan_lane.cuh"

namespace pyparareal::cuda {
namespace {

inline constexpr int walk_threads = 128;

// The rows of a lane of scan_diag or scan_block.
template <class T, int d>
struct StoredRows {
  const ScanTask<T>& task;
  int64_t lane, steps;
  const T *a_lane, *b_lane;

  __device__ __forceinline__ bool no_start(int64_t index) const { return !task.start.data && index == 0; }

  __device__ __forceinline__ void read_start(T* x) const {
    const T* from = task.start.data ? task.start.at(0, lane) : nullptr;
#pragma unroll
    for (int p = 0; p < d; ++p) x[p] = from ? from[p * task.start.q] : T(-0.0);  // 0 * -0 + b is b
  }

  __device__ __forceinline__ void read(int64_t row, T* a, T* b) const {
    const T* const right = b_lane + row * task.b.lanes.slice_stride;
#pragma unroll
    for (int p = 0; p < d; ++p) b[p] = right[p * task.b.q];
    const bool there = !no_start(row);
    const T* const factors = a_lane + row * task.a.lanes.slice_stride;
#pragma unroll
    for (int e = 0; e < d * d; ++e) a[e] = there ? factors[(e / d) * task.a.p + (e % d) * task.a.q] : T(0);
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
    const StoredRows<T, d> stored{task, lane, task.steps, task.a.at(0, known), task.b.at(0, known)};
    const ScanLane<T, d, width, StoredRows<T, d>> own{stored, scratch, item, group, at};
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
        if (j < rows) stored.read(first + j, a[j], b[j]);
      }
      A[0] = a[0][0], B[0] = b[0][0];
#pragma unroll
      for (int j = 1; j < scan_rows; ++j) scan_then<d>(A, B, a[j], b[j]);
    } else if (rows == scan_rows) {  // of fewer nobody asks
      stored.read(first, A, B);
      for (int j = 1; j < scan_rows; ++j) {
        stored.read(first + j, a[0], b[0]);
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
      if constexpr (d > 1) stored.read(first + j, a[0], b[0]);
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

template <class T, int d, int width>
Status launch_scan(const char* name, const ScanTask<T>& task, const Cut& cut, const Exec& exec) {
  ScanScratch<T> scratch;
  if (Status status = scratch_of(cut, exec, scratch); !status.ok()) return status;
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

std::size_t scan_workspace_bytes(const ConstView& b, bool blocks, int32_t) { return Cut(b, blocks).bytes(); }

Status scan(const MutableView& u, const ConstView& a, const ConstView& b, const ConstView& start, bool blocks,
            bool reverse, const Exec& exec) {
  const DeviceGuard guard(b.device_id);
  if (!guard.status().ok()) return guard.status();
  const Cut cut(b, blocks);
  if (Status status = countable(cut, "b"); !status.ok()) return status;
  return with_wide_type(b.dtype, [&](auto zero) {
    using T = decltype(zero);
    return launch_as(ScanTask<T>(u, a, b, start, blocks, reverse), cut, blocks, exec);
  });
}

}  // namespace pyparareal::cuda
