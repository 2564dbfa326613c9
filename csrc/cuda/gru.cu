// SPDX-License-Identifier: BSD-3-Clause
// relax_gru and its adjoint: a block takes a few rows through all steps. The weights stay in shared memory where they
// fit, of sm_90 up to 137 hidden units in float32 and 97 in float64 (adjoint: 135 and 94); wider ones are transposed
// into the workspace once and come from L2 at every step. A thread has one hidden unit of four rows at a time, so that
// each weight it reads is used four times; every sum is one chain in the order of its index, as on the CPU.
#include "../backend.h"
#include "gru_rows.cuh"
#include "pyparareal/gru_formulas.h"

namespace pyparareal::cuda {
namespace {

inline constexpr int quad = 4, most_rows = 16, most_threads = 512;

template <class T>
struct alignas(16) Quad {
  T row[quad];
};

// Shared memory of a block, in bytes: states and gradients [units, rows], pointers, and the transposed weights
// [hidden, pitch] of odd pitch, so that neither rows nor columns of them meet in a bank.
struct GruPlan {
  int rows, hidden, pitch;
  bool in_shared;
  std::size_t pointers, weights, bytes;  // offsets, and all

  GruPlan(const ColumnSpace& space, bool adjoint, std::size_t item, std::size_t most)
      : rows(quad), hidden(static_cast<int>(space.length)), pitch(static_cast<int>(gru_gates * space.length) | 1) {
    while (rows < most_rows && rows * wanted_blocks < space.columns()) rows += quad;
    for (; rows > quad && !fits(adjoint, item, most); rows -= quad) {
    }
    in_shared = fits(adjoint, item, most);
    while (!in_shared && rows < most_rows && rows * wanted_blocks < space.columns()) rows += quad;
    while (rows > quad && scratch(adjoint, item) > most) rows -= quad;
    pointers = scratch(adjoint, item) - sizeof(RowPointers<void*>) * static_cast<std::size_t>(rows);
    weights = scratch(adjoint, item);
    bytes = weights + (in_shared ? weight_bytes(item) : 0);
  }

  std::size_t weight_bytes(std::size_t item) const { return static_cast<std::size_t>(hidden) * pitch * item; }
  std::size_t scratch(bool adjoint, std::size_t item) const {
    // Two states; or a state, its gradient, z, and the gradients of the gates.
    const std::size_t arrays = adjoint ? 3 + gru_gates : 2;
    return arrays * static_cast<std::size_t>(hidden * rows) * item +
           sizeof(RowPointers<void*>) * static_cast<std::size_t>(rows);
  }
  bool fits(bool adjoint, std::size_t item, std::size_t most) const {
    return scratch(adjoint, item) + weight_bytes(item) <= most;
  }
  unsigned threads() const {
    const int items = hidden * (rows / quad), whole = (items + 31) / 32 * 32;
    return static_cast<unsigned>(whole < most_threads ? whole : most_threads);
  }
};

// to[k * pitch + row] = weight[row, k]: neighbouring threads write neighbours, and read what lines of L1 still hold.
template <class T>
__device__ __forceinline__ void transpose_weights(T* to, const GruWeights<T>& w, int pitch, int64_t first,
                                                  int64_t step) {
  const int64_t rows = gru_gates * w.hidden;
  for (int64_t i = first; i < rows * w.hidden; i += step) to[i / rows * pitch + i % rows] = w.at(i % rows, i / rows);
}

template <class T>
__global__ void __launch_bounds__(most_threads) transpose_kernel(GruWeights<T> weights, int pitch, T* to) {
  transpose_weights(to, weights, pitch, static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
                    static_cast<int64_t>(gridDim.x) * blockDim.x);
}

// visit(unit, first row of a quad) for all of a block.
template <class Visit>
__device__ __forceinline__ void for_quads(const GruPlan& plan, const Visit& visit) {
  const int items = plan.hidden * (plan.rows / quad);
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x))
    visit(item % plan.hidden, item / plan.hidden * quad);
}

