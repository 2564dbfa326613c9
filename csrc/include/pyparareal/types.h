// SPDX-License-Identifier: BSD-3-Clause
// Plain-old-data arguments of the kernel API: dtypes, borrowed views, execution place, status.
#pragma once

#ifdef __CUDACC_RTC__  // compiled at run time: no standard headers
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint16_t = unsigned short;
namespace std {
using size_t = decltype(sizeof 0);
}
#else
#include <cstddef>
#include <cstdint>
#endif

namespace pyparareal {

// int64 is of indices alone: no state has it.
enum class DType : int32_t { float64 = 0, float32 = 1, float16 = 2, bfloat16 = 3, int64 = 4 };
enum class Device : int32_t { cpu = 0, cuda = 1 };

inline constexpr int max_ndim = 8;

// A borrowed strided array [slices, batch, features...]: time axis first. Owns nothing and is valid
// for the duration of a call. `stride` counts elements and may be zero (inputs) or negative; only the
// first `ndim` entries of `shape` and `stride` mean anything, and only they are ever set.
template <class Pointer>
struct View {
  Pointer data = nullptr;
  DType dtype = DType::float64;
  Device device = Device::cpu;
  int32_t device_id = 0;
  int32_t ndim = 0;  // 0 marks an optional operand that is absent
  int64_t shape[max_ndim];
  int64_t stride[max_ndim];

  bool present() const { return ndim > 0; }
};
using ConstView = View<const void*>;
using MutableView = View<void*>;

// What is reduced per slice: sum of squares (not rooted, so that partial results combine), sum of
// absolute values, or the largest absolute value. A NaN in a slice makes its norm NaN.
enum class Norm : int32_t { sum_squares = 0, sum_abs = 1, max_abs = 2 };

// What relax_stencil takes for the states beyond the ends of the last axis.
enum class Boundary : int32_t { zero = 0, periodic = 1 };

// The right-hand sides compiled into relax_rk; reference.py has their equations and parameters.
enum class RightHandSide : int32_t {
  dahlquist = 0,
  lorenz = 1,
  brusselator = 2,
  fitzhugh_nagumo = 3,
  van_der_pol = 4,
  arenstorf = 5,
  function = 6  // a function of the caller's: SlopeFunction
};

inline constexpr int max_stages = 11, max_parameters = 3, max_stencil = 9;

// A right-hand side of the caller's: a C function on numbers of one dtype T, that of the state.
//   void slope(T t, const T* u, T* du, const T* parameters)                                 u, du [components]
// or, of `lanes` columns at once, which a compiler can turn into vector instructions,
//   void slope(int64_t lanes, const T* t, const T* u, T* du, const T* parameters)           u, du [components, lanes]
// It is called from several threads at once, without any lock, and returns what depends on its arguments alone.
struct SlopeFunction {
  const void* address = nullptr;
  DType dtype = DType::float64;
  bool takes_lanes = false;
  int64_t components = 0;
  const void* parameters = nullptr;  // of dtype, borrowed
};

// Times of equidistant points, as pyparareal.TimeGrid has them: point i is at t0 + span * (i / steps), and step j of
// slice n starts at point first + n * stride + j. Without steps there are none.
struct UniformTimes {
  double t0 = 0, span = 0;
  int64_t steps = 0, first = 0, stride = 0;
};

// An explicit Runge-Kutta scheme for one of them: Butcher's a (left of the diagonal), b, and c, which functions need.
struct RungeKutta {
  RightHandSide rhs = RightHandSide::dahlquist;
  int32_t stages = 0;
  int64_t substeps = 1;
  double dt = 0;  // of every step, unless the call has step sizes of its own
  double parameters[max_parameters] = {0};
  double a[max_stages][max_stages] = {{0}};
  double b[max_stages] = {0};
  double c[max_stages] = {0};
  SlopeFunction function;
  UniformTimes times;  // NaN without them, unless the call has times of its own
};

enum class Activation : int32_t { identity = 0, relu = 1, sigmoid = 2, tanh = 3 };

// Of relax_dense; smooth_relu is rounded off by a parabola within 0.1 of the bend.
enum class DenseActivation : int32_t { tanh = 0, relu = 1, smooth_relu = 2, sigmoid = 3, silu = 4 };

inline constexpr int max_layers = 8;

// A fully connected network sizes[0] -> ... -> sizes[layers] and what a step of gradient descent takes.
struct Mlp {
  int32_t layers = 0;
  bool bias = false;
  Activation hidden = Activation::sigmoid, last = Activation::sigmoid;
  int64_t sizes[max_layers + 1] = {0};
  double alpha = 0;   // learning rate, unless the call has rates of its own
  int64_t count = 1;  // examples of a step: all, unless the call says which is the first
};

// Where and with what a call runs. `stream` is a cudaStream_t (ignored on the CPU); `threads` 0 means
// the OpenMP default (ignored on CUDA); the scratch has at least the bytes the op's twin asked for.
struct Exec {
  void* stream = nullptr;
  int32_t threads = 0;
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
};

enum class StatusCode : int32_t { ok = 0, invalid_value = 1, invalid_type = 2, cuda_error = 3 };

// The outcome of a call. Anything but `ok` was found before a launch, except `cuda_error`; the
// message names the argument, what it got and what was expected.
struct Status {
  StatusCode code = StatusCode::ok;
  char message[252] = {0};

  bool ok() const { return code == StatusCode::ok; }
};

}  // namespace pyparareal
