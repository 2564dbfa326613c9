// SPDX-License-Identifier: BSD-3-Clause
// Devices, streams and events: what the bindings need of the runtime besides kernels.
#include "../backend.h"
#include "launch.cuh"

namespace pyparareal::cuda {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver or no device is an answer, not an error to keep
    return 0;
  }
  return count;
}

int driver_version() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return version;
}

int runtime_version() { return CUDART_VERSION; }

Status stream_device(void* stream, int current_device, int* device) {
  const DeviceGuard guard(current_device);
  if (!guard.status().ok()) return guard.status();
  return status_of(cudaStreamGetDevice(static_cast<cudaStream_t>(stream), device), "cudaStreamGetDevice");
}

Event::~Event() {
  if (event_) cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}

Status Event::record(void* stream, int device) {
  const DeviceGuard guard(device);
  if (!guard.status().ok()) return guard.status();
  cudaEvent_t event = nullptr;
  Status status = status_of(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  event_ = event;
  if (status.ok()) status = status_of(cudaEventRecord(event, static_cast<cudaStream_t>(stream)), "cudaEventRecord");
  return status;
}

bool Event::done() const {
  // Anything but "not ready" ends the wait: after a device fault no event would ever be ready.
  if (!event_) return true;
  const cudaError_t state = cudaEventQuery(static_cast<cudaEvent_t>(event_));
  if (state == cudaErrorNotReady) cudaGetLastError();
  return state != cudaErrorNotReady;
}

}  // namespace pyparareal::cuda
