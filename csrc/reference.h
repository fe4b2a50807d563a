// The matrix kernels in plain scalar code, straight from GGUF bytes: the truth that every fast path equals bit for bit.
#pragma once

#include <cstdint>

#include "lora.h"

namespace realm {

// Row `row_bytes` of a GGUF matrix times the activations x[num_inputs], in the order that matmul_integer.h and
// matmul_float.h state.
// Blocks of x with values above `outlier` in magnitude have a residual (layout.h).
float reference_dot(int type_id, const uint8_t* row_bytes, const float* x, int num_inputs, float outlier);

// y[num_outputs] += scale * B (A x), in the order that lora.h states: a is [rank, num_inputs], b is [num_outputs, rank].
// `exponent`: lora_a_exponent of the A that is packed together.
void reference_lora(LoraStore store, const float* a, int exponent, const float* b, int rank, float scale, const float* x,
                    int num_inputs, float* y, int num_outputs, float outlier);

}  // namespace realm
