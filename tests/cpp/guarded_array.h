// SPDX-License-Identifier: BSD-3-Clause
// Arrays for kernel tests: in any layout, with random contents, ending at a page that may not be
// touched, and able to say whether anything outside their elements was written.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "pyparareal/types.h"

namespace pyparareal::testing {

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u | 1u) {}
  uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state * 0x2545f4914f6cdd1du >> 11;
  }
  int64_t below(int64_t bound) { return static_cast<int64_t>(next() % static_cast<uint64_t>(bound)); }
};

inline int64_t size_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

inline int exponent_bits(DType dtype) { return dtype == DType::float64 ? 11 : dtype == DType::float16 ? 5 : 8; }

// The bits of a number of size 1/8 to 2; now and then a zero or a subnormal; where `special`, also the
// largest numbers, infinities and quiet NaNs.
inline uint64_t random_bits(Random& random, DType dtype, bool special) {
  const int bits = static_cast<int>(8 * size_of(dtype)), fraction_bits = bits - 1 - exponent_bits(dtype);
  const uint64_t largest = (uint64_t{1} << exponent_bits(dtype)) - 1, half = uint64_t{1} << (fraction_bits - 1);
  uint64_t exponent = largest / 2 - static_cast<uint64_t>(random.below(4));
  uint64_t fraction = (random.next() << 20 ^ random.next()) & (2 * half - 1);
  switch (random.below(special ? 16 : 64)) {
    case 0:
      exponent = fraction = 0;
      break;
    case 1:
      exponent = 0;
      break;
    case 2:
      if (special) exponent = largest, fraction = 0;
      break;
    case 3:
      if (special) exponent = largest, fraction |= half;
      break;
    case 4:
      if (special) exponent = largest - 1;
      break;
    default:
      break;
  }
  return (random.next() & 1) << (bits - 1) | exponent << fraction_bits | fraction;
}

inline bool is_nan(uint64_t bits, DType dtype) {
  const int width = static_cast<int>(8 * size_of(dtype)), fraction_bits = width - 1 - exponent_bits(dtype);
  const uint64_t infinity = ((uint64_t{1} << exponent_bits(dtype)) - 1) << fraction_bits;
  return (bits & ((uint64_t{1} << (width - 1)) - 1)) > infinity;
}

// Grows on demand; the byte after the last one given out is never readable.
class GuardedMemory {
 public:
  GuardedMemory() = default;
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { release(); }

  char* last(std::size_t bytes) {
    if (bytes > size_) {
      release();
      size_ = (bytes + page - 1) / page * page;
      void* base = mmap(nullptr, size_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (base == MAP_FAILED || mprotect(static_cast<char*>(base) + size_, page, PROT_NONE) != 0) std::abort();
      base_ = static_cast<char*>(base);
    }
    return base_ + size_ - bytes;
  }

 private:
  static constexpr std::size_t page = 4096;
  void release() {
    if (base_) munmap(base_, size_ + page);
    base_ = nullptr;
  }
  char* base_ = nullptr;
  std::size_t size_ = 0;
};

// How [slices, features] lies in memory. In the first three, slices start at 16-byte boundaries (in
// `dense` if the features fill whole packs). The last two repeat elements: for inputs only.
enum class Form { padded, backward, dense, shifted, odd_pitch, spread, reversed, transposed, same_slice, same_feature };
inline constexpr int aligned_forms = 3, output_forms = 8, forms = 10;

inline View<void*> view_of(Form form, DType dtype, int64_t slices, int64_t features) {
  const int64_t pack = 16 / size_of(dtype), padded = (features + pack - 1) / pack * pack;
  int64_t pitch = features, stride = 1;
  if (form == Form::padded) pitch = padded + pack;
  if (form == Form::backward) pitch = -padded;
  if (form == Form::odd_pitch) pitch = features + 3;
  if (form == Form::spread) pitch = 2 * features, stride = 2;
  if (form == Form::reversed) stride = -1;
  if (form == Form::same_slice) pitch = 0;
  if (form == Form::same_feature) pitch = 1, stride = 0;
  View<void*> view;
  view.dtype = dtype;
  view.ndim = 2;
  view.shape[0] = slices, view.stride[0] = pitch;
  view.shape[1] = features, view.stride[1] = stride;
  if (features % 5 == 0) {  // a third axis, which only `transposed` does not merge with the second
    const int64_t rest = features / 5;
    view.ndim = 3;
    view.shape[1] = 5, view.stride[1] = form == Form::transposed ? 1 : rest * stride;
    view.shape[2] = rest, view.stride[2] = form == Form::transposed ? 5 : stride;
  }
  return view;
}

class Array {
 public:
  View<void*> view;

