// Sixteen-lane vectors for the kernels, with the same bits on every instruction set.
//
// A kernel source is compiled once per instruction set, with exactly one of REALM_ISA_AVX512VNNI, REALM_ISA_AVX2VNNI,
// REALM_ISA_AVX2 or none of them (portable) defined. Everything lives in a namespace named after the instruction set, so
// the copies never collide. Kernel sources must not use inline functions of the standard library (std::max and so on):
// the linker may keep the copy that was compiled for a newer CPU.
//
// Only operations that IEEE 754 fixes to the last bit are offered, and sums across lanes have one fixed tree. So the same
// source gives the same bits everywhere, given -ffp-contract=off, no -ffast-math, and the same flush-to-zero mode.
//
// Types:      f32x16, i32x16, u8x64, mask16
// Float:      zero set1 load store + - * / fma(a,b,c)=a*b+c fnma(a,b,c)=c-a*b max min abs neg sqrt
//             (max and min give the second operand if one is NaN, as x86 does)
// Compare:    lt le gt ge eq -> mask16; select(mask, if_true, if_false); first_lanes(n): lanes 0..n-1
// Convert:    load_f16 store_f16 (nearest even) load_bf16 load_i8 load_u8 store_i8 to_f32 to_i32 (nearest even, |x| < 2^22)
// Integer:    izero iset1 iload istore + - * & shl<n> shr<n> (arithmetic) lane_index as_f32 as_i32
// Reduce:     reduce_add reduce_max (halves are folded: 16 -> 8 -> 4 -> 2 -> 1)
// Bytes:      load_u8x64 store_u8x64 lo_nibbles hi_nibbles bits_at_left<shift,mask> bits_at_right<shift,mask> operator|
//             shl16<n> shr16<n> (16 bits at a time); select_bits<mask>(a, b): bits of a where the mask has them, else of b
// Dot:        dot4(acc, w, x): acc[lane] += sum over i < 4 of (unsigned) w[lane*4+i] * (signed) x[lane*4+i], exact, for
//             |x| <= 127; dot4_small: the same for w <= 127; dot4_biased: for signed weights stored xor 0x80; its acc must
//             start at -128 * (sum of x) if kBiasedDotStart, else at 0
//             broadcast4 broadcast16: x from 4 (16) signed bytes; a pointer in place of x means broadcast4
// Quads:      sum_of_four_lanes: to all four; load_f16_to_four_lanes: four f16, each to four lanes
// Partial:    store_first(p, a, n): lanes 0..n-1 only
// Other:      prefetch prefetch_to_write prefetch_l2; settle(a): where registers are scarce, a is computed before whatever settles after it;
//             kKernelRows: activation rows that a matrix kernel can keep in registers at once;
//             kPairedRows: the same of a kernel for two weight tiles, 0 where registers are too few
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define REALM_INLINE inline __attribute__((always_inline))
// In front of a loop whose trip count is a small constant: arrays indexed by it then live in registers.
#if defined(__clang__)
#define REALM_UNROLL _Pragma("clang loop unroll(full)")
#else
#define REALM_UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(REALM_ISA_AVX512VNNI)
#define REALM_ISA_NAMESPACE avx512vnni
#include "simd_avx512.h"
#elif defined(REALM_ISA_AVX2VNNI)
#define REALM_ISA_NAMESPACE avx2vnni
#include "simd_avx2.h"
#elif defined(REALM_ISA_AVX2)
#define REALM_ISA_NAMESPACE avx2
#include "simd_avx2.h"
#else
#define REALM_ISA_NAMESPACE portable
#include "simd_portable.h"
#endif

namespace realm::REALM_ISA_NAMESPACE {

REALM_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
REALM_INLINE void prefetch_to_write(void* p) { __builtin_prefetch(p, 1, 3); }
REALM_INLINE void prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

// The same pointer, of which the compiler doesn't know that: what was loaded through it before is loaded again instead of kept.
REALM_INLINE const uint8_t* anew(const uint8_t* p) {
  asm("" : "+r"(p));
  return p;
}

REALM_INLINE i32x16 dot4(i32x16 acc, u8x64 w, const int8_t* four) { return dot4(acc, w, broadcast4(four)); }
REALM_INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, const int8_t* four) { return dot4_small(acc, w, broadcast4(four)); }
REALM_INLINE i32x16 dot4_biased(i32x16 acc, u8x64 w, const int8_t* four) { return dot4_biased(acc, w, broadcast4(four)); }

}  // namespace realm::REALM_ISA_NAMESPACE

#include "simd_math.h"
