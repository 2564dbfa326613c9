// SPDX-License-Identifier: BSD-3-Clause
// Included by tiles_body.h: the steps of gru_tiles.h, on the products of mlp_wide_body.h.
#include "gru_tiles.h"
#include "pyparareal/gru_formulas.h"

namespace pyparareal::cpu {
namespace {

// Columns of the weights that lie side by side, and go through the registers together.
template <class T>
inline constexpr int64_t slab_columns = block_vectors * lanes_of<T>;

// Gates [3, hidden] of one k are columns of slabs, each [hidden, columns]: to[k, gate * pitch + i] = weight[gate, i, k]
template <class T>
void pack_slabs(const GruWeights<T>& w, int64_t pitch, T* slabs) {
  constexpr int n = lanes_of<T>;
  const int64_t hidden = w.hidden, columns = gru_gates * pitch;
  for (int64_t column = 0; column < columns; column += n) {
    const int64_t slab = column / slab_columns<T> * slab_columns<T>, width = least(slab_columns<T>, columns - slab);
    T* to = slabs + slab * hidden + (column - slab);
    const int64_t gate = column / pitch, i = column - gate * pitch, live = least(n, hidden - i);
    int64_t k = 0;
    for (; w.stride == 1 && live == n && k + n <= hidden; k += n) {
      Vec<T> rows[n];
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) read(rows[r], w.weight + (gate * hidden + i + r) * w.row_stride + k);
      transpose<T>(rows);
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) write(to + (k + r) * width, rows[r]);
    }
    for (; k < hidden; ++k)
      for (int64_t r = 0; r < n; ++r) to[k * width + r] = r < live ? w.at(gate * hidden + i + r, k) : T(0);
  }
}

template <class T>
void pack_gru(const GruWeights<T>& w, bool adjoint, T* shared) {
  const GruScratch at(w.hidden, 1, adjoint, sizeof(T));
  for (int64_t i = 0; i < at.pitch; ++i) shared[i] = i < w.hidden ? w.bias_at(i) : T(0);
  pack_slabs(w, at.pitch, shared + at.slabs);
  T* rows = shared + at.rows_of_weight;
  for (int64_t row = 0; adjoint && row < gru_gates * w.hidden; ++row)
    for (int64_t i = 0; i < at.pitch; ++i) rows[row * at.pitch + i] = i < w.hidden ? w.at(row, i) : T(0);
}

template <class T>
void take_row(T* to, const T* from, int64_t stride, int64_t count) {
  if (stride == 1)
    __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
  else
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
}

template <class T>
void put_row(T* to, int64_t stride, const T* from, int64_t count) {
  if (stride == 1)
    __builtin_memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
  else
    for (int64_t i = 0; i < count; ++i) to[i * stride] = from[i];
}

// Rows of the next step are asked for while this one computes: a few thousand steps are past the caches, and backward
// the processor does not foresee them.
template <int for_writing, class T>
inline __attribute__((always_inline)) void prefetch_row(const T* from, int64_t stride, int64_t count) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = 0; stride == 1 && i < count; i += line) __builtin_prefetch(from + i, for_writing);
}

// The first `count` elements of a vector.
template <class T>
inline __attribute__((always_inline)) void put_vector(T* to, int64_t stride, const Vec<T>& v, int64_t count) {
  if (stride == 1) return write_part(to, v, count);
  alignas(64) T all[lanes_of<T>];
  write(all, v);
  for (int64_t lane = 0; lane < least(count, lanes_of<T>); ++lane) to[lane * stride] = all[lane];
}

// Rows that go through the steps together, and what both directions do with them.
template <class T>
struct GruTile {
  const GruScratch at;
  const int64_t hidden, rows;
  const T* shared;
  T* x;

  GruTile(const GruWeights<T>& w, const T* packed, bool adjoint, int64_t tile, int64_t live, T* scratch)
      : at(w.hidden, tile, adjoint, sizeof(T)), hidden(w.hidden), rows(live), shared(packed), x(scratch) {
    for (int64_t i = 0; i < at.own; ++i) x[i] = T(0);  // beyond `hidden` the rows stay zero
  }

  T* state(int64_t row) const { return x + at.state + row * at.pitch; }
  T* sums(int64_t row) const { return x + at.sums + row * at.sums_pitch; }
  T* d(int64_t row) const { return x + at.d + row * at.pitch; }
  T* back(int64_t row) const { return x + at.back + row * at.back_pitch; }

