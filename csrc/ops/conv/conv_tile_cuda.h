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

// A product's channels of the warp's pixels times as many rows of weights.
template <typename Element, typename Tile>
DIPENGINE_DEVICE void multiply(const unsigned char* inputs, const int (&rows)[Tile::kProductsM], int offset,
                               const unsigned char* weights, Accumulators<Tile>& sums) {
  uint32_t a[Tile::kProductsM][4];
  DIPENGINE_UNROLL
  for (int m = 0; m < Tile::kProductsM; ++m) cuda::load_matrices(a[m], inputs + rows[m] + offset);
  DIPENGINE_UNROLL
  for (int n = 0; n < Tile::kProductsN; ++n) {
    const cuda::Bytes16 b = cuda::load16(weights + 512 * n);
    DIPENGINE_UNROLL
    for (int m = 0; m < Tile::kProductsM; ++m) {
      Element::multiply(sums.of[m][2 * n], a[m], b.word[0], b.word[1]);
      Element::multiply(sums.of[m][2 * n + 1], a[m], b.word[2], b.word[3]);
    }
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
