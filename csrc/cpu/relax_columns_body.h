// SPDX-License-Identifier: BSD-3-Clause
// Included by relax_tiles_body.h: vectors of neighbouring columns, and the way of states and right-hand sides into and
// out of tiles. PYPARAREAL_VECTOR_BYTES is set by the including tiles_*.cpp.

namespace pyparareal::cpu {
namespace {

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(PYPARAREAL_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
inline constexpr int lanes_of = PYPARAREAL_VECTOR_BYTES / static_cast<int>(sizeof(T));

// Vectors of a wide tile: rows of several cache lines, and independent work to hide latency.
inline constexpr int wide_vectors = 8;
inline constexpr int most_lanes = wide_vectors * PYPARAREAL_VECTOR_BYTES / 4;
static_assert(wide_vectors * PYPARAREAL_VECTOR_BYTES <= relax_row_bytes, "a row of the scratch holds a wide tile");

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

template <class V, class T>
inline __attribute__((always_inline)) void read(V& v, const T* from) {
  if constexpr (std::is_same_v<V, T>)
    v = *from;  // a copy of bytes would take the scalar through an integer register, on the chain of a recurrence
  else
    __builtin_memcpy(&v, from, sizeof v);
}

template <class V, class T>
inline __attribute__((always_inline)) void write(T* to, const V& v) {
  if constexpr (std::is_same_v<V, T>)
    *to = v;
  else
    __builtin_memcpy(to, &v, sizeof v);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define PYPARAREAL_SHUFFLES
#endif
#endif

// Rows a and b exchange their off-diagonal blocks of `half` lanes.
#ifdef PYPARAREAL_SHUFFLES
template <class T, int half, int... j>
inline __attribute__((always_inline)) void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, j...>) {
  constexpr int n = lanes_of<T>;
  const Vec<T> low = __builtin_shufflevector(a, b, ((j & half) ? n + j - half : j)...);
  const Vec<T> high = __builtin_shufflevector(a, b, ((j & half) ? n + j : j + half)...);
  a = low, b = high;
}
#else
template <class T, int half, int... j>
inline __attribute__((always_inline)) void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, j...>) {
  const Vec<T> low = {((j & half) ? b[j & ~half] : a[j])...};
  const Vec<T> high = {((j & half) ? b[j] : a[j | half])...};
  a = low, b = high;
}
#endif

template <class T, int half = 1>
inline __attribute__((always_inline)) void transpose(Vec<T>* rows) {
  if constexpr (half < lanes_of<T>) {
#pragma GCC unroll 16
    for (int r = 0; r < lanes_of<T>; ++r)
      if (!(r & half)) exchange<T, half>(rows[r], rows[r + half], std::make_integer_sequence<int, lanes_of<T>>{});
    transpose<T, 2 * half>(rows);
  }
}

// The rows of a block. Whole blocks are of columns without gaps, and stay in registers; others are the end of a column,
// or have strides.
template <int n>
struct Whole {
  constexpr operator int() const { return n; }
};
struct Part {
  int rows;
  operator int() const { return rows; }
};

// `count` elements of each column, from element `at` on, one row per element. Those of the next vector are fetched
// ahead: a column is too short for the hardware to see where it goes on (up to a third of a one-step relaxation).
template <class T, class Count>
inline __attribute__((always_inline)) void read_rows(Vec<T>* rows, const T* const* columns, int64_t stride, int64_t at,
                                                     Count count) {
  constexpr int n = lanes_of<T>;
  if constexpr (std::is_same_v<Count, Whole<n>>) {
#pragma GCC unroll 16
    for (int lane = 0; lane < n; ++lane)
      read(rows[lane], columns[lane] + at), __builtin_prefetch(columns[lane + n] + at);
    transpose<T>(rows);
  } else {
    for (int r = 0; r < count; ++r) {
      alignas(64) T row[n];
      for (int lane = 0; lane < n; ++lane) row[lane] = columns[lane][(at + r) * stride];
      read(rows[r], row);
    }
  }
}

// The other way, for the first `live` columns; the memory of the next vector is made ready to be written.
template <class T, class Count>
inline __attribute__((always_inline)) void write_rows(const Vec<T>* rows, T* const* columns, int64_t stride, int64_t at,
                                                      Count count, int live) {
  constexpr int n = lanes_of<T>;
  if constexpr (std::is_same_v<Count, Whole<n>>) {
    Vec<T> turned[n];
#pragma GCC unroll 16
    for (int r = 0; r < n; ++r) turned[r] = rows[r];
    transpose<T>(turned);
    for (int lane = 0; lane < live; ++lane)
      write(columns[lane] + at, turned[lane]), __builtin_prefetch(columns[lane + n] + at, 1);
  } else {
    for (int r = 0; r < count; ++r) {
      alignas(64) T row[n];
      write(row, rows[r]);
      for (int lane = 0; lane < live; ++lane) columns[lane][(at + r) * stride] = row[lane];
    }
  }
}

// The columns of one operand in a tile. Lanes past the last column repeat it.
template <class T>
struct Columns {
  T* base[most_lanes + lanes_of<T>];  // and those of the next vector, to be fetched ahead
  int64_t stride = 1, step_stride = 0;
  int count = 0;
  bool present = false;

