// SPDX-License-Identifier: BSD-3-Clause
// newton_gru in one pass (scan_lane.cuh): a thread computes the rows of its chunk from the operands, and keeps them in
// registers while the state before them is found.
#include "pyparareal/newton_gru.h"

#include "pyparareal/gru_formulas.h"
#include "scan_lane.cuh"

namespace pyparareal::cuda {
namespace {

// The rows of one lane: a unit of a batch index, where it lies in row 0 of every operand.
template <class T>
struct GruRows {
  const NewtonGruTask<T>& task;
  int64_t steps;
  const T *u, *products, *gates;
  T *out, *jacobians;
  T bias, w_r, w_z, w_n;

  __device__ GruRows(const NewtonGruTask<T>& of, int64_t lane) : task(of), steps(of.steps) {
    const int64_t batch = lane / of.hidden, i = lane % of.hidden;
    u = of.u.column(0, batch) + i * of.u.stride;
    products = of.products.column(0, batch) + i * of.products.stride;
    gates = of.gates.column(0, batch) + i * of.gates.stride;
    out = of.out.column(0, batch) + i * of.out.stride;
    jacobians = of.jacobians.data ? of.jacobians.column(0, batch) + i * of.jacobians.stride : nullptr;
    bias = of.bias_at(i);
    w_r = of.diagonal_at(0, i), w_z = of.diagonal_at(1, i), w_n = of.diagonal_at(2, i);
  }

  __device__ __forceinline__ bool no_start(int64_t index) const { return index == 0; }
  __device__ __forceinline__ void read_start(T* x) const { *x = T(-0.0); }  // 0 * -0 + f is f
  __device__ __forceinline__ T state(int64_t row) const { return u[row * task.u.batch.slice_stride]; }

  // The step from h, the state of the row, and the diagonal of its Jacobian.
  __device__ __forceinline__ void linearise(int64_t row, T h, T& f, T& jacobian) const {
    const T* const p = products + row * task.products.batch.slice_stride;
    const T* const a = gates + row * task.gates.batch.slice_stride;
    const int64_t to_p = task.hidden * task.products.stride, to_a = task.hidden * task.gates.stride;
    const auto g =
        GruGates<T, T>::template of<ScalarMlpMath>(a[0], a[to_a], a[2 * to_a], p[0], p[to_p], p[2 * to_p], bias);
    f = g.template next<ScalarMlpMath>(h);
    jacobian = g.template own_derivative<ScalarMlpMath>(h, w_r, w_z, w_n);
  }

  __device__ __forceinline__ T factor_of(int64_t row, T jacobian) const {
    return row == 0 ? T(0) : jacobian * task.factor;
  }

