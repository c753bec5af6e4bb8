// How a convolution's data gradient is cut up for a CUDA device, for one source.
//
// As in the forward pass (conv_cuda_plan.h) a block owns 16 x 8 pixels, of the source now, and a tile of its channels; it
// brings d_raw around them into shared memory, a chunk of channels at a time, and runs over pairs of entries of the two
// axes (conv_axis_cuda.h) in place of taps. Weights: one matrix for each pair of coefficient vectors,
//
//   packed [fit][channel tile][phase][chunk][matrix][depth channels of d_raw][16 channels of the source][lane][16 bytes]
#pragma once

#include "ops/conv/conv_axis_cuda.h"
#include "ops/conv/conv_cuda_plan.h"
#include "ops/conv/conv_few_gradient_cuda.h"
#include "ops/conv/conv_gradient_cuda.h"

namespace dipengine {

// Behind a head. A narrower tile would have fewer blocks a multiprocessor for the registers of the head's numbers, and a gradient
// that takes raw's place has all its channels in one block.
using HeadTile = WideTile;
constexpr TileKind kHeadKind = TileKind::wide;
static_assert(HeadTile::kChannels == DIPENGINE_CONV_CUDA_OVER_RAW, "one block");

struct DataPlan {
  TileKind kind;
  int32_t phases, height, width, channels;  // of the source; phases per axis: the convolution's stride
  int32_t tiles_y, tiles_x, channel_tiles, tile_rows, tile_channels, products_n, warps_m;
  int32_t round, weight_bytes, sum_bytes;
  int32_t out_height, out_width, out_channels;  // of d_raw
  int32_t chunk, chunks, pitch;
  int32_t head_bytes;  // of shared memory for a head's numbers
  int32_t first_channel, input_channels, kernel;
  int64_t phase_blocks[5];  // of the weights: where each phase's begin, and their end, by channel tile
  size_t shared_bytes;
  AxisEntries y[2], x[2];
};

DIPENGINE_HD int chunk_products(const DataPlan& p, int chunk, int depth) {
  const int left = p.out_channels - chunk * p.chunk;
  return ((left < p.chunk ? left : p.chunk) + depth - 1) / depth;
}

DIPENGINE_HD int64_t data_parts(const DataPlan& p) {
  return static_cast<int64_t>(p.phases) * p.phases * p.tiles_y * p.tiles_x * p.warps_m;
}

DIPENGINE_HD int64_t packed_blocks(const DataPlan& p) { return p.channel_tiles * p.phase_blocks[p.phases * p.phases]; }

static inline PartTree part_tree_of(const DataPlan& p) {
  return make_part_tree(data_parts(p) / p.warps_m, p.warps_m, p.channel_tiles);
}

// The entries of an axis that apply to a block's tile.
struct Applying {
  int32_t count;
  AxisEntry entry[kMostEntries];
};

// How a block's work is numbered: blocks of weights, by chunk (a multiple of a round each), pair of entries, and channels of d_raw.
struct Work {
  int32_t phase;                          // the block's
  int32_t columns, entries;               // entries along x, and pairs
  int32_t chunk_blocks, blocks;           // of a chunk but the last, and of all
  int32_t products, last, last_products;  // of a pair of entries in a chunk; the last chunk's number, and there
  int32_t chunk_matrices, matrices_x;     // blocks of the stream from chunk to chunk; vectors along x
  uint32_t by_columns, by_chunk, by_products, by_last;
};

// Made once, kept in shared memory.
struct Lists {
  Applying y, x;
  Work work;
};
constexpr int kListsBytes = (sizeof(Lists) + 15) / 16 * 16;

// The plan of one source, and the coefficients of its axes' entries by phase. Params have been checked.
dipengine_status make_data_plan(const dipengine_conv_cuda_params& params, int source, const char* op, DataPlan* plan,
                                AxisVectors (*y)[2], AxisVectors (*x)[2]);

// A source that wants its gradient; where its weights lie in packed, and its tickets. One of few channels has a kernel of its own, which
// needs no packed weights.
struct DataSource {
  int index;
  bool few;
  DataPlan plan;  // unless few
  AxisVectors y[2], x[2];
  PartTree tree;
  size_t packed_at;
  int64_t tickets_at;

  size_t packed_bytes(int64_t fits) const {
    return few ? 0 : static_cast<size_t>(fits * packed_blocks(plan)) * static_cast<size_t>(plan.tile_channels) * 32;
  }
};

// All that a block writes it alone has read: its own pixels, with all of their channels.
inline bool may_take_raws_place(const dipengine_conv_cuda_params& p, const dipengine_conv_cuda_source& s) {
  return p.sources_count == 1 && p.kernel == 1 && p.stride == 1 && p.pad == 0 && s.channels <= DIPENGINE_CONV_CUDA_OVER_RAW &&
         s.d_x.data == p.raw.data && s.d_x.row_stride == p.raw.row_stride && s.d_x.pixel_stride == p.raw.pixel_stride &&
         s.d_x_fit_stride == p.raw_fit_stride && p.raw_dtype == p.dtype && !s.accumulate && p.head.weight != nullptr;
}

// Calls then(source) for every source that wants its gradient, or the sums of it.
template <typename Then>
dipengine_status for_data_sources(const dipengine_conv_cuda_params* params, const char* op, const Then& then) {
  ConvPlan forward;  // for its checks
  DIPENGINE_TRY(make_conv_plan(params, op, &forward));
  size_t packed_at = 0;
  int64_t tickets_at = 0;
  for (int i = 0; i < params->sources_count; ++i) {
    const dipengine_conv_cuda_source& s = params->sources[i];
    if (s.d_x.data == nullptr && s.sum == nullptr) continue;
    DIPENGINE_REQUIRE(s.d_x.data != nullptr || !s.accumulate, "%s adds to the d_x of source %d, which it was not given.", op, i);
    if (s.d_x.data != nullptr) DIPENGINE_TRY(check_pixels(s.d_x, s.width, s.channels, op, "d_x of a source"));
    DIPENGINE_REQUIRE(!s.over_raw || may_take_raws_place(*params, s),
                      "%s writes the d_x of one source of up to %d channels over raw, with a head, and adds nothing there.", op,
                      DIPENGINE_CONV_CUDA_OVER_RAW);
    DIPENGINE_REQUIRE((s.sum == nullptr) == (s.product == nullptr), "%s needs sum and product of source %d both or neither.", op,
                      i);
    DataSource source{i, is_few(*params, i), {}, {}, {}, {}, packed_at, tickets_at};
    if (source.few) {
      source.tree = part_tree_of(make_few_plan(*params, i));
    } else {
      DIPENGINE_TRY(make_data_plan(*params, i, op, &source.plan, &source.y, &source.x));
      source.tree = part_tree_of(source.plan);
    }
    packed_at += source.packed_bytes(params->fits);
    tickets_at += tickets_of(source.tree, params->fits);
    DIPENGINE_TRY(then(source));
  }
  return DIPENGINE_OK;
}

}  // namespace dipengine
