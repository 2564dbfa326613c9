// SPDX-License-Identifier: BSD-3-Clause
// Just enough CUDA for the sources of csrc/cuda to run on the host, one fiber per thread, in any order
// of threads. What a GPU leaves undefined stops the program here: barriers that not all threads of a
// block reach, shuffles whose mask, width or place differ, threads that wait for one that has returned.
// Included by csrc/cuda/launch.cuh where PYPARAREAL_EMULATE_CUDA is defined. One host thread only.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time; dynamic shared memory comes from block_scratch()

struct EmulatedDim {
  unsigned x = 1, y = 1, z = 1;
};
inline EmulatedDim threadIdx, blockIdx, blockDim, gridDim;

namespace emulate {

enum class Order { forward, reverse, shuffled };

// What a test chooses, and what it may look at afterwards.
struct Settings {
  Order order = Order::forward;
  uint64_t seed = 1;
  unsigned most_blocks = 0x7fffffffu;  // smaller grids: kernels promise to walk their items with a grid stride
  int device = 0;                      // the current one of `devices`
  int devices = 2;
  int fail_launches = 0;                // that many launches report an error and run nothing
  std::map<std::string, int> launches;  // by mangled name of the kernel's signature
  int last_launch_device = -1;
  bool far_starts = false;     // scans look back to their beginning, past groups that have ended
  bool capturing = false;      // every stream, by another thread in the strictest mode
  bool capture_ended = false;  // by a call that a capture forbids
};
inline Settings settings;

inline constexpr std::size_t stack_bytes = 64 << 10, most_threads = 1024, most_shared_bytes = 48 << 10;
enum class State { ready, barrier, shuffle, returned };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::returned;
  const char* site = "";  // where it waits
  unsigned mask = 0, delta = 0, width = 0;
  std::size_t bytes = 0;
  alignas(16) unsigned char given[16], received[16];
  void* operands = nullptr;  // of what a whole warp does
};

struct Machine {
  ucontext_t scheduler;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<unsigned> order;
  const std::function<void()>* body = nullptr;
  unsigned threads = 0, running = 0;
  uint64_t random = 1;
  alignas(16) unsigned char scratch[most_shared_bytes];
};
inline Machine machine;

[[noreturn]] inline void misuse(const char* what) {
  const Fiber& fiber = *machine.fibers[machine.running];
  std::fprintf(stderr, "emulated CUDA: %s (block %u, thread %u of %u, at %s)\n", what, blockIdx.x, machine.running,
               machine.threads, fiber.site);
  std::abort();
}

inline void wait() { swapcontext(&machine.fibers[machine.running]->context, &machine.scheduler); }

// A fiber outlives the block: it is started again by making it ready.
inline void fiber_main() {
  for (;;) {
    (*machine.body)();
    machine.fibers[machine.running]->state = State::returned;
    wait();
  }
}

inline void resume(unsigned thread) {
  machine.running = thread;
  threadIdx.x = thread;
  swapcontext(&machine.scheduler, &machine.fibers[thread]->context);
}

inline void make_fibers(unsigned threads) {
  while (machine.fibers.size() < threads) {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = std::make_unique<char[]>(stack_bytes);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = stack_bytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, fiber_main, 0);
    machine.fibers.push_back(std::move(fiber));
  }
}

inline void choose_order() {
  machine.order.resize(machine.threads);
  for (unsigned i = 0; i < machine.threads; ++i)
    machine.order[i] = settings.order == Order::reverse ? machine.threads - 1 - i : i;
  if (settings.order != Order::shuffled) return;
  for (unsigned i = machine.threads; i > 1; --i) {
    machine.random ^= machine.random << 13, machine.random ^= machine.random >> 7,
        machine.random ^= machine.random << 17;
    std::swap(machine.order[i - 1], machine.order[machine.random % i]);
  }
}

// Called when nobody can run on: all wait at one barrier, or the program is wrong.
inline void release_barrier() {
  const char* site = nullptr;
  for (machine.running = 0; machine.running < machine.threads; ++machine.running) {
    const Fiber& fiber = *machine.fibers[machine.running];
    if (fiber.state == State::shuffle) misuse("a shuffle waits for threads of its mask that never come");
    if (fiber.state == State::returned) misuse("other threads of the block wait at a barrier for one that returned");
    if (site && std::strcmp(site, fiber.site) != 0) misuse("threads of a block wait at different barriers");
    site = fiber.site;
  }
  for (unsigned i = 0; i < machine.threads; ++i) machine.fibers[i]->state = State::ready;
}