  // sums[row, gate * pitch + i] = sum_k weight[gate, i, k] state[row, k]
  void multiply_states() const {
    for (int64_t column = 0; column < at.sums_pitch; column += slab_columns<T>) {
      const int64_t width = least(slab_columns<T>, at.sums_pitch - column);
      const T* slab = shared + at.slabs + column * hidden;
      const Product<T> p{state(0),      at.pitch, 1,       slab,  width,         hidden, sums(0) + column,
                         at.sums_pitch, true,     nullptr, false, Ending::store, T(0)};
      multiply(p, rows, width);
    }
  }

  // The gates of a row as whole vectors, `pitch` apart: where they are, or copied.
  const T* gates(int64_t row, const T* from, int64_t stride, int64_t& pitch) const {
    pitch = at.pitch;
    if (stride == 1 && hidden == at.pitch) return from;
    T* copy = x + at.gates + row * gru_gates * at.pitch;
    for (int gate = 0; gate < gru_gates; ++gate)
      take_row(copy + gate * at.pitch, from + gate * hidden * stride, stride, hidden);
    return copy;
  }

  GruGates<T, Vec<T>> gates_at(const T* in, int64_t pitch, const T* of, int64_t i) const {
    return GruGates<T, Vec<T>>::template of<VectorMlpMath>(
        loaded<T>(in + i), loaded<T>(in + pitch + i), loaded<T>(in + 2 * pitch + i), loaded<T>(of + i),
        loaded<T>(of + at.pitch + i), loaded<T>(of + 2 * at.pitch + i), loaded<T>(shared + i));
  }
};

// A row's way through an operand, step by step.
template <class T>
struct StepRow {
  T* data = nullptr;
  int64_t step = 0, stride = 1;

  StepRow() = default;
  StepRow(const ColumnOperand<T>& of, int64_t slice, int64_t batch) {
    if (of.data) data = of.column(slice, batch), step = of.step_stride, stride = of.stride;
  }
  T* at(int64_t j) const { return data + j * step; }
};

template <class T>
void relax_gru_rows(const GruTask<T>& task, const T* shared, int64_t first, int64_t last, int tile, T* scratch) {
  const ColumnTask<T>& c = task.columns;
  for (int64_t from = first; from < last; from += tile) {
    const GruTile<T> net(task.weights, shared, false, tile, least(tile, last - from), scratch);
    StepRow<const T> gates[gru_tile_rows], f[gru_tile_rows], g[gru_tile_rows];
    StepRow<T> every[gru_tile_rows];
    for (int64_t row = 0; row < net.rows; ++row) {
      const int64_t slice = (from + row) / c.space.batches, batch = (from + row) % c.space.batches;
      gates[row] = {task.gates, slice, batch}, f[row] = {c.f, slice, batch}, g[row] = {c.g, slice, batch};
      every[row] = {c.every, slice, batch};
      take_row(net.state(row), c.u.column(slice, batch), c.u.stride, net.hidden);
    }
    Kept kept(c.period);
    for (int64_t j = 0, keep = 0; j < c.m; ++j) {
      net.multiply_states();
      const bool keeps = c.every.data && kept.next();
      for (int64_t row = 0; row < net.rows; ++row) {
        int64_t pitch;
        const T* in = net.gates(row, gates[row].at(j), gates[row].stride, pitch);
        T* h = net.state(row);
        if (j + 1 < c.m) prefetch_row<0>(gates[row].at(j + 1), gates[row].stride, gru_gates * net.hidden);
        for (int64_t i = 0; i < net.hidden; i += lanes_of<T>)
          write(h + i, net.gates_at(in, pitch, net.sums(row), i).template next<VectorMlpMath>(loaded<T>(h + i)));
        if (c.f.data) end_wide_step<T>(h, net.hidden, c, f[row].at(j), c.g.data ? g[row].at(j) : nullptr, nullptr);
        if (keeps) put_row(every[row].at(keep), every[row].stride, h, net.hidden);
      }
      keep += keeps;
    }
    for (int64_t row = 0; c.out.data && row < net.rows; ++row)
      put_row(c.out.column((from + row) / c.space.batches, (from + row) % c.space.batches), c.out.stride,
              net.state(row), net.hidden);
  }
}

// One tile of rows of the adjoint, and one step of it.
template <class T>
struct GruAdjointTile {
  const GruAdjointTask<T>& task;
  const GruTile<T> net;
  StepRow<const T> u[gru_tile_rows], gates[gru_tile_rows], d_every[gru_tile_rows];
  StepRow<T> d_gates[gru_tile_rows], d_hidden[gru_tile_rows];

  GruAdjointTile(const GruAdjointTask<T>& of, const T* shared, int64_t from, int64_t tile, int64_t live, T* scratch)
      : task(of), net(of.weights, shared, true, tile, live, scratch) {
    for (int64_t row = 0; row < net.rows; ++row) {
      const int64_t slice = (from + row) / task.space.batches, batch = (from + row) % task.space.batches;
      u[row] = {task.u, slice, batch}, gates[row] = {task.gates, slice, batch};
      d_every[row] = {task.d_every, slice, batch}, d_gates[row] = {task.d_gates, slice, batch};
      d_hidden[row] = {task.d_hidden, slice, batch};
      take_row(net.d(row), task.d_end.column(slice, batch), task.d_end.stride, net.hidden);
    }
  }

