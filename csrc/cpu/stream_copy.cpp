// SPDX-License-Identifier: BSD-3-Clause
#include <cstdint>

#include "parallel.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace pyparareal::cpu {

#ifdef __SSE2__
void stream_copy(void* to, const void* from, std::size_t bytes) {
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  // Whole cache lines only: a half-filled write-combining buffer would cost a read of the line.
  const std::size_t head = std::min(bytes, (64 - reinterpret_cast<uintptr_t>(target) % 64) % 64);
  std::memcpy(target, source, head);
  std::size_t at = head;
  for (; at + 64 <= bytes; at += 64) {
    for (int part = 0; part < 64; part += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + at + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + at + part)));
  }
  std::memcpy(target + at, source + at, bytes - at);
}
void stream_fence() { _mm_sfence(); }
#else
void stream_copy(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
void stream_fence() {}
#endif

}  // namespace pyparareal::cpu
