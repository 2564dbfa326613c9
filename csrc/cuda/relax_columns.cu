// SPDX-License-Identifier: BSD-3-Clause
// relax_tridiagonal: a thread per column, a warp of 32 columns per block; relax_stencil: a block per column.
// All steps are taken in scratch, in shared memory where it fits and else in the workspace.
#include <type_traits>

#include "../backend.h"
#include "launch.cuh"

namespace pyparareal::cuda {
namespace {

inline constexpr int warp = 32, stencil_threads = 128;

// What a block may have of shared memory on every architecture from sm_80 on; in tests both ways are short.
#ifdef PYPARAREAL_EMULATE_CUDA
inline constexpr std::size_t most_shared_bytes = 40 << 10;
#else
inline constexpr std::size_t most_shared_bytes = 96 << 10;
#endif

// Blocks with scratch in the workspace: 4 for each of 132 multiprocessors.
inline constexpr int64_t workspace_blocks = 528;

// 32 elements of 32 columns on their way between memory, where the elements of a column are neighbours, and the
// scratch, where the columns are. The odd pitch keeps both ways free of bank conflicts.
inline constexpr int tile_pitch = warp + 1, tile_size = warp * tile_pitch;

// The same operand of 32 columns.
template <class T>
struct WarpColumns {
  T* const* base;
  int64_t stride;
  int live;
};

template <class T>
__device__ __forceinline__ void tile_in(T* tile, const WarpColumns<const T>& from, int64_t step, int64_t at,
                                        int64_t length) {
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t offset = step + (at + lane) * from.stride;
  __syncthreads();
  if (at + lane < length) {
#pragma unroll 8
    for (int c = 0; c < from.live; ++c) tile[c * tile_pitch + lane] = from.base[c][offset];
  }
  __syncthreads();
}

template <class T>
__device__ __forceinline__ void tile_out(const T* tile, const WarpColumns<T>& to, int64_t step, int64_t at,
                                         int64_t length) {
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t offset = step + (at + lane) * to.stride;
  __syncthreads();
  if (at + lane < length) {
#pragma unroll 8
    for (int c = 0; c < to.live; ++c) to.base[c][offset] = tile[c * tile_pitch + lane];
  }
  __syncthreads();
}

// Loads in flight at each end before the first is used: the compiler may not move a load over a store itself.
inline constexpr int in_flight = 4;

// body(d, lanes of the block) for d in [first, last), in blocks of `in_flight` and then one by one.
template <class Body>
__device__ __forceinline__ void in_blocks(int64_t first, int64_t last, const Body& body) {
  int64_t d = first;
  for (; d + in_flight <= last; d += in_flight) body(d, std::integral_constant<int, in_flight>{});
  for (; d < last; ++d) body(d, std::integral_constant<int, 1>{});
}

// Elimination from both ends, then substitution from the middle: the two halves hide each other's latency.
template <class T>
__device__ __forceinline__ void solve_tridiagonal(T* x, int64_t length, const T* ratio, const T* scale,
                                                  const T* coupling) {
  const int64_t middle = length / 2, end = length - 1;
  const bool odd = length % 2 == 1;
  T low = x[0], high = x[end * warp];
  in_blocks(1, middle, [&](int64_t d, auto block) {
    constexpr int count = decltype(block)::value;  // its conversion to int is a host function
    T v[count], w[count];
#pragma unroll
    for (int k = 0; k < count; ++k) v[k] = x[(d + k) * warp], w[k] = x[(end - d - k) * warp];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      v[k] = low = v[k] - ratio[d + k] * low;
      w[k] = high = w[k] - ratio[end - d - k] * high;
    }
#pragma unroll
    for (int k = 0; k < count; ++k) x[(d + k) * warp] = v[k], x[(end - d - k) * warp] = w[k];
  });
  if (odd && middle > 0) high = x[middle * warp] - ratio[middle] * high;

