// SPDX-License-Identifier: BSD-3-Clause
// relax_dense and its adjoint: a block takes some rows of one slice through all steps. Their states stay in shared
// memory, and the weights come through it, a part of a matrix at a time: while one part is used, the next one, of this
// step or of the one after it, is on its way (cp.async). A thread has a few outputs of four rows, in registers from
// the first term to the last: every sum is one chain in the order of its index, as on the CPU.
#include "../backend.h"
#include "dense_parts.cuh"
#include "pyparareal/dense_formulas.h"

namespace pyparareal::cuda {
namespace {

// What the terms of a part add to the sums of a thread: outputs `group`, `group + step`, ...
template <class T, int outputs>
__device__ __forceinline__ void add_part(T (&sums)[outputs][quad], const DensePlan& plan, const T* part, const T* in,
                                         int count, int group) {
  const int step = plan.width / outputs;
  int k = 0;
  for (; k + quad <= count; k += quad) {
    Quad<T> w[outputs];
#pragma unroll
    for (int i = 0; i < outputs; ++i)
      w[i] = *reinterpret_cast<const Quad<T>*>(part + (group + i * step) * plan.part_pitch + k);
#pragma unroll
    for (int term = 0; term < quad; ++term, in += plan.pitch) {
      const Quad<T> x = *reinterpret_cast<const Quad<T>*>(in);
#pragma unroll
      for (int i = 0; i < outputs; ++i)
#pragma unroll
        for (int row = 0; row < quad; ++row)
          sums[i][row] = ScalarMlpMath::fma(w[i].row[term], x.row[row], sums[i][row]);
    }
  }
  for (; k < count; ++k, in += plan.pitch) {
    const Quad<T> x = *reinterpret_cast<const Quad<T>*>(in);
#pragma unroll
    for (int i = 0; i < outputs; ++i)
#pragma unroll
      for (int row = 0; row < quad; ++row)
        sums[i][row] = ScalarMlpMath::fma(part[(group + i * step) * plan.part_pitch + k], x.row[row], sums[i][row]);
  }
}

// The same of a part [terms, width], with neighbouring outputs.
template <class T, int outputs>
__device__ __forceinline__ void add_transposed_part(T (&sums)[outputs][quad], const DensePlan& plan, const T* part,
                                                    const T* in, int count, int group) {
  part += group * outputs;
#pragma unroll 4
  for (int k = 0; k < count; ++k, in += plan.pitch, part += plan.part_pitch) {
    const Quad<T> x = *reinterpret_cast<const Quad<T>*>(in);
    T w[outputs];
    if constexpr (outputs == quad) {
      const Quad<T> all = *reinterpret_cast<const Quad<T>*>(part);
#pragma unroll
      for (int i = 0; i < outputs; ++i) w[i] = all.row[i];
    } else {
#pragma unroll
      for (int i = 0; i < outputs; ++i) w[i] = part[i];
    }
#pragma unroll
    for (int i = 0; i < outputs; ++i)
#pragma unroll
      for (int row = 0; row < quad; ++row) sums[i][row] = ScalarMlpMath::fma(w[i], x.row[row], sums[i][row]);
  }
}

// visit(feature, row): neighbouring threads have eight features of four rows, a sector each, and no bank twice.
template <class Visit>
__device__ __forceinline__ void for_elements(const DensePlan& plan, const Visit& visit) {
  constexpr int features = 8, block = features * quad;
  const int quads = plan.rows / quad, blocks = (plan.d + features - 1) / features * quads;
  for (int i = static_cast<int>(threadIdx.x); i < blocks * block; i += static_cast<int>(blockDim.x)) {
    const int inside = i % block, which = i / block;
    const int feature = which / quads * features + inside % features;
    if (feature < plan.d) visit(feature, which % quads * quad + inside / features);
  }
}

// f + (u - g), or u + f
template <class T>
__device__ __forceinline__ T with_sides(T u, const ColumnTask<T>& c, const RowPointers<T>& at, int64_t j, int feature) {
  if (!c.f.data) return u;
  const T f = at.f[j * c.f.step_stride + feature * c.f.stride];
  return c.g.data ? f + (u - at.g[j * c.g.step_stride + feature * c.g.stride]) : u + f;
}

// Of relax_dense: `in` are the states.
template <class T>
struct Forward {
  using Task = DenseTask<T>;
  static constexpr bool adjoint = false;
  const Task& task;
  T* own;  // unused: the states are what the product takes

