// SPDX-License-Identifier: BSD-3-Clause
// Included by tiles_body.h: the steps of relax_tiles.h on tiles, with internal linkage.
#include "pyparareal/rhs.h"
#include "relax_columns_body.h"
#include "relax_function_body.h"

namespace pyparareal::cpu {
namespace {

template <class T>
void scale_tile(T* x, const T* a, int64_t count, int64_t times) {
  constexpr int64_t n = lanes_of<T>, block = 8 * n;
  int64_t i = 0;
  for (; i + block <= count; i += block) {
    Vec<T> state[8], factor[8];
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) read(state[v], x + i + v * n), read(factor[v], a + i + v * n);
    for (int64_t j = 0; j < times; ++j) {
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) state[v] = factor[v] * state[v];
    }
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) write(x + i + v * n, state[v]);
  }
  for (int64_t j = 0; j < times; ++j)
    for (int64_t k = i; k < count; ++k) x[k] = a[k] * x[k];
}

template <class T>
void add_tile(T* x, const T* f, const T* g, int64_t count) {
  if (g) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) x[i] = f[i] + (x[i] - g[i]);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) x[i] = x[i] + f[i];
  }
}

// Vectors of a tile whose recurrences from both ends go side by side: enough to hide the latency of one, and few enough
// for 16 registers. A wide tile is solved in parts of so many.
inline constexpr int side_by_side = 4;

// The sweeps of relax_tridiagonal on `vectors` neighbouring vectors of columns in rows of `pitch` elements, or on one
// column where V is a scalar.
template <class V, int vectors, class T>
struct TwoEnded {
  static constexpr int n = static_cast<int>(sizeof(V) / sizeof(T));
  T* x;
  int64_t pitch;
  const T *ratio, *scale, *coupling;

  // Row i after its neighbour on the outer side, which is in `carry`.
  inline __attribute__((always_inline)) void eliminate(V* carry, int64_t i) const {
    T* row = x + i * pitch;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      V own;
      read(own, row + v * n);
      carry[v] = own - ratio[i] * carry[v];
      write(row + v * n, carry[v]);
    }
  }

  // Row i after its neighbour on the inner side. The product of `own` does not wait for that.
  inline __attribute__((always_inline)) void substitute(V* carry, int64_t i) const {
    T* row = x + i * pitch;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      V own;
      read(own, row + v * n);
      carry[v] = own * scale[i] - coupling[i] * carry[v];
      write(row + v * n, carry[v]);
    }
  }

  inline __attribute__((always_inline)) void solve(int64_t length) const {
    const int64_t middle = length / 2, end = length - 1;
    const bool odd = length % 2 == 1;
    V low[vectors], high[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) read(low[v], x + v * n), read(high[v], x + end * pitch + v * n);
    for (int64_t d = 1; d < middle; ++d) eliminate(low, d), eliminate(high, end - d);
    if (odd && middle > 0) eliminate(high, middle);
    T* row = x + middle * pitch;
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      high[v] = high[v] * scale[middle];
      if (middle > 0) high[v] = high[v] - coupling[middle] * low[v];
      low[v] = high[v];
      write(row + v * n, high[v]);
    }
    for (int64_t d = 1; d <= end - middle; ++d) substitute(low, middle - d), substitute(high, middle + d);
    if (!odd) substitute(low, 0);
  }
};

template <int most, class T>
void solve_vectors(int vectors, T* x, int64_t length, int64_t pitch, const TridiagonalTask<T>& task) {
  for (; vectors >= most; vectors -= most, x += most * lanes_of<T>)
    TwoEnded<Vec<T>, most, T>{x, pitch, task.ratio, task.scale, task.coupling}.solve(length);
  if constexpr (most > 1) solve_vectors<most - 1>(vectors, x, length, pitch, task);
}

