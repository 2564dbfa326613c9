// SPDX-License-Identifier: BSD-3-Clause
// What csrc/cpu and csrc/cuda implement: the ops of ops.h on checked arguments, the same names in both.
#pragma once

#include "pyparareal/columns.h"
#include "pyparareal/layout.h"
#include "pyparareal/precision.h"
#include "pyparareal/types.h"

#ifndef PYPARAREAL_WITH_CUDA
#define PYPARAREAL_WITH_CUDA 0
#endif

namespace pyparareal {

// What a relaxation computes beside its steps: norms[n] = norm(ends[n] - target[n]), where `ends` is what it writes.
struct EndNorms {
  ConstView ends, target;
  MutableView norms;
  Norm norm = Norm::sum_squares;
  Exec exec;  // with the scratch of slice_norms

  bool present() const { return norms.present(); }
};

#define PYPARAREAL_DECLARE_BACKEND                                                                                     \
  Status parareal_update(const MutableView& u, const ConstView& f_old, const ConstView& g_new, const ConstView& g_old, \
                         const ConstView& u_old, const MutableView& jump, Norm norm, const Exec& exec);                \
  Status slice_norms(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm,                  \
                     const Exec& exec);                                                                                \
  Status copy_slices(const MutableView& to, const ConstView& from, const Exec& exec);                                  \
  Status c_relax(const MutableView& u_new, const ConstView& phi, const ConstView& u, double omega, const Exec& exec);  \
  Status relax_diagonal(const MutableView& out, const ConstView& u, const ConstView& a, int64_t m, const ConstView& f, \
                        const ConstView& g, const MutableView& every, const EndNorms& norms, const Exec& exec);        \
  Status relax_tridiagonal(const MutableView& out, const ConstView& u, const ConstView& ratio, const ConstView& scale, \
                           const ConstView& coupling, int64_t m, const ConstView& f, const ConstView& g,               \
                           const MutableView& every, const EndNorms& norms, const Exec& exec);                         \
  Status relax_stencil(const MutableView& out, const ConstView& u, const ConstView& weights, Boundary boundary,        \
                       int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,                    \
                       const EndNorms& norms, const Exec& exec);                                                       \
  Status relax_rk(const MutableView& out, const ConstView& u, const RungeKutta& scheme, const ConstView& steps,        \
                  int64_t m, const ConstView& f, const ConstView& g, const MutableView& every, const EndNorms& norms,  \
                  const Exec& exec);                                                                                   \
  Status relax_mlp_sgd(const MutableView& out, const ConstView& u, const Mlp& net, const ConstView& x,                 \
                       const ConstView& y, const ConstView& alpha, const ConstView& first, int64_t m,                  \
                       const ConstView& f, const ConstView& g, const MutableView& every, const EndNorms& norms,        \
                       const Exec& exec);                                                                              \
  Status relax_gru(const MutableView& out, const ConstView& u, const ConstView& gates, const ConstView& weight,        \
                   const ConstView& bias, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every, \
                   const EndNorms& norms, const Exec& exec);                                                           \
  Status relax_gru_adjoint(const MutableView& d_start, const MutableView& d_gates, const MutableView& d_hidden,        \
                           const ConstView& u, const ConstView& gates, const ConstView& weight, const ConstView& bias, \
                           const ConstView& d_end, const ConstView& d_every, const Exec& exec);                        \
  Status relax_dense(const MutableView& out, const ConstView& u, const ConstView& weight, const ConstView& bias,       \
                     double h, DenseActivation activation, int64_t m, const MutableView& slopes, const ConstView& f,   \
                     const ConstView& g, const MutableView& every, const EndNorms& norms, const Exec& exec);           \
  Status relax_dense_adjoint(const MutableView& out, const ConstView& v, const ConstView& weight,                      \
                             const ConstView& slopes, double scale, int64_t m, const ConstView& f, const ConstView& g, \
                             const MutableView& every, const EndNorms& norms, const Exec& exec);                       \
  /* With and without blocks; `start` has an axis of one row in front. */                                              \
  Status scan(const MutableView& u, const ConstView& a, const ConstView& b, const ConstView& start, bool blocks,       \
              bool reverse, const Exec& exec);                                                                         \
  std::size_t scan_workspace_bytes(const ConstView& b, bool blocks, int32_t threads);                                  \
  Status newton_gru(const MutableView& out, const MutableView& jacobians, const MutableView& residuals,                \
                    const MutableView& updates, const ConstView& u, const ConstView& products, const ConstView& gates, \
                    const ConstView& diagonal, const ConstView& bias, double factor, const Exec& exec);                \
  std::size_t newton_gru_workspace_bytes(const ConstView& u, int32_t threads);                                         \
  /* Scratch of the relaxations for at most `threads` threads (0: the default); for one thread it suffices. */         \
  std::size_t relax_tridiagonal_workspace_bytes(const ColumnSpace& space, DType dtype, int32_t threads);               \
  std::size_t relax_stencil_workspace_bytes(const ColumnSpace& space, DType dtype, int32_t threads);                   \
  std::size_t relax_mlp_sgd_workspace_bytes(const ConstView& u, const Mlp& net, int32_t threads);                      \
  std::size_t relax_gru_workspace_bytes(const ConstView& u, int32_t threads);                                          \
  std::size_t relax_gru_adjoint_workspace_bytes(const ConstView& d_end, int32_t threads);

namespace cpu {
PYPARAREAL_DECLARE_BACKEND

// relax_rk with a function of the caller's.
Status relax_function(const MutableView& out, const ConstView& u, const RungeKutta& scheme, const ConstView& steps,
                      const ConstView& times, int64_t m, const ConstView& f, const ConstView& g,
                      const MutableView& every, const EndNorms& norms, const Exec& exec);
std::size_t relax_function_workspace_bytes(const ColumnSpace& space, const RungeKutta& scheme, int32_t threads);
std::size_t relax_dense_workspace_bytes(const ConstView& u, int32_t threads);
}  // namespace cpu
namespace cuda {
PYPARAREAL_DECLARE_BACKEND

// On tensor cores, float32 alone.
Status relax_gru_mma(const MutableView& out, const ConstView& u, const ConstView& gates, const ConstView& weight,
                     const ConstView& bias, int64_t m, const ConstView& f, const ConstView& g, const MutableView& every,
                     const EndNorms& norms, Precision precision, const Exec& exec);
Status relax_gru_adjoint_mma(const MutableView& d_start, const MutableView& d_gates, const MutableView& d_hidden,
                             const ConstView& u, const ConstView& gates, const ConstView& weight, const ConstView& bias,
                             const ConstView& d_end, const ConstView& d_every, Precision precision, const Exec& exec);
std::size_t relax_gru_mma_workspace_bytes(const ConstView& u);
std::size_t relax_gru_adjoint_mma_workspace_bytes(const ConstView& d_end);
Status relax_dense_mma(const MutableView& out, const ConstView& u, const ConstView& weight, const ConstView& bias,
                       double h, DenseActivation activation, int64_t m, const MutableView& slopes, const ConstView& f,
                       const ConstView& g, const MutableView& every, const EndNorms& norms, Precision precision,
                       const Exec& exec);
Status relax_dense_adjoint_mma(const MutableView& out, const ConstView& v, const ConstView& weight,
                               const ConstView& slopes, double scale, int64_t m, const ConstView& f, const ConstView& g,
                               const MutableView& every, const EndNorms& norms, Precision precision, const Exec& exec);
}  // namespace cuda
#undef PYPARAREAL_DECLARE_BACKEND

namespace cuda {

// The norms of a relaxation that was launched: on the same stream, where its end states are still in the L2 cache.
inline Status then_norms(const Status& launched, const EndNorms& n) {
  return launched.ok() && n.present() ? cuda::slice_norms(n.norms, n.ends, n.target, n.norm, n.exec) : launched;
}

int device_count();    // 0 without a usable driver
int driver_version();  // 0 without a driver
int runtime_version();
Status stream_device(void* stream, int current_device, int* device);

// A point in a stream's work. Owns a cudaEvent_t.
class Event {
 public:
  Event() = default;
  Event(Event&& other) noexcept : event_(other.event_) { other.event_ = nullptr; }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();
  Status record(void* stream, int device);
  bool done() const;

 private:
  void* event_ = nullptr;
};

}  // namespace cuda

// Calls `body` with a value of the storage type of `dtype`.
template <class Body>
auto with_storage_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::float64:
      return body(double{});
    case DType::float32:
      return body(float{});
    case DType::float16:
      return body(Half{});
    default:
      return body(BFloat16{});
  }
}

// The same for ops on float64 and float32 alone.
template <class Body>
auto with_wide_type(DType dtype, Body&& body) {
  return dtype == DType::float64 ? body(double{}) : body(float{});
}

// Scratch for partial norms: one double per chunk, none where a slice is a single chunk.
inline std::size_t norm_workspace_bytes(const Space& space) {
  const int64_t chunks = space.chunks();
  return chunks > 1 ? static_cast<std::size_t>(space.slices * chunks) * sizeof(double) : 0;
}

}  // namespace pyparareal
