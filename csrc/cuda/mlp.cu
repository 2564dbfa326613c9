// SPDX-License-Identifier: BSD-3-Clause
// relax_mlp_sgd: a thread per column where the network is small, its weights and the rest in shared memory, one bank a
// thread; else a block per column, with all weights in shared memory where they fit and else in the workspace. All
// steps are taken before the end states are written.
#include "../backend.h"
#include "launch.cuh"
#include "pyparareal/mlp.h"
#include "pyparareal/mlp_formulas.h"

namespace pyparareal::cuda {
namespace {

inline constexpr int warp = 32, net_threads = 256, tile_rows = 4;

// Shared memory of a warp of small networks, so that several warps share a multiprocessor.
inline constexpr std::size_t most_narrow_bytes = 40 << 10;

// Blocks with scratch in the workspace: 4 for each of 132 multiprocessors.
inline constexpr int64_t workspace_blocks = 528;

// Examples that go through a network together.
inline constexpr int64_t most_block = 64;

template <class T>
__device__ __forceinline__ T fused(T a, T b, T c) {
  return ScalarMlpMath::fma(a, b, c);
}

template <class T>
__device__ __forceinline__ T activation(Activation kind, T z) {
  T a = z;
  with_activation(kind, [&](auto of) { a = decltype(of)::template value<T, ScalarMlpMath>(z); });
  return a;
}

template <class T>
__device__ __forceinline__ T derivative(Activation kind, T a, T error) {
  T d = error;
  with_activation(kind, [&](auto of) { d = decltype(of)::template delta<T>(a, error); });
  return d;
}

// u + f, or f + (u - g), and a row of `every` unless it is negative: element i of a column after step j.
template <class T>
struct Sides {
  const T *f, *g;
  T* every;
  int64_t f_stride, g_stride, every_stride;

  __device__ __forceinline__ Sides(const ColumnTask<T>& c, int64_t slice, int64_t batch, int64_t j, int64_t row)
      : f(c.f.data ? c.f.column(slice, batch) + j * c.f.step_stride : nullptr),
        g(c.g.data ? c.g.column(slice, batch) + j * c.g.step_stride : nullptr),
        every(row >= 0 ? c.every.column(slice, batch) + row * c.every.step_stride : nullptr),
        f_stride(c.f.stride),
        g_stride(c.g.stride),
        every_stride(c.every.stride) {}

  __device__ __forceinline__ bool any() const { return f || every; }
  __device__ __forceinline__ void apply(T& u, int64_t i) const {
    if (g)
      u = f[i * f_stride] + (u - g[i * g_stride]);
    else if (f)
      u = u + f[i * f_stride];
    if (every) every[i * every_stride] = u;
  }
};

// A small network: a column of the scratch [rows][warp] is of this thread alone, so that nothing has to wait.
template <class T>
struct ThreadNet {
  const MlpTask<T>& task;
  const NarrowScratch& at;
  T* x;

  __device__ __forceinline__ T& row(int64_t index) const { return x[index * warp]; }

  __device__ void forward(int layer, int64_t w) const {
    const int64_t inputs = task.net.sizes[layer], outputs = task.net.sizes[layer + 1];
    for (int64_t o = 0; o < outputs; ++o) {
      T sum = T(0);
      for (int64_t i = 0; i < inputs; ++i) sum = fused(row(at.value[layer] + i), row(w + o * inputs + i), sum);
      if (task.net.bias) sum = sum + row(w + inputs * outputs + o);
      row(at.value[layer + 1] + o) = activation(task.kind(layer), sum);
    }
  }

  __device__ void backward(int layer, int64_t w) const {
    const int64_t inputs = task.net.sizes[layer], outputs = task.net.sizes[layer + 1];
    for (int64_t i = 0; i < inputs; ++i) {
      T sum = T(0);
      for (int64_t o = 0; o < outputs; ++o) sum = fused(row(at.delta[layer + 1] + o), row(w + o * inputs + i), sum);
      row(at.delta[layer] + i) = derivative(task.kind(layer - 1), row(at.value[layer] + i), sum);
    }
  }