  void find(const ColumnOperand<T>& operand, const ColumnSpace& space, int64_t first, int live, int lanes) {
    present = operand.data != nullptr;
    if (!present) return;
    stride = operand.stride, step_stride = operand.step_stride, count = lanes;
    int64_t slice = first / space.batches, batch = first % space.batches;
    const int ahead = static_cast<int>(least(lanes + lanes_of<T>, space.columns() - first));
    for (int lane = 0; lane < ahead; ++lane) {
      base[lane] = operand.column(slice, batch);
      if (++batch == space.batches) batch = 0, ++slice;
    }
    for (int lane = live; lane < lanes; ++lane) base[lane] = base[live - 1];
    for (int lane = ahead < lanes ? lanes : ahead; lane < lanes + lanes_of<T>; ++lane) base[lane] = base[live - 1];
  }

  void next_step() {
    for (int lane = 0; lane < count + lanes_of<T>; ++lane) base[lane] += step_stride;
  }
};

// One tile: where its columns are, and its scratch [length][vectors * lanes].
template <class T>
struct ColumnTile {
  const ColumnTask<T>& task;
  T* x;
  int64_t length;
  int vectors, live, pitch;
  bool dense;
  Columns<const T> u, f, g;
  Columns<T> every, out;
  Kept kept;

  ColumnTile(const ColumnTask<T>& of, T* scratch, int64_t first, int64_t last, int tile)
      : task(of), x(scratch), length(of.space.length), kept(of.period) {
    constexpr int n = lanes_of<T>;
    live = static_cast<int>(least(tile, last - first));
    vectors = (live + n - 1) / n;
    pitch = vectors * n;
    u.find(of.u, of.space, first, live, pitch);
    f.find(of.f, of.space, first, live, pitch);
    g.find(of.g, of.space, first, live, pitch);
    every.find(of.every, of.space, first, live, pitch);
    out.find(of.out, of.space, first, live, pitch);
    dense = u.stride == 1 && f.stride == 1 && g.stride == 1 && every.stride == 1 && out.stride == 1;
  }

  int live_in(int vector) const { return static_cast<int>(least(lanes_of<T>, live - vector * lanes_of<T>)); }

  // body(row, columns of the vector, first element, count, vector) for the blocks of rows.
  template <class Body>
  inline __attribute__((always_inline)) void for_blocks(const Body& body) const {
    constexpr int n = lanes_of<T>;
    for (int v = 0; v < vectors; ++v)
      for (int64_t at = 0; at < length; at += n)
        if (dense && length - at >= n)
          body(x + at * pitch + v * n, v * n, at, Whole<n>{}, live_in(v));
        else
          body(x + at * pitch + v * n, v * n, at, Part{static_cast<int>(least(n, length - at))}, live_in(v));
  }

  void start() const {
    for_blocks([&](T* to, int lane, int64_t at, auto count, int) {
      Vec<T> rows[lanes_of<T>];
      read_rows(rows, u.base + lane, u.stride, at, count);
#pragma GCC unroll 16
      for (int r = 0; r < count; ++r) write(to + r * pitch, rows[r]);
    });
  }

  // What follows a step: right-hand sides, and the state for `every`.
  void end_step() {
    const bool keeps = every.present && kept.next();
    if (f.present && g.present)
      end_step_with<true, true>(keeps);
    else if (f.present)
      end_step_with<true, false>(keeps);
    else if (keeps)
      end_step_with<false, false>(keeps);
    if (f.present) f.next_step();
    if (g.present) g.next_step();
    if (keeps) every.next_step();
  }

  template <bool with_f, bool with_g>
  void end_step_with(bool keeps) const {
    for_blocks([&](T* at_x, int lane, int64_t at, auto count, int lanes_live) {
      Vec<T> rows[lanes_of<T>], left[lanes_of<T>], right[lanes_of<T>];
      if (with_f) read_rows(left, f.base + lane, f.stride, at, count);
      if (with_g) read_rows(right, g.base + lane, g.stride, at, count);
#pragma GCC unroll 16
      for (int r = 0; r < count; ++r) {
        read(rows[r], at_x + r * pitch);
        if (with_g)
          rows[r] = left[r] + (rows[r] - right[r]);
        else if (with_f)
          rows[r] = rows[r] + left[r];
        if (with_f) write(at_x + r * pitch, rows[r]);
      }
      if (keeps) write_rows(rows, every.base + lane, every.stride, at, count, lanes_live);
    });
  }

  void finish() const {
    if (!out.present) return;
    for_blocks([&](const T* from, int lane, int64_t at, auto count, int lanes_live) {
      Vec<T> rows[lanes_of<T>];
#pragma GCC unroll 16
      for (int r = 0; r < count; ++r) read(rows[r], from + r * pitch);
      write_rows(rows, out.base + lane, out.stride, at, count, lanes_live);
    });
  }
};

}  // namespace
}  // namespace pyparareal::cpu
