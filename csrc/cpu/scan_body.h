// SPDX-License-Identifier: BSD-3-Clause
// Included by tiles_body.h: a scan, tile by tile (scan_columns.h). Chunks stay in L1 between the pass that finds their
// map and the one that follows their rows.
#include "parallel.h"
#include "scan_columns.h"

namespace pyparareal::cpu {
namespace {

// Vectors of a tile: several recurrences hide each other's latency.
template <int d>
inline constexpr int scan_vectors = d > 1 ? 1 : 4;
template <class T, int d>
inline constexpr int scan_width = scan_vectors<d> * lanes_of<T>;

// Where some lanes are: the states before a chunk and before its group, and the map of the group up to the chunk.
template <class T, int d>
struct Chain {
  alignas(64) T state[d][scan_width<T, d>];
  alignas(64) T group_start[d][scan_width<T, d>];
  alignas(64) T map[d * d + d][scan_width<T, d>];
};

// The chains of tiles that take turns, so that whole rows of many lanes are read one after the other.
template <class T, int d>
inline constexpr int most_chains = static_cast<int>((32 << 10) / sizeof(Chain<T, d>));

template <class T>
bool finite(T x) {
  return x - x == T(0);
}

template <class T, int d>
struct ScanTile {
  static constexpr int n = lanes_of<T>, width = scan_width<T, d>, squares = d * d;
  using V = Vec<T>;

  const ScanTask<T>& task;
  const ScanRun<T>& of;
  ScanPlace place;
  bool direct = false;  // rows are read where they are
  const T *a = nullptr, *b = nullptr;
  int64_t a_ahead = 0, b_ahead = 0;  // to the same rows of the next tile, fetched ahead
  int64_t a_row = 0, b_row = 0;
  alignas(64) T a_rows[scan_rows * squares * width];
  alignas(64) T b_rows[scan_rows * d * width];  // after those, the states
  alignas(64) T maps[squares + d][width + n];   // and a vector beyond the last column
  alignas(64) T starts[d][width + n];

  ScanTile(const ScanTask<T>& whole, const ScanRun<T>& part) : task(whole), of(part) {}

  bool without_start(int64_t chunk) const { return !task.start.data && place.row + chunk == 0; }

  // The tile after it, whose rows are fetched ahead, is at `next_row` and `next_lane`.
  void move(int64_t lane, int lanes, int64_t row, int chunks, int64_t next_row, int64_t next_lane) {
    place = {lane, row, of.last_row, next_lane, next_row, lanes, chunks, false};
    direct = d == 1 && lanes == width && task.a.lanes.contiguous() && task.b.lanes.contiguous() && !without_start(0);
    if (direct) {
      a = task.a.at(row, lane), a_row = task.a.lanes.slice_stride;
      b = task.b.at(row, lane), b_row = task.b.lanes.slice_stride;
      a_ahead = (next_row - row) * a_row + next_lane - lane, b_ahead = (next_row - row) * b_row + next_lane - lane;
      return;
    }
    a = a_rows, a_row = squares * width, b = b_rows, b_row = d * width;
    ScanColumns<const T, d, d, width>(task.b, place).read_all(b_rows, place);
    place.skips_first = without_start(0);
    ScanColumns<const T, squares, d, width>(task.a, place).read_all(a_rows, place);
    place.skips_first = false;
  }

  // The maps of all chunks, those of `vectors` vectors of columns at once.
  template <int vectors>
  void find_maps(int column) {
    V A[vectors][squares], B[vectors][d];
    for (int v = 0; v < vectors; ++v) read_row(0, column + v * n, A[v], B[v]);
    for (int j = 1; j < scan_rows; ++j)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        V factors[squares], rows[d];
        read_row(j, column + v * n, factors, rows);
        if (d == 1 && direct) {
          __builtin_prefetch(a + j * a_row + column + v * n + a_ahead);
          __builtin_prefetch(b + j * b_row + column + v * n + b_ahead);
        }
        scan_then<d>(A[v], B[v], factors, rows);
      }
    for (int v = 0; v < vectors; ++v) {
      for (int e = 0; e < squares; ++e) write(maps[e] + column + v * n, A[v][e]);
      for (int e = 0; e < d; ++e) write(maps[squares + e] + column + v * n, B[v][e]);
    }
  }

  inline __attribute__((always_inline)) void read_row(int j, int column, V* factors, V* rows) const {
    for (int e = 0; e < squares; ++e) read(factors[e], a + j * a_row + e * width + column);
    for (int e = 0; e < d; ++e) read(rows[e], b + j * b_row + e * width + column);
  }

