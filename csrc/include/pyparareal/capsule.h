// SPDX-License-Identifier: BSD-3-Clause
// The kernels as a table of C function pointers, exported by pyparareal._core in a capsule, so that
// other extension modules call them without linking them a second time. cy_ops.pxd wraps this table.
#pragma once

#include "pyparareal/ops.h"

namespace pyparareal {

inline constexpr const char* ops_capsule_name = "pyparareal._core.ops_table";
// Raised when an entry changes or goes; appended entries only grow `bytes`.
inline constexpr uint32_t ops_table_version = 4;

struct OpsTable {
  uint32_t version;
  uint32_t bytes;
  Status (*parareal_update)(MutableView, ConstView, ConstView, ConstView, ConstView, MutableView, Norm, Exec);
  std::size_t (*parareal_update_workspace_bytes)(const ConstView&);
  Status (*slice_norms)(MutableView, ConstView, ConstView, Norm, Exec);
  std::size_t (*slice_norms_workspace_bytes)(const ConstView&);
  Status (*extract)(MutableView, ConstView, int64_t, int64_t, Exec);
  Status (*inject)(MutableView, ConstView, int64_t, int64_t, Exec);
  Status (*c_relax)(MutableView, ConstView, ConstView, double, Exec);
  Status (*relax_diagonal)(MutableView, ConstView, ConstView, int64_t, ConstView, ConstView, MutableView, ConstView,
                           MutableView, Norm, Exec);
  Status (*relax_tridiagonal)(MutableView, ConstView, ConstView, ConstView, ConstView, int64_t, ConstView, ConstView,
                              MutableView, ConstView, MutableView, Norm, Exec);
  std::size_t (*relax_tridiagonal_workspace_bytes)(const ConstView&, int32_t);
  Status (*relax_stencil)(MutableView, ConstView, ConstView, Boundary, int64_t, ConstView, ConstView, MutableView,
                          ConstView, MutableView, Norm, Exec);
  std::size_t (*relax_stencil_workspace_bytes)(const ConstView&, int32_t);
  Status (*relax_rk)(MutableView, ConstView, const RungeKutta&, ConstView, ConstView, int64_t, ConstView, ConstView,
                     MutableView, ConstView, MutableView, Norm, Exec);
  std::size_t (*relax_rk_workspace_bytes)(const ConstView&, const RungeKutta&, int32_t);
  Status (*relax_mlp_sgd)(MutableView, ConstView, const Mlp&, ConstView, ConstView, ConstView, ConstView, int64_t,
                          ConstView, ConstView, MutableView, ConstView, MutableView, Norm, Exec);
  std::size_t (*relax_mlp_sgd_workspace_bytes)(const ConstView&, const Mlp&, int32_t);
  Status (*relax_gru)(MutableView, ConstView, ConstView, ConstView, ConstView, int64_t, ConstView, ConstView,
                      MutableView, ConstView, MutableView, Norm, Precision, Exec);
  std::size_t (*relax_gru_workspace_bytes)(const ConstView&, Precision, int32_t);
  Status (*relax_gru_adjoint)(MutableView, MutableView, MutableView, ConstView, ConstView, ConstView, ConstView,
                              ConstView, ConstView, Precision, Exec);
  std::size_t (*relax_gru_adjoint_workspace_bytes)(const ConstView&, Precision, int32_t);
  Status (*scan_diag)(MutableView, ConstView, ConstView, ConstView, bool, Exec);
  std::size_t (*scan_diag_workspace_bytes)(const ConstView&, int32_t);
  Status (*scan_block)(MutableView, ConstView, ConstView, ConstView, bool, Exec);
  std::size_t (*scan_block_workspace_bytes)(const ConstView&, int32_t);
  Status (*relax_dense)(MutableView, ConstView, ConstView, ConstView, double, DenseActivation, int64_t, MutableView,
                        ConstView, ConstView, MutableView, ConstView, MutableView, Norm, Precision, Exec);
  std::size_t (*relax_dense_workspace_bytes)(const ConstView&, int32_t);
  Status (*relax_dense_adjoint)(MutableView, ConstView, ConstView, ConstView, double, int64_t, ConstView, ConstView,
                                MutableView, ConstView, MutableView, Norm, Precision, Exec);
  Status (*newton_gru)(MutableView, MutableView, MutableView, MutableView, ConstView, ConstView, ConstView, ConstView,
                       ConstView, double, Exec);
  std::size_t (*newton_gru_workspace_bytes)(const ConstView&, int32_t);
};

}  // namespace pyparareal
