// SPDX-License-Identifier: BSD-3-Clause
// The norms of slices, or of parts of them, by whichever thread has them in its cache.
#pragma once

#include "norm_tree.h"
#include "tiles.h"

namespace pyparareal::cpu {

template <class T>
class SliceNorms {
 public:
  SliceNorms(const MutableView& norms, const ConstView& u, const ConstView& u_old, Norm norm, const Exec& exec)
      : space_(space_of(u)),
        state_(layout_of(u)),
        old_(layout_of(u_old)),
        data_(static_cast<const T*>(u.data)),
        old_data_(static_cast<const T*>(u_old.data)),
        norm_(norm),
        partials_(space_, static_cast<double*>(norms.data), exec) {}

  const Space& space() const { return space_; }

  // The chunks [first, last), counted through all slices.
  void chunks(int64_t first, int64_t last) {
    const auto chunk_norm = tiles_of<T>(tiles()).chunk_norm[static_cast<int>(norm_)];
    alignas(64) T scratch[2][chunk];
    for_chunks(space_, first, last, [&](int64_t slice, int64_t feature, int64_t count, int64_t index) {
      const T* before = old_data_ ? tile_of(old_data_, old_, slice, feature, count, scratch[1]) : nullptr;
      partials_.at(slice, index) = chunk_norm(tile_of(data_, state_, slice, feature, count, scratch[0]), before, count);
    });
  }

  // What is left once all chunks of the slices [first, last) are done.
  void combine(int64_t first, int64_t last) { partials_.reduce(norm_, first, last); }

  void slices(int64_t first, int64_t last) {
    chunks(first * space_.chunks(), last * space_.chunks());
    combine(first, last);
  }

 private:
  Space space_;
  Layout state_, old_;
  const T *data_, *old_data_;
  Norm norm_;
  NormPartials partials_;
};

}  // namespace pyparareal::cpu