  void find_maps() {
    if (place.columns() > width - n)
      find_maps<scan_vectors<d>>(0);
    else
      for (int column = 0; column < place.columns(); column += n) find_maps<1>(column);
  }

  // From the state before the tile to the starts of its chunks, and to the state after it.
  void chain(Chain<T, d>& at) {
    for (int lane = 0; lane < place.lanes; lane += n) chain_vector(at, lane);
  }

  void chain_vector(Chain<T, d>& at, int lane) {
    V state[d], group_start[d], map[squares + d], next[d];
    for (int p = 0; p < d; ++p) read(state[p], at.state[p] + lane), read(group_start[p], at.group_start[p] + lane);
    for (int e = 0; e < squares + d; ++e) read(map[e], at.map[e] + lane);
    for (int chunk = 0; chunk < place.chunks; ++chunk) {
      const int64_t index = place.row / scan_rows + chunk;
      const int column = chunk * place.lanes + lane;
      const bool closes = index % scan_chunks == scan_chunks - 1;
      write_starts(state, column, lane);
      // Nothing comes after the last chunk, and its map is that of fewer rows.
      if (of.part == ScanPart::states && place.row + (chunk + 1) * int64_t{scan_rows} >= of.last_row) break;
      join(map, column, index % scan_chunks == 0);
      if (of.part == ScanPart::maps) {
        if (closes) leave(map, squares + d, lane, index / scan_chunks);
        continue;
      }
      V own[squares + d];
      for (int e = 0; e < squares + d; ++e) read(own[e], maps[e] + column);
      advance(next, own, state, without_start(chunk));
      if (!all_finite(next)) follow_rows(next, state, column, lane);
      for (int p = 0; p < d; ++p) state[p] = next[p];
      if (!closes) continue;
      if (of.part == ScanPart::end) {
        leave(state, d, lane, index / scan_chunks);
        continue;
      }
      advance(next, map, group_start, !task.start.data && index < scan_chunks);
      if (!all_finite(next)) keep_finite(next, state);
      for (int p = 0; p < d; ++p) group_start[p] = state[p] = next[p];
    }
    for (int p = 0; p < d; ++p) write(at.state[p] + lane, state[p]), write(at.group_start[p] + lane, group_start[p]);
    for (int e = 0; e < squares + d; ++e) write(at.map[e] + lane, map[e]);
  }

  // Lanes beyond the last are columns of the next chunk, whose turn may have been before.
  void write_starts(const V* state, int column, int lane) {
    const int live = place.lanes - lane;
    for (int p = 0; p < d; ++p)
      if (live >= n || lane == 0)
        write(starts[p] + column, state[p]);
      else
        for (int l = 0; l < live; ++l) starts[p][column + l] = state[p][l];
  }

  // The map of the group, with that of a chunk.
  inline __attribute__((always_inline)) void join(V* map, int column, bool opens) const {
    V own[squares + d];
    for (int e = 0; e < squares + d; ++e) read(own[e], maps[e] + column);
    if (opens)
      for (int e = 0; e < squares + d; ++e) map[e] = own[e];
    else
      scan_then<d>(map, map + squares, own, own + squares);
  }

  static inline __attribute__((always_inline)) void advance(V* next, const V* map, const V* from, bool no_start) {
    scan_apply<d>(next, map, from, map + squares);
    if (no_start)
      for (int p = 0; p < d; ++p) next[p] = map[squares + p];
  }

  static inline __attribute__((always_inline)) bool all_finite(const V* x) {
    V zero = x[0] - x[0];
    for (int p = 1; p < d; ++p) zero = zero + (x[p] - x[p]);
    const auto good = zero == V{};
    uint64_t words[sizeof(V) / 8], all = ~uint64_t{0};
    __builtin_memcpy(words, &good, sizeof words);
    for (const uint64_t word : words) all &= word;
    return all == ~uint64_t{0};
  }

  // Lanes that are not finite become those of `otherwise`.
  static __attribute__((noinline)) void keep_finite(V* x, const V* otherwise) {
    for (int l = 0; l < n; ++l) {
      bool good = true;
      for (int p = 0; p < d; ++p) good &= finite(x[p][l]);
      for (int p = 0; !good && p < d; ++p) x[p][l] = otherwise[p][l];
    }
  }

