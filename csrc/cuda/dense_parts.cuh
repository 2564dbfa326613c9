// SPDX-License-Identifier: BSD-3-Clause
// Included by dense.cu and, for what does not depend on the arithmetic, dense_mma.cu: how a block goes about its rows,
// and the way of the weights, part by part, into shared memory.
#pragma once

#include "launch.cuh"
#include "pyparareal/dense.h"

namespace pyparareal::cuda {
namespace {

inline constexpr int quad = 4, most_rows = 32, most_threads = 256, wide_outputs = 4;

// Rows are spread over so many blocks before any gets more than a quad: the multiprocessors of an H100.
inline constexpr int64_t wanted_blocks = 132;

// Bytes of the terms of one output in a part: a cache line.
inline constexpr int part_bytes = 128, pack_bytes = 16;

template <class T>
struct alignas(16) Quad {
  T row[quad];
};

// Where a row of each operand is; null where there is none.
template <class T>
struct RowPointers {
  const T *u, *given, *f, *g;
  T *every, *out, *slopes;
};

// How a block goes about it: rows, the outputs a thread has and those of all threads, which take turns where there are
// more; and shared memory, in bytes: the arrays [d, pitch], two parts of weights, pointers.
struct DensePlan {
  int d, rows, pitch, outputs, width;  // outputs of a thread, and of the block at a time
  int terms, part_pitch;               // of a part; forward [width, part_pitch], adjoint [terms, width]
  int64_t tiles;                       // of a slice
  std::size_t parts, pointers, bytes;
  bool packed;  // weights come 16 bytes at a time

  DensePlan(const ColumnSpace& space, bool adjoint, std::size_t item, std::size_t most)
      : d(static_cast<int>(space.length)), rows(most_rows), packed(false) {
    const int64_t batch = (space.batches + quad - 1) / quad * quad;
    while (rows > quad && (rows > batch || blocks(space) < wanted_blocks)) rows /= 2;
    do {
      fill(space, adjoint, item, most_threads);
    } while (bytes > most && rows > quad && (rows /= 2));
    for (int threads = most_threads / 2; bytes > most && threads >= 8; threads /= 2)
      fill(space, adjoint, item, threads);
  }

  int64_t blocks(const ColumnSpace& space) const { return space.slices * ((space.batches + rows - 1) / rows); }

  void fill(const ColumnSpace& space, bool adjoint, std::size_t item, int threads) {
    const int size = static_cast<int>(item), quads = rows / quad;
    outputs = blocks(space) < wanted_blocks ? 1 : wide_outputs;
    const int groups = (d + outputs - 1) / outputs, most_groups = threads / quads;
    width = (groups < most_groups ? groups : most_groups) * outputs;
    // Rows of the states that neighbouring threads write do not meet in a bank.
    pitch = rows + quad;
    terms = part_bytes / size;
    // A whole number of quads, beyond the terms: rows a pack apart, of which eight fill the banks.
    part_pitch = adjoint ? (width + quad - 1) / quad * quad : terms + (size == 4 ? quad : 2);
    const std::size_t part = static_cast<std::size_t>(adjoint ? terms : width) * part_pitch * item;
    tiles = (space.batches + rows - 1) / rows;
    parts = (adjoint ? 3 : 2) * static_cast<std::size_t>(d) * pitch * item;
    pointers = parts + 2 * part;
    bytes = pointers + sizeof(RowPointers<void*>) * static_cast<std::size_t>(rows);
  }
  unsigned threads() const {
    const int whole = (width / outputs * (rows / quad) + 31) / 32 * 32;
    return static_cast<unsigned>(whole);
  }
};

// Copies `bytes` that the caller does not wait for.
template <int bytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto place = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(bytes) : "memory");
#else
  memcpy(to, from, bytes);
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

template <class Operand>
__device__ __forceinline__ auto row_of(const Operand& operand, int64_t slice, int64_t batch) {
  return operand.data ? operand.column(slice, batch) : decltype(operand.data){};
}

// The matrix of a step, element (output, term).
template <class T, bool adjoint>
struct Matrix {
  const T* data;
  int64_t output_stride, term_stride;

  __device__ __forceinline__ Matrix(const DenseWeights<T>& w, int64_t slice, int64_t j)
      : data(w.weight_of(slice, j)),
        output_stride(adjoint ? w.in_stride : w.out_stride),
        term_stride(adjoint ? w.out_stride : w.in_stride) {}
};

// Parts in their order: outputs `width` at a time, of these the terms, of the next step after the last.
struct Place {
  int64_t j = 0;
  int output = 0, term = 0;

  __device__ __forceinline__ void next(const DensePlan& plan) {
    if ((term += plan.terms) < plan.d) return;
    term = 0;
    if ((output += plan.width) < plan.d) return;
    output = 0, ++j;
  }
};

// Outputs past the last repeat it; terms past the last are left out.
template <class T, bool adjoint, int pack>
__device__ __forceinline__ void fetch_packs(T* part, const DensePlan& plan, const Matrix<T, adjoint>& m,
                                            const Place& at) {
  const int terms = at.term + plan.terms < plan.d ? plan.terms : plan.d - at.term;
  const int rows = adjoint ? terms : plan.width, packs = ((adjoint ? plan.width : terms) + pack - 1) / pack;
  for (int i = static_cast<int>(threadIdx.x); i < rows * packs; i += static_cast<int>(blockDim.x)) {
    const int row = i / packs, first = i % packs * pack;
    int output = at.output + (adjoint ? first : row);
    const int term = at.term + (adjoint ? row : first);
    if (output > plan.d - (adjoint ? pack : 1)) output = plan.d - (adjoint ? pack : 1);
    copy_async<pack * sizeof(T)>(part + row * plan.part_pitch + first,
                                 m.data + output * m.output_stride + term * m.term_stride);
  }
}

template <class T, bool adjoint>
__device__ __forceinline__ void fetch(T* part, const DensePlan& plan, const Matrix<T, adjoint>& m, const Place& at) {
  if (plan.packed)
    fetch_packs<T, adjoint, pack_bytes / sizeof(T)>(part, plan, m, at);
  else
    fetch_packs<T, adjoint, 1>(part, plan, m, at);
}

// Whether parts of all matrices can be fetched 16 bytes at a time, along terms forward, along outputs backward.
template <class T>
bool packs(const DenseWeights<T>& w) {
  constexpr int64_t pack = pack_bytes / sizeof(T);
  return w.in_stride == 1 && w.d % pack == 0 && w.out_stride % pack == 0 && w.step_stride % pack == 0 &&
         w.slice_stride % pack == 0 && reinterpret_cast<uintptr_t>(w.weight) % pack_bytes == 0;
}

inline Status too_wide(const ConstView& u, const char* name, int rows) {
  Status status;
  status.code = StatusCode::invalid_value;
  std::snprintf(status.message, sizeof status.message,
                "%s: got %lld features, expected fewer: the states of %d rows do not fit into shared memory", name,
                static_cast<long long>(u.shape[u.ndim - 1]), rows);
  return status;
}

}  // namespace
}  // namespace pyparareal::cuda
