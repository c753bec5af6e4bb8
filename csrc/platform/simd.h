// A register of floats (or doubles) per instruction set, with the few operations that the convolutions are written in.
//
//   Vec<Real>            Real lanes: 16, 8 or 4 floats; doubles only in the portable set (gradient checks)
//   load / store         whole registers from any address; *_part: the first n lanes, the others read as zero
//   *_stored             the same from and to memory in another type (bfloat16, widened and rounded to nearest even)
//   rounded(x, p)        what load(p) would yield after store(p, x)
//
// Everything here lives in the namespace of the instruction set, so one source compiles for all (see host_device.h).
// Products of the portable set are rounded twice (no fused multiply-add without hardware): fast beats fused there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "math/bf16.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

#define DIPENGINE_INLINE static inline __attribute__((always_inline, unused))
#define DIPENGINE_MEMBER static inline __attribute__((always_inline))

template <typename Real>
struct Vec;

struct Half {  // a float16
  uint16_t bits;
};

#if defined(__AVX512F__)

template <>
struct Vec<float> {
  using Real = float;
  static constexpr int size = 16;
  using Register = __m512;
  DIPENGINE_MEMBER Register zero() { return _mm512_setzero_ps(); }
  DIPENGINE_MEMBER Register set(float x) { return _mm512_set1_ps(x); }
  DIPENGINE_MEMBER Register load(const float* p) { return _mm512_loadu_ps(p); }
  DIPENGINE_MEMBER void store(float* p, Register x) { _mm512_storeu_ps(p, x); }
  DIPENGINE_MEMBER Register add(Register a, Register b) { return _mm512_add_ps(a, b); }
  DIPENGINE_MEMBER Register sub(Register a, Register b) { return _mm512_sub_ps(a, b); }
  DIPENGINE_MEMBER Register mul(Register a, Register b) { return _mm512_mul_ps(a, b); }
  DIPENGINE_MEMBER Register fma(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
  // x where x > 0, else y
  DIPENGINE_MEMBER Register where_positive(Register x, Register a, Register b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), b, a);
  }
  DIPENGINE_MEMBER __mmask16 lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
  DIPENGINE_MEMBER Register load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
  DIPENGINE_MEMBER void store_part(float* p, Register x, int n) { _mm512_mask_storeu_ps(p, lanes(n), x); }
  DIPENGINE_MEMBER Register load(const uint16_t* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  DIPENGINE_MEMBER Register load_part(const uint16_t* p, int n) { return widen(_mm256_maskz_loadu_epi16(lanes(n), p)); }
  DIPENGINE_MEMBER void store(uint16_t* p, Register x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
  DIPENGINE_MEMBER void store_part(uint16_t* p, Register x, int n) { _mm256_mask_storeu_epi16(p, lanes(n), narrow(x)); }
  DIPENGINE_MEMBER Register rounded(Register x, const float*) { return x; }
  DIPENGINE_MEMBER Register rounded(Register x, const uint16_t*) { return widen(narrow(x)); }
  DIPENGINE_MEMBER __m256i halves(Register x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  DIPENGINE_MEMBER Register load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  DIPENGINE_MEMBER void store(Half* p, Register x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves(x)); }

 private:
  DIPENGINE_MEMBER Register widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  DIPENGINE_MEMBER __m256i narrow(Register x) {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
#endif
  }
};

#elif defined(__AVX2__)

template <>
struct Vec<float> {
  using Real = float;
  static constexpr int size = 8;
  using Register = __m256;
  DIPENGINE_MEMBER Register zero() { return _mm256_setzero_ps(); }
  DIPENGINE_MEMBER Register set(float x) { return _mm256_set1_ps(x); }
  DIPENGINE_MEMBER Register load(const float* p) { return _mm256_loadu_ps(p); }
  DIPENGINE_MEMBER void store(float* p, Register x) { _mm256_storeu_ps(p, x); }
  DIPENGINE_MEMBER Register add(Register a, Register b) { return _mm256_add_ps(a, b); }
  DIPENGINE_MEMBER Register sub(Register a, Register b) { return _mm256_sub_ps(a, b); }
  DIPENGINE_MEMBER Register mul(Register a, Register b) { return _mm256_mul_ps(a, b); }
  DIPENGINE_MEMBER Register fma(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
  DIPENGINE_MEMBER Register where_positive(Register x, Register a, Register b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GT_OQ));
  }
  DIPENGINE_MEMBER __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  DIPENGINE_MEMBER Register load_part(const float* p, int n) { return _mm256_maskload_ps(p, lanes(n)); }
  DIPENGINE_MEMBER void store_part(float* p, Register x, int n) { _mm256_maskstore_ps(p, lanes(n), x); }
  DIPENGINE_MEMBER Register load(const uint16_t* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  DIPENGINE_MEMBER Register load_part(const uint16_t* p, int n) {
    uint16_t buffer[8] = {};
    memcpy(buffer, p, static_cast<size_t>(n) * 2);
    return load(buffer);
  }
  DIPENGINE_MEMBER void store(uint16_t* p, Register x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x)); }
  DIPENGINE_MEMBER void store_part(uint16_t* p, Register x, int n) {
    uint16_t buffer[8];
    store(buffer, x);
    memcpy(p, buffer, static_cast<size_t>(n) * 2);
  }
  DIPENGINE_MEMBER Register rounded(Register x, const float*) { return x; }
  DIPENGINE_MEMBER Register rounded(Register x, const uint16_t*) { return widen(narrow(x)); }

 private:
  DIPENGINE_MEMBER Register widen(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
  }
  DIPENGINE_MEMBER __m128i narrow(Register x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
};

