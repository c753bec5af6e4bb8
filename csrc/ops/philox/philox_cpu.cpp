// Philox words, uniforms, bytes, normals and the perturbed code on a CPU; compiled once per instruction set.
//
// Numbers are made in chunks on the stack, by a loop over counters that the compiler turns into vector code: 10 rounds
// of two widening multiplications per 4 words, then (for normals) one logarithm, one root and one sine-cosine pair per 2.
// perturb reads 4 (or 1) and writes 4 (or 2) bytes an element. It is bound by this arithmetic, not by memory.
#include "ops/philox/philox_kernels.h"

#include "math/bf16.h"
#include "math/normal.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bytes are taken from words in memory order");

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

// words[i] for the kPhiloxChunk words from block `first` on.
#if defined(__AVX512F__)
// Eight blocks at a time, a word of each in every 64-bit lane: a widening product there is one instruction, and leaves the word
// and its other half where the next round takes them. What lies above a word is never read.
static_assert(kPhiloxChunk % 32 == 0, "whole steps of eight blocks");
void make_words(PhiloxSequence sequence, uint64_t first, uint32_t* __restrict words) {
  const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53), multiplier1 = _mm512_set1_epi64(0xCD9E8D57);
  const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  for (int i = 0; i < kPhiloxChunk / 4; i += 8) {
    const __m512i block = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(first + static_cast<uint64_t>(i))),
                                           _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    __m512i w0 = block, w1 = _mm512_srli_epi64(block, 32);
    __m512i w2 = _mm512_set1_epi64(sequence.step), w3 = _mm512_set1_epi64(sequence.stream);
    uint32_t k0 = static_cast<uint32_t>(sequence.seed), k1 = static_cast<uint32_t>(sequence.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += kPhiloxWeyl0, k1 += kPhiloxWeyl1) {
      const __m512i p0 = _mm512_mul_epu32(multiplier0, w0), p1 = _mm512_mul_epu32(multiplier1, w2);
      w0 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p1, 32), w1), _mm512_set1_epi64(k0));
      w2 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p0, 32), w3), _mm512_set1_epi64(k1));
      w1 = p1;
      w3 = p0;
    }
    const __m512i front = _mm512_mask_blend_epi32(0xaaaa, w0, _mm512_slli_epi64(w1, 32));  // w0, w1 of each block
    const __m512i back = _mm512_mask_blend_epi32(0xaaaa, w2, _mm512_slli_epi64(w3, 32));
    const __m512i even = _mm512_unpacklo_epi64(front, back), odd = _mm512_unpackhi_epi64(front, back);
    _mm512_storeu_si512(words + 4 * i, _mm512_permutex2var_epi64(even, low, odd));
    _mm512_storeu_si512(words + 4 * i + 16, _mm512_permutex2var_epi64(even, high, odd));
  }
}
#else
void make_words(PhiloxSequence sequence, uint64_t first, uint32_t* __restrict words) {
  for (int i = 0; i < kPhiloxChunk / 4; ++i) {
    const PhiloxBlock block = philox_block(sequence, first + static_cast<uint64_t>(i));
    words[4 * i] = block.w0;
    words[4 * i + 1] = block.w1;
    words[4 * i + 2] = block.w2;
    words[4 * i + 3] = block.w3;
  }
}
#endif

void make_normals(PhiloxSequence sequence, uint64_t first, float* __restrict normals) {
  alignas(64) uint32_t words[kPhiloxChunk];
  make_words(sequence, first, words);
  for (int i = 0; i < kPhiloxChunk / 2; ++i) {
    const NormalPair pair = normal_pair(words[2 * i], words[2 * i + 1]);
    normals[2 * i] = pair.even;
    normals[2 * i + 1] = pair.odd;
  }
}

int64_t chunk_size(int64_t start, int64_t end) { return end - start < kPhiloxChunk ? end - start : kPhiloxChunk; }

void uniform(PhiloxSequence sequence, int64_t begin, int64_t end, float* out) {
  alignas(64) uint32_t words[kPhiloxChunk];
  for (int64_t start = begin; start < end; start += kPhiloxChunk) {
    make_words(sequence, static_cast<uint64_t>(start / 4), words);
    const int64_t n = chunk_size(start, end);
    for (int64_t i = 0; i < n; ++i) out[start + i] = uniform_from_word(words[i]);
  }
}

void normal(PhiloxSequence sequence, int64_t begin, int64_t end, float* out) {
  alignas(64) float normals[kPhiloxChunk];
  for (int64_t start = begin; start < end; start += kPhiloxChunk) {
    make_normals(sequence, static_cast<uint64_t>(start / 4), normals);
    memcpy(out + start, normals, sizeof(float) * static_cast<size_t>(chunk_size(start, end)));
  }
}

void bytes(PhiloxSequence sequence, int64_t begin, int64_t end, uint8_t* out) {
  alignas(64) uint32_t words[kPhiloxChunk];
  constexpr int64_t kStep = 4 * kPhiloxChunk;
  for (int64_t start = begin; start < end; start += kStep) {
    make_words(sequence, static_cast<uint64_t>(start / 16), words);
    memcpy(out + start, words, static_cast<size_t>(end - start < kStep ? end - start : kStep));
  }
}

// One chunk: `code` holds z and is overwritten.
void perturb_chunk(PhiloxSequence sequence, int64_t start, int64_t n, float std, float* __restrict code, float* out_float,
                   uint16_t* out_half) {
  alignas(64) float normals[kPhiloxChunk];
  make_normals(sequence, static_cast<uint64_t>(start / 4), normals);
  for (int64_t i = 0; i < n; ++i) code[i] = code[i] + std * normals[i];
  if (out_float != nullptr) {
    memcpy(out_float + start, code, sizeof(float) * static_cast<size_t>(n));
  } else {
    for (int64_t i = 0; i < n; ++i) out_half[start + i] = bf16_from_float(code[i]);
  }
}

void perturb(PhiloxSequence sequence, int64_t begin, int64_t end, float std, const float* z_float,
             const uint8_t* z_byte, PhiloxSequence made, float z_scale, float* out_float, uint16_t* out_half) {
  alignas(64) float code[kPhiloxChunk];
  alignas(64) uint32_t words[kPhiloxChunk];  // z's bytes for four chunks: one chunk's blocks would not fill the lanes
  constexpr int64_t kStep = 4 * kPhiloxChunk;
  for (int64_t step = begin; step < end; step += kStep) {
    if (z_float == nullptr && z_byte == nullptr) make_words(made, static_cast<uint64_t>(step / 16), words);
    for (int64_t start = step; start < end && start < step + kStep; start += kPhiloxChunk) {
      const int64_t n = chunk_size(start, end);
      if (z_float != nullptr) {
        memcpy(code, z_float + start, sizeof(float) * static_cast<size_t>(n));
      } else {
        const uint8_t* z = z_byte != nullptr ? z_byte + start : reinterpret_cast<const uint8_t*>(words) + (start - step);
        for (int64_t i = 0; i < n; ++i) code[i] = static_cast<float>(z[i]) * z_scale;
      }
      perturb_chunk(sequence, start, n, std, code, out_float, out_half);
    }
  }
}

}  // namespace

extern const PhiloxKernels philox_kernels;
const PhiloxKernels philox_kernels = {uniform, normal, bytes, perturb};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