  // The ends of a chunk where the map does not give them, row by row. Lanes beyond the last are of no account.
  __attribute__((noinline)) void follow_rows(V* next, const V* state, int first, int lane) const {
    V ends[d];
    for (int p = 0; p < d; ++p) ends[p] = V{};
    for (int l = 0; l < n && lane + l < place.lanes; ++l) {
      T x[d], y[d], factors[squares], rows[d];
      for (int p = 0; p < d; ++p) x[p] = state[p][l];
      for (int j = 0; j < scan_rows; ++j) {
        for (int e = 0; e < squares; ++e) factors[e] = a[j * a_row + e * width + first + l];
        for (int e = 0; e < d; ++e) rows[e] = b[j * b_row + e * width + first + l];
        scan_apply<d>(y, factors, x, rows);
        for (int p = 0; p < d; ++p) x[p] = y[p];
      }
      for (int p = 0; p < d; ++p) ends[p][l] = x[p];
    }
    keep_finite(next, ends);
  }

  // [part, lanes of the task] of one group.
  void leave(const V* from, int parts, int lane, int64_t group) {
    T* const to = of.left + (group - of.first_row / scan_group) * parts * task.lanes + place.lane;
    for (int e = 0; e < parts; ++e)
      for (int l = 0; l < n && lane + l < place.lanes; ++l) to[e * task.lanes + lane + l] = from[e][l];
  }

  // The rows of all chunks from their starts on.
  template <int vectors, bool past_caches>
  void follow(T* to, int64_t to_row, int rows, int column) {
    V x[vectors][d];
    for (int v = 0; v < vectors; ++v)
      for (int p = 0; p < d; ++p) read(x[v][p], starts[p] + column + v * n);
    for (int j = 0; j < rows; ++j)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        V factors[squares], right[d], y[d];
        read_row(j, column + v * n, factors, right);
        scan_apply<d>(y, factors, x[v], right);
        for (int p = 0; p < d; ++p) {
          T* const place_of = to + j * to_row + p * width + column + v * n;
          x[v][p] = y[p];
          past_caches ? write_past_caches(place_of, y[p]) : write(place_of, y[p]);
        }
      }
  }

  // Whole lines, written as such.
  static inline __attribute__((always_inline)) void write_past_caches(T* to, const V& v) {
#if !defined(__x86_64__) || defined(__clang__)
    write(to, v);
#elif PYPARAREAL_VECTOR_BYTES == 64
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif PYPARAREAL_VECTOR_BYTES == 32
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#else
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)v);
#endif
  }

  bool lines(const T* to) const {
    return reinterpret_cast<uintptr_t>(to) % 64 == 0 && task.u.lanes.slice_stride * int64_t{sizeof(T)} % 64 == 0;
  }

  void follow() {
    const bool lies = d == 1 && place.chunks == 1 && task.u.lanes.contiguous();
    T* const there = task.u.at(place.row, place.lane);
    const bool past_caches = of.around_caches && lines(there);
    const bool into = lies && place.lanes == width && (past_caches || !of.around_caches);
    T* const to = into ? there : b_rows;
    const int64_t to_row = into ? task.u.lanes.slice_stride : d * width;
    const int rows = place.chunks == 1 ? place.rows_of(0) : scan_rows;
    if (into && past_caches) return follow<scan_vectors<d>, true>(to, to_row, rows, 0);
    if (place.columns() > width - n)
      follow<scan_vectors<d>, false>(to, to_row, rows, 0);
    else
      for (int column = 0; column < place.columns(); column += n) follow<1, false>(to, to_row, rows, column);
    if (into) return;
    if (!lies) return ScanColumns<T, d, d, width>(task.u, place).write_all(b_rows, place);
    const std::size_t bytes = static_cast<std::size_t>(place.lanes) * sizeof(T);
    for (int j = 0; j < rows; ++j) {
      T* const row = task.u.at(place.row + j, place.lane);
      of.around_caches ? stream_copy(row, b_rows + j * width, bytes)
                       : static_cast<void>(__builtin_memcpy(row, b_rows + j * width, bytes));
    }
  }
};

template <class T, int d>
void start_chain(Chain<T, d>& chain, const ScanTask<T>& task, const ScanRun<T>& of, int64_t lane, int lanes) {
  // Without a start: 0 * -0 + b is b, with the sign of its zeros.
  for (int p = 0; p < d; ++p)
    for (int l = 0; l < scan_width<T, d>; ++l)
      chain.state[p][l] = chain.group_start[p][l] = l >= lanes        ? T(0)
                                                    : of.start        ? of.start[p * task.lanes + lane + l]
                                                    : task.start.data ? task.start.at(0, lane + l)[p * task.start.q]
                                                                      : T(-0.0);
}

