// SPDX-License-Identifier: BSD-3-Clause
// The relaxations: tiles of columns, or of elements where features do not meet, shared among threads.
#include <numeric>
#include <optional>

#include "../backend.h"
#include "parallel.h"
#include "slice_norms.h"
#include "tiles.h"

namespace pyparareal::cpu {
namespace {

// Bytes of the widest tile: of 1 to 64 MiB the fastest measured for columns of 16,384 and 32,768
// elements, where a core has 1 MiB of L2 and 32 MiB of L3. It also bounds scratch.
inline constexpr int64_t most_tile_bytes = 4 << 20;

// Bytes of a row of a tile where a thread has `share` columns: whole vectors of the widest kind.
int64_t row_bytes(int64_t share, int64_t rows, int64_t size) {
  const int64_t vector = relax_alignment, most = std::clamp(most_tile_bytes / rows, vector, relax_row_bytes);
  return std::min((share * size + vector - 1) / vector, most / vector) * vector;
}

int64_t share_of(int64_t columns, int64_t team) { return (columns + team - 1) / team; }

// Scratch of one member of a team, with room to align it.
int64_t member_bytes(int64_t columns, int64_t team, int64_t rows, int64_t size) {
  return rows * row_bytes(share_of(columns, team), rows, size) + relax_alignment;
}

std::size_t workspace_bytes(const ColumnSpace& space, DType dtype, int64_t rows, int32_t threads) {
  const int64_t columns = space.columns(), size = dtype == DType::float64 ? 8 : 4;
  const int64_t team = team_size(threads, columns, INT64_MAX);
  return static_cast<std::size_t>(
      std::max(member_bytes(columns, 1, rows, size), team * member_bytes(columns, team, rows, size)));
}

int64_t tridiagonal_rows(const ColumnSpace& space) { return space.length; }

// Now and next, with what lies beyond the ends.
int64_t stencil_rows(const ColumnSpace& space) { return 2 * (space.length + max_stencil - 1); }

// End states that wait in L2 for their norms.
inline constexpr int64_t norm_block_bytes = 256 << 10;

// run(first, last, tile, scratch) on shares of the columns, in tiles of `wide` at most; `rows` of scratch each, from
// the workspace if not from the stack. Then the norms of the end states, block by block where slices are enough for it.
template <class T, class Run>
void for_columns(const ColumnTask<T>& task, int64_t rows, int wide, const EndNorms& n, const Exec& exec,
                 const Run& run) {
  const RelaxTiles<T>& kernels = relax_tiles_of<T>(tiles());
  const ColumnSpace& space = task.space;
  const int64_t columns = space.columns(), size = static_cast<int64_t>(sizeof(T)), lanes = kernels.lanes;
  int team = team_size(exec.threads, share_of(columns, lanes), columns * space.length * size * (task.m + 1));
  const auto available = static_cast<int64_t>(exec.workspace_bytes);
  while (exec.workspace && team > 1 && team * member_bytes(columns, team, rows, size) > available) --team;
  const int64_t share_columns = share_of(columns, team), own_bytes = member_bytes(columns, team, rows, size);
  const int64_t vectors = std::min(share_of(share_columns, lanes), row_bytes(share_columns, rows, size) / size / lanes);
  const int tile = static_cast<int>(std::min<int64_t>(vectors * lanes, wide));
  const bool by_block = n.present() && space.slices >= team;
  // Whole slices, which fill whole tiles where there are enough of them.
  const int64_t slices = std::min(tile / std::gcd(int64_t{tile}, space.batches), share_of(space.slices, team));
  const int64_t unit = by_block ? slices * space.batches : tile;
  const int64_t units = std::max<int64_t>(1, norm_block_bytes / (unit * space.length * size));
  const int64_t part = by_block ? units * unit : columns;
  std::optional<SliceNorms<T>> norms;
  if (by_block) norms.emplace(n.norms, n.ends, n.target, n.norm, n.exec);
  share(team, share_of(columns, unit), [&](int64_t first, int64_t last) {
    alignas(relax_alignment) char own[max_components * relax_row_bytes];
    char* scratch = own;
    if (exec.workspace) {
#ifdef _OPENMP
      const int64_t rank = team > 1 ? omp_get_thread_num() : 0;
#else
      const int64_t rank = 0;
#endif
      const auto at = reinterpret_cast<uintptr_t>(exec.workspace) + static_cast<uintptr_t>(rank * own_bytes);
      scratch = reinterpret_cast<char*>((at + relax_alignment - 1) / relax_alignment * relax_alignment);
    }
    const int64_t stop = std::min(last * unit, columns);
    for (int64_t from = first * unit; from < stop; from += part) {
      const int64_t to = std::min(from + part, stop);
      run(kernels, from, to, tile, reinterpret_cast<T*>(scratch));
      if (by_block) norms->slices(from / space.batches, to / space.batches);
    }
  });
  if (n.present() && !by_block) cpu::slice_norms(n.norms, n.ends, n.target, n.norm, n.exec);
}

template <class T>
Status tridiagonal(const TridiagonalTask<T>& task, const EndNorms& norms, const Exec& exec) {
  const RelaxTiles<T>& kernels = relax_tiles_of<T>(tiles());
  // Wider tiles leave the nearest cache, and gain nothing where right-hand sides pass through.
  for_columns(task.columns, tridiagonal_rows(task.columns.space), kernels.side_by_side, norms, exec,
              [&](const RelaxTiles<T>& kernels, int64_t first, int64_t last, int tile, T* scratch) {
                kernels.tridiagonal(task, first, last, tile, scratch);
              });
  return {};
}

template <class T>
Status stencil(const StencilTask<T>& task, const EndNorms& norms, const Exec& exec) {
  for_columns(task.columns, stencil_rows(task.columns.space), relax_tiles_of<T>(tiles()).wide, norms, exec,
              [&](const RelaxTiles<T>& kernels, int64_t first, int64_t last, int tile, T* scratch) {
                kernels.stencil(task, first, last, tile, scratch);
              });
  return {};
}

template <class T>
Status runge_kutta(const RungeKuttaTask<T>& task, const EndNorms& norms, Exec exec) {
  exec.workspace = nullptr;
  for_columns(task.columns, max_components, relax_tiles_of<T>(tiles()).wide, norms, exec,
              [&](const RelaxTiles<T>& kernels, int64_t first, int64_t last, int tile, T* scratch) {
                kernels.runge_kutta(task, first, last, tile, scratch);
              });
  return {};
}

// A tile of relax_diagonal, of several short slices or of a part of a long one: `rows` slices from `slice` on, `count`
// features of each from `feature` on.
struct Tile {
  int64_t slice, rows, feature, count;

