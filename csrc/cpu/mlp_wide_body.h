// SPDX-License-Identifier: BSD-3-Clause
// Included by mlp_body.h: large networks, one column at a time, all weights in the caches through all steps. The three
// products of a layer are one blocked kernel, whose sums never change their order: C[r, c] = sum_k A[r, k] B[k, c].

namespace pyparareal::cpu {
namespace {

// Sums in registers: rows by vectors, beside a row of B and an element of A.
inline constexpr int block_rows = PYPARAREAL_VECTOR_BYTES == 64 ? 6 : 2, block_vectors = 4, row_vectors = 8;

// What becomes of the sums: stored, or weights W <- fma(rate, sum, W). The first is added to, where it says so.
enum class Ending { store, descend };

template <class T>
struct Product {
  const T* a;
  int64_t a_row, a_step;  // element (r, k) of A
  const T* b;
  int64_t b_pitch;  // rows of B are contiguous
  int64_t terms;
  T* c;
  int64_t c_pitch;
  bool whole;  // rows of C have room for whole vectors, which may be written
  T* sums;     // like c: where sums of earlier examples are and stay; or null
  bool add;    // to what `sums` holds
  Ending ending;
  T rate;
};

// `count` elements, of a vector that may end beyond them.
template <class T>
inline __attribute__((always_inline)) void write_part(T* to, const Vec<T>& v, int64_t count) {
  if (count >= lanes_of<T>) {
    write(to, v);
  } else {
    alignas(64) T all[lanes_of<T>];
    write(all, v);
    for (int64_t i = 0; i < count; ++i) to[i] = all[i];
  }
}

template <int rows, int vectors, class T>
void product_block(const Product<T>& p, int64_t row, int64_t column, int64_t columns) {
  constexpr int n = lanes_of<T>;
  Vec<T> sum[rows][vectors];
  const int64_t corner = row * p.c_pitch + column;
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[r][v] = p.add ? loaded<T>(p.sums + corner + r * p.c_pitch + v * n) : Vec<T>{};
  const T *a = p.a + row * p.a_row, *b = p.b + column;
  for (int64_t k = 0; k < p.terms; ++k, a += p.a_step, b += p.b_pitch) {
    Vec<T> right[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) read(right[v], b + v * n);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vec<T> left = repeated<T>(a[r * p.a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] = fused<T>(left, right[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      T* to = (p.ending == Ending::descend ? p.c : p.sums ? p.sums : p.c) + corner + r * p.c_pitch + v * n;
      if (p.ending == Ending::descend) sum[r][v] = fused<T>(repeated<T>(p.rate), sum[r][v], loaded<T>(to));
      write_part(to, sum[r][v], p.whole ? n : columns - column - v * n);
    }
}

template <int rows, int vectors, class T>
void product_rows(const Product<T>& p, int64_t row, int64_t count, int64_t column, int64_t columns) {
  for (; row + rows <= count; row += rows) product_block<rows, vectors>(p, row, column, columns);
  if constexpr (rows > 1) product_rows<rows - 1, vectors>(p, row, count, column, columns);
}

template <int rows, int vectors, class T>
int64_t product_columns(const Product<T>& p, int64_t count, int64_t column, int64_t columns) {
  for (; column + (vectors - 1) * lanes_of<T> < columns; column += vectors * lanes_of<T>)
    product_rows<rows, vectors>(p, 0, count, column, columns);
  if constexpr (vectors > 1) return product_columns<rows, vectors - 1>(p, count, column, columns);
  return column;
}

template <class T>
void multiply(const Product<T>& p, int64_t rows, int64_t columns) {
  if (rows == 1)
    product_columns<1, row_vectors>(p, 1, 0, columns);
  else
    product_columns<block_rows, block_vectors>(p, rows, 0, columns);
}

// to[i, o] = from[o, i]
template <class T>
void transpose_matrix(T* to, int64_t pitch, const T* from, int64_t outputs, int64_t inputs) {
  constexpr int n = lanes_of<T>;
  for (int64_t o = 0; o < outputs; o += n)
    for (int64_t i = 0; i < inputs; i += n) {
      if (outputs - o >= n && inputs - i >= n) {
        Vec<T> rows[n];
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) read(rows[r], from + (o + r) * inputs + i);
        transpose<T>(rows);
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) write(to + (i + r) * pitch + o, rows[r]);
      } else {
        for (int64_t c = i; c < least(i + n, inputs); ++c)
          for (int64_t r = o; r < least(o + n, outputs); ++r) to[c * pitch + r] = from[r * inputs + c];
      }
    }
}

// One column and its network.
template <class T>
struct WideNet {
  const MlpTask<T>& task;
  WideScratch at;
  T* x;
  T rate;
  int64_t begin;

  const Mlp& net() const { return task.net; }
  T* value(int layer) const { return x + at.value[layer]; }
  T* delta(int layer) const { return x + at.delta[layer]; }

  void transpose_weights() const {
    const T* w = x;
    for (int layer = 0; layer < net().layers; w += layer_weights(net(), layer++)) {
      const int64_t inputs = net().sizes[layer], outputs = net().sizes[layer + 1], pitch = at.pitch[layer + 1];
      T* to = x + at.transposed[layer];
      transpose_matrix(to, pitch, w, outputs, inputs);
      for (int64_t o = 0; net().bias && o < outputs; ++o) to[inputs * pitch + o] = w[inputs * outputs + o];
    }
  }

  void ones(int layer, int64_t count) const {
    for (int64_t e = 0; net().bias && e < count; ++e) value(layer)[e * at.pitch[layer] + net().sizes[layer]] = T(1);
  }

  // Examples [from, from + count) of the batch.
  void load(int64_t from, int64_t count) const {
    const int last = net().layers;
    for (int64_t e = 0; e < count; ++e) {
      const int64_t row = (begin + from + e) % task.examples;
      for (int64_t i = 0; i < net().sizes[0]; ++i) value(0)[e * at.pitch[0] + i] = task.x.at(row, i);
      for (int64_t i = 0; i < net().sizes[last]; ++i) delta(last)[e * at.pitch[last] + i] = task.y.at(row, i);
    }
    ones(0, count);
  }

  void forward(int layer, int64_t count) const {
    const int64_t terms = net().sizes[layer] + (net().bias ? 1 : 0), pitch = at.pitch[layer + 1];
    Product<T> p{value(layer),
                 at.pitch[layer],
                 1,
                 x + at.transposed[layer],
                 pitch,
                 terms,
                 value(layer + 1),
                 pitch,
                 true,
                 nullptr,
                 false,
                 Ending::store,
                 T(0)};
    multiply(p, count, net().sizes[layer + 1]);
    activate(value(layer + 1), count * pitch, task.kind(layer));
    if (layer + 1 < net().layers) ones(layer + 1, count);
  }

  void backward(int layer, const T* w, int64_t count) const {
    const int64_t pitch = at.pitch[layer];
    Product<T> p{delta(layer + 1),
                 at.pitch[layer + 1],
                 1,
                 w,
                 net().sizes[layer],
                 net().sizes[layer + 1],
                 delta(layer),
                 pitch,
                 true,
                 nullptr,
                 false,
                 Ending::store,
                 T(0)};
    multiply(p, count, net().sizes[layer]);
    differentiate<false>(delta(layer), value(layer), count * pitch, task.kind(layer - 1));
  }

  // Gradient of a layer over a block of examples, and the step after the last block.
  void descend(int layer, T* w, int64_t count, bool first_block, bool last_block) const {
    const int64_t inputs = net().sizes[layer], outputs = net().sizes[layer + 1];
    const Ending ending = last_block ? Ending::descend : Ending::store;
    Product<T> p{delta(layer + 1), 1,     at.pitch[layer + 1], value(layer), at.pitch[layer], count, w,
                 inputs,           false, w + at.gradient,     !first_block, ending,          rate};
    multiply(p, outputs, inputs);
    if (!net().bias) return;
    const T one = 1;
    T* biases = w + inputs * outputs;
    Product<T> b{&one,   0,       0,     delta(layer + 1),     at.pitch[layer + 1], count,
                 biases, outputs, false, biases + at.gradient, !first_block,        ending,
                 rate};
    multiply(b, 1, outputs);
  }

  void step() const {
    const int64_t batch = task.batch();
    const int last = net().layers;
    transpose_weights();
    for (int64_t from = 0; from < batch; from += at.block) {
      const int64_t count = least(at.block, batch - from);
      load(from, count);
      for (int layer = 0; layer < last; ++layer) forward(layer, count);
      differentiate<true>(delta(last), value(last), count * at.pitch[last], net().last);
      T* w = x;
      for (int layer = 0; layer < last; ++layer) w += layer_weights(net(), layer);
      for (int layer = last - 1; layer >= 0; --layer) {
        w -= layer_weights(net(), layer);
        if (layer > 0) backward(layer, w, count);
        descend(layer, w, count, from == 0, from + count == batch);
      }
    }
  }
};

// u = u + f, or f + (u - g), and every = u
template <class T>
void end_wide_step(T* x, int64_t length, const ColumnTask<T>& c, const T* f, const T* g, T* every) {
  if (f && c.f.stride == 1 && (!g || c.g.stride == 1)) {
    add_tile(x, f, g, length);
  } else {
    for (int64_t i = 0; f && i < length; ++i)
      x[i] = g ? f[i * c.f.stride] + (x[i] - g[i * c.g.stride]) : x[i] + f[i * c.f.stride];
  }
  for (int64_t i = 0; every && i < length; ++i) every[i * c.every.stride] = x[i];
}

template <class T>
void relax_mlp_wide(const MlpTask<T>& task, int64_t first, int64_t last, T* scratch) {
  const ColumnTask<T>& c = task.columns;
  const int64_t length = c.space.length;
  WideNet<T> net{task, WideScratch(task.net, length, sizeof(T)), scratch, T(0), 0};
  for (int64_t column = first; column < last; ++column) {
    const int64_t slice = column / c.space.batches, batch = column % c.space.batches;
    const auto of = [&](const auto& operand) {
      return operand.data ? operand.column(slice, batch) : decltype(operand.data){};
    };
    const T *u = of(c.u), *f = of(c.f), *g = of(c.g);
    T *every = of(c.every), *out = of(c.out);
    for (int64_t i = 0; i < length; ++i) scratch[i] = u[i * c.u.stride];
    Kept kept(c.period);
    for (int64_t j = 0; j < c.m; ++j) {
      net.rate = task.rate(slice, j);
      net.begin = task.begin(slice, j);
      net.step();
      const bool keeps = every && kept.next();
      end_wide_step(scratch, length, c, f, g, keeps ? every : nullptr);
      if (f) f += c.f.step_stride;
      if (g) g += c.g.step_stride;
      if (keeps) every += c.every.step_stride;
    }
    for (int64_t i = 0; out && i < length; ++i) out[i * c.out.stride] = scratch[i];
  }
}

template <class T>
constexpr MlpTiles<T> make_mlp_tiles() {
  return {lanes_of<T>, relax_mlp_narrow<T>, relax_mlp_wide<T>};
}

}  // namespace
}  // namespace pyparareal::cpu