inline void run_block() {
  for (unsigned i = 0; i < machine.threads; ++i) machine.fibers[i]->state = State::ready;
  std::memset(machine.scratch, 0xa5, sizeof machine.scratch);
  for (unsigned returned = 0; returned < machine.threads;) {
    bool progress = false;
    choose_order();
    for (const unsigned thread : machine.order) {
      if (machine.fibers[thread]->state != State::ready) continue;
      resume(thread);
      progress = true;
      returned += machine.fibers[thread]->state == State::returned;
    }
    if (!progress) release_barrier();
  }
}

inline void barrier(const char* site) {
  Fiber& own = *machine.fibers[machine.running];
  own.site = site;
  own.state = State::barrier;
  wait();
}

// The last thread of the mask to arrive hands every member its value.
template <class T>
T shuffle_down(unsigned mask, T value, unsigned delta, unsigned width, const char* site) {
  static_assert(sizeof(T) <= sizeof(Fiber::given), "a shuffle moves one word");
  const unsigned first = machine.running - machine.running % 32, lane = machine.running % 32;
  Fiber& own = *machine.fibers[machine.running];
  own.site = site;
  if (!(mask >> lane & 1u)) misuse("a thread shuffles with a mask that leaves it out");
  if (width < 1 || width > 32 || (width & (width - 1))) misuse("a shuffle's width is not a power of two up to 32");
  own.mask = mask, own.delta = delta, own.width = width, own.bytes = sizeof(T);
  std::memcpy(own.given, &value, sizeof(T));
  own.state = State::shuffle;
  bool complete = true;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1u)) continue;
    if (first + i >= machine.threads) misuse("a shuffle's mask names threads the block does not have");
    const Fiber& other = *machine.fibers[first + i];
    complete = complete && other.state == State::shuffle;
    if (other.state != State::shuffle) continue;
    if (other.mask != mask || other.width != width || other.bytes != sizeof(T) || std::strcmp(other.site, site) != 0)
      misuse("threads of one mask wait at different shuffles");
  }
  if (!complete) {
    wait();
  } else {
    for (unsigned i = 0; i < 32; ++i) {
      if (!(mask >> i & 1u)) continue;
      Fiber& other = *machine.fibers[first + i];
      const unsigned source = i % width + other.delta < width ? i + other.delta : i;
      if (!(mask >> source & 1u)) misuse("a shuffle reads from a thread its mask leaves out");
      std::memcpy(other.received, machine.fibers[first + source]->given, sizeof(T));
      other.state = State::ready;
    }
  }
  std::memcpy(&value, own.received, sizeof(T));
  return value;
}

// The last thread of a warp to arrive does what all 32 do together: act(operands of each).
template <class Operands, class Act>
void whole_warp(Operands& operands, const Act& act, const char* site) {
  const unsigned first = machine.running - machine.running % 32;
  Fiber& own = *machine.fibers[machine.running];
  own.site = site, own.mask = ~0u, own.width = 0, own.bytes = sizeof(Operands), own.operands = &operands;
  own.state = State::shuffle;
  if (first + 32 > machine.threads) misuse("a warp has not all of its threads");
  for (unsigned i = first; i < first + 32; ++i) {
    const Fiber& other = *machine.fibers[i];
    if (other.state != State::shuffle) return wait();
    if (other.width != 0 || other.bytes != own.bytes || std::strcmp(other.site, site) != 0)
      misuse("threads of a warp wait at different places");
  }
  Operands* all[32];
  for (unsigned i = 0; i < 32; ++i) {
    all[i] = static_cast<Operands*>(machine.fibers[first + i]->operands);
    machine.fibers[first + i]->state = State::ready;
  }
  act(all);
}

// What tensor cores do, at its worst: products of tf32 are exact, and their sum is rounded towards zero.
struct Mma {
  uint32_t a[4], b[2];
  float d[4];
};

inline float towards_zero(double x) {
  const float nearest = static_cast<float>(x);
  if (!(std::fabs(static_cast<double>(nearest)) > std::fabs(x)) || std::isinf(x)) return nearest;
  return std::nextafter(nearest, 0.0f);
}

inline void multiply_tf32(Mma* const* all) {
  double a[16][8], b[8][8];
  const auto number = [](uint32_t bits) {
    if (bits & 0x1fffu) misuse("an operand of a product is not tf32");
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return static_cast<double>(x);
  };
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) a[lane / 4 + 8 * (i % 2)][lane % 4 + 4 * (i / 2)] = number(all[lane]->a[i]);
    for (int i = 0; i < 2; ++i) b[lane % 4 + 4 * i][lane / 4] = number(all[lane]->b[i]);
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = all[lane]->d[i];
      for (int k = 0; k < 8; ++k) sum += a[row][k] * b[k][column];
      all[lane]->d[i] = towards_zero(sum);
    }
}

}  // namespace emulate

