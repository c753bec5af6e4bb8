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
DIPENGINE_HD float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DIPENGINE_HD double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

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
