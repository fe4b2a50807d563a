// Activations (layout.h) as the matrix kernels read them.
#pragma once

#include "layout.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {

// The rows of a block from one of them on. A kernel for R rows uses the first R.
// Two pointers that already point at the row, for its bytes and for its words: from (block, row) the compiler would make, and
// keep in memory, an address for each value that a kernel loads.
struct PanelRows {
  const uint8_t* bytes;
  const uint8_t* words;
  int row;

  REALM_INLINE PanelRows(const ActivationBlock* block, int row)
      : bytes(reinterpret_cast<const uint8_t*>(block) + row * sizeof block->q[0][0]),
        words(reinterpret_cast<const uint8_t*>(block) + row * sizeof(float)),
        row(row) {}
  REALM_INLINE void move(ptrdiff_t num_bytes) { bytes += num_bytes, words += num_bytes; }
  REALM_INLINE void next() { move(sizeof(ActivationBlock)); }
  REALM_INLINE const int8_t* group(int g, int r) const {
    return reinterpret_cast<const int8_t*>(bytes) + offsetof(ActivationBlock, q) + g / 4 * sizeof(ActivationBlock::q[0]) +
           r * sizeof(ActivationBlock::q[0][0]) + g % 4 * sizeof(ActivationBlock::q[0][0][0]);
  }
  template <class T>
  REALM_INLINE T word(size_t offset, int r) const {
    T value;
    memcpy(&value, words + offset + r * sizeof(T), sizeof(T));
    return value;
  }
  REALM_INLINE f32x16 d(int r, int half) const {
    return set1(word<float>(offsetof(ActivationBlock, d) + half * sizeof(ActivationBlock::d[0]), r));
  }
  REALM_INLINE i32x16 neg_sum(int r, int half) const {
    return iset1(word<int32_t>(offsetof(ActivationBlock, neg_sum) + half * sizeof(ActivationBlock::neg_sum[0]), r));
  }
  REALM_INLINE f32x16 x_sum(int r) const { return set1(word<float>(offsetof(ActivationBlock, x_sum), r)); }

  REALM_INLINE const ActivationBlock* block() const {
    return reinterpret_cast<const ActivationBlock*>(words - row * sizeof(float));
  }
  template <int R>
  REALM_INLINE bool any_has_residual() const {
    uint64_t rows;
    memcpy(&rows, block()->has_residual, sizeof rows);
    return (rows >> 8 * row & (~uint64_t{0} >> (64 - 8 * R))) != 0;
  }
  REALM_INLINE PanelRows residual() const {
    PanelRows other = *this;
    other.move(block()->residual_offset);
    return other;
  }
};

}  // namespace realm::REALM_ISA_NAMESPACE
