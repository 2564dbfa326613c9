// SPDX-License-Identifier: BSD-3-Clause
// Included by tiles_body.h: the steps of dense_tiles.h on the tiles of relax_columns_body.h.
#include <optional>

#include "dense_tiles.h"
#include "pyparareal/dense_formulas.h"

namespace pyparareal::cpu {
namespace {

// Sums in registers: so many outputs by the vectors of a tile, beside a row of the tile.
template <int vectors>
inline constexpr int dense_outputs = (PYPARAREAL_VECTOR_BYTES == 64 ? 16 : 8) / (vectors == 3 ? 2 : vectors);

// Which stride of the matrix is known to be one.
enum class Unit { in, out, none };

// to[o, row] = bias[o] + sum_k w[o, k] x[k, row], or to + scale * the sum, of tiles of `vectors` vectors.
template <class T>
struct DenseProduct {
  const T* w;
  int64_t out_stride, in_stride;
  int64_t outputs, terms;
  const T* x;
  T* to;
  const T* bias;  // or null, which is zeros
  int64_t bias_stride;
  bool add;
  T scale;
  const T* ahead;  // the matrix after this one, to be fetched while this one is used; or null
};

template <int outputs, int vectors, Unit unit, class T>
void dense_block(const DenseProduct<T>& p, int64_t o) {
  constexpr int n = lanes_of<T>, pitch = vectors * n;
  const int64_t out_stride = unit == Unit::out ? 1 : p.out_stride, in_stride = unit == Unit::in ? 1 : p.in_stride;
  Vec<T> sum[outputs][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < outputs; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sum[r][v] = p.bias ? repeated<T>(p.bias[(o + r) * p.bias_stride]) : Vec<T>{};
  const T *w = p.w + o * out_stride, *x = p.x;
  const T* ahead = p.ahead ? p.ahead + o * p.terms : p.w;
  const int64_t fetched = p.ahead ? outputs : 0;
  for (int64_t k = 0; k < p.terms; ++k, w += in_stride, x += pitch, ahead += fetched) {
    Vec<T> right[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) read(right[v], x + v * n);
    __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
    for (int r = 0; r < outputs; ++r) {
      const Vec<T> left = repeated<T>(w[r * out_stride]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] = fused<T>(left, right[v], sum[r][v]);
    }
  }
  T* to = p.to + o * pitch;
#pragma GCC unroll 16
  for (int r = 0; r < outputs; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v, to += n)
      write(to, p.add ? fused<T>(repeated<T>(p.scale), sum[r][v], loaded<T>(to)) : sum[r][v]);
}

template <int outputs, int vectors, Unit unit, class T>
void dense_blocks(const DenseProduct<T>& p, int64_t o) {
  for (; o + outputs <= p.outputs; o += outputs) dense_block<outputs, vectors, unit>(p, o);
  if constexpr (outputs > 1) dense_blocks<outputs / 2, vectors, unit>(p, o);
}

template <int most, class T>
void multiply_tile(const DenseProduct<T>& p, int vectors) {
  if constexpr (most > 1)
    if (vectors < most) return multiply_tile<most - 1>(p, vectors);
  if (p.in_stride == 1)
    dense_blocks<dense_outputs<most>, most, Unit::in>(p, 0);
  else if (p.out_stride == 1)
    dense_blocks<dense_outputs<most>, most, Unit::out>(p, 0);
  else
    dense_blocks<1, most, Unit::none>(p, 0);
}

// x = x + h act(z), and z = h act'(z) where it is wanted.
template <bool slopes, class Of, class T>
void dense_end(T* x, T* z, int64_t count, T h) {
#pragma GCC unroll 2
  for (int64_t i = 0; i < count; i += lanes_of<T>) {
    const auto a = Of::template of<T, VectorMlpMath>(loaded<T>(z + i));
    write(x + i, fused<T>(repeated<T>(h), a.value, loaded<T>(x + i)));
    if (slopes) write(z + i, h * a.slope);
  }
}

// The tiles of some rows of one slice, which take every step together.
template <class T>
struct DenseGroup {
  struct Tile {
    ColumnTile<T> state;
    T* z;  // like state.x

    int64_t elements() const { return state.length * state.pitch; }
  };

  const DenseWeights<T>& weights;
  const int64_t slice, m;
  std::optional<Tile> tiles[dense_group];
  Columns<T> slopes[dense_group];
  Columns<const T> given[dense_group];

  DenseGroup(const ColumnTask<T>& task, const DenseWeights<T>& w, int64_t of_slice, int64_t first, int64_t last,
             int tile, T* scratch)
      : weights(w), slice(of_slice), m(task.m) {
    const int64_t start = slice * task.space.batches, size = tile * task.space.length;
    for (int i = 0; first < last; ++i, first += tile, scratch += dense_tiles_of_scratch * size)
      tiles[i].emplace(
          Tile{ColumnTile<T>(task, scratch, start + first, start + least(first + tile, last), tile), scratch + size});
  }

  template <class Body>
  void for_tiles(const Body& body) {
    for (int i = 0; i < dense_group && tiles[i]; ++i) body(*tiles[i], i);
  }

  template <class U>
  void find(Columns<U>* columns, const ColumnOperand<U>& operand, const ColumnSpace& space, int64_t first, int tile) {
    for_tiles([&](Tile& t, int i) {
      columns[i].find(operand, space, slice * space.batches + first + i * tile, t.state.live, t.state.pitch);
    });
  }

  // The matrix after that of step j, where it lies as a whole.
  const T* after(int64_t j, int64_t slices) const {
    if (!weights.contiguous() || (j + 1 == m && slice + 1 == slices)) return nullptr;
    return j + 1 < m ? weights.weight_of(slice, j + 1) : weights.weight_of(slice + 1, 0);
  }
};

// body(element of the tile, lane, first element of the columns, count, live lanes), as ColumnTile has it for its own.
template <class T, class Body>
inline __attribute__((always_inline)) void for_tile_blocks(const ColumnTile<T>& tile, bool dense, const Body& body) {
  constexpr int n = lanes_of<T>;
  for (int v = 0; v < tile.vectors; ++v)
    for (int64_t at = 0; at < tile.length; at += n) {
      const int64_t element = at * tile.pitch + v * n, left = tile.length - at;
      if (dense && left >= n)
        body(element, v * n, at, Whole<n>{}, tile.live_in(v));
      else
        body(element, v * n, at, Part{static_cast<int>(least(n, left))}, tile.live_in(v));
    }
}

// The rows of a tile to where `columns` has them.
template <class T>
void put_tile_rows(const ColumnTile<T>& tile, const T* z, const Columns<T>& columns) {
  for_tile_blocks(tile, columns.stride == 1, [&](int64_t element, int lane, int64_t at, auto count, int live) {
    Vec<T> rows[lanes_of<T>];
#pragma GCC unroll 16
    for (int r = 0; r < count; ++r) read(rows[r], z + element + r * tile.pitch);
    write_rows(rows, columns.base + lane, columns.stride, at, count, live);
  });
}

// z = x * columns
template <class T>
void multiply_by_rows(const ColumnTile<T>& tile, T* z, const Columns<const T>& columns) {
  for_tile_blocks(tile, columns.stride == 1, [&](int64_t element, int lane, int64_t at, auto count, int) {
    Vec<T> rows[lanes_of<T>];
    read_rows(rows, columns.base + lane, columns.stride, at, count);
#pragma GCC unroll 16
    for (int r = 0; r < count; ++r) {
      const int64_t i = element + r * tile.pitch;
      write(z + i, rows[r] * loaded<T>(tile.x + i));
    }
  });
}

template <class T>
void end_dense_step(DenseActivation kind, T* x, T* z, int64_t count, T h, bool slopes) {
  with_dense_activation(kind, [&](auto of) {
    if (slopes)
      dense_end<true, decltype(of)>(x, z, count, h);
    else
      dense_end<false, decltype(of)>(x, z, count, h);
  });
}

template <class T>
void relax_dense_rows(const DenseTask<T>& task, int64_t slice, int64_t first, int64_t last, int tile, T* scratch) {
  const ColumnTask<T>& c = task.columns;
  const DenseWeights<T>& w = task.weights;
  DenseGroup<T> group(c, w, slice, first, last, tile, scratch);
  group.find(group.slopes, task.slopes, c.space, first, tile);
  group.for_tiles([](auto& t, int) { t.state.start(); });
  for (int64_t j = 0; j < c.m; ++j) {
    const T* const ahead = group.after(j, c.space.slices);
    group.for_tiles([&](auto& t, int i) {
      const DenseProduct<T> p{w.weight_of(slice, j),
                              w.out_stride,
                              w.in_stride,
                              w.d,
                              w.d,
                              t.state.x,
                              t.z,
                              w.bias_of(slice, j),
                              w.bias_stride,
                              false,
                              T(0),
                              i == 0 ? ahead : nullptr};
      multiply_tile<dense_vectors>(p, t.state.vectors);
      auto& slopes = group.slopes[i];
      end_dense_step(task.activation, t.state.x, t.z, t.elements(), task.h, slopes.present);
      if (slopes.present) {
        put_tile_rows(t.state, t.z, slopes);
        slopes.next_step();
      }
      t.state.end_step();
    });
  }
  group.for_tiles([](auto& t, int) { t.state.finish(); });
}

template <class T>
void relax_dense_adjoint_rows(const DenseAdjointTask<T>& task, int64_t slice, int64_t first, int64_t last, int tile,
                              T* scratch) {
  const ColumnTask<T>& c = task.columns;
  const DenseWeights<T>& w = task.weights;
  DenseGroup<T> group(c, w, slice, first, last, tile, scratch);
  group.find(group.given, task.slopes, c.space, first, tile);
  group.for_tiles([](auto& t, int) { t.state.start(); });
  for (int64_t j = 0; j < c.m; ++j) {
    const T* const ahead = group.after(j, c.space.slices);
    group.for_tiles([&](auto& t, int i) {
      multiply_by_rows(t.state, t.z, group.given[i]);
      group.given[i].next_step();
      const DenseProduct<T> p{
          w.weight_of(slice, j),   w.in_stride, w.out_stride, w.d, w.d, t.z, t.state.x, nullptr, 0, true, task.scale,
          i == 0 ? ahead : nullptr};
      multiply_tile<dense_vectors>(p, t.state.vectors);
      t.state.end_step();
    });
  }
  group.for_tiles([](auto& t, int) { t.state.finish(); });
}

template <class T>
constexpr DenseTiles<T> make_dense_tiles() {
  return {lanes_of<T>, relax_dense_rows<T>, relax_dense_adjoint_rows<T>};
}

}  // namespace
}  // namespace pyparareal::cpu
