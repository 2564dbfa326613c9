// SPDX-License-Identifier: BSD-3-Clause
#include <atomic>

#include "parallel.h"

#if defined(__unix__)
#include <pthread.h>
#endif

namespace pyparareal::cpu {
namespace {

std::atomic<bool> forked{false};

#if defined(__unix__)
[[maybe_unused]] const int watching = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

}  // namespace

bool team_survives() { return !forked.load(std::memory_order_relaxed); }

}  // namespace pyparareal::cpu