  static __device__ __forceinline__ void point(const Task& task, RowPointers<T>& at, int64_t slice, int64_t batch) {
    at.slopes = row_of(task.slopes, slice, batch);
  }
  __device__ __forceinline__ T begin(const RowPointers<T>&, int, int, T u) const { return u; }
  __device__ __forceinline__ T first(int64_t slice, int64_t j, int output) const {
    const T* bias = task.weights.bias_of(slice, j);
    return bias ? bias[output * task.weights.bias_stride] : T(0);
  }
  // The state after the step, without its right-hand sides.
  __device__ __forceinline__ T end(T sum, T before, const RowPointers<T>& at, int64_t j, int output, int,
                                   bool live) const {
    T value = before, slope = T(0);
    with_dense_activation(task.activation, [&](auto of) {
      const auto a = decltype(of)::template of<T, ScalarMlpMath>(sum);
      value = ScalarMlpMath::fma(task.h, a.value, before), slope = task.h * a.slope;
    });
    if (task.slopes.data && live) at.slopes[j * task.slopes.step_stride + output * task.slopes.stride] = slope;
    return value;
  }
  __device__ __forceinline__ T keep(T u, const RowPointers<T>&, int64_t, int, int) const { return u; }
};

// Of the adjoint: `in` are the products of slopes and states, which are in `own`.
template <class T>
struct Adjoint {
  using Task = DenseAdjointTask<T>;
  static constexpr bool adjoint = true;
  const Task& task;
  T* own;