  __device__ void add_gradient(int layer, int64_t w) const {
    const int64_t inputs = task.net.sizes[layer], outputs = task.net.sizes[layer + 1], to = at.gradient + w;
    for (int64_t o = 0; o < outputs; ++o) {
      const T own = row(at.delta[layer + 1] + o);
      for (int64_t i = 0; i < inputs; ++i)
        row(to + o * inputs + i) = fused(own, row(at.value[layer] + i), row(to + o * inputs + i));
      if (task.net.bias) row(to + inputs * outputs + o) = row(to + inputs * outputs + o) + own;
    }
  }

  __device__ void step(T rate, int64_t begin) const {
    const Mlp& net = task.net;
    const int last = net.layers;
    for (int64_t i = 0; i < at.gradient; ++i) row(at.gradient + i) = T(0);
    for (int64_t e = 0; e < task.batch(); ++e) {
      const int64_t from = (begin + e) % task.examples;
      for (int64_t i = 0; i < net.sizes[0]; ++i) row(at.value[0] + i) = task.x.at(from, i);
      int64_t w = 0;
      for (int layer = 0; layer < last; w += layer_weights(net, layer++)) forward(layer, w);
      for (int64_t i = 0; i < net.sizes[last]; ++i) {
        const T a = row(at.value[last] + i);
        row(at.delta[last] + i) = derivative(net.last, a, task.y.at(from, i) - a);
      }
      for (int layer = last - 1; layer >= 0; --layer) {
        w -= layer_weights(net, layer);
        if (layer > 0) backward(layer, w);
        add_gradient(layer, w);
      }
    }
    for (int64_t i = 0; i < at.gradient; ++i) row(i) = fused(rate, row(at.gradient + i), row(i));
  }
};

template <class T>
__global__ void __launch_bounds__(warp) thread_kernel(MlpTask<T> task, NarrowScratch at) {
  const ThreadNet<T> net{task, at, block_scratch<T>() + threadIdx.x};
  const ColumnTask<T>& c = task.columns;
  const int64_t columns = c.space.columns(), length = c.space.length;
  for (int64_t column = static_cast<int64_t>(blockIdx.x) * warp + threadIdx.x; column < columns;
       column += static_cast<int64_t>(gridDim.x) * warp) {
    const int64_t slice = column / c.space.batches, batch = column % c.space.batches;
    const T* u = c.u.column(slice, batch);
    for (int64_t i = 0; i < length; ++i) net.row(i) = u[i * c.u.stride];
    Kept kept(c.period);
    for (int64_t j = 0, rows = 0; j < c.m; ++j) {
      net.step(task.rate(slice, j), task.begin(slice, j));
      const Sides<T> sides(c, slice, batch, j, c.every.data && kept.next() ? rows++ : -1);
      for (int64_t i = 0; sides.any() && i < length; ++i) sides.apply(net.row(i), i);
    }
    if (!c.out.data) continue;
    T* out = c.out.column(slice, batch);
    for (int64_t i = 0; i < length; ++i) out[i * c.out.stride] = net.row(i);
  }
}

// Scratch of a block: matrices [out, in and a bias] of odd pitch, so that rows and columns are free of bank conflicts;
// their gradient, where more than one block of examples adds to it; values and errors [examples, neurons] of a block.
struct BlockScratch {
  int32_t w[max_layers], w_pitch[max_layers], value[max_layers + 1], delta[max_layers + 1], pitch[max_layers + 1];
  int32_t gradient, block;
  int64_t elements;

