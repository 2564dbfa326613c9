// SPDX-License-Identifier: BSD-3-Clause
// relax_dense and its adjoint on tensor cores. A block takes one or two tiles of 16 rows of one slice through all
// steps. Their states stay in shared memory, and the weights come through it as in dense.cu: while one part of a matrix
// is multiplied, the next one, of this step or of the one after it, is on its way. Parts are packed blocks [8, 16] of W
// (mma_tiles.cuh) in both directions; the adjoint reads them as the transposed factor. A warp has 8 outputs at a time.
//
// Every sum has the order of its terms' blocks, however rows and parts are cut: the bits of a row do not depend on its
// company.
#include "dense_mma.cuh"

namespace pyparareal::cuda {
namespace {

// Of relax_dense: the left factor are the states.
struct Forward {
  using Task = DenseTask<float>;
  static constexpr bool adjoint = false;

  static __device__ __forceinline__ void point(const Task& task, RowPointers<float>& at, int64_t slice, int64_t batch) {
    at.slopes = row_of(task.slopes, slice, batch);
  }

  template <int tiles>
  struct Block : Rows<tiles> {
    const Task& task;

    __device__ __forceinline__ Block(const Task& t, const TilePlan& plan, const RowPointers<float>* at, float*,
                                     int64_t slice, int live)
        : Rows<tiles>(t.columns, plan, at, slice, live), task(t) {}
    __device__ __forceinline__ int place(int row, int feature) const {
      return mma::left_place(row, feature, this->plan.blocks);
    }

    __device__ __forceinline__ void begin(float* in) const {
      this->for_all([&](int, int, int row, int feature, bool inside) {
        in[place(row, feature)] = inside ? this->at[row].u[feature * this->c.u.stride] : 0.0f;
      });
    }
    __device__ __forceinline__ void load_own(Sides<tiles>& sides, int64_t j, int unit_tile) const {
      const float* bias = task.weights.bias_of(this->slice, j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {  // the features a lane has are the same in every row
        const int feature = unit_tile * mma::columns + this->lane.column(i);
        sides.own[0][i] = bias && feature < this->plan.d ? bias[feature * task.weights.bias_stride] : 0.0f;
      }
    }

    // The states after the step.
    template <bool compensated>
    __device__ __forceinline__ void end(const mma::Sums<compensated> (&sums)[tiles], const Sides<tiles>& sides,
                                        const float* in, float* next, int64_t j, int64_t keep, int unit_tile) const {
      float value[tiles][4], slope[tiles][4];
      with_dense_activation(task.activation, [&](auto of) {
        mma::for_elements<tiles>([&](int tile, int i) {
          const auto a = activated(of, sums[tile].result(i) + sides.own[0][i % 2]);
          value[tile][i] = a.value, slope[tile][i] = a.slope;
        });
      });
      this->for_tile(unit_tile, [&](int tile, int i, int row, int feature, bool inside) {
        const int here = place(row, feature);
        const float u = this->with_sides(sides, tile, i, ScalarMlpMath::fma(task.h, value[tile][i], in[here]));
        next[here] = inside ? u : 0.0f;
        if (!inside) return;
        if (task.slopes.data)
          this->at[row].slopes[j * task.slopes.step_stride + feature * task.slopes.stride] = task.h * slope[tile][i];
        this->put(u, j, keep, row, feature);
      });
    }
  };

  // sums = W in, of the terms of a part
  template <bool compensated, int tiles>
  static __device__ __forceinline__ void multiply(mma::Sums<compensated> (&sums)[tiles], const Block<tiles>& block,
                                                  const float* part, const float* in, int first, int count) {
    const float* packed = part + block.warp * block.plan.pitch * mma::packed_block;
#pragma unroll(compensated ? most_tiles / tiles : 4)
    for (int k = 0; k < count; ++k) {
      const auto right = mma::Terms<compensated>::of(mma::right_quad(packed + k * mma::packed_block, block.lane));
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        mma::Terms<compensated> left[2];
        mma::load_left(left, in, tile, block.plan.blocks, first + k, block.lane.index);
        sums[tile].add(left, right);
      }
    }
  }
};

// Of the adjoint: the left factor are products of slopes and states; the states are in `own`, where an element is of no
// other lane.
struct Adjoint {
  using Task = DenseAdjointTask<float>;
  static constexpr bool adjoint = true;

  static __device__ __forceinline__ void point(const Task& task, RowPointers<float>& at, int64_t slice, int64_t batch) {
    at.given = row_of(task.slopes, slice, batch);
  }

