// SPDX-License-Identifier: BSD-3-Clause
// Products of float32 tiles on tensor cores, a warp at a time: mma.sync m16n8k8 on tf32, numbers of 11 significant
// bits, with float32 sums. What a fragment holds, and where, is said here alone, for the device and for the host that
// emulates it.
//
// Without compensation operands are rounded to tf32. With it (Ootomo & Yokota 2022, doi:10.1177/10943420221090256) each
// is high + low, two of them, and a b = high high + (high low + low high): what is left out and what the halves lack is
// 2^-21 |a b| at most. Tensor cores round sums towards zero; so the products of high parts are summed over 16 terms
// there, then added to the rest by ordinary additions, which round to nearest.
#pragma once

#include <cstdio>

#include "launch.cuh"
#include "pyparareal/formulas.h"

namespace pyparareal::cuda::mma {

inline constexpr int lanes = 32;
// A tile of the result is [rows, columns]; its terms come in blocks.
inline constexpr int rows = 16, columns = 8, block = 16;
// Words of a packed block [columns, block] of the right factor.
inline constexpr int packed_block = columns * block;

// A lane's place in its warp. Of the PTX instruction's fragments, lane by lane:
//   left [16, 8]   4 words: row = group + 8 (i % 2), term = place + 4 (i / 2)
//   right [8, 8]   2 words: term = place + 4 i, column = group
//   result [16, 8] 4 words: row = group + 8 (i / 2), column = 2 place + i % 2
struct Lane {
  int index, group, place;

  PYPARAREAL_HD explicit Lane(int thread) : index(thread % lanes), group(index / 4), place(index % 4) {}
  PYPARAREAL_HD int row(int i) const { return group + 8 * (i / 2); }
  PYPARAREAL_HD int column(int i) const { return 2 * place + i % 2; }
};

// A block of 16 terms is two instructions, of which a lane has four terms of each of its rows and columns. Which four
// is free, as long as both factors agree; sums do not care for the names of their terms.
//   straight   4 place, 4 place + 1 in the first instruction, 4 place + 2, 4 place + 3 in the second
//   strided    place, place + 4; place + 8, place + 12
//
// A left factor [16 tiles, terms] in shared memory has, for each tile, block and instruction, the four words of every
// lane one after the other: one access of 16 bytes, conflict-free, to the registers the instruction wants.
PYPARAREAL_HD int left_words(int tile, int blocks, int block_of, int instruction) {
  return ((tile * blocks + block_of) * 2 + instruction) * 4 * lanes;
}
PYPARAREAL_HD int left_place(int row, int term, int blocks) {
  const int place = term % block / 4, instruction = term % 4 / 2, later = term % 2;
  return left_words(row / rows, blocks, term / block, instruction) + (row % 8 * 4 + place) * 4 + row % rows / 8 +
         2 * later;
}
PYPARAREAL_HD int left_place_strided(int row, int term, int blocks) {
  const int place = term % 4, instruction = term % block / 8, later = term % 8 / 4;
  return left_words(row / rows, blocks, term / block, instruction) + (row % 8 * 4 + place) * 4 + row % rows / 8 +
         2 * later;
}

// Where a packed block has (column, term): halves of eight terms, rows of which swap places in the second, so that
// neither 16-byte accesses along the terms nor those of eight terms of four columns meet in a bank.
PYPARAREAL_HD int packed_place(int column, int term) {
  const int half = term % block / 8;
  return half * 64 + (column % columns ^ 2 * half) * 8 + term % 8;
}

// Nearest, ties away from zero. A NaN stays one.
PYPARAREAL_HD uint32_t to_tf32(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  const uint32_t bits = as_bits(x);
  return x == x ? (bits + 0x1000u) & 0xffffe000u : bits & 0xffffe000u;
#endif
}

struct alignas(16) Quad {
  float value[4];
};

// Four words of a factor, as tf32.
template <bool compensated>
struct Terms {
  uint32_t high[4];

  // `rounded`: by to_tf32, when they were stored.
  static __device__ __forceinline__ Terms of(const Quad& from, bool rounded = false) {
    Terms terms;
#pragma unroll
    for (int i = 0; i < 4; ++i) terms.high[i] = rounded ? as_bits(from.value[i]) : to_tf32(from.value[i]);
    return terms;
  }
};

// Of 24 bits, high has 11, rounded to nearest, and the rest 12, of which low drops the last one. Adding to the bits
// makes no NaN's high part one, but its low part is; so it is of infinities, which come out as NaN.
template <>
struct Terms<true> {
  uint32_t high[4], low[4];

