// SPDX-License-Identifier: BSD-3-Clause
// Included by relax_tiles_body.h: Runge-Kutta steps with a function of the caller's. A function of lanes gets a tile of
// columns, [components][lanes]. One of one column, too, is called for the columns of a tile in turn where states are
// small: a processor works on several calls that do not wait for each other. Large and single states are taken alone.

namespace pyparareal::cpu {
namespace {

// What the steps of `pitch` columns need; slopes lie one after another in k.
template <class T>
struct FunctionTile {
  const RungeKuttaTask<T>& task;
  int64_t components, count;  // count: of all columns
  int pitch, live;            // lanes past the last column, `live`, repeat it
  T *u, *w, *k;
  T h[most_lanes], t[most_lanes], now[most_lanes];

  FunctionTile(const RungeKuttaTask<T>& of, T* scratch, int lanes, int columns)
      : task(of), components(of.columns.space.length), pitch(lanes), live(columns) {
    count = components * pitch;
    u = scratch, w = u + count, k = w + count;
  }

  // Step j of the columns from `column` on.
  void begin_step(int64_t column, int64_t j) {
    const int64_t batches = task.columns.space.batches;
    int64_t slice = column / batches, batch = column % batches;
    for (int lane = 0; lane < pitch; ++lane) {
      t[lane] = task.times.template at<T>(slice, j);
      if (task.steps.data) h[lane] = task.steps.template at<T>(slice, j, task.coefficients.substeps);
      if (lane + 1 < live && ++batch == batches) batch = 0, ++slice;
    }
  }

  // The time of a stage of substep s, as RungeKutta._substep has it.
  template <bool own_steps>
  void set_time(int64_t s, int stage) {
    const Coefficients<T>& by = task.coefficients;
    const T behind = static_cast<T>(static_cast<double>(s) * by.h), node = by.node[stage];
    const bool later = by.later >> stage & 1u;
    for (int lane = 0; lane < pitch; ++lane) {
      T begin = t[lane];
      if (s > 0) begin = begin + (own_steps ? static_cast<T>(s) * h[lane] : behind);
      now[lane] = later ? begin + (own_steps ? node * h[lane] : node) : begin;
    }
  }

  void call(const T* at, T* slope) const {
    const SlopeFunction& f = task.scheme.function;
    void* address = const_cast<void*>(f.address);
    const T* parameters = static_cast<const T*>(f.parameters);
    if (f.takes_lanes)
      return reinterpret_cast<void (*)(int64_t, const T*, const T*, T*, const T*)>(address)(pitch, now, at, slope,
                                                                                            parameters);
    const auto one = reinterpret_cast<void (*)(T, const T*, T*, const T*)>(address);
    if (pitch == 1) return one(now[0], at, slope, parameters);
    T state[most_gathered], change[most_gathered];
    for (int lane = 0; lane < live; ++lane) {
      for (int64_t d = 0; d < components; ++d) state[d] = at[d * pitch + lane];
      one(now[lane], state, change, parameters);
      for (int64_t d = 0; d < components; ++d) slope[d * pitch + lane] = change[d];
    }
    for (int lane = live; lane < pitch; ++lane)
      for (int64_t d = 0; d < components; ++d) slope[d * pitch + lane] = change[d];
  }

  // to = u + sum_j c_j h k_j. Few components of one column stay in registers, `few` of them.
  template <bool own_steps, int few>
  void plus(T* to, int row) const {
    const Coefficients<T>& by = task.coefficients;
    const T* value = by.value[row];
    if constexpr (few > 0) {
      T sum[few];
      for (int d = 0; d < few; ++d) sum[d] = u[d];
      for (uint32_t rest = by.used[row]; rest; rest &= rest - 1) {
        const int j = __builtin_ctz(rest);
        const T factor = own_steps ? value[j] * h[0] : value[j];
        // Read as they were written, one by one: a wider read would wait for all of those writes.
        const volatile T* slope = k + j * few;
        for (int d = 0; d < few; ++d) sum[d] = sum[d] + factor * slope[d];
      }
      for (int d = 0; d < few; ++d) to[d] = sum[d];
    } else {
      const T* from = u;
      if (!by.used[row] && to != u) __builtin_memcpy(to, u, static_cast<std::size_t>(count) * sizeof(T));
      for (uint32_t rest = by.used[row]; rest; rest &= rest - 1) {
        const int j = __builtin_ctz(rest);
        const T* slope = k + j * count;
        if (own_steps && pitch > 1) {
          for (int64_t i = 0; i < count; i += pitch) {
#pragma GCC ivdep
            for (int lane = 0; lane < pitch; ++lane)
              to[i + lane] = from[i + lane] + value[j] * h[lane] * slope[i + lane];
          }
        } else {
          const T factor = own_steps ? value[j] * h[0] : value[j];
#pragma GCC ivdep
          for (int64_t i = 0; i < count; ++i) to[i] = from[i] + factor * slope[i];
        }
        from = to;
      }
    }
  }

