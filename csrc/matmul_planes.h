// Q8_0_PLANES as Q8_0: both planes put together.
#pragma once

#include "layout.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {

// Unsigned quants of the groups 2j and 2j + 1 of four inputs.
template <int j>
REALM_INLINE void join_groups(const uint8_t* block, const uint8_t* low_block, u8x64& even, u8x64& odd) {
  u8x64 upper = load_u8x64(block + 64 * j), lower = load_u8x64(low_block + 64 * j);
  settle(upper), settle(lower);  // loaded once for both
  even = select_bits<0xf0>(shl16<4>(upper), lower);
  odd = select_bits<0xf0>(upper, shr16<4>(lower));
}
template <int j>
REALM_INLINE void store_joined_groups(const uint8_t* block, const uint8_t* low_block, uint8_t* to) {
  u8x64 even, odd;
  join_groups<j>(block, low_block, even, odd);
  store_u8x64(to + 128 * j, even);
  store_u8x64(to + 128 * j + 64, odd);
}

// `num_blocks` blocks of a tile, or of several, to `to`.
inline void join_blocks(const uint8_t* block, const uint8_t* low_block, int num_blocks, uint8_t* to) {
  constexpr IntegerLayout upper = integer_layout<QuantType::Q8_0_PLANES>(), joined = integer_layout<QuantType::Q8_0>();
  for (int b = 0; b < num_blocks; b++) {
    store_joined_groups<0>(block, low_block, to);
    store_joined_groups<1>(block, low_block, to);
    store_joined_groups<2>(block, low_block, to);
    store_joined_groups<3>(block, low_block, to);
    memcpy(to + joined.planes_bytes(), block + upper.planes_bytes(), upper.group_bytes() - upper.planes_bytes());
    block += upper.group_bytes(), low_block += low_block_bytes<QuantType::Q8_0_PLANES>(), to += joined.group_bytes();
  }
}

}  // namespace realm::REALM_ISA_NAMESPACE