  high = high * scale[middle];
  if (middle > 0) high = high - coupling[middle] * low;
  x[middle * warp] = low = high;

  in_blocks(1, end - middle + 1, [&](int64_t d, auto block) {
    constexpr int count = decltype(block)::value;  // its conversion to int is a host function
    T v[count], w[count];
#pragma unroll
    for (int k = 0; k < count; ++k) v[k] = x[(middle - d - k) * warp], w[k] = x[(middle + d + k) * warp];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const int64_t i = middle - d - k, j = middle + d + k;
      v[k] = low = v[k] * scale[i] - coupling[i] * low;
      w[k] = high = w[k] * scale[j] - coupling[j] * high;
    }
#pragma unroll
    for (int k = 0; k < count; ++k) x[(middle - d - k) * warp] = v[k], x[(middle + d + k) * warp] = w[k];
  });
  if (!odd) x[0] = x[0] * scale[0] - coupling[0] * low;
}

// The right-hand sides of step j and, unless it is negative, a row of `every`, 32 elements of every column at a time.
template <class T>
__device__ __forceinline__ void end_step(const ColumnTask<T>& task, T* x, T* tile, const WarpColumns<const T>& f,
                                         const WarpColumns<const T>& g, const WarpColumns<T>& every, int64_t j,
                                         int64_t row) {
  const int64_t length = task.space.length;
  const int lane = static_cast<int>(threadIdx.x);
  T* own = tile + lane * tile_pitch;
  for (int64_t at = 0; at < length; at += warp) {
    const int count = static_cast<int>(length - at < warp ? length - at : warp);
    if (task.f.data) tile_in(tile, f, j * task.f.step_stride, at, length);
    if (task.g.data) tile_in(tile + tile_size, g, j * task.g.step_stride, at, length);
    for (int e = 0; e < count && lane < f.live; ++e) {
      T value = x[(at + e) * warp];
      if (task.g.data)
        value = own[e] + (value - own[tile_size + e]);
      else if (task.f.data)
        value = value + own[e];
      x[(at + e) * warp] = own[e] = value;
    }
    if (row >= 0) tile_out(tile, every, row * task.every.step_stride, at, length);
  }
}

template <class T, bool in_shared>
__global__ void __launch_bounds__(warp)
    tridiagonal_kernel(ColumnTask<T> task, const T* ratio, const T* scale, const T* coupling, T* workspace) {
  __shared__ const T* inputs[3][warp];
  __shared__ T* outputs[2][warp];
  const int64_t length = task.space.length, columns = task.space.columns();
  const int lane = static_cast<int>(threadIdx.x);
  T* tile = block_scratch<T>();
  T* x = in_shared ? tile + (task.g.data ? 2 : 1) * tile_size
                   : workspace + static_cast<int64_t>(blockIdx.x) * length * warp;
  x += lane;
  T* own = tile + lane * tile_pitch;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * warp; first < columns;
       first += static_cast<int64_t>(gridDim.x) * warp) {
    const int live = static_cast<int>(columns - first < warp ? columns - first : warp);
    if (lane < live) {
      const int64_t slice = (first + lane) / task.space.batches, batch = (first + lane) % task.space.batches;
      inputs[0][lane] = task.u.column(slice, batch);
      if (task.f.data) inputs[1][lane] = task.f.column(slice, batch);
      if (task.g.data) inputs[2][lane] = task.g.column(slice, batch);
      if (task.every.data) outputs[0][lane] = task.every.column(slice, batch);
      if (task.out.data) outputs[1][lane] = task.out.column(slice, batch);
    }
    const WarpColumns<const T> u{inputs[0], task.u.stride, live}, f{inputs[1], task.f.stride, live},
        g{inputs[2], task.g.stride, live};
    const WarpColumns<T> every{outputs[0], task.every.stride, live}, out{outputs[1], task.out.stride, live};

    for (int64_t at = 0; at < length; at += warp) {
      tile_in(tile, u, 0, at, length);
      for (int e = 0; e < warp && at + e < length; ++e) x[(at + e) * warp] = lane < live ? own[e] : T(0);
    }
    Kept kept(task.period);
    for (int64_t j = 0, rows = 0; j < task.m; ++j) {
      solve_tridiagonal(x, length, ratio, scale, coupling);
      const bool keeps = task.every.data && kept.next();
      if (task.f.data || keeps) end_step(task, x, tile, f, g, every, j, keeps ? rows++ : -1);
    }
    __syncthreads();
    for (int64_t at = 0; task.out.data && at < length; at += warp) {
      for (int e = 0; e < warp && at + e < length; ++e) own[e] = x[(at + e) * warp];
      tile_out(tile, out, 0, at, length);
    }
    __syncthreads();
  }
}