// sums[gate][row] = sum_k weight[gate * hidden + unit, k] h[k, row], of a quad of rows
template <class T>
__device__ __forceinline__ void multiply(T (&sums)[gru_gates][quad], const GruPlan& plan, const T* w, const T* h,
                                         int unit, int first) {
#pragma unroll
  for (int gate = 0; gate < gru_gates; ++gate)
#pragma unroll
    for (int row = 0; row < quad; ++row) sums[gate][row] = T(0);
  w += unit, h += first;
#pragma unroll 4
  for (int k = 0; k < plan.hidden; ++k, w += plan.pitch, h += plan.rows) {
    const Quad<T> state = *reinterpret_cast<const Quad<T>*>(h);
#pragma unroll
    for (int gate = 0; gate < gru_gates; ++gate) {
      const T weight = w[gate * plan.hidden];
#pragma unroll
      for (int row = 0; row < quad; ++row)
        sums[gate][row] = ScalarMlpMath::fma(state.row[row], weight, sums[gate][row]);
    }
  }
}

// The input sides of a quad. Rows past the last repeat it.
template <class T>
__device__ __forceinline__ void load_gates(T (&in)[gru_gates][quad], const GruPlan& plan, const RowPointers<T>* at,
                                           const ColumnOperand<const T>& gates, int64_t j, int unit, int first) {
#pragma unroll
  for (int row = 0; row < quad; ++row) {
    const T* from = at[first + row].gates + j * gates.step_stride;
#pragma unroll
    for (int gate = 0; gate < gru_gates; ++gate)
      in[gate][row] = from[(static_cast<int64_t>(gate) * plan.hidden + unit) * gates.stride];
  }
}

template <class T>
__device__ __forceinline__ GruGates<T, T> gates_of(const T (&in)[gru_gates][quad], const T (&of)[gru_gates][quad],
                                                   T bias, int row) {
  return GruGates<T, T>::template of<ScalarMlpMath>(in[0][row], in[1][row], in[2][row], of[0][row], of[1][row],
                                                    of[2][row], bias);
}

__device__ __forceinline__ int live_rows(const GruPlan& plan, const ColumnSpace& space, int64_t first) {
  const int64_t left = space.columns() - first;
  return static_cast<int>(left < plan.rows ? left : plan.rows);
}

template <class T>
__global__ void __launch_bounds__(most_threads, 1) forward_kernel(GruTask<T> task, GruPlan plan, const T* streamed) {
  char* shared = block_scratch<char>();
  const ColumnTask<T>& c = task.columns;
  auto* at = reinterpret_cast<RowPointers<T>*>(shared + plan.pointers);
  T* own = reinterpret_cast<T*>(shared + plan.weights);
  const int me = static_cast<int>(threadIdx.x), all = static_cast<int>(blockDim.x);
  if (plan.in_shared) transpose_weights(own, task.weights, plan.pitch, me, all);
  const T* w = plan.in_shared ? own : streamed;
  for (int64_t first_row = static_cast<int64_t>(blockIdx.x) * plan.rows; first_row < c.space.columns();
       first_row += static_cast<int64_t>(gridDim.x) * plan.rows) {
    const int live = live_rows(plan, c.space, first_row);
    T *h = reinterpret_cast<T*>(shared), *next = h + plan.hidden * plan.rows;
    __syncthreads();
    for (int row = me; row < plan.rows; row += all) point_at(at[row], task, first_row + (row < live ? row : live - 1));
    __syncthreads();
    for (int i = me; i < plan.hidden * plan.rows; i += all)
      h[i] = at[i % plan.rows].u[static_cast<int64_t>(i / plan.rows) * c.u.stride];
    __syncthreads();
    Kept kept(c.period);
    for (int64_t j = 0, keep = 0; j < c.m; ++j) {
      const bool keeps = c.every.data && kept.next();
      for_quads(plan, [&](int unit, int first) {
        T in[gru_gates][quad], sums[gru_gates][quad];
        load_gates(in, plan, at, task.gates, j, unit, first);
        const T bias = task.weights.bias_at(unit);
        multiply(sums, plan, w, h, unit, first);
#pragma unroll
        for (int row = 0; row < quad; ++row) {
          const int r = first + row, place = unit * plan.rows + r;
          T u = gates_of(in, sums, bias, row).template next<ScalarMlpMath>(h[place]);
          const RowPointers<T>& to = at[r];
          if (c.g.data)
            u = to.f[j * c.f.step_stride + unit * c.f.stride] + (u - to.g[j * c.g.step_stride + unit * c.g.stride]);
          else if (c.f.data)
            u = u + to.f[j * c.f.step_stride + unit * c.f.stride];
          next[place] = u;
          if (keeps && r < live) to.every[keep * c.every.step_stride + unit * c.every.stride] = u;
        }
      });
      __syncthreads();
      T* const other = h;
      h = next, next = other, keep += keeps;
    }
    for (int i = me; c.out.data && i < plan.hidden * plan.rows; i += all)
      if (i % plan.rows < live) at[i % plan.rows].out[static_cast<int64_t>(i / plan.rows) * c.out.stride] = h[i];
  }
}