  // What the step makes of a gradient, but for the product with the weights; z takes the place of its sum.
  void differentiate_row(int64_t row, int64_t j) const {
    constexpr int64_t n = lanes_of<T>;
    const int64_t hidden = net.hidden;
    int64_t pitch;
    const T *in = net.gates(row, gates[row].at(j), gates[row].stride, pitch), *h = net.state(row), *d = net.d(row);
    T *sums = net.sums(row), *back = net.back(row);
    for (int64_t i = 0; i < hidden; i += n) {
      const auto g = net.gates_at(in, pitch, sums, i);
      const auto e = GruGradients<T, Vec<T>>::of(g, loaded<T>(h + i), loaded<T>(d + i));
      write(sums + net.at.pitch + i, g.z);
      write_part(back + i, e.r, hidden - i);
      write_part(back + hidden + i, e.z, hidden - i);
      write_part(back + 2 * hidden + i, e.s, hidden - i);
      if (task.d_gates.data) {
        const auto& to = d_gates[row];
        put_vector(to.at(j) + i * to.stride, to.stride, e.r, hidden - i);
        put_vector(to.at(j) + (hidden + i) * to.stride, to.stride, e.z, hidden - i);
        put_vector(to.at(j) + (2 * hidden + i) * to.stride, to.stride, e.n, hidden - i);
      }
      if (task.d_hidden.data)
        put_vector(d_hidden[row].at(j) + i * d_hidden[row].stride, d_hidden[row].stride, e.s, hidden - i);
    }
  }

  void prefetch(int64_t row, int64_t j) const {
    prefetch_row<0>(u[row].at(j), u[row].stride, net.hidden);
    prefetch_row<0>(gates[row].at(j), gates[row].stride, gru_gates * net.hidden);
    if (task.d_every.data) prefetch_row<0>(d_every[row].at(j), d_every[row].stride, net.hidden);
    if (task.d_gates.data) prefetch_row<1>(d_gates[row].at(j), d_gates[row].stride, gru_gates * net.hidden);
    if (task.d_hidden.data) prefetch_row<1>(d_hidden[row].at(j), d_hidden[row].stride, net.hidden);
  }

  void step(int64_t j) const {
    const GruScratch& at = net.at;
    for (int64_t row = 0; row < net.rows; ++row) {
      take_row(net.state(row), u[row].at(j), u[row].stride, net.hidden);
      T* d = net.d(row);
      const auto& more = d_every[row];
      for (int64_t i = 0; more.data && i < net.hidden; ++i) d[i] = d[i] + more.at(j)[i * more.stride];
      if (j > 0) prefetch(row, j - 1);
    }
    net.multiply_states();
    for (int64_t row = 0; row < net.rows; ++row) differentiate_row(row, j);
    const Product<T> p{net.back(0), at.back_pitch,
                       1,           net.shared + at.rows_of_weight,
                       at.pitch,    gru_gates * net.hidden,
                       net.sums(0), at.sums_pitch,
                       true,        nullptr,
                       false,       Ending::store,
                       T(0)};
    multiply(p, net.rows, net.hidden);
    for (int64_t row = 0; row < net.rows; ++row) {
      T *d = net.d(row), *back = net.sums(row), *z = back + at.pitch;
      for (int64_t i = 0; i < net.hidden; i += lanes_of<T>)
        write(d + i, fused<T>(loaded<T>(d + i), loaded<T>(z + i), loaded<T>(back + i)));
    }
  }
};

template <class T>
void relax_gru_adjoint_rows(const GruAdjointTask<T>& task, const T* shared, int64_t first, int64_t last, int tile,
                            T* scratch) {
  for (int64_t from = first; from < last; from += tile) {
    const GruAdjointTile<T> net(task, shared, from, tile, least(tile, last - from), scratch);
    for (int64_t j = task.m - 1; j >= 0; --j) net.step(j);
    for (int64_t row = 0; row < net.net.rows; ++row)
      put_row(task.d_start.column((from + row) / task.space.batches, (from + row) % task.space.batches),
              task.d_start.stride, net.net.d(row), net.net.hidden);
  }
}

template <class T>
constexpr GruTiles<T> make_gru_tiles() {
  return {pack_gru<T>, relax_gru_rows<T>, relax_gru_adjoint_rows<T>};
}

}  // namespace
}  // namespace pyparareal::cpu