template <class T, bool in_shared>
__global__ void __launch_bounds__(stencil_threads)
    stencil_kernel(ColumnTask<T> task, const T* weights, int width, bool periodic, T* workspace) {
  const int64_t length = task.space.length, radius = width / 2, rows = length + 2 * radius;
  const int64_t thread = threadIdx.x, threads = blockDim.x;
  T* now = (in_shared ? block_scratch<T>() : workspace + static_cast<int64_t>(blockIdx.x) * 2 * rows) + radius;
  T* next = now + rows;
  for (int64_t column = blockIdx.x; column < task.space.columns(); column += gridDim.x) {
    const int64_t slice = column / task.space.batches, batch = column % task.space.batches;
    const T* u = task.u.column(slice, batch);
    const T* f = task.f.data ? task.f.column(slice, batch) : nullptr;
    const T* g = task.g.data ? task.g.column(slice, batch) : nullptr;
    T* every = task.every.data ? task.every.column(slice, batch) : nullptr;
    for (int64_t i = thread; i < length; i += threads) now[i] = u[i * task.u.stride];
    Kept kept(task.period);
    for (int64_t j = 0; j < task.m; ++j) {
      const bool keeps = every && kept.next();
      __syncthreads();
      for (int64_t r = thread + 1; r <= radius; r += threads) {
        now[-r] = periodic ? now[((-r) % length + length) % length] : T(0);
        now[length - 1 + r] = periodic ? now[(r - 1) % length] : T(0);
      }
      __syncthreads();
      for (int64_t i = thread; i < length; i += threads) {
        T sum = weights[0] * now[i - radius];
        for (int k = 1; k < width; ++k) sum = sum + weights[k] * now[i - radius + k];
        if (g)
          sum = f[j * task.f.step_stride + i * task.f.stride] + (sum - g[j * task.g.step_stride + i * task.g.stride]);
        else if (f)
          sum = sum + f[j * task.f.step_stride + i * task.f.stride];
        if (keeps) every[i * task.every.stride] = sum;
        next[i] = sum;
      }
      if (keeps) every += task.every.step_stride;
      T* const old = now;
      now = next, next = old;
    }
    if (task.out.data) {
      T* out = task.out.column(slice, batch);
      for (int64_t i = thread; i < length; i += threads) out[i * task.out.stride] = now[i];
    }
    __syncthreads();
  }
}

std::size_t item_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

std::size_t tridiagonal_scratch(int64_t length, std::size_t item) {
  return static_cast<std::size_t>(length) * warp * item;
}

// Without right-hand sides one tile would do; which they are is not known where scratch is sized.
std::size_t tiles_bytes(std::size_t item) { return 2 * tile_size * item; }

bool tridiagonal_in_shared(int64_t length, std::size_t item) {
  return tridiagonal_scratch(length, item) + tiles_bytes(item) <= most_shared_bytes;
}

std::size_t stencil_scratch(int64_t length, int64_t width, std::size_t item) {
  return 2 * static_cast<std::size_t>(length + width - 1) * item;
}

