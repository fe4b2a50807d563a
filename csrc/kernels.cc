#include "kernels.h"

#include <array>

namespace realm {

#define REALM_DECLARE(isa)              \
  namespace isa {                       \
  RowKernels row_kernels();             \
  AttentionKernels attention_kernels(); \
  SampleKernels sample_kernels();       \
  }
REALM_DECLARE(portable)
#if defined(__x86_64__)
REALM_DECLARE(avx2)
REALM_DECLARE(avx2vnni)
REALM_DECLARE(avx512vnni)
#endif
#undef REALM_DECLARE

const Kernels& kernels(Isa isa) {
#define REALM_TABLE(isa) {&isa::matmul_table, &isa::lora_table, isa::row_kernels(), isa::attention_kernels(), isa::sample_kernels()}
  static const std::array<Kernels, 4> all = {{
      REALM_TABLE(portable),
#if defined(__x86_64__)
      REALM_TABLE(avx2),
      REALM_TABLE(avx2vnni),
      REALM_TABLE(avx512vnni),
#endif
  }};
#undef REALM_TABLE
  return all[static_cast<std::size_t>(isa)];
}

}  // namespace realm
