// SPDX-License-Identifier: BSD-3-Clause
// Included by scan_body.h: how rows of a scan get into vectors and back. A tile is some chunks of some lanes; a column
// of it is one chunk of one lane, and neighbouring columns are neighbouring lanes.
#include "scan_tiles.h"

namespace pyparareal::cpu {
namespace {

// The chunks of a tile. Rows past the end of the run are zeros, and so is, where there is no start, the first.
struct ScanPlace {
  int64_t lane = 0, row = 0, end = 0, next_lane = 0, next_row = 0;
  int lanes = 0, chunks = 0;
  bool skips_first = false;

  int columns() const { return lanes * chunks; }
  int first_of(int column) const { return skips_first && column < lanes ? 1 : 0; }
  int rows_of(int column) const {
    return static_cast<int>(least(scan_rows, end - row - column / lanes * int64_t{scan_rows}));
  }
  bool whole() const { return row + chunks * int64_t{scan_rows} <= end && !skips_first; }
};

// The columns of an operand with `elements` numbers in every row: blocks of d d, or vectors of d.
template <class Element, int elements, int d, int width>
struct ScanColumns {
  using T = std::remove_const_t<Element>;
  static constexpr int n = lanes_of<T>;
  Element* base[width + n] = {};  // of whole vectors
  int64_t ahead;                  // to the next tile
  int64_t row, p, q;              // strides
  int dense;                      // numbers of a column that follow each other, or 0 where they do not fill a vector

  ScanColumns(const ScanOperand<Element>& operand, const ScanPlace& place)
      : row(operand.lanes.slice_stride), p(operand.p), q(operand.q) {
    for (int l = 0; l < place.lanes; ++l) {
      Element* const at = operand.at(place.row, place.lane + l);
      for (int c = 0; c < place.chunks; ++c) base[c * place.lanes + l] = at + c * scan_rows * row;
    }
    Element* const first = operand.at(place.row, place.lane);
    ahead = operand.at(place.next_row, place.next_lane) - first;
    for (int column = place.columns(); column < width + n; ++column) base[column] = first;  // read, and never written
    const bool follow = elements == 1 || (q == 1 && (elements == d || p == d)) || (elements > d && p == 1 && q == d);
    dense = !follow ? 0 : row == elements ? scan_rows * elements : elements;
    if (dense < n) dense = 0;
  }

  int64_t offset(int e) const { return elements == 1 ? 0 : elements == d ? e * q : (e / d) * p + (e % d) * q; }

  // Which row of the tile has number `index` of those that follow each other from row j on: blocks may lie transposed.
  int row_of(int j, int index) const {
    const int e = index % elements;
    return (j + index / elements) * elements + (elements == d || q == 1 ? e : (e % d) * d + e / d);
  }

  // body(row, first number, column) for squares of n numbers of n columns; the last may overlap the one before.
  template <class Body>
  inline __attribute__((always_inline)) void squares(int live, const Body& body) const {
    for (int j = 0; j < scan_rows; j += dense / elements)
      for (int at = 0;; at = at + 2 * n <= dense ? at + n : dense - n) {
        for (int column = 0; column < live; column += n) body(j, at, column);
        if (at + n == dense) break;
      }
  }

  // To rows [row, element] of `width` columns.
  void read_all(T* rows, const ScanPlace& place) const {
    if (dense == 0 || !place.whole()) return read_each(rows, place);
    squares(place.columns(), [&](int j, int at, int column) {
      Vec<T> block[n];
#pragma GCC unroll 16
      for (int lane = 0; lane < n; ++lane) {
        const Element* const from = base[column + lane] + j * row + at;
        read(block[lane], from), __builtin_prefetch(from + ahead);
      }
      transpose<T>(block);
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) write(rows + row_of(j, at + r) * width + column, block[r]);
    });
  }

  void read_each(T* rows, const ScanPlace& place) const {
    const bool whole = place.whole();
    const int live = place.columns(), vectors = (live + n - 1) / n * n;
    for (int j = 0; j < scan_rows; ++j)
      for (int e = 0; e < elements; ++e) {
        T* const to = rows + (j * elements + e) * width;
        const int64_t at = j * row + offset(e);
        if (whole) {
          for (int column = 0; e == 0 && column < vectors; ++column) __builtin_prefetch(base[column] + at + ahead);
          for (int column = 0; column < vectors; ++column) to[column] = base[column][at];
          continue;
        }
        for (int column = 0; column < vectors; ++column) {
          const bool there = column < live && j >= place.first_of(column) && j < place.rows_of(column);
          to[column] = there ? base[column][at] : T(0);
        }
      }
  }

  void write_all(const T* rows, const ScanPlace& place) const {
    if (dense == 0 || !place.whole()) return write_each(rows, place);
    squares(place.columns(), [&](int j, int at, int column) {
      Vec<T> block[n];
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) read(block[r], rows + row_of(j, at + r) * width + column);
      transpose<T>(block);
      const int count = static_cast<int>(least(n, place.columns() - column));
      for (int lane = 0; lane < count; ++lane) write(base[column + lane] + j * row + at, block[lane]);
    });
  }

  void write_each(const T* rows, const ScanPlace& place) const {
    const bool whole = place.whole();
    for (int j = 0; j < scan_rows; ++j)
      for (int e = 0; e < elements; ++e) {
        const T* const from = rows + (j * elements + e) * width;
        const int64_t at = j * row + offset(e);
        for (int column = 0; column < place.columns(); ++column)
          if (whole || j < place.rows_of(column)) base[column][at] = from[column];
      }
  }
};

}  // namespace
}  // namespace pyparareal::cpu