  int64_t size() const { return rows * count; }
};

// visit(index in the tile, element of the operand)
template <class T, class Visit>
void for_elements(const ElementOperand<T>& operand, const Tile& tile, int64_t step, const Visit& visit) {
  const Layout& layout = operand.layout;
  T* base = operand.data + step * operand.step_stride + tile.slice * layout.slice_stride;
  if (layout.ndim == 1) {
    if (tile.count == 1) {
      for (int64_t row = 0; row < tile.rows; ++row) visit(row, base[row * layout.slice_stride]);
      return;
    }
    for (int64_t row = 0; row < tile.rows; ++row)
      for (int64_t i = 0; i < tile.count; ++i)
        visit(row * tile.count + i, base[row * layout.slice_stride + (tile.feature + i) * layout.stride[0]]);
    return;
  }
  for (int64_t row = 0; row < tile.rows; ++row)
    for (int64_t i = 0; i < tile.count; ++i)
      visit(row * tile.count + i, base[row * layout.slice_stride + layout.offset(tile.feature + i)]);
}

// Whether the elements of a tile lie side by side.
template <class T>
bool dense(const ElementOperand<T>& operand, const Tile& tile) {
  return operand.layout.contiguous() && (tile.rows == 1 || operand.layout.slice_stride == tile.count);
}

template <class T>
T* dense_start(const ElementOperand<T>& operand, const Tile& tile, int64_t step) {
  return operand.data + step * operand.step_stride + tile.slice * operand.layout.slice_stride + tile.feature;
}

template <class T>
const T* gathered(const ElementOperand<const T>& operand, const Tile& tile, int64_t step, T* scratch) {
  if (dense(operand, tile)) return dense_start(operand, tile, step);
  for_elements(operand, tile, step, [&](int64_t i, const T& element) { scratch[i] = element; });
  return scratch;
}

template <class T>
void scatter(const ElementOperand<T>& operand, const Tile& tile, int64_t step, const T* from) {
  if (dense(operand, tile))
    std::memcpy(dense_start(operand, tile, step), from, static_cast<std::size_t>(tile.size()) * sizeof(T));
  else
    for_elements(operand, tile, step, [&](int64_t i, T& element) { element = from[i]; });
}

template <class T>
struct DiagonalTask {
  Space space;
  int64_t m, period;  // of `every`
  ElementOperand<const T> u, a, f, g;
  ElementOperand<T> every, out;

