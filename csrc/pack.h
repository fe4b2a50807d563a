// From GGUF bytes to the tiles of layout.h, without loss of value.
#pragma once

#include <cstddef>
#include <cstdint>

namespace realm {

// Whether the matrix kernels handle rows of `num_inputs` values of this GGUF type.
bool can_pack(int type_id, int num_inputs);

// Bytes of a GGUF row, and of the packed matrix [num_rows, num_inputs].
size_t gguf_row_bytes(int type_id, int num_inputs);
size_t packed_bytes(int type_id, int num_rows, int num_inputs);

// Packs the tiles [tile_begin, tile_end) of the matrix `src` to their place in `dst`. Threads may share a matrix by tiles.
void pack(int type_id, const uint8_t* src, int num_rows, int num_inputs, uint8_t* dst, int tile_begin, int tile_end);

// Row `row` of a packed matrix [num_rows, num_inputs], dequantised in float exactly as GGUF says: [num_inputs].
void unpack_row(int type_id, const uint8_t* packed, int num_rows, int row, int num_inputs, float* dst);

}  // namespace realm