#else

// 16 bytes by the compiler's own vector extension: SSE2, NEON, or scalar code where a CPU has neither.
template <typename Real_>
struct PortableVec {
  using Real = Real_;
  static constexpr int size = 16 / sizeof(Real);
  typedef Real Register __attribute__((vector_size(16)));
  DIPENGINE_MEMBER Register zero() { return Register{}; }
  DIPENGINE_MEMBER Register set(Real x) { return Register{} + x; }
  DIPENGINE_MEMBER Register load(const Real* p) {
    Register x;
    memcpy(&x, p, sizeof(x));
    return x;
  }
  DIPENGINE_MEMBER void store(Real* p, Register x) { memcpy(p, &x, sizeof(x)); }
  DIPENGINE_MEMBER Register add(Register a, Register b) { return a + b; }
  DIPENGINE_MEMBER Register sub(Register a, Register b) { return a - b; }
  DIPENGINE_MEMBER Register mul(Register a, Register b) { return a * b; }
  DIPENGINE_MEMBER Register fma(Register a, Register b, Register c) { return a * b + c; }
  DIPENGINE_MEMBER Register where_positive(Register x, Register a, Register b) { return x > Real(0) ? a : b; }
  DIPENGINE_MEMBER Register load_part(const Real* p, int n) {
    Register x{};
    memcpy(&x, p, static_cast<size_t>(n) * sizeof(Real));
    return x;
  }
  DIPENGINE_MEMBER void store_part(Real* p, Register x, int n) { memcpy(p, &x, static_cast<size_t>(n) * sizeof(Real)); }
  DIPENGINE_MEMBER Register rounded(Register x, const Real*) { return x; }
};

template <>
struct Vec<double> : PortableVec<double> {};

template <>
struct Vec<float> : PortableVec<float> {
  using PortableVec<float>::load;
  using PortableVec<float>::store;
  using PortableVec<float>::load_part;
  using PortableVec<float>::store_part;
  using PortableVec<float>::rounded;
  DIPENGINE_MEMBER Register load(const uint16_t* p) { return load_part(p, size); }
  DIPENGINE_MEMBER Register load_part(const uint16_t* p, int n) {
    Register x{};
    for (int i = 0; i < n; ++i) x[i] = float_from_bf16(p[i]);
    return x;
  }
  DIPENGINE_MEMBER void store(uint16_t* p, Register x) { store_part(p, x, size); }
  DIPENGINE_MEMBER void store_part(uint16_t* p, Register x, int n) {
    for (int i = 0; i < n; ++i) p[i] = bf16_from_float(x[i]);
  }
  DIPENGINE_MEMBER Register rounded(Register x, const uint16_t*) {
    for (int i = 0; i < size; ++i) x[i] = float_from_bf16(bf16_from_float(x[i]));
    return x;
  }
};

#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