  void relax(const RelaxTiles<T>& kernels, const Tile& tile, const T* factors) const {
    alignas(64) T x[chunk], left[chunk], right[chunk];
    const T* start = gathered(u, tile, 0, x);
    if (start != x) std::memcpy(x, start, static_cast<std::size_t>(tile.size()) * sizeof(T));
    if (!f.data && !every.data) {
      kernels.scale(x, factors, tile.size(), m);
    } else {
      Kept kept(period);
      for (int64_t j = 0, row = 0; j < m; ++j) {
        kernels.scale(x, factors, tile.size(), 1);
        if (f.data)
          kernels.add(x, gathered(f, tile, j, left), g.data ? gathered(g, tile, j, right) : nullptr, tile.size());
        if (every.data && kept.next()) scatter(every, tile, row++, x);
      }
    }
    if (out.data) scatter(out, tile, 0, x);
  }
};

template <class T>
Status diagonal(const DiagonalTask<T>& task, const EndNorms& n, const Exec& exec) {
  const RelaxTiles<T>& kernels = relax_tiles_of<T>(tiles());
  const Space& space = task.space;
  const int64_t rows = std::max<int64_t>(1, chunk / space.features), parts = space.chunks();
  const int64_t items = (space.slices + rows - 1) / rows * parts;
  const int64_t bytes = space.slices * space.features * static_cast<int64_t>(sizeof(T)) * (task.m + 1);
  std::optional<SliceNorms<T>> norms;  // their chunks are the parts of a slice
  if (n.present()) norms.emplace(n.norms, n.ends, n.target, n.norm, n.exec);
  share(team_size(exec.threads, items, bytes), items, [&](int64_t first, int64_t last) {
    alignas(64) T repeated[chunk];
    const T* factors = nullptr;
    for (int64_t item = first; item < last; ++item) {
      const int64_t slice = item / parts * rows, feature = item % parts * chunk;
      const Tile tile{slice, std::min(rows, space.slices - slice), feature, std::min(chunk, space.features - feature)};
      if (!factors || parts > 1) factors = gathered(task.a, Tile{0, rows, feature, tile.count}, 0, repeated);
      task.relax(kernels, tile, factors);
      if (norms) norms->chunks(slice * parts + item % parts, (slice + tile.rows - 1) * parts + item % parts + 1);
    }
  });
  if (norms) norms->combine(0, space.slices);
  return {};
}

template <class T>
const T* numbers(const ConstView& view) {
  return static_cast<const T*>(view.data);
}

}  // namespace

std::size_t relax_tridiagonal_workspace_bytes(const ColumnSpace& space, DType dtype, int32_t threads) {
  return workspace_bytes(space, dtype, tridiagonal_rows(space), threads);
}

std::size_t relax_stencil_workspace_bytes(const ColumnSpace& space, DType dtype, int32_t threads) {
  return workspace_bytes(space, dtype, stencil_rows(space), threads);
}

Status relax_diagonal(const MutableView& out, const ConstView& u, const ConstView& a, int64_t m, const ConstView& f,
                      const ConstView& g, const MutableView& every, const EndNorms& norms, const Exec& exec) {
  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    return diagonal(DiagonalTask<T>{space_of(u),
                                    m,
                                    period_of(every, m),
                                    {u, false},
                                    {a, false},
                                    {f, true},
                                    {g, true},
                                    {every, true},
                                    {out, false}},
                    norms, exec);
  });
}

Status relax_tridiagonal(const MutableView& out, const ConstView& u, const ConstView& ratio, const ConstView& scale,
                         const ConstView& coupling, int64_t m, const ConstView& f, const ConstView& g,
                         const MutableView& every, const EndNorms& norms, const Exec& exec) {
  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    return tridiagonal(
        TridiagonalTask<T>{{out, u, m, f, g, every}, numbers<T>(ratio), numbers<T>(scale), numbers<T>(coupling)}, norms,
        exec);
  });
}

Status relax_stencil(const MutableView& out, const ConstView& u, const ConstView& weights, Boundary boundary, int64_t m,
                     const ConstView& f, const ConstView& g, const MutableView& every, const EndNorms& norms,
                     const Exec& exec) {
  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    return stencil(
        StencilTask<T>{{out, u, m, f, g, every}, numbers<T>(weights), static_cast<int>(weights.shape[0]), boundary},
        norms, exec);
  });
}

Status relax_rk(const MutableView& out, const ConstView& u, const RungeKutta& scheme, const ConstView& steps, int64_t m,
                const ConstView& f, const ConstView& g, const MutableView& every, const EndNorms& norms,
                const Exec& exec) {
  return with_wide_type(u.dtype, [&](auto zero) {
    using T = decltype(zero);
    return runge_kutta(
        RungeKuttaTask<T>{
            {out, u, m, f, g, every}, scheme, Coefficients<T>(scheme, steps.present()), StepSizes(steps), {}},
        norms, exec);
  });
}

}  // namespace pyparareal::cpu
