// All kernels of one instruction set.
#pragma once

#include "attention.h"
#include "dispatch.h"
#include "lora.h"
#include "matmul_table.h"
#include "rows.h"

namespace realm {

struct Kernels {
  const MatmulTable* matmul;
  const LoraTable* lora;
  RowKernels rows;
  AttentionKernels attention;
};

const Kernels& kernels(Isa isa);

}  // namespace realm
