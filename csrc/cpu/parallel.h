// SPDX-License-Identifier: BSD-3-Clause
// How the CPU kernels walk [slices, features]: chunk by chunk, contiguous tiles gathered from and
// scattered to strided operands, work split over OpenMP threads. No split changes a bit of a result.
#pragma once

#include <algorithm>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "pyparareal/layout.h"

namespace pyparareal::cpu {

// Below this many bytes of operands a fork-join of the thread team costs more than it saves. Measured on two idle
// cores, where parareal_update, c_relax and slice_norms break even at 400 to 700 KB; on busy ones a team waits for
// whichever member the system has put aside, for milliseconds.
inline constexpr int64_t bytes_per_thread = 256 * 1024;

// An output of this size, with its inputs, is past the last-level cache: written around it, its lines
// are not first read from memory. Measured crossover on a 32 MB L3; below it cached stores are faster.
inline constexpr int64_t streaming_bytes = 8 << 20;

// False in a forked child: OpenMP's threads stayed with the parent, and waiting for them would hang.
bool team_survives();

inline int team_size(int threads, int64_t items, int64_t bytes) {
#ifdef _OPENMP
  if (!team_survives()) return 1;
  const int64_t most = threads > 0 ? threads : omp_get_max_threads();
  return static_cast<int>(
      std::clamp<int64_t>(std::min(most, bytes / bytes_per_thread), 1, std::max<int64_t>(items, 1)));
#else
  (void)threads, (void)items, (void)bytes;
  return 1;
#endif
}

// body(first, last) on contiguous shares of [0, items).
template <class Body>
void share(int team, int64_t items, const Body& body) {
#ifdef _OPENMP
  if (team > 1) {
#pragma omp parallel num_threads(team)
    {
      const int64_t rank = omp_get_thread_num(), size = omp_get_num_threads();
      body(items * rank / size, items * (rank + 1) / size);
    }
    return;
  }
#else
  (void)team;
#endif
  body(int64_t{0}, items);
}

// body(slice, first_feature, count, chunk_index) for the chunks [first, last) of the space.
template <class Body>
void for_chunks(const Space& space, int64_t first, int64_t last, const Body& body) {
  const int64_t chunks = space.chunks();
  if (first >= last) return;  // of no features there are no chunks to divide by
  int64_t slice = first / chunks, index = first % chunks;
  for (int64_t item = first; item < last; ++item) {
    const int64_t feature = index * chunk;
    body(slice, feature, std::min(chunk, space.features - feature), index);
    if (++index == chunks) index = 0, ++slice;
  }
}

// A contiguous tile of an input: in place where the features have unit stride, else gathered to scratch.
template <class T>
const T* tile_of(const T* data, const Layout& layout, int64_t slice, int64_t feature, int64_t count, T* scratch) {
  const T* base = data + slice * layout.slice_stride;
  if (layout.contiguous()) return base + feature;
  for (int64_t i = 0; i < count; ++i) scratch[i] = base[layout.offset(feature + i)];
  return scratch;
}

// Writes a contiguous tile to where an output's elements live.
template <class T>
void put_tile(T* data, const Layout& layout, int64_t slice, int64_t feature, int64_t count, const T* tile) {
  T* base = data + slice * layout.slice_stride;
  if (layout.contiguous()) {
    if (tile != base + feature) std::memcpy(base + feature, tile, static_cast<std::size_t>(count) * sizeof(T));
    return;
  }
  for (int64_t i = 0; i < count; ++i) base[layout.offset(feature + i)] = tile[i];
}

// Copies around the caches; call stream_fence() before another thread may read.
void stream_copy(void* to, const void* from, std::size_t bytes);
void stream_fence();

// One slice where no per-slice result is asked for and every operand is contiguous across slices.
template <class... Layouts>
void flatten(Space& space, Layouts&... layouts) {
  const bool contiguous = (... && (layouts.contiguous() && layouts.slice_stride == space.features));
  if (!contiguous || space.slices < 1) return;
  space.features *= space.slices;
  space.slices = 1;
}

}  // namespace pyparareal::cpu
