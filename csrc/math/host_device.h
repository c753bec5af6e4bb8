// Host-device macros and the few exact primitives that every formula is written with.
//
// Floating-point results must not depend on the compiler: the core is compiled with -ffp-contract=off, and where a fused
// multiply-add is wanted it is written (`fma`), which is correctly rounded on every instruction set and on CUDA.
//
// On the host, one source is compiled several times with other instruction sets. A function with external linkage
// would then exist once per set under one name, and the linker might keep the copy that the CPU cannot run. So all
// functions of csrc/math and of *_math.h are static (internal linkage), and kernels live in a namespace per set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DIPENGINE_HD static __host__ __device__ __forceinline__
#else
#define DIPENGINE_HD static inline __attribute__((always_inline, unused))
#endif

namespace dipengine {

// a * b + c, rounded once.
#if defined(__CUDACC__) || defined(__FMA__) || defined(__FP_FAST_FMAF)
DIPENGINE_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// Without the instruction, fmaf is a call into the C library, which no loop is vectorised around. In float64 the product
// is exact, so only the sum rounds; rounding it to odd (its last bit set where it is inexact) makes the second rounding,
// to float32, correct. S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums", IEEE TC 2008.
DIPENGINE_HD float fma(float a, float b, float c) {
  const double product = static_cast<double>(a) * static_cast<double>(b), addend = static_cast<double>(c);
  double sum = product + addend;
  const double part = sum - product;
  const double error = (product - (sum - part)) + (addend - part);  // sum + error is exact
  // Without comparisons: SSE2 has none of 64-bit integers, and a branch would keep loops from being vectorised.
  uint64_t bits, rest;
  memcpy(&bits, &sum, sizeof(bits));
  memcpy(&rest, &error, sizeof(rest));
  const uint64_t opposite = (bits ^ rest) >> 63, size = rest & 0x7fffffffffffffffu;
  const uint64_t infinite = (bits & 0x7ff0000000000000u) + 0x0010000000000000u;  // in its top bit; NaN too
  const uint64_t inexact = ((size | (0 - size)) & ~infinite) >> 63;
  bits = (bits - (opposite & inexact)) | inexact;
  memcpy(&sum, &bits, sizeof(sum));
  return static_cast<float>(sum);
}
#endif
DIPENGINE_HD double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

// The greater one; of a NaN and a number the number.
DIPENGINE_HD float greater_of(float a, float b) { return __builtin_fmaxf(a, b); }

// Correctly rounded square root.
DIPENGINE_HD float square_root(float x) { return __builtin_sqrtf(x); }
DIPENGINE_HD double square_root(double x) { return __builtin_sqrt(x); }

// The bits of a float32, and back.
DIPENGINE_HD uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
DIPENGINE_HD float float_from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace dipengine
