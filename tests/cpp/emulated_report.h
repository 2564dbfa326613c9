// SPDX-License-Identifier: BSD-3-Clause
// Counts checks, and says which case was running when one failed or the program crashed.
#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdio>

namespace pyparareal::testing {

// The case that runs, for messages.
inline char current[256] = "before the first case";
inline long passed = 0, failed = 0;

inline void expect(bool fine, const char* what) {
  ++(fine ? passed : failed);
  if (!fine && failed <= 20) std::printf("FAILED %s: %s\n", current, what);
}

// Forbidden reads, misaligned packs and undefined arithmetic (compiled to traps) name their case.
inline void report_crash(int signal) {
  char text[320];
  const int count = std::snprintf(text, sizeof text, "FAILED %s: signal %d\n", current, signal);
  (void)!write(2, text, static_cast<std::size_t>(count));
  _exit(1);
}

inline void catch_crashes() {
  static char stack[64 << 10];
  stack_t place = {};
  place.ss_sp = stack;
  place.ss_size = sizeof stack;
  sigaltstack(&place, nullptr);
  struct sigaction action = {};
  action.sa_handler = report_crash;
  action.sa_flags = SA_ONSTACK;
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE}) sigaction(signal, &action, nullptr);
}

}  // namespace pyparareal::testing
