// How a convolution is cut up for a CUDA device: tiles, chunks of channels, and the order in which weights are consumed.
//
// A block owns 8 columns and kRows rows of outputs (of one phase, where a source is upsampled by nearest samples: output
// 2 i + phase, a grid of low-resolution pixels) and kChannels output channels. For each source, for each chunk of its
// channels, it brings the inputs that its outputs see into shared memory once, as bfloat16 (tf32), and runs over the taps. A
// product is one *block* of the weight stream: 16 (8) input channels of one tap by kChannels outputs. Blocks lie in global
// memory in the order of their use, a multiple of a round to each chunk but the last, so that the kernel copies them without any index
// arithmetic:
//
//   packed [fit][channel tile][phase][block][16 output channels][lane][16 bytes]
//
// where a lane's 16 bytes are its B operands of two products of 8 output channels (platform/cuda/tensor_core.h). `depth` is
// how many input channels a product takes (platform/cuda/element.h).
#pragma once

#include "ops/conv/conv_cuda.h"
#include "ops/conv/conv_math.h"
#include "ops/norm/parts_cuda.h"

namespace dipengine {

constexpr int kTileColumns = 8;
constexpr int kMostGathered = 8;     // channels of a source that is gathered: see SourcePlan
constexpr int kMostGatheredBytes = 416;  // and its channels times taps
constexpr int kChunkBytes[] = {256, 128, 64, 32};  // of channels brought at a time, what fits first
constexpr int kPitchMargin = 16;     // bytes that rows of shared memory are longer than their data, against bank conflicts

// The shapes of a block: warps along pixels and channels, and a warp's 16-pixel and 16-channel products. Behind a small image few
// blocks come of a layer, and how long one takes is all that matters: there `warps_k` groups of warps share out the products, two
// blocks of weights each in turn, and the first adds up what all of them come to.
template <int warps_m, int warps_n, int products_m, int products_n, int warps_k = 1>
struct ConvTile {
  static constexpr int kWarpsM = warps_m, kWarpsN = warps_n, kWarpsK = warps_k, kProductsM = products_m, kProductsN = products_n;
  static constexpr int kGroup = 32 * warps_m * warps_n, kThreads = kGroup * warps_k;
  static constexpr int kPixels = 16 * warps_m * products_m;
  static constexpr int kRows = kPixels / kTileColumns;
  static constexpr int kChannels = 16 * warps_n * products_n;
  static constexpr int kBlockBytes = kChannels * 32;  // of weights
  static constexpr int kRound = 2 * warps_k;          // blocks that all groups take together
  // The weights' pipeline. The narrower a tile, the fewer products stand between two barriers; shared memory bounds that.
  static constexpr int kStageBlocks = warps_k > 1 ? kRound : kChannels >= 64 ? 2 : 4, kStages = kChannels >= 32 ? 4 : 3;
  // Positions of the inputs on their way to registers, as many as these hold: of the first chunk, and of those behind it, beside the
  // sums. And blocks of a multiprocessor, which bounds the registers.
  static constexpr int kAtFirst = kChannels >= 64 ? 16 : 8, kAtOnce = kChannels >= 128 ? 3 : kChannels == 32 || warps_k > 1 ? 4 : 8;
  static constexpr bool kMayCopy = warps_k == 1;  // operands of small images are not made beforehand
  static constexpr int kBlocks = warps_k > 1 ? 1 : kChannels >= 64 ? 2 : 3;
  static constexpr int kStageBytes = kStageBlocks * kBlockBytes, kWeightBytes = kStages * kStageBytes;
  static constexpr int kSumBytes = (warps_k - 1) * kGroup * products_m * products_n * 32;  // of the other groups
};
using WideTile = ConvTile<2, 2, 4, 4>;    // 16 x 8 pixels, 128 channels
using MiddleTile = ConvTile<2, 2, 4, 2>;  // 64 channels
using SlimTile = ConvTile<4, 1, 2, 2>;    // 32 channels
using NarrowTile = ConvTile<4, 1, 2, 1>;  // 16 channels: skips and heads
using SplitSlimTile = ConvTile<4, 1, 2, 2, 3>;  // a fourth group would take registers that the others need
using SplitNarrowTile = ConvTile<4, 1, 2, 1, 3>;

enum class TileKind : int32_t { wide, middle, slim, narrow, split_slim, split_narrow };

// The widest tile that the channels fill at least by half, but one narrower for each time that `few_blocks` (cuda::few_blocks()) do not
// come of it, down to those that warps share out: a small image leaves most of a device idle else. By the layer's shape alone, never
// by the number of fits.
static inline TileKind choose_tile(int64_t tiles, int channels, int few_blocks) {
  const auto few = [&](int tile_channels) { return tiles * ((channels + tile_channels - 1) / tile_channels) < few_blocks; };
  if (channels > 64 && !few(128)) return TileKind::wide;
  if (channels > 32 && !few(64)) return TileKind::middle;
  if (channels > 16) return channels > 32 || few(32) ? TileKind::split_slim : TileKind::slim;
  return few(16) ? TileKind::split_narrow : TileKind::narrow;
}

// then(Tile{}) for the tile of that kind.
template <typename Then>
dipengine_status with_tile(TileKind kind, const Then& then) {
  switch (kind) {
    case TileKind::wide: return then(WideTile{});
    case TileKind::middle: return then(MiddleTile{});
    case TileKind::slim: return then(SlimTile{});
    case TileKind::split_slim: return then(SplitSlimTile{});
    case TileKind::split_narrow: return then(SplitNarrowTile{});
    case TileKind::narrow: break;
  }
  return then(NarrowTile{});
}

// What a plan holds of its tile.
template <typename Plan>
void set_tile(Plan* plan, TileKind kind) {
  plan->kind = kind;
  (void)with_tile(kind, [&](auto tile) {
    using Tile = decltype(tile);
    plan->warps_m = Tile::kWarpsM;
    plan->tile_rows = Tile::kRows;
    plan->tile_channels = Tile::kChannels;
    plan->products_n = Tile::kProductsN;
    plan->round = Tile::kRound;
    plan->weight_bytes = Tile::kWeightBytes;
    plan->sum_bytes = Tile::kSumBytes;
    return DIPENGINE_OK;
  });
}

// The channel, within a block's, of column n (0 to 7) of product j (of 8 channels) of warp column w. Products are shuffled
// so that the accumulators of a lane, columns 2 member and 2 member + 1 of all products, are neighbours in memory.
DIPENGINE_HD int tile_channel(int products_n, int w, int j, int n) {
  const int group = products_n >= 2 ? 4 : 2;
  return w * 16 * products_n + j / group * (8 * group) + n / 2 * (2 * group) + j % group * 2 + n % 2;
}

struct SourcePlan {
  const void* x;
  int64_t x_fit_stride, row_stride, pixel_stride;
  dipengine_affine_cuda inner, outer;
  float slope;
  int32_t height, width, channels, first_channel;
  int32_t upsample;  // none or bilinear: pixels are made while loading; nearest: by phases
  int32_t stride;    // input pixels from one output of the tile's grid to the next
  int32_t taps;      // per axis
  // A gathered source (few channels, several taps) is brought tap by tap: a row of shared memory is an output pixel, with
  // all it sees in one row of taps * taps * channels. Else a row is an input pixel, and taps are offsets between rows.
  int32_t gathered;
  int32_t rows, columns, half;  // of the inputs of a tile; with stride 2 even columns come first, `half` of them
  int32_t chunk, chunks;        // channels brought at a time, a multiple of the depth
  int32_t pitch;                // bytes of a row of shared memory
  int32_t aligned;              // 16-byte loads
  int32_t copied;               // as it is: u is x, in the dtype of operands
  int32_t first_block, chunk_blocks;
};

struct ConvPlan {
  TileKind kind;
  int32_t sources_count, phases;  // per axis: 1, or 2
  int32_t kernel, conv_stride, pad, padding;
  int32_t grid_height, grid_width;  // outputs of a phase
  int32_t tiles_y, tiles_x, channel_tiles, warps_m, tile_rows, tile_channels, products_n;
  int32_t round, weight_bytes, sum_bytes;
  int32_t blocks;  // of the weight stream of one phase and channel tile
  int32_t input_channels, channels;
  size_t shared_bytes;
  SourcePlan sources[DIPENGINE_CONV_MAX_SOURCES];
};

// Of a fit: parts of the moments, and bytes of the weight streams.
DIPENGINE_HD int64_t conv_parts(const ConvPlan& p) {
  return static_cast<int64_t>(p.phases) * p.phases * p.tiles_y * p.tiles_x * p.warps_m;
}
DIPENGINE_HD int64_t packed_bytes(const ConvPlan& p) {
  return static_cast<int64_t>(p.channel_tiles) * p.phases * p.phases * p.blocks * p.tile_channels * 32;
}

// Products in chunk `chunk` of a source: for one tap, or for all if gathered.
DIPENGINE_HD int chunk_products(const SourcePlan& s, int chunk, int depth) {
  if (s.gathered != 0) return (s.taps * s.taps * s.channels + depth - 1) / depth;
  const int left = s.channels - chunk * s.chunk;
  return ((left < s.chunk ? left : s.chunk) + depth - 1) / depth;
}

DIPENGINE_HD int chunk_blocks(const SourcePlan& s, int chunk, int depth) {
  return chunk_products(s, chunk, depth) * (s.gathered != 0 ? 1 : s.taps * s.taps);
}

// What each part of the moments' workspace is of: a warp's rows of a tile.
DIPENGINE_HD PartPixels part_pixels_of(const ConvPlan& p) {
  return {p.grid_height, p.grid_width, p.tiles_y, p.tiles_x, p.tile_rows, p.warps_m};
}

static inline PartTree part_tree_of(const ConvPlan& p) {
  return make_part_tree(conv_parts(p) / p.warps_m, p.warps_m, p.channel_tiles);
}

static inline int values_in_16_bytes(int32_t dtype) { return dtype == DIPENGINE_FLOAT32 ? 4 : 8; }

// Whether every pixel of an image begins at a multiple of 16 bytes, and strides fit 32 bits.
static inline bool in_sixteens(int32_t dtype, int64_t fit_stride, const dipengine_pixels& pixels) {
  const int each = values_in_16_bytes(dtype);
  return pixels.row_stride <= INT32_MAX && pixels.pixel_stride <= INT32_MAX && fit_stride % each == 0 &&
         pixels.row_stride % each == 0 && pixels.pixel_stride % each == 0 && reinterpret_cast<uintptr_t>(pixels.data) % 16 == 0;
}

// Shared memory that chunks are to leave for a second block of the multiprocessor, which multiplies while the first loads; where warps
// share out the products, registers hold one block alone.
static inline size_t chunk_budget(int round, size_t limit) { return round > 2 ? limit : (limit - 1024) / 2; }

// From an image's first pixel to (y, x), by strides of 32 bits: two instructions.
DIPENGINE_HD int64_t pixel_at(int32_t y, int64_t row_stride, int32_t x, int64_t pixel_stride) {
  return static_cast<int64_t>(y) * static_cast<int32_t>(row_stride) + static_cast<int64_t>(x) * static_cast<int32_t>(pixel_stride);
}

// Checks params and makes their plan; defined in conv_plan_cuda.cu.
dipengine_status make_conv_plan(const dipengine_conv_cuda_params* params, const char* op, ConvPlan* plan);

// The weight gradient's tiles: 16 x 8 pixels, 8 x 8 of float32 for the sake of shared memory, by 64 input channels (of as many
// taps as registers hold) and 64 outputs.
DIPENGINE_HD constexpr int gradient_tile_rows(int element_bytes) { return element_bytes == 4 ? 8 : 16; }
constexpr int kGradientChannels = 64;
constexpr int kGradientOffsets = 64;  // bytes of shared memory for the taps' offsets
constexpr int kGradientDepth = 16;                          // input channels of a product
// Rows of shared memory are read along columns there; of float32 without ldmatrix, which needs another margin.
DIPENGINE_HD constexpr int gradient_margin(int element_bytes) { return element_bytes == 4 ? 32 : kPitchMargin; }
DIPENGINE_HD constexpr int gradient_pitch(int element_bytes) {
  return element_bytes * kGradientChannels + gradient_margin(element_bytes);
}

// A head's numbers for the channels of 16 bytes (conv_gradient_cuda.h), and 16 bytes more against bank conflicts.
DIPENGINE_HD constexpr int gradient_head_pitch(int element_bytes) {
  return 16 * DIPENGINE_CONV_CUDA_HEAD + 128 / element_bytes + 16;
}
DIPENGINE_HD constexpr int gradient_head_bytes(int element_bytes) {
  return kGradientChannels * element_bytes / 16 * gradient_head_pitch(element_bytes);
}

dipengine_status make_weight_gradient_plan(const dipengine_conv_cuda_params* params, const char* op, ConvPlan* plan);

}  // namespace dipengine