  // Lays the view out in `memory`: 64 bytes of canary before it, and no readable byte after it except
  // what a 16-byte boundary at its start, or a start off such a boundary, costs.
  void place(GuardedMemory& memory, View<void*> of, Form form) {
    view = of;
    const int64_t size = size_of(view.dtype);
    int64_t low = 0, high = 1;
    for (int axis = 0; axis < view.ndim; ++axis) {
      const int64_t reach = (view.shape[axis] - 1) * view.stride[axis];
      if (view.shape[axis] > 0) (reach < 0 ? low : high) += reach;
    }
    const int64_t past_boundary = high * size % 16;
    int64_t slack = static_cast<int>(form) < aligned_forms ? (16 - past_boundary) % 16 : 0;
    if (form == Form::shifted && past_boundary == 0) slack = size;
    initial_.resize(static_cast<std::size_t>(64 + (high - low) * size + slack));
    storage_ = memory.last(initial_.size());
    view.data = storage_ + 64 - low * size;
  }

  // Elements from `values`, or poison like everything around them.
  void fill(int poison, Random* values, bool special) {
    std::memset(storage_, poison, initial_.size());
    if (values)
      each([&](char* at) {
        const uint64_t bits = random_bits(*values, view.dtype, special);
        std::memcpy(at, &bits, static_cast<std::size_t>(size_of(view.dtype)));
      });
    std::memcpy(initial_.data(), storage_, initial_.size());
  }

  // Other elements, which count as those that were there: change(float) of each float32.
  template <class Change>
  void change(const Change& change) {
    each([&](char* at) {
      float x;
      std::memcpy(&x, at, sizeof x);
      x = change(x);
      std::memcpy(at, &x, sizeof x);
    });
    std::memcpy(initial_.data(), storage_, initial_.size());
  }

  bool unchanged() const { return std::memcmp(storage_, initial_.data(), initial_.size()) == 0; }

  bool unchanged_outside() {
    // The elements take back what they were: what still differs lies outside.
    std::vector<char> now(storage_, storage_ + initial_.size());
    each([&](const char* at) {
      std::memcpy(now.data() + (at - storage_), initial_.data() + (at - storage_),
                  static_cast<std::size_t>(size_of(view.dtype)));
    });
    return now == initial_;
  }

  std::vector<uint64_t> values() const {
    std::vector<uint64_t> all;
    each([&](const char* at) {
      uint64_t bits = 0;
      std::memcpy(&bits, at, static_cast<std::size_t>(size_of(view.dtype)));
      all.push_back(bits);
    });
    return all;
  }

  operator MutableView() const { return view; }
  operator ConstView() const {
    ConstView constant;
    constant.data = view.data;
    constant.dtype = view.dtype;
    constant.device = view.device;
    constant.device_id = view.device_id;
    constant.ndim = view.ndim;
    std::memcpy(constant.shape, view.shape, sizeof constant.shape);
    std::memcpy(constant.stride, view.stride, sizeof constant.stride);
    return constant;
  }

 private:
  template <class Body>
  void each(const Body& body) const {
    const int64_t size = size_of(view.dtype);
    int64_t count = 1;
    for (int axis = 0; axis < view.ndim; ++axis) count *= view.shape[axis];
    for (int64_t i = 0; i < count; ++i) {
      int64_t rest = i, at = 0;
      for (int axis = view.ndim - 1; axis >= 0; --axis) {
        at += rest % view.shape[axis] * view.stride[axis];
        rest /= view.shape[axis];
      }
      body(static_cast<char*>(view.data) + at * size);
    }
  }

  char* storage_ = nullptr;
  std::vector<char> initial_;
};

// Equal bits. Where `any_nan`, all NaNs are equal: which operand's payload survives arithmetic is the
// processor's choice.
inline bool same_values(const Array& a, const Array& b, bool any_nan) {
  const std::vector<uint64_t> left = a.values(), right = b.values();
  if (left.size() != right.size()) return false;
  for (std::size_t i = 0; i < left.size(); ++i)
    if (left[i] != right[i] && !(any_nan && is_nan(left[i], a.view.dtype) && is_nan(right[i], b.view.dtype)))
      return false;
  return true;
}

}  // namespace pyparareal::testing