bool stencil_in_shared(int64_t length, std::size_t item) {
  return stencil_scratch(length, max_stencil, item) <= most_shared_bytes;
}

std::size_t slots(int64_t blocks) {
  return static_cast<std::size_t>(blocks < workspace_blocks ? blocks : workspace_blocks);
}

int64_t warps_of(const ColumnSpace& space) { return (space.columns() + warp - 1) / warp; }

template <class T, class Kernel, class... Arguments>
Status launch_with_scratch(const char* name, Kernel* kernel, bool in_shared, int64_t blocks, int threads,
                           std::size_t shared_bytes, const Exec& exec, const Arguments&... arguments) {
  if (const Status status = allow_shared(name, kernel, shared_bytes); !status.ok()) return status;
  return launch(name, kernel, in_shared ? blocks_for(blocks, 1) : static_cast<unsigned>(slots(blocks)),
                static_cast<unsigned>(threads), shared_bytes, exec.stream, arguments...,
                static_cast<T*>(exec.workspace));
}

}  // namespace

std::size_t relax_tridiagonal_workspace_bytes(const ColumnSpace& space, DType dtype, int32_t) {
  const std::size_t item = item_bytes(dtype);
  return tridiagonal_in_shared(space.length, item) ? 0
                                                   : slots(warps_of(space)) * tridiagonal_scratch(space.length, item);
}

std::size_t relax_stencil_workspace_bytes(const ColumnSpace& space, DType dtype, int32_t) {
  const std::size_t item = item_bytes(dtype);
  return stencil_in_shared(space.length, item)
             ? 0
             : slots(space.columns()) * stencil_scratch(space.length, max_stencil, item);
}

Status relax_tridiagonal(const MutableView& out, const ConstView& u, const ConstView& ratio, const ConstView& scale,
                         const ConstView& coupling, int64_t m, const ConstView& f, const ConstView& g,
                         const MutableView& every, const EndNorms& norms, const Exec& exec) {
  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const Status launched = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ColumnTask<T> task(out, u, m, f, g, every);
    const bool in_shared = tridiagonal_in_shared(task.space.length, sizeof(T));
    const std::size_t tiles = tile_size * sizeof(T) * (g.present() ? 2 : 1);
    const auto launch_this = [&](auto* kernel) {
      return launch_with_scratch<T>("relax_tridiagonal", kernel, in_shared, warps_of(task.space), warp,
                                    tiles + (in_shared ? tridiagonal_scratch(task.space.length, sizeof(T)) : 0), exec,
                                    task, static_cast<const T*>(ratio.data), static_cast<const T*>(scale.data),
                                    static_cast<const T*>(coupling.data));
    };
    return in_shared ? launch_this(tridiagonal_kernel<T, true>) : launch_this(tridiagonal_kernel<T, false>);
  });
  return then_norms(launched, norms);
}

Status relax_stencil(const MutableView& out, const ConstView& u, const ConstView& weights, Boundary boundary, int64_t m,
                     const ConstView& f, const ConstView& g, const MutableView& every, const EndNorms& norms,
                     const Exec& exec) {
  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const Status launched = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ColumnTask<T> task(out, u, m, f, g, every);
    const bool in_shared = stencil_in_shared(task.space.length, sizeof(T));
    const auto launch_this = [&](auto* kernel) {
      return launch_with_scratch<T>("relax_stencil", kernel, in_shared, task.space.columns(), stencil_threads,
                                    in_shared ? stencil_scratch(task.space.length, weights.shape[0], sizeof(T)) : 0,
                                    exec, task, static_cast<const T*>(weights.data), static_cast<int>(weights.shape[0]),
                                    boundary == Boundary::periodic);
    };
    return in_shared ? launch_this(stencil_kernel<T, true>) : launch_this(stencil_kernel<T, false>);
  });
  return then_norms(launched, norms);
}

}  // namespace pyparareal::cuda