  __device__ __forceinline__ void read(int64_t row, T* a, T* b) const {
    T f, jacobian;
    linearise(row, state(row), f, jacobian);
    *a = factor_of(row, jacobian), *b = f - state(row + 1);
  }
};

// The largest |x| of neighbouring lanes, to where the first of them finds it. All threads of a warp take part.
template <int width, class T>
__device__ __forceinline__ void note_norm(double* norms, int64_t row, bool there, T x, int at) {
  if (!norms) return;
  double most = there ? newton_magnitude(x) : 0.0;
#pragma unroll
  for (int delta = width / 2; delta > 0; delta /= 2)
    most = norm_combine<Norm::max_abs>(most, __shfl_down_sync(0xffffffffu, most, delta, width));
  // Magnitudes are ordered as their bits are, with a NaN above all.
  unsigned long long bits;
  __builtin_memcpy(&bits, &most, sizeof bits);
  if (at == 0 && bits) atomicMax(reinterpret_cast<unsigned long long*>(norms + row), bits);
}

struct NewtonNorms {
  double *residuals, *updates;
};

template <class T, int width>
__global__ void __launch_bounds__(width* scan_chunks, 1)
    newton_gru_kernel(NewtonGruTask<T> task, ScanScratch<T> scratch, NewtonNorms norms) {
  __shared__ T maps[2 * scan_chunks * width], starts[scan_chunks * width];
  __shared__ int64_t ours;
  const int at = static_cast<int>(threadIdx.x) % width, chunk = static_cast<int>(threadIdx.x) / width;
  for (int64_t turn = blockIdx.x;; turn += gridDim.x) {
    // Numbers are given out in order: whoever waits, waits for blocks that run.
    if (threadIdx.x == 0) ours = scratch.ticket ? atomicAdd(scratch.ticket, 1) : turn;
    __syncthreads();
    const int64_t item = ours, group = item / scratch.beside, lane = item % scratch.beside * width + at;
    if (item >= scratch.items) return;
    const GruRows<T> stored(task, lane < task.lanes ? lane : 0);
    const ScanLane<T, 1, width, GruRows<T>> own{stored, scratch, item, group, at};
    const int64_t first = group * scan_group + chunk * scan_rows;
    const int rows = lane >= task.lanes || first >= task.steps ? 0
                     : task.steps - first < scan_rows          ? static_cast<int>(task.steps - first)
                                                               : scan_rows;
    T a[scan_rows], b[scan_rows], f[scan_rows];
    T h = rows ? stored.state(first) : T(0);
#pragma unroll
    for (int j = 0; j < scan_rows; ++j) {
      a[j] = b[j] = f[j] = T(0);
      if (j >= rows) continue;
      T jacobian;
      stored.linearise(first + j, h, f[j], jacobian);
      h = stored.state(first + j + 1);
      a[j] = stored.factor_of(first + j, jacobian), b[j] = f[j] - h;
      if (stored.jacobians) stored.jacobians[(first + j) * task.jacobians.batch.slice_stride] = jacobian;
    }
    T A = a[0], B = b[0];
#pragma unroll
    for (int j = 1; j < scan_rows; ++j) scan_then<1>(&A, &B, &a[j], &b[j]);
    maps[chunk * width + at] = A, maps[(scan_chunks + chunk) * width + at] = B;
    __syncthreads();
    if (chunk == 0 && lane < task.lanes) own.chain(maps + at, starts + at);
    __syncthreads();
    T x = starts[chunk * width + at];
#pragma unroll
    for (int j = 0; j < scan_rows; ++j) {
      const int64_t row = first + j;
      note_norm<width>(norms.residuals, row, j < rows, b[j], at);
      const T moved = a[j] * x;
      x = moved + b[j];
      if (j < rows) stored.out[row * task.out.batch.slice_stride] = f[j] + moved;
      note_norm<width>(norms.updates, row, j < rows, x, at);
    }
  }
}

// A view of what is scanned: rows like those of u, one fewer.
ConstView rows_of(const ConstView& u) {
  ConstView rows = u;
  --rows.shape[0];
  return rows;
}

Status cleared(double* norms, int64_t steps, const Exec& exec) {
  if (!norms) return {};
  const std::size_t bytes = static_cast<std::size_t>(steps) * sizeof(double);
  return status_of(cudaMemsetAsync(norms, 0, bytes, static_cast<cudaStream_t>(exec.stream)), "cudaMemsetAsync");
}

template <class T, int width>
Status launch_newton(const NewtonGruTask<T>& task, const Cut& cut, const NewtonNorms& norms, const Exec& exec) {
  ScanScratch<T> scratch;
  if (Status status = scratch_of(cut, exec, scratch); !status.ok()) return status;
  for (double* const each : {norms.residuals, norms.updates})
    if (Status status = cleared(each, task.steps, exec); !status.ok()) return status;
  return launch("newton_gru", newton_gru_kernel<T, width>, blocks_for(cut.items, 1), width * scan_chunks, 0,
                exec.stream, task, scratch, norms);
}

}  // namespace

std::size_t newton_gru_workspace_bytes(const ConstView& u, int32_t) { return Cut(rows_of(u), false).bytes(); }

Status newton_gru(const MutableView& out, const MutableView& jacobians, const MutableView& residuals,
                  const MutableView& updates, const ConstView& u, const ConstView& products, const ConstView& gates,
                  const ConstView& diagonal, const ConstView& bias, double factor, const Exec& exec) {
  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();
  const Cut cut(rows_of(u), false);
  if (Status status = countable(cut, "u"); !status.ok()) return status;
  const NewtonNorms norms{static_cast<double*>(residuals.data), static_cast<double*>(updates.data)};
  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const NewtonGruTask<T> task(out, jacobians, u, products, gates, diagonal, bias, factor);
    return cut.width == wide_lanes ? launch_newton<T, wide_lanes>(task, cut, norms, exec)
                                   : launch_newton<T, few_lanes>(task, cut, norms, exec);
  });
}

}  // namespace pyparareal::cuda
