// What the lanes of a warp do together: shuffles, products on the tensor cores by their documented register layout, ldmatrix.
#include <cstring>

#include "math/bf16.h"
#include "platform/cuda/tensor_core.h"
#include "running.h"

namespace dipengine::emulator {
namespace {

struct Shuffle {
  double value;
  int mask;
  double* result;
};

struct Mma {
  float* c;
  uint32_t a[4], b[2];
};

struct Load {
  const unsigned char* row;
  uint32_t* out;
  bool transposed;
};

float half_of(uint32_t word, int which) { return float_from_bf16(static_cast<uint16_t>(word >> (16 * which))); }

// Towards zero, as tensor cores do.
double truncated(double sum) {
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  bits &= ~((uint64_t{1} << 29) - 1);
  std::memcpy(&sum, &bits, sizeof(sum));
  return sum;
}

template <int depth>
void multiply(const std::array<void*, kLanes>& arguments) {
  ++counted.products;
  constexpr bool halves = depth == 16;
  double a[16][depth], b[depth][8], c[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Mma& m = *static_cast<const Mma*>(arguments[static_cast<size_t>(lane)]);
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i % 2), second = i / 2;
      if constexpr (halves) {
        for (int e = 0; e < 2; ++e) a[row][2 * member + e + 8 * second] = half_of(m.a[i], e);
      } else {
        a[row][member + 4 * second] = float_from_bits(m.a[i] & 0xffffe000u);
      }
      c[group + 8 * (i / 2)][2 * member + i % 2] = m.c[i];
    }
    for (int i = 0; i < 2; ++i) {
      if constexpr (halves) {
        for (int e = 0; e < 2; ++e) b[2 * member + e + 8 * i][group] = half_of(m.b[i], e);
      } else {
        b[member + 4 * i][group] = float_from_bits(m.b[i] & 0xffffe000u);
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int first = 0; first < depth; first += 8) {
      for (int k = first; k < first + 8; ++k) {
        for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
      }
      for (int column = 0; column < 8; ++column) c[row][column] = truncated(c[row][column]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* out = static_cast<const Mma*>(arguments[static_cast<size_t>(lane)])->c;
    for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
  }
}

void load(const std::array<void*, kLanes>& arguments, int warp) {
  uint16_t rows[kLanes][8] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    const Load& l = *static_cast<const Load*>(arguments[static_cast<size_t>(lane)]);
    if (misaligned(l.row)) continue;
    // The whole warp reads: two lanes stand for it.
    for (int reader : {lane, (lane + 1) % kLanes}) {
      check_shared(l.row, 16, false, block.threads[static_cast<size_t>(warp * kLanes + reader)].now);
    }
    if (in_shared(l.row, 16)) std::memcpy(rows[lane], l.row, 16);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const Load& l = *static_cast<const Load*>(arguments[static_cast<size_t>(lane)]);
    const int group = lane / 4, member = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = l.transposed ? rows[8 * m + 2 * member][group] : rows[8 * m + group][2 * member];
      const uint32_t high = l.transposed ? rows[8 * m + 2 * member + 1][group] : rows[8 * m + group][2 * member + 1];
      l.out[m] = low | high << 16;
    }
  }
}

}  // namespace

void perform(Operation operation, const std::array<void*, kLanes>& arguments, int warp) {
  switch (operation) {
    case Operation::sync_warp:
      for (int lane = 0; lane < kLanes; ++lane) ++block.threads[static_cast<size_t>(warp * kLanes + lane)].now.warp_syncs;
      return;
    case Operation::shuffle:
      for (int lane = 0; lane < kLanes; ++lane) {
        const Shuffle& s = *static_cast<const Shuffle*>(arguments[static_cast<size_t>(lane)]);
        *s.result = static_cast<const Shuffle*>(arguments[static_cast<size_t>((lane ^ s.mask) % kLanes)])->value;
      }
      return;
    case Operation::mma_bf16:
      return multiply<16>(arguments);
    case Operation::mma_tf32:
      return multiply<8>(arguments);
    case Operation::load_matrices:
      return load(arguments, warp);
    case Operation::none:
      return;
  }
}

}  // namespace dipengine::emulator

namespace dipengine::cuda {

using namespace emulator;

double shuffle_xor(double value, int mask, const char* file, int line) {
  double result = 0;
  Shuffle arguments{value, mask, &result};
  together(Operation::shuffle, &arguments, file, line);
  return result;
}
float shuffle_xor(float value, int mask, const char* file, int line) {
  return static_cast<float>(shuffle_xor(static_cast<double>(value), mask, file, line));
}

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma arguments{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  together(Operation::mma_bf16, &arguments, "mma_bf16", 0);
}
uint32_t tf32_from_float(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;  // the NaN that conversions give
  return (bits & 0x7fffffffu) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}
uint32_t bf16_pair(float low, float high) {
  const auto half = [](float x) { return x == x ? uint32_t{bf16_from_float(x)} : 0x7fffu; };
  return half(low) | half(high) << 16;
}
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma arguments{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  together(Operation::mma_tf32, &arguments, "mma_tf32", 0);
}
void load_matrices(uint32_t (&out)[4], const void* row) {
  Load arguments{static_cast<const unsigned char*>(row), out, false};
  together(Operation::load_matrices, &arguments, "load_matrices", 0);
}
void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  Load arguments{static_cast<const unsigned char*>(row), out, true};
  together(Operation::load_matrices, &arguments, "load_matrices_transposed", 0);
}

}  // namespace dipengine::cuda