// A block of rows of the adjoint; arrays are [hidden, rows], `back` [3 hidden, rows].
template <class T>
struct AdjointRows {
  const GruAdjointTask<T>& task;
  const GruPlan& plan;
  const T* w;
  const RowPointers<T>* at;
  T *h, *d, *z, *back;
  int live;

  __device__ __forceinline__ void load_states(int64_t j) const {
    for (int i = static_cast<int>(threadIdx.x); i < plan.hidden * plan.rows; i += static_cast<int>(blockDim.x)) {
      const RowPointers<T>& from = at[i % plan.rows];
      const int64_t unit = i / plan.rows;
      h[i] = from.u[j * task.u.step_stride + unit * task.u.stride];
      if (task.d_every.data) d[i] = d[i] + from.d_every[j * task.d_every.step_stride + unit * task.d_every.stride];
    }
  }

  __device__ __forceinline__ void put(const GruGradients<T, T>& e, int64_t j, int64_t unit, int r) const {
    const int place = static_cast<int>(unit) * plan.rows + r, gate = plan.hidden * plan.rows;
    back[place] = e.r, back[gate + place] = e.z, back[2 * gate + place] = e.s;
    if (r >= live) return;
    if (task.d_gates.data) {
      T* to = at[r].d_gates + j * task.d_gates.step_stride;
      const int64_t hidden = plan.hidden, stride = task.d_gates.stride;
      to[unit * stride] = e.r, to[(hidden + unit) * stride] = e.z, to[(2 * hidden + unit) * stride] = e.n;
    }
    if (task.d_hidden.data) at[r].d_hidden[j * task.d_hidden.step_stride + unit * task.d_hidden.stride] = e.s;
  }

  __device__ __forceinline__ void differentiate(int64_t j) const {
    for_quads(plan, [&](int unit, int first) {
      T in[gru_gates][quad], sums[gru_gates][quad];
      load_gates(in, plan, at, task.gates, j, unit, first);
      const T bias = task.weights.bias_at(unit);
      multiply(sums, plan, w, h, unit, first);
#pragma unroll
      for (int row = 0; row < quad; ++row) {
        const int place = unit * plan.rows + first + row;
        const GruGates<T, T> g = gates_of(in, sums, bias, row);
        z[place] = g.z;
        put(GruGradients<T, T>::of(g, h[place], d[place]), j, unit, first + row);
      }
    });
  }

  // d = z d + sum_t back[t] weight[t]
  __device__ __forceinline__ void multiply_back() const {
    for_quads(plan, [&](int unit, int first) {
      const T* column = plan.in_shared ? w + unit * plan.pitch : task.weights.weight + unit * task.weights.stride;
      const int64_t step = plan.in_shared ? 1 : task.weights.row_stride;
      const T* from = back + first;
      T sums[quad] = {};
#pragma unroll 4
      for (int t = 0; t < gru_gates * plan.hidden; ++t, column += step, from += plan.rows) {
        const Quad<T> e = *reinterpret_cast<const Quad<T>*>(from);
#pragma unroll
        for (int row = 0; row < quad; ++row) sums[row] = ScalarMlpMath::fma(e.row[row], *column, sums[row]);
      }
#pragma unroll
      for (int row = 0; row < quad; ++row) {
        const int place = unit * plan.rows + first + row;
        d[place] = ScalarMlpMath::fma(d[place], z[place], sums[row]);
      }
    });
  }
};

