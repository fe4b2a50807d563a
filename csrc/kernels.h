// All kernels of one instruction set.
#pragma once

#include "attention.h"
#include "dispatch.h"
#include "lora.h"
#include "matmul_table.h"
#include "rows.h"
#include "sample_kernels.h"

namespace realm {

struct Kernels {
  const MatmulTable* matmul;
  const LoraTable* lora;
  RowKernels rows;
  AttentionKernels attention;
  SampleKernels sample;
};

const Kernels& kernels(Isa isa);

}  // namespace realm