  BlockScratch(const Mlp& net, int64_t examples) : block(static_cast<int32_t>(examples)) {
    int64_t at = 0;
    for (int layer = 0; layer < net.layers; ++layer) {
      w_pitch[layer] = static_cast<int32_t>(net.sizes[layer] + (net.bias ? 1 : 0)) | 1;
      w[layer] = static_cast<int32_t>(at);
      at += net.sizes[layer + 1] * w_pitch[layer];
    }
    gradient = static_cast<int32_t>(at);
    if (net.count > examples) at += at;
    for (int layer = 0; layer <= net.layers; ++layer) {
      pitch[layer] = static_cast<int32_t>(net.sizes[layer] + (net.bias ? 1 : 0));
      value[layer] = static_cast<int32_t>(at), at += examples * pitch[layer];
      delta[layer] = static_cast<int32_t>(at), at += layer > 0 ? examples * pitch[layer] : 0;
    }
    elements = at;
  }
};

// Which scratch, and where: with as many examples at a time as shared memory has room for.
struct BlockPlan {
  BlockScratch scratch;
  bool in_shared;

  BlockPlan(const Mlp& net, std::size_t item, std::size_t most) : scratch(net, first_of(net)), in_shared(true) {
    const auto fits = [&] { return static_cast<std::size_t>(scratch.elements) * item <= most; };
    while (!fits() && scratch.block > 1) scratch = BlockScratch(net, (scratch.block + 1) / 2);
    if (fits()) return;
    in_shared = false;
    scratch = BlockScratch(net, first_of(net));
  }
  static int64_t first_of(const Mlp& net) { return net.count < most_block ? net.count : most_block; }
};

// sum_k a[r, k] b[k, c], from start(r, c) on, for finish(r, c, sum). A thread has `rows_each` rows of one column.
template <int rows_each, class T, class Start, class Finish>
__device__ __forceinline__ void product_rows(const T* a, int a_row, int a_step, const T* b, int b_step, int b_column,
                                             int rows, int columns, int terms, const Start& start,
                                             const Finish& finish) {
  const int items = (rows + rows_each - 1) / rows_each * columns;
  for (int item = static_cast<int>(threadIdx.x); item < items; item += static_cast<int>(blockDim.x)) {
    const int c = item % columns, r = item / columns * rows_each;
    const T* left[rows_each];
    T sum[rows_each];
#pragma unroll
    for (int i = 0; i < rows_each; ++i) {
      const int own = r + i < rows ? r + i : rows - 1;  // past the last: once more, and not kept
      left[i] = a + own * a_row;
      sum[i] = start(own, c);
    }
    for (int k = 0; k < terms; ++k) {
      const T right = b[k * b_step + c * b_column];
#pragma unroll
      for (int i = 0; i < rows_each; ++i) sum[i] = fused(left[i][k * a_step], right, sum[i]);
    }
#pragma unroll
    for (int i = 0; i < rows_each; ++i)
      if (r + i < rows) finish(r + i, c, sum[i]);
  }
}

template <class T, class Start, class Finish>
__device__ __forceinline__ void product(const T* a, int a_row, int a_step, const T* b, int b_step, int b_column,
                                        int rows, int columns, int terms, const Start& start, const Finish& finish) {
  if (rows < tile_rows)
    product_rows<1>(a, a_row, a_step, b, b_step, b_column, rows, columns, terms, start, finish);
  else
    product_rows<tile_rows>(a, a_row, a_step, b, b_step, b_column, rows, columns, terms, start, finish);
}

// One column and its network, for all threads of a block. Barriers stand between a write and the reads of others.
template <class T>
struct BlockNet {
  const MlpTask<T>& task;
  const BlockScratch& at;
  T* x;

  __device__ __forceinline__ int neurons(int layer) const { return static_cast<int>(task.net.sizes[layer]); }
  __device__ __forceinline__ int bias() const { return task.net.bias ? 1 : 0; }

  // visit(weight in scratch, its index in the state); the same thread for the same weight.
  template <class Visit>
  __device__ __forceinline__ void for_weights(const Visit& visit) const {
    const int lane = static_cast<int>(threadIdx.x) % warp, first = static_cast<int>(threadIdx.x) / warp;
    int64_t flat = 0;
    for (int layer = 0; layer < task.net.layers; flat += layer_weights(task.net, layer++)) {
      const int inputs = neurons(layer), outputs = neurons(layer + 1);
      T* matrix = x + at.w[layer];
      for (int o = first; o < outputs; o += static_cast<int>(blockDim.x) / warp) {
        T* row = matrix + o * at.w_pitch[layer];
        for (int i = lane; i < inputs; i += warp) visit(row[i], flat + static_cast<int64_t>(o) * inputs + i);
        if (bias() && lane == 0) visit(row[inputs], flat + static_cast<int64_t>(outputs) * inputs + o);
      }
    }
  }