  static __device__ __forceinline__ void point(const Task& task, RowPointers<T>& at, int64_t slice, int64_t batch) {
    at.given = row_of(task.slopes, slice, batch);
  }
  __device__ __forceinline__ T slope(const RowPointers<T>& at, int64_t j, int feature) const {
    return at.given[j * task.slopes.step_stride + feature * task.slopes.stride];
  }
  __device__ __forceinline__ T begin(const RowPointers<T>& at, int place, int feature, T v) const {
    own[place] = v;
    return slope(at, 0, feature) * v;
  }
  __device__ __forceinline__ T first(int64_t, int64_t, int) const { return T(0); }
  __device__ __forceinline__ T end(T sum, T, const RowPointers<T>&, int64_t, int, int place, bool) const {
    return ScalarMlpMath::fma(task.scale, sum, own[place]);
  }
  // What the next step takes of the state after this one.
  __device__ __forceinline__ T keep(T v, const RowPointers<T>& at, int64_t j, int output, int place) const {
    own[place] = v;
    return j + 1 < task.columns.m ? slope(at, j + 1, output) * v : v;
  }
};

// The rows of a tile: where they are, and their start states. Rows past the last repeat it.
template <class T, class Way>
__device__ __forceinline__ void start_tile(const Way& way, const DensePlan& plan, RowPointers<T>* at, T* in,
                                           int64_t slice, int64_t first_row, int live) {
  const ColumnTask<T>& c = way.task.columns;
  for (int row = static_cast<int>(threadIdx.x); row < plan.rows; row += static_cast<int>(blockDim.x)) {
    const int64_t batch = first_row + (row < live ? row : live - 1);
    at[row].u = row_of(c.u, slice, batch), at[row].f = row_of(c.f, slice, batch);
    at[row].g = row_of(c.g, slice, batch), at[row].every = row_of(c.every, slice, batch);
    at[row].out = row_of(c.out, slice, batch);
    Way::point(way.task, at[row], slice, batch);
  }
  __syncthreads();
  for_elements(plan, [&](int feature, int row) {
    const int place = feature * plan.pitch + row;
    in[place] = way.begin(at[row], place, feature, at[row].u[feature * c.u.stride]);
  });
}

// What becomes of the sums of a thread: the states after the step, and `next`, what the product after it takes.
template <class T, class Way, int outputs>
__device__ __forceinline__ void end_outputs(const Way& way, const DensePlan& plan, const T (&sums)[outputs][quad],
                                            const RowPointers<T>* at, const T* in, T* next, const Place& where,
                                            int64_t keep, int group, int first_row, int live) {
  const ColumnTask<T>& c = way.task.columns;
#pragma unroll
  for (int i = 0; i < outputs; ++i) {
    const int output = where.output + (Way::adjoint ? group * outputs + i : group + i * (plan.width / outputs));
    if (output >= plan.d) continue;
#pragma unroll
    for (int row = 0; row < quad; ++row) {
      const int r = first_row + row, place = output * plan.pitch + r;
      T u = way.end(sums[i][row], in[place], at[r], where.j, output, place, r < live);
      u = with_sides(u, c, at[r], where.j, output);
      if (keep >= 0 && r < live) at[r].every[keep * c.every.step_stride + output * c.every.stride] = u;
      if (c.out.data && where.j + 1 == c.m && r < live) at[r].out[output * c.out.stride] = u;
      next[place] = way.keep(u, at[r], where.j, output, place);
    }
  }
}

template <class T, class Way, int outputs>
__global__ void __launch_bounds__(most_threads, 1) dense_kernel(typename Way::Task task, DensePlan plan) {
  char* shared = block_scratch<char>();
  const ColumnTask<T>& c = task.columns;
  auto* at = reinterpret_cast<RowPointers<T>*>(shared + plan.pointers);
  T *first_array = reinterpret_cast<T*>(shared), *parts = reinterpret_cast<T*>(shared + plan.parts);
  const int array = plan.d * plan.pitch, part = static_cast<int>((plan.pointers - plan.parts) / (2 * sizeof(T)));
  const Way way{task, first_array + 2 * array};
  const int groups = plan.width / outputs, me = static_cast<int>(threadIdx.x);
  const int group = me % groups, first_row = me / groups * quad;
  const bool works = first_row < plan.rows;
  for (int64_t tile = blockIdx.x; tile < c.space.slices * plan.tiles; tile += gridDim.x) {
    const int64_t slice = tile / plan.tiles, row = tile % plan.tiles * plan.rows, left = c.space.batches - row;
    const int live = static_cast<int>(left < plan.rows ? left : plan.rows);
    T *in = first_array, *next = in + array, *now = parts, *after = parts + part;
    __syncthreads();
    fetch(now, plan, Matrix<T, Way::adjoint>(task.weights, slice, 0), Place{});
    start_tile(way, plan, at, in, slice, row, live);
    T sums[outputs][quad];
    Kept kept(c.period);
    int64_t keep = -1, kept_rows = 0;
    for (Place here; here.j < c.m;) {
      wait_for_copies();
      __syncthreads();
      Place then = here;
      then.next(plan);
      if (then.j < c.m) fetch(after, plan, Matrix<T, Way::adjoint>(task.weights, slice, then.j), then);
      if (here.output == 0 && here.term == 0) keep = c.every.data && kept.next() ? kept_rows++ : -1;
      if (works) {
        if (here.term == 0) {
#pragma unroll
          for (int i = 0; i < outputs; ++i) {
            const int output = here.output + (Way::adjoint ? group * outputs + i : group + i * (plan.width / outputs));
            const T start = output < plan.d ? way.first(slice, here.j, output) : T(0);
#pragma unroll
            for (int r = 0; r < quad; ++r) sums[i][r] = start;
          }
        }
        const int count = here.term + plan.terms < plan.d ? plan.terms : plan.d - here.term;
        const T* from = in + here.term * plan.pitch + first_row;
        if constexpr (Way::adjoint)
          add_transposed_part<T, outputs>(sums, plan, now, from, count, group);
        else
          add_part<T, outputs>(sums, plan, now, from, count, group);
        if (here.term + plan.terms >= plan.d)
          end_outputs<T, Way, outputs>(way, plan, sums, at, in, next, here, keep, group, first_row, live);
      }
      T* const used = now;
      now = after, after = used;
      if (then.j != here.j) {
        T* const old = in;
        in = next, next = old;
      }
      here = then;
    }
  }
}

template <class T, class Way>
Status launch_steps(const char* name, const typename Way::Task& task, DensePlan plan, const Exec& exec) {
  plan.packed = packs(task.weights);
  auto* kernel = plan.outputs == 1 ? dense_kernel<T, Way, 1> : dense_kernel<T, Way, wide_outputs>;
  if (const Status status = allow_shared(name, kernel, plan.bytes); !status.ok()) return status;
  return launch(name, kernel, blocks_for(task.columns.space.slices * plan.tiles, 1), plan.threads(), plan.bytes,
                exec.stream, task, plan);
}

DensePlan plan_for(const ConstView& u, bool adjoint) {
  return {column_space_of(u), adjoint, u.dtype == DType::float64 ? sizeof(double) : sizeof(float),
          most_shared(u.device_id)};
}

}  // namespace

Status relax_dense(const MutableView& out, const ConstView& u, const ConstView& weight, const ConstView& bias, double h,
                   DenseActivation activation, int64_t m, const MutableView& slopes, const ConstView& f,
                   const ConstView& g, const MutableView& every, const EndNorms& norms, const Exec& exec) {
  const DensePlan plan = plan_for(u, false);
  if (plan.bytes > most_shared(u.device_id)) return too_wide(u, "u", quad);

  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const Status launched = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const DenseTask<T> task(out, u, weight, bias, h, activation, m, slopes, f, g, every);
    return launch_steps<T, Forward<T>>("relax_dense", task, plan, exec);
  });
  return then_norms(launched, norms);
}

Status relax_dense_adjoint(const MutableView& out, const ConstView& v, const ConstView& weight, const ConstView& slopes,
                           double scale, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                           const EndNorms& norms, const Exec& exec) {
  const DensePlan plan = plan_for(v, true);
  if (plan.bytes > most_shared(v.device_id)) return too_wide(v, "v", quad);

  const DeviceGuard guard(v.device_id);
  if (!guard.status().ok()) return guard.status();

  const Status launched = with_wide_type(v.dtype, [&](auto zero) {
    using T = decltype(zero);
    const DenseAdjointTask<T> task(out, v, weight, slopes, scale, m, f, g, every);
    return launch_steps<T, Adjoint<T>>("relax_dense_adjoint", task, plan, exec);
  });
  return then_norms(launched, norms);
}

}  // namespace pyparareal::cuda
