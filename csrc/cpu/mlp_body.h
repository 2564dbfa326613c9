// SPDX-License-Identifier: BSD-3-Clause
// Included by tiles_body.h: vectors of the formulas of relax_mlp_sgd, and small networks, whose columns share vectors.
#include "mlp_tiles.h"
#include "pyparareal/mlp_formulas.h"
#include "relax_tiles_body.h"

namespace pyparareal::cpu {
namespace {

template <class T>
struct WordOf;
template <>
struct WordOf<double> {
  typedef uint64_t type __attribute__((vector_size(PYPARAREAL_VECTOR_BYTES)));
  static constexpr int mantissa = 52;
  static constexpr uint64_t one = 0x3ff0000000000000u;
};
template <>
struct WordOf<float> {
  typedef uint32_t type __attribute__((vector_size(PYPARAREAL_VECTOR_BYTES)));
  static constexpr int mantissa = 23;
  static constexpr uint32_t one = 0x3f800000u;
};

struct VectorMlpMath {
  static inline __attribute__((always_inline)) Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if PYPARAREAL_VECTOR_BYTES == 64
    return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif PYPARAREAL_VECTOR_BYTES == 32
    return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    for (int lane = 0; lane < lanes_of<double>; ++lane) c[lane] = __builtin_fma(a[lane], b[lane], c[lane]);
    return c;
#endif
  }
  static inline __attribute__((always_inline)) Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if PYPARAREAL_VECTOR_BYTES == 64
    return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif PYPARAREAL_VECTOR_BYTES == 32
    return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int lane = 0; lane < lanes_of<float>; ++lane) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return c;
#endif
  }
  // The low bits of `shifted` are n; they become the exponent.
  static inline __attribute__((always_inline)) Vec<double> power_of_two(Vec<double> shifted) {
    using Word = WordOf<double>;
    return (Vec<double>)(((Word::type)shifted << Word::mantissa) + Word::one);
  }
  static inline __attribute__((always_inline)) Vec<float> power_of_two(Vec<float> shifted) {
    using Word = WordOf<float>;
    return (Vec<float>)(((Word::type)shifted << Word::mantissa) + Word::one);
  }
};

template <class T>
inline __attribute__((always_inline)) Vec<T> loaded(const T* from) {
  Vec<T> v;
  read(v, from);
  return v;
}

// In all lanes. Zero minus nothing keeps its sign, and costs nothing.
template <class T>
inline __attribute__((always_inline)) Vec<T> repeated(T x) {
  return x - Vec<T>{};
}

template <class T>
inline __attribute__((always_inline)) Vec<T> fused(Vec<T> a, Vec<T> b, Vec<T> c) {
  return VectorMlpMath::fma(a, b, c);
}

// x = activation(x), whole vectors
template <class T>
void activate(T* x, int64_t count, Activation kind) {
  with_activation(kind, [=](auto of) {
    for (int64_t i = 0; i < count; i += lanes_of<T>)
      write(x + i, decltype(of)::template value<T, VectorMlpMath>(loaded<T>(x + i)));
  });
}

// error = error * activation'(z) for a = activation(z), or first the difference of error and a
template <bool difference, class T>
void differentiate(T* error, const T* a, int64_t count, Activation kind) {
  with_activation(kind, [=](auto of) {
    for (int64_t i = 0; i < count; i += lanes_of<T>) {
      const Vec<T> value = loaded<T>(a + i), e = loaded<T>(error + i);
      write(error + i, decltype(of)::template delta<T>(value, difference ? e - value : e));
    }
  });
}

// One tile of columns and a network in its lanes.
template <class T, int vectors>
struct NarrowNet {
  static constexpr int n = lanes_of<T>, pitch = vectors * n;
  const MlpTask<T>& task;
  NarrowScratch at;
  T* x;

  T* row(int64_t index) const { return x + index * pitch; }

  // Example `e` of the batches of all lanes.
  void load(const int64_t* begin, int64_t e) const {
    const Mlp& net = task.net;
    T *in = row(at.value[0]), *out = row(at.delta[net.layers]);
    if (!begin) {
      for (int64_t i = 0; i < net.sizes[0]; ++i)
        for (int v = 0; v < vectors; ++v) write(in + i * pitch + v * n, repeated<T>(task.x.at(e, i)));
      for (int64_t i = 0; i < net.sizes[net.layers]; ++i)
        for (int v = 0; v < vectors; ++v) write(out + i * pitch + v * n, repeated<T>(task.y.at(e, i)));
      return;
    }
    for (int lane = 0; lane < pitch; ++lane) {
      const int64_t from = (begin[lane] + e) % task.examples;
      for (int64_t i = 0; i < net.sizes[0]; ++i) in[i * pitch + lane] = task.x.at(from, i);
      for (int64_t i = 0; i < net.sizes[net.layers]; ++i) out[i * pitch + lane] = task.y.at(from, i);
    }
  }

