// How masked_mse is cut into tiles, and its formulas for one element.
#pragma once

#include "math/exponential.h"

namespace dipengine {

constexpr int64_t kMaskedMseTileElements = 8160;  // at most, in a tile; a multiple of the CPU kernel's chunk

// Tiles of one fit: whole rows where several fit into a tile, pieces of one row where one does not.
struct MaskedMseTiling {
  int64_t rows_per_tile, row_blocks;  // blocks of rows
  int64_t piece, pieces;              // elements per piece of a row, pieces per row
  int64_t tiles;                      // outer * row_blocks * pieces
};

DIPENGINE_HD MaskedMseTiling masked_mse_tiling(int64_t outer, int64_t rows, int64_t inner) {
  MaskedMseTiling t;
  t.piece = inner < kMaskedMseTileElements ? inner : kMaskedMseTileElements;
  t.pieces = (inner + t.piece - 1) / t.piece;
  t.rows_per_tile = t.pieces > 1 ? 1 : kMaskedMseTileElements / inner;
  t.row_blocks = (rows + t.rows_per_tile - 1) / t.rows_per_tile;
  t.tiles = outer * t.row_blocks * t.pieces;
  return t;
}

// weight * residual^2
template <typename Real>
DIPENGINE_HD Real weighted_square(Real weight, Real residual) {
  return weight * residual * residual;
}

// d/d raw of scale/2 * weight * residual^2, where slope = d act / d raw
template <typename Real>
DIPENGINE_HD Real masked_mse_gradient(Real scale, Real weight, Real residual, Real slope) {
  return scale * weight * residual * slope;
}

// mean + gain * (x - mean): an exponential average's next value, exactly x where x is the mean
template <typename Real>
DIPENGINE_HD Real exponential_average(Real mean, Real x, Real gain) {
  return fma(gain, x - mean, mean);
}

}  // namespace dipengine
