// SPDX-License-Identifier: BSD-3-Clause
// Device guard, error text and kernel launch, once for every CUDA launcher.
#pragma once

#ifdef PYPARAREAL_EMULATE_CUDA
#include "emulate_cuda.h"  // tests/cpp: the same sources run thread by thread on the host
#else
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdio>
#include <map>
#include <mutex>
#include <utility>

#include "pyparareal/types.h"

namespace pyparareal::cuda {

inline constexpr int threads_per_block = 256;
inline constexpr int64_t most_blocks = 2147483647;  // gridDim.x

inline Status status_of(cudaError_t error, const char* call) {
  Status status;
  if (error == cudaSuccess) return status;
  cudaGetLastError();  // reported here: not by the next launch as well
  status.code = StatusCode::cuda_error;
  std::snprintf(status.message, sizeof status.message, "%s: %s", call, cudaGetErrorString(error));
  return status;
}

// Makes a device current for a scope and restores the caller's.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    int current = 0;
    if (status_ = status_of(cudaGetDevice(&current), "cudaGetDevice"); !status_.ok() || current == device) return;
    status_ = status_of(cudaSetDevice(device), "cudaSetDevice");
    if (status_.ok()) previous_ = current;
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (previous_ >= 0) cudaSetDevice(previous_);
  }
  const Status& status() const { return status_; }

 private:
  int previous_ = -1;
  Status status_;
};

inline unsigned blocks_for(int64_t threads, int64_t per_block) {
  const int64_t blocks = (threads + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > most_blocks ? most_blocks : blocks);
}

// The dynamic shared memory of a block, on a 16-byte boundary.
template <class T>
__device__ __forceinline__ T* block_scratch() {
#ifdef PYPARAREAL_EMULATE_CUDA
  return static_cast<T*>(emulated_block_scratch());
#else
  extern __shared__ double2 scratch[];
  return reinterpret_cast<T*>(scratch);
#endif
}

// Dynamic shared memory a block may ask for.
inline std::size_t most_shared(int device) {
#ifdef PYPARAREAL_EMULATE_CUDA
  (void)device;
  return 40 << 10;
#else
  int bytes = 0;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess)
    return static_cast<std::size_t>(bytes);
  cudaGetLastError();
  return 48 << 10;
#endif
}

#ifdef PYPARAREAL_EMULATE_CUDA
inline Status allow_shared(const char*, const void*, std::size_t) { return {}; }
#else
// More dynamic shared memory than 48 KiB has to be asked for, kernel by kernel and device by device. It is never asked
// for less than before: another thread may be between its own request and its launch.
inline Status allow_shared(const char* name, const void* kernel, std::size_t shared_bytes) {
  if (shared_bytes <= 48 << 10) return {};
  static std::mutex one_at_a_time;
  static std::map<std::pair<const void*, int>, std::size_t> asked_for;
  int device = 0;
  if (Status status = status_of(cudaGetDevice(&device), "cudaGetDevice"); !status.ok()) return status;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  std::size_t& most = asked_for[{kernel, device}];
  const std::size_t wanted = most < shared_bytes ? shared_bytes : most;
  Status status = status_of(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(wanted)), name);
  if (status.ok()) most = wanted;
  return status;
}
#endif

template <class... Parameters>
Status allow_shared(const char* name, void (*kernel)(Parameters...), std::size_t shared_bytes) {
  return allow_shared(name, reinterpret_cast<const void*>(kernel), shared_bytes);
}

// Launches and reports what the launch itself found: an error that other code left behind is not taken for it. Kernels
// walk their items with a grid stride.
template <class... Parameters, class... Arguments>
Status launch(const char* name, void (*kernel)(Parameters...), unsigned blocks, unsigned threads,
              std::size_t shared_bytes, void* stream, const Arguments&... arguments) {
#ifdef PYPARAREAL_EMULATE_CUDA
  (void)stream;
  emulate_launch(blocks, threads, shared_bytes, [&] { kernel(arguments...); });
  return status_of(cudaGetLastError(), name);
#else
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return status_of(cudaLaunchKernelEx(&config, kernel, arguments...), name);
#endif
}

}  // namespace pyparareal::cuda