  void forward(int layer, int64_t w) const {
    const int64_t inputs = task.net.sizes[layer], outputs = task.net.sizes[layer + 1];
    const T *in = row(at.value[layer]), *matrix = row(w), *biases = row(w + inputs * outputs);
    T* out = row(at.value[layer + 1]);
    for (int64_t o = 0; o < outputs; ++o, matrix += inputs * pitch) {
      Vec<T> sum[vectors] = {};
      for (int64_t i = 0; i < inputs; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
          sum[v] = fused<T>(loaded<T>(in + i * pitch + v * n), loaded<T>(matrix + i * pitch + v * n), sum[v]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        if (task.net.bias) sum[v] = sum[v] + loaded<T>(biases + o * pitch + v * n);
        write(out + o * pitch + v * n, sum[v]);
      }
    }
    activate(out, outputs * pitch, task.kind(layer));
  }

  // Errors of the neurons before `layer`.
  void backward(int layer, int64_t w) const {
    const int64_t inputs = task.net.sizes[layer], outputs = task.net.sizes[layer + 1];
    const T *error = row(at.delta[layer + 1]), *matrix = row(w);
    T* to = row(at.delta[layer]);
    for (int64_t i = 0; i < inputs; ++i) {
      Vec<T> sum[vectors] = {};
      for (int64_t o = 0; o < outputs; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
          sum[v] = fused<T>(loaded<T>(error + o * pitch + v * n), loaded<T>(matrix + (o * inputs + i) * pitch + v * n),
                            sum[v]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) write(to + i * pitch + v * n, sum[v]);
    }
    differentiate<false>(to, row(at.value[layer]), inputs * pitch, task.kind(layer - 1));
  }

  // What the example adds to the gradient of a layer.
  void add_gradient(int layer, int64_t w) const {
    const int64_t inputs = task.net.sizes[layer], outputs = task.net.sizes[layer + 1];
    const T *error = row(at.delta[layer + 1]), *in = row(at.value[layer]);
    T *to = row(at.gradient + w), *biases = to + inputs * outputs * pitch;
    for (int64_t o = 0; o < outputs; ++o, to += inputs * pitch, error += pitch) {
      Vec<T> own[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) own[v] = loaded<T>(error + v * n);
      for (int64_t i = 0; i < inputs; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v)
          write(to + i * pitch + v * n,
                fused<T>(own[v], loaded<T>(in + i * pitch + v * n), loaded<T>(to + i * pitch + v * n)));
      if (task.net.bias)
        for (int v = 0; v < vectors; ++v)
          write(biases + o * pitch + v * n, loaded<T>(biases + o * pitch + v * n) + own[v]);
    }
  }

  void step(const T* rate, const int64_t* begin) const {
    const Mlp& net = task.net;
    T* sums = row(at.gradient);
    for (int64_t i = 0; i < at.gradient * pitch; i += n) write(sums + i, Vec<T>{});
    for (int64_t e = 0; e < task.batch(); ++e) {
      load(begin, e);
      int64_t w = 0;
      for (int layer = 0; layer < net.layers; w += layer_weights(net, layer++)) forward(layer, w);
      differentiate<true>(row(at.delta[net.layers]), row(at.value[net.layers]), net.sizes[net.layers] * pitch,
                          net.last);
      for (int layer = net.layers - 1; layer >= 0; --layer) {
        w -= layer_weights(net, layer);
        if (layer > 0) backward(layer, w);
        add_gradient(layer, w);
      }
    }
    for (int64_t i = 0; i < at.gradient; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v)
        write(x + i * pitch + v * n,
              fused<T>(loaded<T>(rate + v * n), loaded<T>(sums + i * pitch + v * n), loaded<T>(x + i * pitch + v * n)));
  }
};

// All steps of a tile of as many vectors; lanes past the last column repeat it.
template <int vectors, class T>
void descend_narrow(const MlpTask<T>& task, ColumnTile<T>& state, int64_t column) {
  if constexpr (vectors > 1) {
    if (state.vectors < vectors) return descend_narrow<vectors - 1>(task, state, column);
  }
  const NarrowNet<T, vectors> net{task, NarrowScratch(task.net, state.length), state.x};
  alignas(64) T rate[vectors * lanes_of<T>];
  int64_t begin[vectors * lanes_of<T>];
  for (int64_t j = 0; j < task.columns.m; ++j) {
    for (int lane = 0; lane < state.pitch; ++lane) {
      const int64_t slice = (column + least(lane, state.live - 1)) / task.columns.space.batches;
      rate[lane] = task.rate(slice, j);
      begin[lane] = task.begin(slice, j);
    }
    net.step(rate, task.first.data ? begin : nullptr);
    state.end_step();
  }
}

template <class T>
void relax_mlp_narrow(const MlpTask<T>& task, int64_t first, int64_t last, int tile, T* scratch) {
  for (int64_t column = first; column < last; column += tile) {
    ColumnTile<T> state(task.columns, scratch, column, last, tile);
    state.start();
    descend_narrow<mlp_tile_vectors>(task, state, column);
    state.finish();
  }
}

}  // namespace
}  // namespace pyparareal::cpu

#include "mlp_wide_body.h"
