// Products on the tensor cores (sm_80 and up), and the loads that bring their operands from shared memory.
//
// All are done by the 32 lanes of a warp together. With group = lane / 4 and member = lane % 4 a lane holds
// (NVIDIA, PTX ISA 9.0, "Matrix fragments for mma.m16n8k16 / m16n8k8"):
//
//   D, C [16 x 8]  float32    c0, c1: row group,     columns 2 member, 2 member + 1
//                             c2, c3: row group + 8, the same columns
//   bf16 (k = 16), two a word, the lower half first:
//   A [16 x 16]               a0: row group,     columns 2 member, + 1      a2: the same row, columns + 8
//                             a1: row group + 8, columns 2 member, + 1      a3: the same row, columns + 8
//   B [16 x 8]                b0: rows 2 member, + 1, column group          b1: rows + 8
//   tf32 (k = 8), one a word:
//   A [16 x 8]                a0: (group, member)         a1: (group + 8, member)
//                             a2: (group, member + 4)     a3: (group + 8, member + 4)
//   B [8 x 8]                 b0: (member, group)         b1: (member + 4, group)
#pragma once

#include "platform/cuda/thread.h"

namespace dipengine::cuda {

#if defined(__CUDACC__)

// c += a b, bfloat16 in, float32 sums.
DIPENGINE_DEVICE void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The nearest tf32 (float32 with 10 mantissa bits), ties away from zero, as the bits of a float32.
DIPENGINE_DEVICE uint32_t tf32_from_float(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// Two floats as bfloat16, to nearest even, `low` in the lower half. Any NaN becomes 0x7fff.
DIPENGINE_DEVICE uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// c += a b, tf32 in (float32 whose 13 lower mantissa bits are ignored: round first), float32 sums.
DIPENGINE_DEVICE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the address (a multiple of 16) of row l % 8 of
// matrix l / 8; out[m] is elements 2 member, + 1 of row `group` of matrix m. Of 32-bit elements, four to a row, out[m] is
// element `member`: with matrices in the order of a0 to a3, A of either kind of product.
DIPENGINE_DEVICE void load_matrices(uint32_t (&out)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// The same transposed: out[m] is element `group` of rows 2 member, + 1 of matrix m.
DIPENGINE_DEVICE void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

#else

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
uint32_t tf32_from_float(float x);
uint32_t bf16_pair(float low, float high);
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void load_matrices(uint32_t (&out)[4], const void* row);
void load_matrices_transposed(uint32_t (&out)[4], const void* row);

#endif

}  // namespace dipengine::cuda