// A single column needs no vectors: an eighth of the scratch, or less.
template <class T>
void relax_one_column(const TridiagonalTask<T>& task, int64_t column, T* x) {
  const ColumnTask<T>& c = task.columns;
  const int64_t slice = column / c.space.batches, batch = column % c.space.batches, length = c.space.length;
  const auto at = [&](const auto& operand) {
    return operand.data ? operand.column(slice, batch) : decltype(operand.data){};
  };
  const T *u = at(c.u), *f = at(c.f), *g = at(c.g);
  T *every = at(c.every), *out = at(c.out);
  Kept kept(c.period);
  for (int64_t i = 0; i < length; ++i) x[i] = u[i * c.u.stride];
  for (int64_t j = 0; j < c.m; ++j) {
    TwoEnded<T, 1, T>{x, 1, task.ratio, task.scale, task.coupling}.solve(length);
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

template <class T>
void relax_tridiagonal_columns(const TridiagonalTask<T>& task, int64_t first, int64_t last, int tile, T* scratch) {
  for (int64_t column = first; column < last; column += tile) {
    if (column + 1 == last) {
      relax_one_column(task, column, scratch);
      continue;
    }
    ColumnTile<T> state(task.columns, scratch, column, last, tile);
    state.start();
    for (int64_t j = 0; j < task.columns.m; ++j) {
      solve_vectors<side_by_side>(state.vectors, state.x, state.length, state.pitch, task);
      state.end_step();
    }
    state.finish();
  }
}

// The rows beyond both ends of a tile.
template <class T>
void fill_halo(T* x, int64_t length, int radius, int pitch, Boundary boundary) {
  for (int64_t r = 1; r <= radius; ++r) {
    T *left = x - r * pitch, *right = x + (length - 1 + r) * pitch;
    const int64_t from_left = ((-r) % length + length) % length, from_right = (r - 1) % length;
    const bool zero = boundary == Boundary::zero;
    for (int lane = 0; lane < pitch; ++lane) {
      left[lane] = zero ? T(0) : x[from_left * pitch + lane];
      right[lane] = zero ? T(0) : x[from_right * pitch + lane];
    }
  }
}

template <class T>
void apply_stencil(T* to, const T* from, int64_t length, const T* weights, int width, int pitch) {
  const T* start = from - static_cast<int64_t>(width / 2) * pitch;
  for (int64_t i = 0; i < length * pitch; i += lanes_of<T>) {
    Vec<T> x, sum;
    read(x, start + i);
    sum = weights[0] * x;
    for (int k = 1; k < width; ++k) {
      read(x, start + i + k * pitch);
      sum = sum + weights[k] * x;
    }
    write(to + i, sum);
  }
}

template <class T>
void relax_stencil_columns(const StencilTask<T>& task, int64_t first, int64_t last, int tile, T* scratch) {
  const int radius = task.width / 2;
  for (int64_t column = first; column < last; column += tile) {
    ColumnTile<T> state(task.columns, scratch, column, last, tile);
    const int pitch = state.pitch;
    T *now = scratch + radius * pitch, *next = now + (state.length + 2 * radius) * pitch;
    state.x = now;
    state.start();
    for (int64_t j = 0; j < task.columns.m; ++j) {
      fill_halo(now, state.length, radius, pitch, task.boundary);
      apply_stencil(next, now, state.length, task.weights, task.width, pitch);
      T* const old = now;
      state.x = now = next, next = old;
      state.end_step();
    }
    state.finish();
  }
}

#if defined(__x86_64__)
#define PYPARAREAL_X86_ROOT(bytes, type, name)                                            \
  if constexpr (sizeof(V) == bytes && std::is_same_v<std::decay_t<decltype(x[0])>, type>) \
    x = (V)name(x);                                                                       \
  else
#else
#define PYPARAREAL_X86_ROOT(bytes, type, name)
#endif

inline double root_of(double x) { return __builtin_sqrt(x); }
inline float root_of(float x) { return __builtin_sqrtf(x); }

struct VectorMath {
  template <class V>
  static inline __attribute__((always_inline)) void square_root(V& x) {
#if PYPARAREAL_VECTOR_BYTES == 64
    PYPARAREAL_X86_ROOT(64, double, _mm512_sqrt_pd)
    PYPARAREAL_X86_ROOT(64, float, _mm512_sqrt_ps)
#elif PYPARAREAL_VECTOR_BYTES == 32
    PYPARAREAL_X86_ROOT(32, double, _mm256_sqrt_pd)
    PYPARAREAL_X86_ROOT(32, float, _mm256_sqrt_ps)
#else
    PYPARAREAL_X86_ROOT(16, double, _mm_sqrt_pd)
    PYPARAREAL_X86_ROOT(16, float, _mm_sqrt_ps)
#endif
    {
      for (int lane = 0; lane < static_cast<int>(sizeof(V) / sizeof(x[0])); ++lane) x[lane] = root_of(x[lane]);
    }
  }
};
#undef PYPARAREAL_X86_ROOT

// u = u + sum_j c_j h k_j; where every column has its own h, c_j h is a product of their dtype.
template <int components, bool own_steps, class T>
inline __attribute__((always_inline)) void plus(Vec<T>* u, const Vec<T> (*k)[components], const Coefficients<T>& by,
                                                int row, const Vec<T>& h) {
  const T* value = by.value[row];
  for (uint32_t rest = by.used[row]; rest; rest &= rest - 1) {
    const int j = __builtin_ctz(rest);
    if constexpr (own_steps) {
      const Vec<T> factor = value[j] * h;
#pragma GCC unroll 4
      for (int d = 0; d < components; ++d) u[d] = u[d] + factor * k[j][d];
    } else {
#pragma GCC unroll 4
      for (int d = 0; d < components; ++d) u[d] = u[d] + value[j] * k[j][d];
    }
  }
}

// One step of every column of a tile.
template <bool own_steps, class Rhs, class T>
void runge_kutta_tile(T* x, int vectors, int pitch, const Rhs& rhs, const Coefficients<T>& by, const T* steps) {
  constexpr int n = lanes_of<T>, components = Rhs::components;
  for (int v = 0; v < vectors; ++v) {
    Vec<T> u[components], w[components], k[max_stages][components], h = {};
    if (own_steps) read(h, steps + v * n);
#pragma GCC unroll 4
    for (int d = 0; d < components; ++d) read(u[d], x + d * pitch + v * n);
    for (int64_t s = 0; s < by.substeps; ++s) {
      for (int stage = 0; stage < by.stages; ++stage) {
#pragma GCC unroll 4
        for (int d = 0; d < components; ++d) w[d] = u[d];
        plus<components, own_steps, T>(w, k, by, stage, h);
        rhs.template slope<VectorMath>(w, k[stage]);
      }
      plus<components, own_steps, T>(u, k, by, max_stages, h);
    }
#pragma GCC unroll 4
    for (int d = 0; d < components; ++d) write(x + d * pitch + v * n, u[d]);
  }
}

// The step sizes of the columns of a tile, cut into substeps.
template <class T>
void step_sizes(T* h, const RungeKuttaTask<T>& task, int64_t first, const ColumnTile<T>& state, int64_t j) {
  int64_t slice = first / task.columns.space.batches, batch = first % task.columns.space.batches;
  for (int lane = 0; lane < state.pitch; ++lane) {  // lanes past the last column repeat it
    h[lane] = task.steps.template at<T>(slice, j, task.scheme.substeps);
    if (lane + 1 < state.live && ++batch == task.columns.space.batches) batch = 0, ++slice;
  }
}

template <class T>
void relax_rk_columns(const RungeKuttaTask<T>& task, int64_t first, int64_t last, int tile, T* scratch) {
  const Coefficients<T>& by = task.coefficients;
  with_rhs<T>(task.scheme, [&](const auto& rhs) {
    alignas(64) T h[most_lanes];
    for (int64_t column = first; column < last; column += tile) {
      ColumnTile<T> state(task.columns, scratch, column, last, tile);
      state.start();
      for (int64_t j = 0; j < task.columns.m; ++j) {
        if (task.steps.data) {
          step_sizes(h, task, column, state, j);
          runge_kutta_tile<true>(state.x, state.vectors, state.pitch, rhs, by, h);
        } else {
          runge_kutta_tile<false>(state.x, state.vectors, state.pitch, rhs, by, h);
        }
        state.end_step();
      }
      state.finish();
    }
  });
}

template <class T>
constexpr RelaxTiles<T> make_relax_tiles() {
  return {lanes_of<T>,
          wide_vectors * lanes_of<T>,
          side_by_side * lanes_of<T>,
          scale_tile<T>,
          add_tile<T>,
          relax_tridiagonal_columns<T>,
          relax_stencil_columns<T>,
          relax_rk_columns<T>,
          relax_function_columns<T>};
}

}  // namespace
}  // namespace pyparareal::cpu
