// SPDX-License-Identifier: BSD-3-Clause
// Included by tiles_body.h: the tiles of newton_gru. Steps, Jacobians and residuals of a tile are computed into rows of
// the scan (scan_body.h), in L1, and its states are added to the steps on the way out.
#include "newton_gru_tiles.h"

namespace pyparareal::cpu {
namespace {

// The larger magnitudes: without its sign a number is ordered as its bits are, and a NaN is above all.
template <class T>
inline __attribute__((always_inline)) Vec<T> larger(const Vec<T>& a, const Vec<T>& b) {
  using Word = typename WordOf<T>::type;
  const Word magnitude = ~Word{} >> 1, x = (Word)a & magnitude, y = (Word)b & magnitude;
  return (Vec<T>)(x > y ? x : y);
}

// The largest |x| of each of `scan_rows` rows.
template <class T>
void largest_of_rows(const T* x, int64_t pitch, int count, double* largest) {
  constexpr int n = lanes_of<T>;
  static_assert(scan_rows % n == 0);
  const int whole = count - count % n;
  for (int j = 0; j < scan_rows; j += n) {
    Vec<T> rows[n];
#pragma GCC unroll 16
    for (int r = 0; r < n; ++r) rows[r] = Vec<T>{};
    for (int i = 0; i < whole; i += n)
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) rows[r] = larger<T>(rows[r], loaded<T>(x + (j + r) * pitch + i));
    transpose<T>(rows);
    for (int r = 1; r < n; ++r) rows[0] = larger<T>(rows[0], rows[r]);
    alignas(64) T all[n];
    write(all, rows[0]);
    for (int r = 0; r < n; ++r) largest[j + r] = newton_magnitude(all[r]);
  }
  for (int j = 0; j < scan_rows; ++j)
    for (int i = whole; i < count; ++i)
      largest[j] = norm_combine<Norm::max_abs>(largest[j], newton_magnitude(x[j * pitch + i]));
}

template <class T>
struct NewtonGruTile : ScanTile<T, 1> {
  using Base = ScanTile<T, 1>;
  using Base::a_rows, Base::b_rows, Base::n, Base::of, Base::place, Base::starts, Base::width;
  using V = Vec<T>;
  enum { product = 0, gate = 3, state = 6, ahead = 7, inputs = 8 };

  // Neighbouring units of one batch index.
  struct Part {
    int64_t u, products, gates, out, jacobians;  // offsets in a row
    int at, count;
  };

  const NewtonGruTask<T>& gru;
  const NewtonNorms& norms;
  int parts = 0;
  bool whole_rows = false;  // rows are read where they are
  int64_t to_next[4] = {};  // from rows of u, products, gates to those of the next tile
  Part part[width];
  alignas(64) T f_rows[scan_rows * width];
  alignas(64) T weights[4][width + n];      // the bias and the diagonals
  alignas(64) T copies[inputs][width + n];  // of a row
  alignas(64) T jacobian[width + n];

  NewtonGruTile(const NewtonGruTask<T>& task, const ScanTask<T>& chain, const ScanRun<T>& run, const NewtonNorms& to)
      : Base(chain, run), gru(task), norms(to) {
    __builtin_memset(copies, 0, sizeof copies);
    __builtin_memset(weights, 0, sizeof weights);
  }

  void move(int64_t lane, int lanes, int64_t row, int chunks, int64_t next_row, int64_t next_lane) {
    if (parts == 0 || lane != place.lane || lanes != place.lanes) take_lanes(lane, lanes);
    place = {lane, row, of.last_row, next_lane, next_row, lanes, chunks, false};
    this->a = a_rows, this->a_row = width, this->b = b_rows, this->b_row = width;
    if (whole_rows) look_ahead();
    const int columns = place.columns(), whole = (columns + n - 1) / n * n;
    for (int j = 0; j < scan_rows; ++j) {
      for (int c = 0; c < chunks; ++c) {
        const int64_t at = row + c * int64_t{scan_rows} + j;
        at < place.end ? compute(at, j * width + c * lanes) : clear(j * width + c * lanes, lanes);
      }
      clear(j * width + columns, whole - columns);
    }
  }

  void clear(int column, int count) {
    for (int i = column; i < column + count; ++i) a_rows[i] = b_rows[i] = f_rows[i] = T(0);
  }

  void take_lanes(int64_t lane, int lanes) {
    parts = 0;
    for (int at = 0; at < lanes; at += part[parts++].count) {
      const int64_t batch = (lane + at) / gru.hidden, i = (lane + at) % gru.hidden;
      const auto offset = [&](const auto& operand) { return operand.batch.offset(batch) + i * operand.stride; };
      part[parts] = {offset(gru.u),
                     offset(gru.products),
                     offset(gru.gates),
                     offset(gru.out),
                     offset(gru.jacobians),
                     at,
                     static_cast<int>(least(gru.hidden - i, lanes - at))};
      for (int l = 0; l < part[parts].count; ++l) {
        weights[0][at + l] = gru.bias_at(i + l);
        for (int g = 0; g < gru_gates; ++g) weights[1 + g][at + l] = gru.diagonal_at(g, i + l);
      }
    }
    whole_rows = parts == 1 && lanes % n == 0 && gru.u.stride == 1 && gru.products.stride == 1 && gru.gates.stride == 1;
  }

  void look_ahead() {
    const int64_t rows = place.next_row - place.row, batch = place.next_lane / gru.hidden,
                  i = place.next_lane % gru.hidden;
    const auto from = [&](const auto& operand, int64_t own) {
      return rows * operand.batch.slice_stride + operand.batch.offset(batch) + i - own;
    };
    to_next[0] = from(gru.u, part[0].u), to_next[1] = from(gru.products, part[0].products);
    to_next[2] = from(gru.gates, part[0].gates);
  }

