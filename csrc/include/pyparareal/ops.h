// SPDX-License-Identifier: BSD-3-Clause
// THE kernel API, on one page. Each op has the same name in pyparareal/reference.py (the
// specification), csrc/cpu, csrc/cuda, pyparareal/ops.py and pyparareal/cy_ops.pxd.
//
//   u      state                    f  fine-propagated      g  coarse-propagated    v   restricted state
//   r      residual                 n  slice                k  iteration            nu  extra FC sweeps
//   omega  C-point weight           m  coarsening factor
//
// States are [slices, batch, features...]; norms are float64 [slices]. An output may be the same view
// as an input; any other overlap is refused. Inputs may have any strides (a zero stride repeats), but
// unit-stride features are the fast path. Calls never allocate, never synchronise, are safe from
// several threads, and give the same bits for every number of threads and on every device.
#pragma once

#include "pyparareal/precision.h"
#include "pyparareal/types.h"

namespace pyparareal {

// u[n] = f_old[n] + (g_new[n] - g_old[n])               and, with u_old, jump[n] = norm(u[n] - u_old[n])
// The bracket first: it is exactly zero once the state left of slice n has converged, so u[n] is then
// bitwise the fine solution, but for the sign of a zero. The FAS pair step F_i + (Phi_c(u[i-1]) - G_i)
// is this same op.
Status parareal_update(MutableView u,     // [slices, batch, features...]
                       ConstView f_old,   // like u; u may be the same view
                       ConstView g_new,   // like u; u may be the same view
                       ConstView g_old,   // like u; u may be the same view
                       ConstView u_old,   // like u, or absent; u may be the same view
                       MutableView jump,  // float64 [slices], present if and only if u_old is
                       Norm norm, Exec exec);
std::size_t parareal_update_workspace_bytes(const ConstView& u_old);

// norms[n] = norm(u[n] - u_old[n]), or norm(u[n]) where u_old is absent
Status slice_norms(MutableView norms,  // float64 [slices]
                   ConstView u,        // [slices, batch, features...]
                   ConstView u_old,    // like u, or absent
                   Norm norm, Exec exec);
std::size_t slice_norms_workspace_bytes(const ConstView& u);

// v[j] = u[start + j * step]                             restriction by injection: the states of a coarse grid
Status extract(MutableView v,  // [points, batch, features...]
               ConstView u,    // [slices, batch, features...], start + (points - 1) * step < slices
               int64_t start, int64_t step, Exec exec);

// u[start + j * step] = v[j]                             coarse states assigned; the other points of u untouched
Status inject(MutableView u,  // [slices, batch, features...]
              ConstView v,    // [points, batch, features...]
              int64_t start, int64_t step, Exec exec);

// u_new[n] = omega * phi[n] + (1 - omega) * u[n]         weighted Jacobi at C-points; exactly phi at omega = 1
Status c_relax(MutableView u_new,  // [slices, batch, features...]
               ConstView phi,      // like u_new; u_new may be the same view
               ConstView u,        // like u_new; u_new may be the same view
               double omega, Exec exec);

// Relaxation: all m >= 1 steps u <- Phi(u) of every slice in one call, float64 and float32. With f: u <- Phi(u) + f[n,
// j], with f and g the FAS pair step u <- f[n, j] + (Phi(u) - g[n, j]), after which every[n, j] = u. All three may be
// absent; `out` may be where `every` is not. `every` may have k rows per slice where k divides m: the states after
// m / k steps, after 2 m / k, and so on. u has 2 to 7 axes. The scratch twins take the threads of Exec; of less than a
// whole team's scratch fewer threads make use.
// With `target`, norms[n] = norm(out[n] - target[n]), of every[n, m - 1] where `out` is absent: the bits of
// slice_norms, while the end states are in cache. That takes the scratch of slice_norms on top, and alone where an op
// has no twin.

// Phi(u) = a * u
Status relax_diagonal(MutableView out,  // [slices, batch, features...]: end states; may be the same view as u
                      ConstView u,      // like out: start states
                      ConstView a,      // the last axes of u
                      int64_t m,
                      ConstView f,        // [slices, m, batch, features...], or absent
                      ConstView g,        // like f, or absent
                      MutableView every,  // [slices, k, batch, features...], or absent; may be the same view as f or g
                      ConstView target,   // like u, or absent; shares no element with out and every
                      MutableView norms,  // float64 [slices], present if and only if target is
                      Norm norm, Exec exec);

// T Phi(u) = u along the last axis, T tridiagonal, eliminated from both ends towards row n / 2 (reference.py,
// factorise_tridiagonal): x[i] -= ratio[i] x[outer neighbour], then x[i] = scale[i] x[i] - coupling[i] x[inner
// neighbour] outwards; in the middle, first, the neighbour is the upper one, as eliminated.
Status relax_tridiagonal(MutableView out, ConstView u,
                         ConstView ratio,     // [n], of the elimination; those of both ends are unused
                         ConstView scale,     // [n], inverse pivots
                         ConstView coupling,  // [n], to the neighbour, over the pivot
                         int64_t m, ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms,
                         Norm norm, Exec exec);
std::size_t relax_tridiagonal_workspace_bytes(const ConstView& u, int32_t threads);

// Phi(u)[i] = sum_k weights[k] u[i + k - r] along the last axis
Status relax_stencil(MutableView out, ConstView u,
                     ConstView weights,  // [2 r + 1], r <= 4
                     Boundary boundary, int64_t m, ConstView f, ConstView g, MutableView every, ConstView target,
                     MutableView norms, Norm norm, Exec exec);
std::size_t relax_stencil_workspace_bytes(const ConstView& u, int32_t threads);

// Phi is one step of an explicit Runge-Kutta scheme, whose right-hand side takes the last axis of u: one compiled in,
// or on the CPU a function of the caller's, which alone has scratch and may know the time
Status relax_rk(MutableView out, ConstView u, const RungeKutta& scheme,
                ConstView steps,  // float64 [slices, m], step sizes, or absent: scheme.dt
                ConstView times,  // float64 [slices, m], where the steps start, or absent: scheme.times
                int64_t m, ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
                Exec exec);
std::size_t relax_rk_workspace_bytes(const ConstView& u, const RungeKutta& scheme, int32_t threads);

// Phi is one step of gradient descent on half the summed squared error of a network over a batch of examples. The last
// axis of u has its weights, layer by layer: the matrix [out, in], then the biases. A batch is the examples first,
// first
// + 1, ... modulo K, net.count of them; without `first` from 0 on, all K. Sums have the order of their index
// (reference_mlp.py).
Status relax_mlp_sgd(MutableView out, ConstView u, const Mlp& net,
                     ConstView x,      // [K, sizes[0]]
                     ConstView y,      // [K, sizes[layers]]
                     ConstView alpha,  // float64 [slices, m], learning rates, or absent: net.alpha
                     ConstView first,  // int64 [slices, m], from 0 to K - 1 (on the device taken modulo K), or absent
                     int64_t m, ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms,
                     Norm norm, Exec exec);
std::size_t relax_mlp_sgd_workspace_bytes(const ConstView& u, const Mlp& net, int32_t threads);

// Phi is one step of a gated recurrent unit on the last axis of u (reference_gru.py); where its z is 1 it keeps u as it
// is. Sums have the order of their index. u has a last axis of `hidden` units. On tensor cores, with another precision
// than exact and float32 alone, the bits are not the CPU's; a row's still depend on nothing but that row.
Status relax_gru(MutableView out, ConstView u,
                 ConstView gates,   // [slices, m, batch..., 3 hidden]: the sides of r, z, n that know no state
                 ConstView weight,  // [3 hidden, hidden]
                 ConstView bias,    // [hidden], of the product within r's, or absent: zeros
                 int64_t m, ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
                 Precision precision, Exec exec);
std::size_t relax_gru_workspace_bytes(const ConstView& u, Precision precision, int32_t threads);

// Its transpose: from the gradients of end states and of the states after all steps, those of what they came from.
Status relax_gru_adjoint(MutableView d_start,   // [slices, batch..., hidden]; may be the same view as d_end
                         MutableView d_gates,   // like gates, or absent; may be the same view as gates
                         MutableView d_hidden,  // like u, of the product with r, or absent; may be the same view as u
                         ConstView u,           // [slices, m, batch..., hidden], from which the steps started
                         ConstView gates, ConstView weight, ConstView bias,
                         ConstView d_end,    // like d_start
                         ConstView d_every,  // like u, or absent
                         Precision precision, Exec exec);
std::size_t relax_gru_adjoint_workspace_bytes(const ConstView& d_end, Precision precision, int32_t threads);

// Phi(u) = u + h act(W u + b), a residual dense layer on the last axis of u, of d features (reference_dense.py). Sums
// have the order of their index, from the bias on; with another precision than exact the bias is added last, and the
// bits of a row depend on that row alone.
Status relax_dense(MutableView out, ConstView u,
                   ConstView weight,  // [slices, m, d, d], element (out, in)
                   ConstView bias,    // [slices, m, d], or absent: zeros
                   double h, DenseActivation activation, int64_t m,
                   MutableView slopes,  // [slices, m, batch..., d], or absent: receives h act'(W u + b) of every step
                   ConstView f, ConstView g, MutableView every, ConstView target, MutableView norms, Norm norm,
                   Precision precision, Exec exec);
std::size_t relax_dense_workspace_bytes(const ConstView& u, int32_t threads);  // of the adjoint too

// Phi(v) = v + scale W^T (slopes * v), the transposed chain: step j of slice n takes the weights and slopes of slice
// slices - 1 - n and step m - 1 - j. Sums from zero, in the order of the outputs of W.
Status relax_dense_adjoint(MutableView out, ConstView v,
                           ConstView weight,  // as of relax_dense
                           ConstView slopes,  // [slices, m, batch..., d]
                           double scale, int64_t m, ConstView f, ConstView g, MutableView every, ConstView target,
                           MutableView norms, Norm norm, Precision precision, Exec exec);

// Scans: u[i] = a[i] u[i-1] + b[i] from u[-1] = start, or without it from u[0] = b[0] on, float64 and float32. With
// `reverse` the transposed system, u[i] = a[i+1]^T u[i+1] + b[i] from u[steps-1] = b[steps-1] down, without `start`.
// The order of operations is that of reference_scan.py. What `threads` means for the scratch is said above.
Status scan_diag(MutableView u,    // [steps, batch, features...]; may be the same view as b alone
                 ConstView a,      // like u
                 ConstView b,      // like u
                 ConstView start,  // [batch, features...], or absent
                 bool reverse, Exec exec);
std::size_t scan_diag_workspace_bytes(const ConstView& b, int32_t threads);

Status scan_block(MutableView u,    // [steps, batch, features..., d]; may be the same view as b alone
                  ConstView a,      // [steps, batch, features..., d, d]
                  ConstView b,      // like u
                  ConstView start,  // [batch, features..., d], or absent
                  bool reverse, Exec exec);
std::size_t scan_block_workspace_bytes(const ConstView& b, int32_t threads);

// One iteration of Newton's method on a chain of gated recurrent units with the diagonals of its Jacobians
// (reference_gru.py), F the step and J[i] = factor times the diagonal of its Jacobian at u[i]:
//     u_new[i + 1] = F(u[i]) + J[i] d[i],   d[i + 1] = J[i] d[i] + F(u[i]) - u[i + 1],   d[0] = 0,   u_new[0] = u[0]
// scan_diag of rows that are nowhere stored; its order of operations. The products with the weights are the caller's.
Status newton_gru(MutableView out,        // [steps, batch..., hidden]: u_new without its first row
                  MutableView jacobians,  // like out, the diagonals without the factor, or absent
                  MutableView residuals,  // float64 [steps], the largest |F(u[i]) - u[i + 1]|, or absent
                  MutableView updates,    // float64 [steps], the largest |d[i + 1]|, or absent
                  ConstView u,            // [steps + 1, batch..., hidden]
                  ConstView products,     // [steps, batch..., 3 hidden], weight u[i] of all i but the last
                  ConstView gates,        // like products
                  ConstView diagonal,     // [3, hidden], of W_r, W_z and W_n
                  ConstView bias,         // [hidden], of the product within r's, or absent: zeros
                  double factor, Exec exec);
std::size_t newton_gru_workspace_bytes(const ConstView& u, int32_t threads);

}  // namespace pyparareal