template <class T>
__global__ void __launch_bounds__(most_threads, 1)
    adjoint_kernel(GruAdjointTask<T> task, GruPlan plan, const T* streamed) {
  char* shared = block_scratch<char>();
  auto* at = reinterpret_cast<RowPointers<T>*>(shared + plan.pointers);
  T* own = reinterpret_cast<T*>(shared + plan.weights);
  T* h = reinterpret_cast<T*>(shared);
  const int me = static_cast<int>(threadIdx.x), all = static_cast<int>(blockDim.x), size = plan.hidden * plan.rows;
  if (plan.in_shared) transpose_weights(own, task.weights, plan.pitch, me, all);
  for (int64_t first_row = static_cast<int64_t>(blockIdx.x) * plan.rows; first_row < task.space.columns();
       first_row += static_cast<int64_t>(gridDim.x) * plan.rows) {
    const int live = live_rows(plan, task.space, first_row);
    const AdjointRows<T> net{task,         plan, plan.in_shared ? own : streamed, at, h, h + size, h + 2 * size,
                             h + 3 * size, live};
    __syncthreads();
    for (int row = me; row < plan.rows; row += all) point_at(at[row], task, first_row + (row < live ? row : live - 1));
    __syncthreads();
    for (int i = me; i < size; i += all)
      net.d[i] = at[i % plan.rows].d_end[static_cast<int64_t>(i / plan.rows) * task.d_end.stride];
    for (int64_t j = task.m - 1; j >= 0; --j) {
      __syncthreads();
      net.load_states(j);
      __syncthreads();
      net.differentiate(j);
      __syncthreads();
      net.multiply_back();
    }
    __syncthreads();
    for (int i = me; i < size; i += all)
      if (i % plan.rows < live)
        at[i % plan.rows].out[static_cast<int64_t>(i / plan.rows) * task.d_start.stride] = net.d[i];
  }
}

GruPlan plan_for(const ConstView& states, bool adjoint) {
  return {column_space_of(states), adjoint, states.dtype == DType::float64 ? sizeof(double) : sizeof(float),
          most_shared(states.device_id)};
}

std::size_t bytes_for(const ConstView& states, bool adjoint) {
  const GruPlan plan = plan_for(states, adjoint);
  const std::size_t item = states.dtype == DType::float64 ? sizeof(double) : sizeof(float);
  return plan.in_shared ? 0 : (plan.weight_bytes(item) + 15) / 16 * 16;
}

// The weights where they have to be streamed, then the steps.
template <class T, class Task>
Status launch_steps(const char* name, void (*kernel)(Task, GruPlan, const T*), const Task& task, const GruPlan& plan,
                    const ColumnSpace& space, const Exec& exec) {
  T* streamed = static_cast<T*>(exec.workspace);
  if (!plan.in_shared) {
    const Status packed = launch(name, transpose_kernel<T>, blocks_for(gru_gates * space.length * space.length, 4096),
                                 most_threads, 0, exec.stream, task.weights, plan.pitch, streamed);
    if (!packed.ok()) return packed;
  }
  if (const Status status = allow_shared(name, kernel, plan.bytes); !status.ok()) return status;
  return launch(name, kernel, blocks_for(space.columns(), plan.rows), plan.threads(), plan.bytes, exec.stream, task,
                plan, streamed);
}

}  // namespace

std::size_t relax_gru_workspace_bytes(const ConstView& u, int32_t) { return bytes_for(u, false); }
std::size_t relax_gru_adjoint_workspace_bytes(const ConstView& d_end, int32_t) { return bytes_for(d_end, true); }

Status relax_gru(const MutableView& out, const ConstView& u, const ConstView& gates, const ConstView& weight,
                 const ConstView& bias, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                 const EndNorms& norms, const Exec& exec) {
  const GruPlan plan = plan_for(u, false);
  if (plan.bytes > most_shared(u.device_id)) return too_wide(u, quad);

  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const Status launched = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GruTask<T> task(out, u, gates, weight, bias, m, f, g, every);
    return launch_steps("relax_gru", forward_kernel<T>, task, plan, task.columns.space, exec);
  });
  return then_norms(launched, norms);
}

Status relax_gru_adjoint(const MutableView& d_start, const MutableView& d_gates, const MutableView& d_hidden,
                         const ConstView& u, const ConstView& gates, const ConstView& weight, const ConstView& bias,
                         const ConstView& d_end, const ConstView& d_every, const Exec& exec) {
  const GruPlan plan = plan_for(d_end, true);
  if (plan.bytes > most_shared(u.device_id)) return too_wide(d_end, quad);

  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const GruAdjointTask<T> task(d_start, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every);
    return launch_steps("relax_gru_adjoint", adjoint_kernel<T>, task, plan, task.space, exec);
  });
}

}  // namespace pyparareal::cuda
