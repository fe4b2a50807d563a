// The matrix kernels in plain scalar code, straight from GGUF bytes: the truth that every fast path equals bit for bit.
#pragma once

#include <cstdint>

namespace realm {

// Row `row_bytes` of a GGUF matrix times the activations x[num_inputs], in the order that matmul_integer.h and
// matmul_float.h state.
float reference_dot(int type_id, const uint8_t* row_bytes, const float* x, int num_inputs);

}  // namespace realm