inline void emulated_mma_m16n8k8(float (&d)[4], std::initializer_list<uint32_t> a, std::initializer_list<uint32_t> b) {
  emulate::Mma own;
  std::copy(a.begin(), a.end(), own.a);
  std::copy(b.begin(), b.end(), own.b);
  std::copy(d, d + 4, own.d);
  emulate::whole_warp(own, emulate::multiply_tf32, "mma.sync");
  std::copy(own.d, own.d + 4, d);
}

#define EMULATED_TEXT_OF(x) #x
#define EMULATED_TEXT(x) EMULATED_TEXT_OF(x)
#define EMULATED_SITE __FILE__ ":" EMULATED_TEXT(__LINE__)
#define __syncthreads() ::emulate::barrier(EMULATED_SITE)
#define __shfl_down_sync(mask, value, delta, width) ::emulate::shuffle_down(mask, value, delta, width, EMULATED_SITE)

// Blocks run one after the other, and threads until they wait: nothing comes between.
inline void __threadfence() {}
inline int atomicAdd(int* at, int value) {
  const int old = *at;
  return *at = old + value, old;
}
inline unsigned long long atomicMax(unsigned long long* at, unsigned long long value) {
  const unsigned long long old = *at;
  return *at = old > value ? old : value, old;
}

// The runtime calls in use. Streams are in order, and work is done when the call returns.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotReady = 600,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
using cudaStream_t = struct EmulatedStream*;
using cudaEvent_t = struct EmulatedEvent*;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr int CUDART_VERSION = 0;
inline cudaError_t emulated_error = cudaSuccess;

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess                     ? "no error"
         : error == cudaErrorInvalidDevice        ? "invalid device ordinal"
         : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                  : "unspecified launch failure";
}
inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulated_error;
  emulated_error = cudaSuccess;
  return error;
}
inline cudaError_t cudaGetDevice(int* device) { return *device = emulate::settings.device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulate::settings.devices) return emulated_error = cudaErrorInvalidDevice;
  return emulate::settings.device = device, cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = emulate::settings.devices, cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaStreamGetDevice(cudaStream_t, int* device) { return cudaGetDevice(device); }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* state) {
  return *state = emulate::settings.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone,
         cudaSuccess;
}
inline cudaStreamCaptureMode emulated_mode = cudaStreamCaptureModeGlobal;
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  return std::swap(*mode, emulated_mode), cudaSuccess;
}
inline int emulated_events = 0;  // that exist
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = reinterpret_cast<cudaEvent_t>(&++emulated_events), cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return --emulated_events, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  if (emulate::settings.capturing) emulate::settings.capture_ended = true;  // for whoever asks for the event later
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t) {
  if (!emulate::settings.capturing || emulated_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  emulate::settings.capture_ended = true;
  return emulated_error = cudaErrorStreamCaptureUnsupported;
}
inline cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t) {
  emulate::settings.last_launch_device = emulate::settings.device;
  return std::memset(data, value, bytes), cudaSuccess;
}

inline void* emulated_block_scratch() { return emulate::machine.scratch; }

// Runs `call_kernel` once per thread, block after block. The type of `call_kernel` names the kernel.
template <class CallKernel>
void emulate_launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, const CallKernel& call_kernel) {
  using emulate::machine, emulate::settings;
  settings.last_launch_device = settings.device;
  if (blocks < 1 || threads < 1 || threads > emulate::most_threads || shared_bytes > emulate::most_shared_bytes) {
    emulated_error = cudaErrorInvalidConfiguration;
    return;
  }
  if (settings.fail_launches > 0) {
    --settings.fail_launches;
    emulated_error = cudaErrorLaunchFailure;
    return;
  }
  ++settings.launches[typeid(CallKernel).name()];
  const std::function<void()> body = call_kernel;
  machine.body = &body;
  machine.threads = threads;
  machine.random = settings.seed | 1u;
  emulate::make_fibers(threads);
  blockDim.x = threads;
  gridDim.x = blocks < settings.most_blocks ? blocks : settings.most_blocks;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    emulate::run_block();
    for (std::size_t at = shared_bytes; at < emulate::most_shared_bytes; ++at)
      if (machine.scratch[at] != 0xa5) emulate::misuse("a kernel wrote past its dynamic shared memory");
  }
}
