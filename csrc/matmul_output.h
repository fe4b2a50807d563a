// What the matrix kernels share: writing the sixteen outputs of a row.
#pragma once

#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {

REALM_INLINE void store_tile_row(float* out, f32x16 acc, int num_lanes, bool accumulate) {
  if (num_lanes == 16) {
    store(out, accumulate ? load(out) + acc : acc);
  } else if (accumulate) {
    float before[16] = {};
    memcpy(before, out, num_lanes * sizeof(float));
    store_first(out, load(before) + acc, num_lanes);
  } else {
    store_first(out, acc, num_lanes);
  }
}

}  // namespace realm::REALM_ISA_NAMESPACE
