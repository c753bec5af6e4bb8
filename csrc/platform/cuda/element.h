// The elements of images that kernels are written for, as a template parameter: how a value lies in memory, and as what it
// enters a product on the tensor cores.
//
// A product's step is 32 bytes of every row either way, 16 channels of bfloat16 or 8 of tf32, and a lane's operands for 16
// rows of weights are 16 bytes. So what is counted in bytes (addresses in shared memory, the weights' stream) is the same.
#pragma once

#include "dipengine/dipengine.h"
#include "math/bf16.h"
#include "platform/cuda/copy.h"
#include "platform/cuda/tensor_core.h"

namespace dipengine::cuda {

// bfloat16 in memory and in products.
struct Bfloat16 {
  using Stored = uint16_t;
  static constexpr int kBytes = 2, kEach = 8;  // of a value; values in 16 bytes
  static constexpr int kDepth = 16;            // channels of a product

  DIPENGINE_DEVICE float widen(Stored x) { return float_from_bf16(x); }
  DIPENGINE_DEVICE Stored narrow(float x) { return static_cast<Stored>(bf16_pair(x, 0.0f)); }
  DIPENGINE_DEVICE Stored operand(float x) { return narrow(x); }
  // Value e of 16 bytes, which are to be zero before put.
  DIPENGINE_DEVICE Stored get(const Bytes16& from, int e) { return static_cast<Stored>(from.word[e / 2 % 4] >> (16 * (e % 2))); }
  DIPENGINE_DEVICE void put(Bytes16& to, int e, Stored value) {
    to.word[e / 2 % 4] |= static_cast<uint32_t>(value) << (16 * (e % 2));
  }
  // 16 bytes of values as stored, and as operands.
  DIPENGINE_DEVICE Bytes16 pack(const float (&x)[kEach]) {
    return {{bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7])}};
  }
  DIPENGINE_DEVICE Bytes16 pack_operands(const float (&x)[kEach]) { return pack(x); }
  DIPENGINE_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_bf16(c, a, b0, b1); }
  // The row of B that value i (of 4) of a lane's operands is of.
  DIPENGINE_DEVICE int weight_row(int member, int i) { return 2 * member + i % 2 + (i >= 2 ? 8 : 0); }
};

// float32 in memory, tf32 in products.
struct Float32 {
  using Stored = float;
  static constexpr int kBytes = 4, kEach = 4;
  static constexpr int kDepth = 8;

  DIPENGINE_DEVICE float widen(Stored x) { return x; }
  DIPENGINE_DEVICE Stored narrow(float x) { return x; }
  DIPENGINE_DEVICE Stored operand(float x) { return float_from_bits(tf32_from_float(x)); }
  DIPENGINE_DEVICE Stored get(const Bytes16& from, int e) { return float_from_bits(from.word[e % 4]); }
  DIPENGINE_DEVICE void put(Bytes16& to, int e, Stored value) { to.word[e % 4] = float_bits(value); }
  DIPENGINE_DEVICE Bytes16 pack(const float (&x)[kEach]) {
    return {{float_bits(x[0]), float_bits(x[1]), float_bits(x[2]), float_bits(x[3])}};
  }
  DIPENGINE_DEVICE Bytes16 pack_operands(const float (&x)[kEach]) {
    return {{tf32_from_float(x[0]), tf32_from_float(x[1]), tf32_from_float(x[2]), tf32_from_float(x[3])}};
  }
  DIPENGINE_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { mma_tf32(c, a, b0, b1); }
  DIPENGINE_DEVICE int weight_row(int member, int i) { return member + 4 * i; }
};

// then(element) for a dtype of the interface, which has been checked.
template <typename Then>
dipengine_status with_element(int32_t dtype, const Then& then) {
  return dtype == DIPENGINE_FLOAT32 ? then(Float32{}) : then(Bfloat16{});
}

}  // namespace dipengine::cuda