  template <bool own_steps, int few>
  void step() {
    const Coefficients<T>& by = task.coefficients;
    for (int64_t s = 0; s < by.substeps; ++s) {
      for (int stage = 0; stage < by.stages; ++stage) {
        plus<own_steps, few>(w, stage);
        set_time<own_steps>(s, stage);
        call(w, k + stage * count);
      }
      plus<own_steps, few>(u, max_stages);
    }
  }
};

// Columns one by one.
template <bool own_steps, int few, class T>
void relax_function_alone(const RungeKuttaTask<T>& task, int64_t first, int64_t last, T* scratch) {
  const ColumnTask<T>& c = task.columns;
  FunctionTile<T> tile(task, scratch, 1, 1);
  T* x = tile.u;
  for (int64_t column = first; column < last; ++column) {
    const int64_t slice = column / c.space.batches, batch = column % c.space.batches, length = c.space.length;
    const auto at = [&](const auto& operand) {
      return operand.data ? operand.column(slice, batch) : decltype(operand.data){};
    };
    const T *u = at(c.u), *f = at(c.f), *g = at(c.g);
    T *every = at(c.every), *out = at(c.out);
    Kept kept(c.period);
    for (int64_t i = 0; i < length; ++i) x[i] = u[i * c.u.stride];
    for (int64_t j = 0; j < c.m; ++j) {
      tile.begin_step(column, j);
      tile.template step<own_steps, few>();
      for (int64_t i = 0; f && i < length; ++i)
        x[i] = g ? f[i * c.f.stride] + (x[i] - g[i * c.g.stride]) : x[i] + f[i * c.f.stride];
      if (f) f += c.f.step_stride;
      if (g) g += c.g.step_stride;
      if (!every || !kept.next()) continue;
      for (int64_t i = 0; i < length; ++i) every[i * c.every.stride] = x[i];
      every += c.every.step_stride;
    }
    for (int64_t i = 0; out && i < length; ++i) out[i * c.out.stride] = x[i];
  }
}

template <bool own_steps, class T>
void relax_function_tiles(const RungeKuttaTask<T>& task, int64_t first, int64_t last, int width, T* scratch) {
  for (int64_t column = first; column < last; column += width) {
    ColumnTile<T> state(task.columns, scratch, column, last, width);
    FunctionTile<T> tile(task, scratch, state.pitch, state.live);
    state.start();
    for (int64_t j = 0; j < task.columns.m; ++j) {
      tile.begin_step(column, j);
      tile.template step<own_steps, 0>();
      state.end_step();
    }
    state.finish();
  }
}

template <bool own_steps, class T>
void relax_function_with(const RungeKuttaTask<T>& task, int64_t first, int64_t last, int tile, T* scratch) {
  const bool together = task.scheme.function.takes_lanes || task.columns.space.length <= most_gathered;
  if (together && last - first > 1) return relax_function_tiles<own_steps>(task, first, last, tile, scratch);
  switch (task.columns.space.length) {
    case 1:
      return relax_function_alone<own_steps, 1>(task, first, last, scratch);
    case 2:
      return relax_function_alone<own_steps, 2>(task, first, last, scratch);
    case 3:
      return relax_function_alone<own_steps, 3>(task, first, last, scratch);
    case 4:
      return relax_function_alone<own_steps, 4>(task, first, last, scratch);
    default:
      return relax_function_alone<own_steps, 0>(task, first, last, scratch);
  }
}

template <class T>
void relax_function_columns(const RungeKuttaTask<T>& task, int64_t first, int64_t last, int tile, T* scratch) {
  if (task.steps.data) return relax_function_with<true>(task, first, last, tile, scratch);
  relax_function_with<false>(task, first, last, tile, scratch);
}

}  // namespace
}  // namespace pyparareal::cpu