  // The inputs of a row, each as neighbouring lanes.
  void read_row(int64_t row, const T** in) {
    const T* const u = gru.u.data + row * gru.u.batch.slice_stride;
    const T* const products = gru.products.data + row * gru.products.batch.slice_stride;
    const T* const gates = gru.gates.data + row * gru.gates.batch.slice_stride;
    const int64_t up = gru.u.batch.slice_stride;
    if (whole_rows) {
      const Part& p = part[0];
      in[state] = u + p.u, in[ahead] = in[state] + up;
      for (int g = 0; g < gru_gates; ++g) {
        in[product + g] = products + p.products + g * gru.hidden, in[gate + g] = gates + p.gates + g * gru.hidden;
        prefetch_row<0>(in[product + g] + to_next[1], 1, place.lanes);
        prefetch_row<0>(in[gate + g] + to_next[2], 1, place.lanes);
      }
      prefetch_row<0>(in[state] + to_next[0], 1, place.lanes);
      return;
    }
    for (int k = 0; k < inputs; ++k) in[k] = copies[k];
    for (int k = 0; k < parts; ++k) {
      const Part& p = part[k];
      take_row(copies[state] + p.at, u + p.u, gru.u.stride, p.count);
      take_row(copies[ahead] + p.at, u + p.u + up, gru.u.stride, p.count);
      for (int g = 0; g < gru_gates; ++g) {
        const int64_t own = g * gru.hidden;
        take_row(copies[product + g] + p.at, products + p.products + own * gru.products.stride, gru.products.stride,
                 p.count);
        take_row(copies[gate + g] + p.at, gates + p.gates + own * gru.gates.stride, gru.gates.stride, p.count);
      }
    }
  }

  // The step of a row, its Jacobian and its residual, into the columns from `column` on.
  void compute(int64_t row, int column) {
    const T* in[inputs];
    read_row(row, in);
    const int lanes = place.lanes;
    for (int l = 0; l < lanes; l += n) {
      const auto g = GruGates<T, V>::template of<VectorMlpMath>(
          loaded<T>(in[gate] + l), loaded<T>(in[gate + 1] + l), loaded<T>(in[gate + 2] + l), loaded<T>(in[product] + l),
          loaded<T>(in[product + 1] + l), loaded<T>(in[product + 2] + l), loaded<T>(weights[0] + l));
      const V h = loaded<T>(in[state] + l), f = g.template next<VectorMlpMath>(h);
      const V j = g.template own_derivative<VectorMlpMath>(h, loaded<T>(weights[1] + l), loaded<T>(weights[2] + l),
                                                           loaded<T>(weights[3] + l));
      write(jacobian + l, j);
      write_part(a_rows + column + l, row == 0 ? V{} : j * gru.factor, lanes - l);
      write_part(b_rows + column + l, f - loaded<T>(in[ahead] + l), lanes - l);
      write_part(f_rows + column + l, f, lanes - l);
    }
    if (of.part != ScanPart::states) return;
    if (gru.jacobians.data) put(gru.jacobians, row, jacobian, &Part::jacobians);
  }

  void put(const ColumnOperand<T>& operand, int64_t row, const T* from, int64_t Part::* offset) const {
    T* const to = operand.data + row * operand.batch.slice_stride;
    for (int k = 0; k < parts; ++k) put_row(to + part[k].*offset, operand.stride, from + part[k].at, part[k].count);
  }

  // f + J d before, and d in place of r.
  template <int vectors>
  void add_chain(int column) {
    V x[vectors];
    for (int v = 0; v < vectors; ++v) read(x[v], starts[0] + column + v * n);
    for (int j = 0; j < scan_rows; ++j)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const int at = j * width + column + v * n;
        const V moved = loaded<T>(a_rows + at) * x[v];
        x[v] = moved + loaded<T>(b_rows + at);
        write(f_rows + at, loaded<T>(f_rows + at) + moved), write(b_rows + at, x[v]);
      }
  }

  // Of b_rows, where a column of the tile is another chunk or lane.
  void note_norms(double* to) const {
    if (!to) return;
    for (int c = 0; c < place.chunks; ++c) {
      double largest[scan_rows];
      largest_of_rows(b_rows + c * place.lanes, width, place.lanes, largest);
      double* const rows = to + place.row + c * int64_t{scan_rows};
      for (int j = 0; j < place.rows_of(c * place.lanes); ++j)
        rows[j] = norm_combine<Norm::max_abs>(rows[j], largest[j]);
    }
  }

  void follow() {
    note_norms(norms.residuals);
    if (place.columns() > width - n)
      add_chain<scan_vectors<1>>(0);
    else
      for (int column = 0; column < place.columns(); column += n) add_chain<1>(column);
    note_norms(norms.updates);
    for (int c = 0; c < place.chunks; ++c)
      for (int j = 0; j < place.rows_of(c * place.lanes); ++j)
        put(gru.out, place.row + c * int64_t{scan_rows} + j, f_rows + j * width + c * place.lanes, &Part::out);
  }
};

template <class T>
void newton_gru_run(const NewtonGruTask<T>& task, const ScanTask<T>& chain, const ScanRun<T>& of,
                    const NewtonNorms& norms) {
  NewtonGruTile<T> tile(task, chain, of, norms);
  run_tiles<T, 1>(tile, chain, of);
}

template <class T>
constexpr NewtonGruTiles<T> make_newton_gru_tiles() {
  return {newton_gru_run<T>};
}

}  // namespace
}  // namespace pyparareal::cpu
