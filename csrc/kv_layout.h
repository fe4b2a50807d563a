// How keys and values lie in the paged pool.
//
// A block holds `block_tokens` tokens, of all layers one after the other: what a request has is in few pages of memory, which
// the system hands out when they are first written, so a growing batch never waits for many. In a layer's part of a block each
// KV head has one run of bytes:
//   f16, f32   K [tokens/16][D][16]       lane = token, so q.k is one multiply-add per dimension for 16 tokens
//              V [tokens][D]              lane = dimension
//   int8       K [tokens/16][D/4][16][4]  bytes as (value xor 0x80), see dot4_biased in simd.h
//              V [tokens/4][D][4]         signed bytes
//              K scales, V scales         f32 [tokens] each: value = scale * int
#pragma once

#include <cstddef>
#include <cstdint>

namespace realm {

enum class KVType { f16, f32, int8 };

struct KVLayout {
  KVType type;
  int block_tokens;  // a multiple of 16
  int num_kv_heads;
  int head_dim;  // a multiple of 16

  int element_bytes() const { return type == KVType::f32 ? 4 : type == KVType::f16 ? 2 : 1; }
  std::size_t values_offset() const { return std::size_t(block_tokens) * head_dim * element_bytes(); }
  std::size_t key_scales_offset() const { return 2 * values_offset(); }
  std::size_t value_scales_offset() const { return key_scales_offset() + std::size_t(block_tokens) * 4; }
  std::size_t head_bytes() const { return key_scales_offset() + (type == KVType::int8 ? std::size_t(block_tokens) * 8 : 0); }
  std::size_t layer_bytes() const { return head_bytes() * num_kv_heads; }  // of a layer's part of a block
};

// A layer's parts of all blocks.
struct KVLayer {
  std::uint8_t* first = nullptr;  // in block 0
  std::size_t block_bytes = 0;    // of all layers

  std::uint8_t* block(std::int32_t id) const { return first + block_bytes * id; }
};

}  // namespace realm