// The tiles of a run in their order: each finds what its rows are in `move`, and what becomes of them in `follow`.
template <class T, int d, class Tile>
void run_tiles(Tile& tile, const ScanTask<T>& task, const ScanRun<T>& of) {
  constexpr int width = scan_width<T, d>;
  Chain<T, d> chains[most_chains<T, d>];
  for (int64_t first = of.first_lane; first < of.last_lane; first += most_chains<T, d> * width) {
    const int64_t last = least(first + most_chains<T, d> * width, of.last_lane);
    const auto lanes_from = [&](int64_t lane) { return static_cast<int>(least(width, last - lane)); };
    const int most = static_cast<int>(width / least(width, last - first));
    for (int64_t lane = first; lane < last; lane += width)
      start_chain(chains[(lane - first) / width], task, of, lane, lanes_from(lane));
    for (int64_t row = of.first_row; row < of.last_row; row += most * scan_rows) {
      const int64_t left = (of.last_row - row + scan_rows - 1) / scan_rows;
      for (int64_t lane = first; lane < last; lane += width) {
        const bool turns = lane + width >= last;
        const int64_t below = row + most * scan_rows < of.last_row - scan_rows ? most * scan_rows : 0;
        tile.move(lane, lanes_from(lane), row, static_cast<int>(least(most, left)), turns ? row + below : row,
                  turns ? first : lane + width);
        if (left > 1 || of.part != ScanPart::states) tile.find_maps();
        tile.chain(chains[(lane - first) / width]);
        if (of.part == ScanPart::states) tile.follow();
      }
    }
  }
}

template <class T, int d>
void scan_run(const ScanTask<T>& task, const ScanRun<T>& of) {
  ScanTile<T, d> tile(task, of);
  run_tiles<T, d>(tile, task, of);
  if (of.around_caches) stream_fence();
}

// y = a x + b of one row, each sum from the first column on; neighbours in memory are neighbours in time.
template <class T>
void walk_row(T* y, const T* a, int64_t p_stride, int64_t q_stride, const T* x, int64_t d) {
  if (p_stride == 1) {
    for (int64_t p = 0; p < d; ++p) y[p] = a[p] * x[0];
    for (int64_t q = 1; q < d; ++q) {
      const T* const column = a + q * q_stride;
#pragma GCC ivdep
      for (int64_t p = 0; p < d; ++p) y[p] = y[p] + column[p] * x[q];
    }
    return;
  }
  constexpr int n = lanes_of<T>;
  int64_t p = 0;
  for (; q_stride == 1 && p + n <= d; p += n) {
    Vec<T> sums{}, square[n];
    int64_t q = 0;
    for (; q + n <= d; q += n) {
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) read(square[r], a + (p + r) * p_stride + q);
      transpose<T>(square);
      sums = q == 0 ? square[0] * x[0] : sums + square[0] * x[q];
#pragma GCC unroll 16
      for (int r = 1; r < n; ++r) sums = sums + square[r] * x[q + r];
    }
    write(y + p, sums);
    for (int r = 0; r < n; ++r)
      for (int64_t k = q; k < d; ++k) {
        y[p + r] = y[p + r] + a[(p + r) * p_stride + k] * x[k];
      }
  }
  for (; p < d; ++p) {
    T sum = a[p * p_stride] * x[0];
    for (int64_t q = 1; q < d; ++q) sum = sum + a[p * p_stride + q * q_stride] * x[q];
    y[p] = sum;
  }
}

template <class T>
void scan_walk(const ScanTask<T>& task, int64_t first, int64_t last, T* x) {
  const int64_t d = task.d;
  for (int64_t lane = first; lane < last; ++lane) {
    T *now = x, *next = x + d;
    for (int64_t p = 0; task.start.data && p < d; ++p) now[p] = task.start.at(0, lane)[p * task.start.q];
    for (int64_t j = 0; j < task.steps; ++j) {
      const T* const b = task.b.at(j, lane);
      T* const u = task.u.at(j, lane);
      const bool first_row = j == 0 && !task.start.data;
      if (!first_row) walk_row(next, task.a.at(j, lane), task.a.p, task.a.q, now, d);
      for (int64_t p = 0; p < d; ++p)
        u[p * task.u.q] = next[p] = first_row ? b[p * task.b.q] : next[p] + b[p * task.b.q];
      T* const old = now;
      now = next, next = old;
    }
  }
}

template <class T>
constexpr ScanTiles<T> make_scan_tiles() {
  return {lanes_of<T>, {scan_run<T, 1>, scan_run<T, 2>, scan_run<T, 3>, scan_run<T, 4>}, scan_walk<T>};
}

}  // namespace
}  // namespace pyparareal::cpu