  __device__ void ones() const {
    for (int layer = 0; bias() && layer < task.net.layers; ++layer)
      for (int e = static_cast<int>(threadIdx.x); e < at.block; e += static_cast<int>(blockDim.x))
        x[at.value[layer] + e * at.pitch[layer] + neurons(layer)] = T(1);
  }

  __device__ void load(int64_t begin, int count) const {
    const int last = task.net.layers, lane = static_cast<int>(threadIdx.x) % warp;
    for (int e = static_cast<int>(threadIdx.x) / warp; e < count; e += static_cast<int>(blockDim.x) / warp) {
      const int64_t from = (begin + e) % task.examples;
      T *in = x + at.value[0] + e * at.pitch[0], *out = x + at.delta[last] + e * at.pitch[last];
      for (int i = lane; i < neurons(0); i += warp) in[i] = task.x.at(from, i);
      for (int i = lane; i < neurons(last); i += warp) out[i] = task.y.at(from, i);
    }
  }

  __device__ void forward(int layer, int count) const {
    const bool is_last = layer + 1 == task.net.layers;
    T *value = x + at.value[layer + 1], *delta = x + at.delta[layer + 1];
    const int pitch = at.pitch[layer + 1];
    product(
        x + at.value[layer], at.pitch[layer], 1, x + at.w[layer], 1, at.w_pitch[layer], count, neurons(layer + 1),
        neurons(layer) + bias(), [](int, int) { return T(0); },
        [&](int e, int o, T sum) {
          const T a = activation(task.kind(layer), sum);
          value[e * pitch + o] = a;
          if (is_last) delta[e * pitch + o] = derivative(task.net.last, a, delta[e * pitch + o] - a);
        });
  }

  __device__ void backward(int layer, int count) const {
    const T* value = x + at.value[layer];
    T* delta = x + at.delta[layer];
    const int pitch = at.pitch[layer];
    product(
        x + at.delta[layer + 1], at.pitch[layer + 1], 1, x + at.w[layer], at.w_pitch[layer], 1, count, neurons(layer),
        neurons(layer + 1), [](int, int) { return T(0); },
        [&](int e, int i, T sum) {
          delta[e * pitch + i] = derivative(task.kind(layer - 1), value[e * pitch + i], sum);
        });
  }

  __device__ void descend(int layer, int count, bool first_block, bool last_block, T rate) const {
    T *w = x + at.w[layer], *gradient = w + at.gradient;
    const int pitch = at.w_pitch[layer];
    product(
        x + at.delta[layer + 1], 1, at.pitch[layer + 1], x + at.value[layer], at.pitch[layer], 1, neurons(layer + 1),
        neurons(layer) + bias(), count, [&](int o, int i) { return first_block ? T(0) : gradient[o * pitch + i]; },
        [&](int o, int i, T sum) {
          if (last_block)
            w[o * pitch + i] = fused(rate, sum, w[o * pitch + i]);
          else
            gradient[o * pitch + i] = sum;
        });
  }