  static __device__ __forceinline__ Terms of(const Quad& from, bool = false) {
    Terms terms;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      terms.high[i] = (as_bits(from.value[i]) + 0x1000u) & 0xffffe000u;
      terms.low[i] = as_bits(from.value[i] - as_float(terms.high[i])) & 0xffffe000u;
    }
    return terms;
  }
};

// d[16, 8] += a[16, 8] b[8, 8]. All lanes of a warp call it.
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef PYPARAREAL_EMULATE_CUDA
  emulated_mma_m16n8k8(d, {a[0], a[1], a[2], a[3]}, {b0, b1});
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// The part of a result [16, 8] a lane has. `left` are its words of both instructions of a block of 16 terms.
template <bool compensated>
struct Sums {
  float sum[4] = {};

  __device__ __forceinline__ void add(const Terms<false> (&left)[2], const Terms<false>& right) {
#pragma unroll
    for (int i = 0; i < 2; ++i) multiply_add(sum, left[i].high, right.high[2 * i], right.high[2 * i + 1]);
  }
  __device__ __forceinline__ float result(int i) const { return sum[i]; }
};

template <>
struct Sums<true> {
  float sum[4] = {}, small[4] = {};

  __device__ __forceinline__ void add(const Terms<true> (&left)[2], const Terms<true>& right) {
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      multiply_add(small, left[i].low, right.high[2 * i], right.high[2 * i + 1]);
      multiply_add(small, left[i].high, right.low[2 * i], right.low[2 * i + 1]);
      multiply_add(part, left[i].high, right.high[2 * i], right.high[2 * i + 1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] = sum[i] + part[i];
  }
  __device__ __forceinline__ float result(int i) const { return sum[i] + small[i]; }
};

// Of shared memory, in one access: left to itself, the compiler takes four.
__device__ __forceinline__ Quad shared_quad(const float* from) {
#ifdef __CUDA_ARCH__
  Quad quad;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(quad.value[0]), "=f"(quad.value[1]), "=f"(quad.value[2]), "=f"(quad.value[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from)))
               : "memory");
  return quad;
#else
  return *reinterpret_cast<const Quad*>(from);
#endif
}

// The lane's words of a block of a left factor.
template <bool compensated>
__device__ __forceinline__ void load_left(Terms<compensated> (&left)[2], const float* factor, int tile, int blocks,
                                          int block_of, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
    left[i] = Terms<compensated>::of(shared_quad(factor + left_words(tile, blocks, block_of, i) + 4 * lane));
}

// The lane's words of a packed block, straight.
__device__ __forceinline__ Quad right_quad(const float* packed, const Lane& lane) {
  return *reinterpret_cast<const Quad*>(packed + packed_place(lane.group, 4 * lane.place));
}

// The same of the transposed factor, strided: its terms are the columns of two packed blocks, `stride` words apart, and
// its columns are eight of their terms.
__device__ __forceinline__ Quad transposed_quad(const float* packed, int64_t stride, int first_column,
                                                const Lane& lane) {
  Quad quad;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    quad.value[i] = packed[i / 2 * stride + packed_place(lane.place + i % 2 * 4, first_column % block + lane.group)];
  return quad;
}

// A lane's part of result tiles of 8 columns, one below the other: visit(tile, i) for each of its elements.
template <int tiles, class Visit>
__device__ __forceinline__ void for_elements(const Visit& visit) {
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) visit(tile, i);
}

// Tensor cores know tf32 from compute capability 8.0 on.
inline Status knows_tf32(int device) {
  Status status;
#ifndef PYPARAREAL_EMULATE_CUDA
  int major = 0;
  status =
      status_of(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  if (!status.ok() || major >= 8) return status;
  status.code = StatusCode::invalid_value;
  std::snprintf(status.message, sizeof status.message,
                "precision: got one of tensor cores on a device of compute capability %d.x, expected exact, or 8.0 or "
                "more",
                major);
#else
  (void)device;
#endif
  return status;
}

}  // namespace pyparareal::cuda::mma
