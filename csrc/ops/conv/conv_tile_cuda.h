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

// Where a warp is in the ring of stages, with which shared memory begins: bytes to the lane's weights of the next two blocks.
template <typename Tile>
struct WeightRing {
  int begin, at;
  int used;  // blocks of the stage
};

// Behind two blocks; `used` is 0 again where that was the end of a stage.
template <typename Tile>
DIPENGINE_DEVICE void step(WeightRing<Tile>* r) {
  r->at += 2 * Tile::kBlockBytes;
  r->used += 2;
  if (r->used < Tile::kStageBlocks) return;
  r->used = 0;
  if (r->at == r->begin + Tile::kWeightBytes) r->at = r->begin;
}

// The products of a chunk, two blocks of weights at a time. operands(to) loads A of the product that advance() has gone on to, which
// is one ahead of the one that is multiplied. next_stage() brings weights where the ring's are used up.
template <typename Element, typename Tile, typename Advance, typename Load, typename NextStage>
DIPENGINE_DEVICE void multiply_chunk(int blocks, WeightRing<Tile>* ring, const Advance& advance, const Load& operands,
                                     const NextStage& next_stage, Accumulators<Tile>& sums) {
  constexpr bool kBoth = Tile::kProductsN <= 2;  // registers hold the weights of two blocks beside all else
  Operands<Tile> even, odd;
  if (ring->used == 0) next_stage();
  operands(&even);
  for (int block = 0;;) {
    const bool second = block + 1 < blocks;
    Weights<Tile> own = load_weights<Tile>(cuda::shared_memory() + ring->at), beside{};
    if (kBoth && second) beside = load_weights<Tile>(cuda::shared_memory() + ring->at + Tile::kBlockBytes);
    if (second) advance();
    operands(&odd);
    multiply<Element, Tile>(even, own, sums);
    if (block + 2 < blocks) advance();
    operands(&even);
    if (second) multiply<Element, Tile>(odd, kBoth ? beside : load_weights<Tile>(cuda::shared_memory() + ring->at + Tile::kBlockBytes), sums);
    step(ring);
    block += 2;
    if (block >= blocks) return;
    if (ring->used == 0) next_stage();
  }
}

// launch(Tile{}) for the tile that a plan names.
template <typename Launch>
dipengine_status with_tile(TileKind kind, const Launch& launch) {
  switch (kind) {
    case TileKind::wide: return launch(WideTile{});
    case TileKind::middle: return launch(MiddleTile{});
    case TileKind::slim: return launch(SlimTile{});
    case TileKind::narrow: break;
  }
  return launch(NarrowTile{});
}

}  // namespace dipengine