  template <int tiles>
  struct Block : Rows<tiles> {
    const Task& task;
    float* own;

    __device__ __forceinline__ Block(const Task& t, const TilePlan& plan, const RowPointers<float>* at, float* states,
                                     int64_t slice, int live)
        : Rows<tiles>(t.columns, plan, at, slice, live), task(t), own(states) {}
    __device__ __forceinline__ int place(int row, int feature) const {
      return mma::left_place_strided(row, feature, this->plan.blocks);
    }
    __device__ __forceinline__ float slope(int64_t j, int row, int feature) const {
      return this->at[row].given[j * task.slopes.step_stride + feature * task.slopes.stride];
    }

    __device__ __forceinline__ void begin(float* in) const {
      this->for_all([&](int, int, int row, int feature, bool inside) {
        const float v = inside ? this->at[row].u[feature * this->c.u.stride] : 0.0f;
        const int here = place(row, feature);
        own[here] = v;
        in[here] = inside ? slope(0, row, feature) * v : 0.0f;
      });
    }
    __device__ __forceinline__ void load_own(Sides<tiles>& sides, int64_t j, int unit_tile) const {
      this->for_tile(unit_tile, [&](int tile, int i, int row, int feature, bool inside) {
        sides.own[tile][i] = inside && j + 1 < this->c.m ? slope(j + 1, row, feature) : 0.0f;
      });
    }

    template <bool compensated>
    __device__ __forceinline__ void end(const mma::Sums<compensated> (&sums)[tiles], const Sides<tiles>& sides,
                                        const float*, float* next, int64_t j, int64_t keep, int unit_tile) const {
      this->for_tile(unit_tile, [&](int tile, int i, int row, int feature, bool inside) {
        const int here = place(row, feature);
        const float after = ScalarMlpMath::fma(task.scale, sums[tile].result(i), own[here]);
        const float v = this->with_sides(sides, tile, i, after);
        own[here] = inside ? v : 0.0f;
        next[here] = inside ? sides.own[tile][i] * v : 0.0f;
        if (inside) this->put(v, j, keep, row, feature);
      });
    }
  };

