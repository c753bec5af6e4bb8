// A block's accumulators and the product that fills them, for forward pass and data gradient.
#pragma once

#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/element.h"

namespace dipengine {

DIPENGINE_DEVICE float sum_of_rows(float value) {  // over the lanes of one `member`: 8 rows of a product
  value += cuda::shuffle_xor(value, 4);
  value += cuda::shuffle_xor(value, 8);
  return value + cuda::shuffle_xor(value, 16);
}

template <typename Tile>
struct Accumulators {
  float of[Tile::kProductsM][2 * Tile::kProductsN][4];
};

// A product's channels of the warp's pixels: the lane's A.
template <typename Tile>
struct Operands {
  uint32_t of[Tile::kProductsM][4];
};
template <typename Tile>
DIPENGINE_DEVICE void load_operands(const unsigned char* inputs, const int (&rows)[Tile::kProductsM], int offset, Operands<Tile>& to) {
  DIPENGINE_UNROLL
  for (int m = 0; m < Tile::kProductsM; ++m) cuda::load_matrices(to.of[m], inputs + (rows[m] + offset));
}

// A block of weights: the lane's B of the warp's channels.
template <typename Tile>
struct Weights {
  cuda::Bytes16 of[Tile::kProductsN];
};
template <typename Tile>
DIPENGINE_DEVICE Weights<Tile> load_weights(const unsigned char* from) {
  Weights<Tile> b;
  DIPENGINE_UNROLL
  for (int n = 0; n < Tile::kProductsN; ++n) b.of[n] = cuda::load16(from + 512 * n);
  return b;
}

template <typename Element, typename Tile>
DIPENGINE_DEVICE void multiply(const Operands<Tile>& a, const Weights<Tile>& b, Accumulators<Tile>& sums) {
  DIPENGINE_UNROLL
  for (int n = 0; n < Tile::kProductsN; ++n) {
    DIPENGINE_UNROLL
    for (int m = 0; m < Tile::kProductsM; ++m) {
      Element::multiply(sums.of[m][2 * n], a.of[m], b.of[n].word[0], b.of[n].word[1]);
      Element::multiply(sums.of[m][2 * n + 1], a.of[m], b.of[n].word[2], b.of[n].word[3]);
    }
  }
}

// Where a warp is in the ring of stages, with which shared memory begins: bytes to the lane's weights of its next two blocks.
template <typename Tile>
struct WeightRing {
  int begin, at;
  int used;  // blocks of the stage
};

// Behind a round; `used` is 0 again where that was the end of a stage.
template <typename Tile>
DIPENGINE_DEVICE void step(WeightRing<Tile>* r) {
  r->at += Tile::kRound * Tile::kBlockBytes;
  r->used += Tile::kRound;
  if (r->used < Tile::kStageBlocks) return;
  r->used = 0;
  if (r->at == r->begin + Tile::kWeightBytes) r->at = r->begin;
}

// The products of a chunk, two blocks of weights of each group of warps at a time. operands(to) loads A of the product that
// advance(n) has gone on to, by n, from the chunk's first; it is one ahead of the one that is multiplied. next_stage() brings weights
// where the ring's are used up.
template <typename Element, typename Tile, typename Advance, typename Load, typename NextStage>
DIPENGINE_DEVICE void multiply_chunk(int blocks, int warp_k, WeightRing<Tile>* ring, const Advance& advance, const Load& operands,
                                     const NextStage& next_stage, Accumulators<Tile>& sums) {
  constexpr bool kBoth = Tile::kProductsN <= 2;  // registers hold the weights of two blocks beside all else
  Operands<Tile> even, odd;
  if (ring->used == 0) next_stage();
  int block = 2 * warp_k;
  if (Tile::kWarpsK > 1) advance(block);
  if (Tile::kWarpsK == 1 || block < blocks) operands(&even);
  for (int left = blocks;;) {
    const bool second = block + 1 < blocks;
    if (Tile::kWarpsK == 1 || block < blocks) {
      const unsigned char* const weights = cuda::shared_memory() + ring->at;
      Weights<Tile> own = load_weights<Tile>(weights), beside{};
      if (kBoth && second) beside = load_weights<Tile>(weights + Tile::kBlockBytes);
      if (second) advance(1);
      operands(&odd);
      multiply<Element, Tile>(even, own, sums);
      if (block + Tile::kRound < blocks) advance(Tile::kRound - 1);
      operands(&even);
      if (second) multiply<Element, Tile>(odd, kBoth ? beside : load_weights<Tile>(weights + Tile::kBlockBytes), sums);
    }
    step(ring);
    block += Tile::kRound;
    left -= Tile::kRound;
    if (left <= 0) return;
    if (ring->used == 0) next_stage();
  }
}

// What all groups of warps come to, in the first one. Takes all of the block's shared memory, behind its last product.
template <typename Tile>
DIPENGINE_DEVICE void add_groups(int warp_k, Accumulators<Tile>& sums) {
  if constexpr (Tile::kWarpsK > 1) {
    constexpr int kEach = Tile::kProductsM * 2 * Tile::kProductsN;  // of four values, 16 bytes
    unsigned char* const own = cuda::shared_memory() + 16 * (cuda::thread_index() % Tile::kGroup);
    cuda::sync_threads();  // all have read
    if (warp_k > 0) {
      DIPENGINE_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const float(&four)[4] = sums.of[i / (2 * Tile::kProductsN)][i % (2 * Tile::kProductsN)];
        cuda::store16(own + ((warp_k - 1) * kEach + i) * 16 * Tile::kGroup,
                      {{float_bits(four[0]), float_bits(four[1]), float_bits(four[2]), float_bits(four[3])}});
      }
    }
    cuda::sync_threads();
    if (warp_k > 0) return;
    for (int group = 0; group < Tile::kWarpsK - 1; ++group) {
      DIPENGINE_UNROLL
      for (int i = 0; i < kEach; ++i) {
        const cuda::Bytes16 more = cuda::load16(own + (group * kEach + i) * 16 * Tile::kGroup);
        DIPENGINE_UNROLL
        for (int e = 0; e < 4; ++e) sums.of[i / (2 * Tile::kProductsN)][i % (2 * Tile::kProductsN)][e] += float_from_bits(more.word[e]);
      }
    }
  }
}

}  // namespace dipengine
