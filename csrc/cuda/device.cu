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

namespace {

// What an Event owns: an event, or the stream whose capture the work belongs to.
struct Point {
  cudaEvent_t event = nullptr;
  cudaStream_t capturing = nullptr;
};

Point* point_of(void* event) { return static_cast<Point*>(event); }

// While it lives, calls of this thread that a capture elsewhere would forbid are let through, and do not end it.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// No stream that is gone, or in error, is being captured. The legacy default stream never is.
bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus state = cudaStreamCaptureStatusNone;
  if (stream && cudaStreamIsCapturing(stream, &state) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return state == cudaStreamCaptureStatusActive;
}

}  // namespace

Event::~Event() {
  if (!event_) return;
  if (point_of(event_)->event) cudaEventDestroy(point_of(event_)->event);
  delete point_of(event_);
}

Status Event::record(void* stream, int device) {
  const DeviceGuard guard(device);
  if (!guard.status().ok()) return guard.status();
  const auto on = static_cast<cudaStream_t>(stream);
  auto* point = new Point;
  event_ = point;
  // An event recorded in a capture is a node of the graph: asking for it would end the capture.
  if (is_capturing(on)) return point->capturing = on, Status{};
  Status status =
      status_of(cudaEventCreateWithFlags(&point->event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  if (status.ok()) status = status_of(cudaEventRecord(point->event, on), "cudaEventRecord");
  return status;
}

bool Event::done() const {
  if (!event_) return true;
  const Point& point = *point_of(event_);
  // What a graph needs after its capture is its owner's to keep, as for every kernel in it.
  if (point.capturing) return !is_capturing(point.capturing);
  if (!point.event) return true;
  // Anything but "not ready" ends the wait: after a device fault no event would ever be ready.
  const BesideCaptures allowed;
  const cudaError_t state = cudaEventQuery(point.event);
  if (state == cudaErrorNotReady) cudaGetLastError();
  return state != cudaErrorNotReady;
}

}  // namespace pyparareal::cuda