  __device__ void step(T rate, int64_t begin) const {
    const int layers = task.net.layers;
    const int64_t batch = task.batch();
    for (int64_t from = 0; from < batch; from += at.block) {
      const int count = batch - from < at.block ? static_cast<int>(batch - from) : at.block;
      load(begin + from, count);
      __syncthreads();
      for (int layer = 0; layer < layers; ++layer) {
        forward(layer, count);
        __syncthreads();
      }
      for (int layer = layers - 1; layer > 0; --layer) {
        backward(layer, count);
        __syncthreads();
      }
      for (int layer = 0; layer < layers; ++layer) descend(layer, count, from == 0, from + count == batch, rate);
      __syncthreads();
    }
  }
};

template <class T, bool in_shared>
__global__ void __launch_bounds__(net_threads, 1) block_kernel(MlpTask<T> task, BlockScratch at, T* workspace) {
  T* x = in_shared ? block_scratch<T>() : workspace + static_cast<int64_t>(blockIdx.x) * at.elements;
  const BlockNet<T> net{task, at, x};
  const ColumnTask<T>& c = task.columns;
  net.ones();
  for (int64_t column = blockIdx.x; column < c.space.columns(); column += gridDim.x) {
    const int64_t slice = column / c.space.batches, batch = column % c.space.batches;
    const T* u = c.u.column(slice, batch);
    net.for_weights([&](T& w, int64_t i) { w = u[i * c.u.stride]; });
    Kept kept(c.period);
    for (int64_t j = 0, rows = 0; j < c.m; ++j) {
      net.step(task.rate(slice, j), task.begin(slice, j));
      const Sides<T> sides(c, slice, batch, j, c.every.data && kept.next() ? rows++ : -1);
      if (sides.any()) net.for_weights([&](T& w, int64_t i) { sides.apply(w, i); });
    }
    if (!c.out.data) continue;
    T* out = c.out.column(slice, batch);
    net.for_weights([&](T& w, int64_t i) { out[i * c.out.stride] = w; });
  }
}

std::size_t narrow_bytes(const Mlp& net, int64_t weights, std::size_t item) {
  return static_cast<std::size_t>(NarrowScratch(net, weights).rows) * warp * item;
}

unsigned workspace_slots(int64_t columns) {
  return static_cast<unsigned>(columns < workspace_blocks ? columns : workspace_blocks);
}

std::size_t item_bytes(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

}  // namespace

std::size_t relax_mlp_sgd_workspace_bytes(const ConstView& u, const Mlp& net, int32_t) {
  const ColumnSpace space = column_space_of(u);
  const std::size_t item = item_bytes(u.dtype);
  if (narrow_bytes(net, space.length, item) <= most_narrow_bytes) return 0;
  const BlockPlan plan(net, item, most_shared(u.device_id));
  return plan.in_shared ? 0 : workspace_slots(space.columns()) * static_cast<std::size_t>(plan.scratch.elements) * item;
}

Status relax_mlp_sgd(const MutableView& out, const ConstView& u, const Mlp& net, const ConstView& x, const ConstView& y,
                     const ConstView& alpha, const ConstView& first, int64_t m, const ConstView& f, const ConstView& g,
                     const MutableView& every, const EndNorms& norms, const Exec& exec) {
  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const Status launched = with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    const MlpTask<T> task(out, u, net, x, y, alpha, first, m, f, g, every);
    const int64_t columns = task.columns.space.columns();
    const std::size_t narrow = narrow_bytes(net, task.columns.space.length, sizeof(T));
    if (narrow <= most_narrow_bytes)
      return launch("relax_mlp_sgd", thread_kernel<T>, blocks_for(columns, warp), warp, narrow, exec.stream, task,
                    NarrowScratch(net, task.columns.space.length));
    const BlockPlan plan(net, sizeof(T), most_shared(u.device_id));
    const auto launch_this = [&](auto* kernel, unsigned blocks, std::size_t shared) {
      if (const Status status = allow_shared("relax_mlp_sgd", kernel, shared); !status.ok()) return status;
      return launch("relax_mlp_sgd", kernel, blocks, net_threads, shared, exec.stream, task, plan.scratch,
                    static_cast<T*>(exec.workspace));
    };
    return plan.in_shared ? launch_this(block_kernel<T, true>, blocks_for(columns, 1),
                                        static_cast<std::size_t>(plan.scratch.elements) * sizeof(T))
                          : launch_this(block_kernel<T, false>, workspace_slots(columns), 0);
  });
  return then_norms(launched, norms);
}

}  // namespace pyparareal::cuda