  // sums = W^T in, of the terms of a part
  template <bool compensated, int tiles>
  static __device__ __forceinline__ void multiply(mma::Sums<compensated> (&sums)[tiles], const Block<tiles>& block,
                                                  const float* part, const float* in, int first, int count) {
    const int column = block.warp * mma::columns, stride = block.plan.pitch * mma::packed_block;
    const float* packed = part + column / mma::block * mma::packed_block;
#pragma unroll(compensated ? most_tiles / tiles : 4)
    for (int k = 0; k < count; ++k) {
      const auto right =
          mma::Terms<compensated>::of(mma::transposed_quad(packed + 2 * k * stride, stride, column, block.lane));
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
        mma::Terms<compensated> left[2];
        mma::load_left(left, in, tile, block.plan.blocks, first + k, block.lane.index);
        sums[tile].add(left, right);
      }
    }
  }
};

// Rows past the last repeat it, and are not looked at.
template <class Way>
__device__ __forceinline__ void point_rows(const typename Way::Task& task, const TilePlan& plan, RowPointers<float>* at,
                                           int64_t slice, int64_t first_row, int live) {
  const ColumnTask<float>& c = task.columns;
  for (int row = static_cast<int>(threadIdx.x); row < plan.rows; row += static_cast<int>(blockDim.x)) {
    const int64_t batch = first_row + (row < live ? row : live - 1);
    at[row].u = row_of(c.u, slice, batch), at[row].f = row_of(c.f, slice, batch);
    at[row].g = row_of(c.g, slice, batch), at[row].every = row_of(c.every, slice, batch);
    at[row].out = row_of(c.out, slice, batch);
    Way::point(task, at[row], slice, batch);
  }
}

template <class Way, bool compensated, int tiles>
__global__ void __launch_bounds__(mma::lanes* most_warps, 1) tile_kernel(typename Way::Task task, TilePlan plan) {
  char* shared = block_scratch<char>();
  const ColumnTask<float>& c = task.columns;
  auto* at = reinterpret_cast<RowPointers<float>*>(shared + plan.pointers);
  float *states = reinterpret_cast<float*>(shared), *parts = reinterpret_cast<float*>(shared + plan.weights);
  for (int64_t item = blockIdx.x; item < c.space.slices * plan.row_tiles; item += gridDim.x) {
    const int64_t slice = item / plan.row_tiles, row = item % plan.row_tiles * plan.rows;
    const int live = static_cast<int>(c.space.batches - row < plan.rows ? c.space.batches - row : plan.rows);
    float *in = states, *next = in + plan.array(), *now = parts, *after = parts + plan.part();
    const typename Way::template Block<tiles> block(task, plan, at, states + 2 * plan.array(), slice, live);
    __syncthreads();
    fetch_part<Way::adjoint>(now, plan, task.weights, slice, Part{});
    point_rows<Way>(task, plan, at, slice, row, live);
    __syncthreads();
    block.begin(in);
    Kept kept(c.period);
    for (int64_t j = 0, kept_rows = 0; j < c.m; ++j) {
      const int64_t keep = c.every.data && kept.next() ? kept_rows++ : -1;
      for (int round = 0; round < plan.rounds; ++round) {
        const int unit_tile = round * plan.warps + block.warp;
        const bool busy = unit_tile < plan.unit_tiles;
        mma::Sums<compensated> sums[tiles];
        Sides<tiles> sides;
        if (busy) block.load(sides, j, unit_tile), block.load_own(sides, j, unit_tile);
        for (int index = 0; index < plan.parts; ++index) {
          wait_for_copies();
          __syncthreads();
          Part then{j, round, index};
          then.next(plan);
          if (then.j < c.m) fetch_part<Way::adjoint>(after, plan, task.weights, slice, then);
          const int term = index * plan.terms, left = plan.padded - term;
          const int count = (left < plan.terms ? left : plan.terms) / mma::block;
          if (busy) Way::template multiply<compensated, tiles>(sums, block, now, in, term / mma::block, count);
          float* const used = now;
          now = after, after = used;
        }
        if (busy) block.end(sums, sides, in, next, j, keep, unit_tile);
      }
      float* const old = in;
      in = next, next = old;
    }
  }
}

template <class Way>
Status launch_tiles(const char* name, const typename Way::Task& task, TilePlan plan, Precision precision,
                    const Exec& exec) {
  plan.packed = packs(task.weights);
  const auto with = [&](auto compensated) {
    auto* kernel = plan.tiles == 1 ? tile_kernel<Way, compensated, 1> : tile_kernel<Way, compensated, most_tiles>;
    if (const Status status = allow_shared(name, kernel, plan.bytes); !status.ok()) return status;
    return launch(name, kernel, blocks_for(task.columns.space.slices * plan.row_tiles, 1), plan.threads(), plan.bytes,
                  exec.stream, task, plan);
  };
  return precision == Precision::tf32 ? with(std::false_type{}) : with(std::true_type{});
}

}  // namespace

Status relax_dense_mma(const MutableView& out, const ConstView& u, const ConstView& weight, const ConstView& bias,
                       double h, DenseActivation activation, int64_t m, const MutableView& slopes, const ConstView& f,
                       const ConstView& g, const MutableView& every, const EndNorms& norms, Precision precision,
                       const Exec& exec) {
  const TilePlan plan(column_space_of(u), false, most_shared(u.device_id));
  if (plan.bytes > most_shared(u.device_id)) return too_wide(u, "u", mma::rows);
  if (const Status status = mma::knows_tf32(u.device_id); !status.ok()) return status;

  const DeviceGuard guard(u.device_id);
  if (!guard.status().ok()) return guard.status();

  const DenseTask<float> task(out, u, weight, bias, h, activation, m, slopes, f, g, every);
  return then_norms(launch_tiles<Forward>("relax_dense", task, plan, precision, exec), norms);
}

Status relax_dense_adjoint_mma(const MutableView& out, const ConstView& v, const ConstView& weight,
                               const ConstView& slopes, double scale, int64_t m, const ConstView& f, const ConstView& g,
                               const MutableView& every, const EndNorms& norms, Precision precision, const Exec& exec) {
  const TilePlan plan(column_space_of(v), true, most_shared(v.device_id));
  if (plan.bytes > most_shared(v.device_id)) return too_wide(v, "v", mma::rows);
  if (const Status status = mma::knows_tf32(v.device_id); !status.ok()) return status;

  const DeviceGuard guard(v.device_id);
  if (!guard.status().ok()) return guard.status();

  const DenseAdjointTask<float> task(out, v, weight, slopes, scale, m, f, g, every);
  return then_norms(launch_tiles<Adjoint>("relax_dense_adjoint", task, plan, precision, exec), norms);
}

}  // namespace pyparareal::cuda
