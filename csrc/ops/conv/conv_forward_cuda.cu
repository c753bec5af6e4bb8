// A convolution's forward pass on the tensor cores: one implicit matrix product per tile of outputs.
//
//   raw[pixels x channels] = sum over sources, chunks, taps:  u[pixels shifted by the tap x depth] W[depth x channels]
//
// The tiles, chunks and the weights' order: conv_cuda_plan.h. Inputs go global memory -> registers (folds, leaky ReLU,
// upsampling, in float32) -> bfloat16 or tf32 in shared memory, borders by index maps alone; the taps then read it at shifted
// addresses (ldmatrix), one product ahead. Weights stream through a ring of stages by cp.async, one barrier a stage. The epilogue adds
// the bias, writes raw and leaves each warp's mean and sum of squared differences of the values as stored.
//
// In bfloat16, for 128 channels at stride 1, 3x3: 18.9 M multiply-adds a tile of 128 pixels against 46 KB of inputs (once), 295
// KB of weights (from the second-level cache) and 32 KB of outputs: bound by the tensor cores. 1x1: bound by memory.
#include "ops/conv/conv_inputs_cuda.h"
#include "ops/conv/conv_tile_cuda.h"
#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {
namespace {

struct ForwardLaunch {
  ConvPlan plan;
  const uint8_t* active;
  int64_t numbers_fit_stride, parameters_fit_stride;
  const unsigned char* packed;
  const float* bias;
  void* raw;
  int64_t raw_fit_stride, raw_row_stride, raw_pixel_stride;
  int32_t raw_float, raw_aligned;
  PartMoments* parts;
  MomentsLaunch merge;
  PartTree tree;
};

// ---- outputs --------------------------------------------------------------------------------------------------------

// Where a warp's outputs lie: its first row and column in the grid of its phase, how many of them are in the image.
struct WarpPlace {
  int row, column, rows, columns, phase_y, phase_x;
};

template <typename Element, typename Tile>
DIPENGINE_DEVICE void store_outputs(const ForwardLaunch& l, const WarpPlace& w, int64_t fit, int first_channel,
                                    Accumulators<Tile>& sums) {
  constexpr int kGroup = Tile::kProductsN >= 2 ? 4 : 2;  // products whose channels are neighbours in a lane
  constexpr int kEach = 2 * kGroup;                      // channels of them
  constexpr int kGroups = 2 * Tile::kProductsN / kGroup;
  const ConvPlan& p = l.plan;
  const bool wide = Element::kBytes == 4 || l.raw_float != 0;
  const int lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const bool inside_column = group < w.columns;
  DIPENGINE_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const int channel = first_channel + g * 8 * kGroup + member * kEach;
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const float bias =
          l.bias != nullptr && channel + e < p.channels ? l.bias[fit * l.parameters_fit_stride + channel + e] : 0.0f;
      DIPENGINE_UNROLL
      for (int m = 0; m < Tile::kProductsM; ++m) {
        DIPENGINE_UNROLL
        for (int h = 0; h < 2; ++h) {
          float& value = sums.of[m][g * kGroup + e / 2][2 * h + e % 2];
          value += bias;
          if (!wide) value = cuda::Bfloat16::widen(cuda::Bfloat16::narrow(value));
        }
      }
    }
    DIPENGINE_UNROLL
    for (int m = 0; m < Tile::kProductsM; ++m) {
      DIPENGINE_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int row = 2 * m + h;
        if (row >= w.rows || !inside_column || channel >= p.channels) continue;
        const int64_t at = fit * l.raw_fit_stride + ((w.row + row) * p.phases + w.phase_y) * l.raw_row_stride +
                           ((w.column + group) * p.phases + w.phase_x) * l.raw_pixel_stride + channel;
        const auto value = [&](int e) { return sums.of[m][g * kGroup + e / 2][2 * h + e % 2]; };
        if ((Element::kBytes == 4 || !wide) && l.raw_aligned != 0 && kEach % Element::kEach == 0 &&
            channel + kEach <= p.channels) {
          DIPENGINE_UNROLL
          for (int first = 0; first < kEach; first += Element::kEach) {
            float values[Element::kEach];
            DIPENGINE_UNROLL
            for (int e = 0; e < Element::kEach; ++e) values[e] = value((first + e) % kEach);
            cuda::store16(static_cast<typename Element::Stored*>(l.raw) + at + first, Element::pack(values));
          }
          continue;
        }
        DIPENGINE_UNROLL
        for (int e = 0; e < kEach; ++e) {
          if (channel + e >= p.channels) continue;
          if (wide) {
            static_cast<float*>(l.raw)[at + e] = value(e);
          } else {
            static_cast<uint16_t*>(l.raw)[at + e] = static_cast<uint16_t>(float_bits(value(e)) >> 16);
          }
        }
      }
    }
  }
}

// Mean and sum of squared differences of each channel over the warp's pixels, in two passes over the registers.
template <typename Tile>
DIPENGINE_DEVICE void store_moments(const ConvPlan& p, const WarpPlace& w, int first_channel, const Accumulators<Tile>& sums,
                                    PartMoments* part) {
  const int lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const bool inside_column = group < w.columns;
  const int pixels = (w.rows < 0                      ? 0
                      : w.rows < 2 * Tile::kProductsM ? w.rows
                                                      : 2 * Tile::kProductsM) *
                     (w.columns < kTileColumns ? w.columns : kTileColumns);
  const float share = pixels > 0 ? 1.0f / static_cast<float>(pixels) : 0.0f;
  DIPENGINE_UNROLL
  for (int j = 0; j < 2 * Tile::kProductsN; ++j) {
    DIPENGINE_UNROLL
    for (int e = 0; e < 2; ++e) {
      float sum = 0;
      DIPENGINE_UNROLL
      for (int i = 0; i < 2 * Tile::kProductsM; ++i)
        sum += i < w.rows && inside_column ? sums.of[i / 2][j][2 * (i % 2) + e] : 0.0f;
      const float mean = sum_of_rows(sum) * share;
      float m2 = 0;
      DIPENGINE_UNROLL
      for (int i = 0; i < 2 * Tile::kProductsM; ++i) {
        const float difference = i < w.rows && inside_column ? sums.of[i / 2][j][2 * (i % 2) + e] - mean : 0.0f;
        m2 += difference * difference;
      }
      m2 = sum_of_rows(m2);
      const int channel = first_channel + tile_channel(Tile::kProductsN, 0, j, 2 * member + e);
      if (group == 0 && channel < p.channels) part[channel] = {mean, m2};
    }
  }
}

// ---- the kernel -----------------------------------------------------------------------------------------------------

// Blocks of weights to a stage: number `stage` of the stream to `slot` of the ring. Nothing behind the last.
template <typename Tile>
DIPENGINE_DEVICE void begin_stage(const ConvPlan& p, const unsigned char* stream, unsigned char* stages, int stage, int slot) {
  constexpr int kEach = 16 * Tile::kThreads;
  static_assert(Tile::kStageBytes % kEach == 0 || Tile::kStageBytes < kEach, "all threads copy alike, or the first once");
  const int first = stage * Tile::kStageBytes + 16 * cuda::thread_index();
  DIPENGINE_UNROLL
  for (int i = 0; i < (Tile::kStageBytes + kEach - 1) / kEach; ++i) {
    if (Tile::kStageBytes < kEach && 16 * cuda::thread_index() >= Tile::kStageBytes) continue;
    if (first + i * kEach < p.blocks * Tile::kBlockBytes)
      cuda::copy_async16(stages + slot * Tile::kStageBytes + 16 * cuda::thread_index() + i * kEach, stream + first + i * kEach);
  }
  cuda::copy_commit();
}

// Where the products of a chunk read the inputs, one after the other: for each tap, its channels.
struct TapWalk {
  int products, taps;         // of a tap, per axis
  int row_bytes;              // from one row of taps to the next
  int to_odd, to_even;        // from a tap to the next one in its row, by its column
  int product, x, row, tap, offset;  // the product, the tap's column, and bytes: of its row, of the tap, of the product
};
DIPENGINE_DEVICE TapWalk begin_taps(const SourcePlan& s, int products) {
  const int half = s.stride == 2 ? s.half : 1;
  return {s.gathered != 0 ? 0x7fffffff : products, s.taps, s.columns * s.pitch, half * s.pitch,
          s.stride == 2 ? (1 - half) * s.pitch : s.pitch, 0, 0, 0, 0, 0};
}
DIPENGINE_DEVICE void next_tap(TapWalk* w) {
  if (++w->x < w->taps) {
    w->tap += w->x % 2 != 0 ? w->to_odd : w->to_even;
  } else {
    w->x = 0;
    w->row += w->row_bytes;
    w->tap = w->row;
  }
}
// On by n products; where it is always one, there is no loop.
template <bool one>
DIPENGINE_DEVICE void advance(TapWalk* w, int n) {
  w->product += n;
  w->offset += 32 * n;
  if (w->product < w->products) return;
  if (one) {
    w->product = 0;
    next_tap(w);
  } else {
    while (w->product >= w->products) {
      w->product -= w->products;
      next_tap(w);
    }
  }
  w->offset = w->tap + 32 * w->product;
}

// A chunk of a source that the tile at (row, column) of its phase's grid sees.
template <typename Element, typename Tile, int at_once>
DIPENGINE_DEVICE void load_chunk(const ConvPlan& p, const SourcePlan& s, int64_t fit, int64_t numbers, int chunk, int row, int column,
                                 int phase, unsigned char* inputs) {
  const int top = first_input(p, s, row, phase / p.phases), left = first_input(p, s, column, phase % p.phases);
  if (s.gathered != 0) {
    load_gathered<Element, Tile::kThreads, Tile::kPixels, Element::kDepth>(p, s, fit, numbers, top, left, inputs);
  } else {
    load_tile<Element, Tile::kThreads, Element::kDepth, at_once, Tile::kMayCopy>(p, s, fit, numbers, chunk, top, left, inputs);
    if (Tile::kMayCopy && Element::kBytes == 2 && s.copied != 0) wait_for_copies();
  }
}

template <typename Element, typename Tile>
DIPENGINE_KERNEL(Tile::kThreads, Tile::kBlocks)
conv_forward_kernel(DIPENGINE_PARAMS(ForwardLaunch) l) {
  const ConvPlan& p = l.plan;
  const int64_t fit = cuda::block_z();
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[fit] == 0) return;
  const int phase = cuda::block_y() % (p.phases * p.phases), channel_tile = cuda::block_y() / (p.phases * p.phases);
  const int tile = cuda::block_x(), warp = cuda::warp_index(), lane = cuda::lane_index();
  const int warp_m = warp % Tile::kWarpsM, warp_n = warp / Tile::kWarpsM % Tile::kWarpsN, warp_k = warp / (Tile::kWarpsM * Tile::kWarpsN);
  const int tile_row = tile / p.tiles_x * Tile::kRows, tile_column = tile % p.tiles_x * kTileColumns;
  const int64_t numbers = fit * l.numbers_fit_stride;

  unsigned char* const stages = cuda::shared_memory();
  unsigned char* const inputs = stages + Tile::kWeightBytes;
  const unsigned char* const stream =
      l.packed + ((fit * p.channel_tiles + channel_tile) * (p.phases * p.phases) + phase) * static_cast<int64_t>(p.blocks) *
                     Tile::kBlockBytes;

  int stage = 0;
  for (; stage < Tile::kStages - 1; ++stage) begin_stage<Tile>(p, stream, stages, stage, stage);
  // The first chunk while registers hold no sums yet.
  load_chunk<Element, Tile, Tile::kAtFirst>(p, p.sources[0], fit, numbers, 0, tile_row, tile_column, phase, inputs);
  Accumulators<Tile> sums{};
  int slot = stage;  // of the stage that is brought next
  const int own_weights = warp_k * 2 * Tile::kBlockBytes + warp_n * Tile::kProductsN * 512 + lane * 16;
  WeightRing<Tile> ring = {own_weights, own_weights, 0};
  const auto next_stage = [&] {
    cuda::copy_wait<Tile::kStages - 2>();
    cuda::sync_threads();  // its weights and the inputs have come; all have read the stage before
    begin_stage<Tile>(p, stream, stages, stage++, slot);
    slot = slot + 1 < Tile::kStages ? slot + 1 : 0;
  };
  for (int index = 0; index < p.sources_count; ++index) {
    const SourcePlan& s = p.sources[index];
    // The row of shared memory that each lane addresses for each product (platform/cuda/tensor_core.h), in bytes.
    int rows[Tile::kProductsM];
    DIPENGINE_UNROLL
    for (int m = 0; m < Tile::kProductsM; ++m) {
      const int y = (warp_m * Tile::kProductsM + m) * 2 + lane / 8 % 2, x = lane % 8;
      rows[m] = pixel_offset(s, y, x) + lane / 16 * 16;
    }
    for (int chunk = 0; chunk < s.chunks; ++chunk) {
      if (index + chunk > 0) {
        cuda::sync_threads();  // all have read the chunk before
        load_chunk<Element, Tile, Tile::kAtOnce>(p, s, fit, numbers, chunk, tile_row, tile_column, phase, inputs);
      }
      if (ring.used != 0) cuda::sync_threads();  // the inputs have come; the weights had
      TapWalk walk = begin_taps(s, chunk_products(s, chunk, Element::kDepth));
      multiply_chunk<Element, Tile>(
          chunk_blocks(s, chunk, Element::kDepth), warp_k, &ring, [&](int n) { advance<Tile::kWarpsK == 1>(&walk, n); },
          [&](Operands<Tile>* to) { load_operands<Tile>(inputs, rows, walk.offset, *to); }, next_stage, sums);
    }
  }
  cuda::let_next_begin();
  add_groups<Tile>(warp_k, sums);
  const WarpPlace place = {tile_row + warp_m * Tile::kProductsM * 2,
                           tile_column,
                           p.grid_height - (tile_row + warp_m * Tile::kProductsM * 2),
                           p.grid_width - tile_column,
                           phase / p.phases,
                           phase % p.phases};
  const int first_channel = channel_tile * Tile::kChannels + warp_n * 16 * Tile::kProductsN;
  if (warp_k == 0) store_outputs<Element, Tile>(l, place, fit, first_channel, sums);
  if (l.parts == nullptr) return;
  const int64_t part = (fit * p.phases * p.phases + phase) * p.tiles_y * p.tiles_x + tile;
  if (warp_k == 0) store_moments<Tile>(p, place, first_channel, sums, l.parts + (part * Tile::kWarpsM + warp_m) * p.channels);
  if (l.tree.tickets == nullptr) return;
  static_assert(Tile::kWeightBytes >= static_cast<int>(merge_shared_bytes(Tile::kThreads)) ||
                    Tile::kSumBytes >= static_cast<int>(merge_shared_bytes(Tile::kThreads)),
                "parts are merged there");
  merge_by_blocks<Tile::kThreads, Tile::kChannels>(l.tree, MomentsMerge{l.merge}, fit, channel_tile,
                                                   phase * p.tiles_y * p.tiles_x + tile);
}

template <typename Element, typename Tile>
dipengine_status launch_forward(const ForwardLaunch& l, const dipengine_conv_cuda_params& params, const char* name) {
  const ConvPlan& p = l.plan;
  return cuda::launch(conv_forward_kernel<Element, Tile>, name,
                      {static_cast<int64_t>(p.tiles_y) * p.tiles_x, static_cast<int64_t>(p.channel_tiles) * p.phases * p.phases,
                       params.fits, Tile::kThreads, p.shared_bytes},
                      l, params.stream);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_forward(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  ConvPlan plan;
  DIPENGINE_TRY(make_conv_plan(params, "dipengine_conv_cuda_forward", &plan));
  const dipengine_conv_cuda_params& p = *params;
  DIPENGINE_TRY(check_pixels(p.raw, p.width, p.channels, "dipengine_conv_cuda_forward", "raw"));
  DIPENGINE_REQUIRE(p.packed != nullptr && reinterpret_cast<uintptr_t>(p.packed) % 16 == 0 &&
                        p.packed_bytes >= static_cast<size_t>(p.fits * packed_bytes(plan)),
                    "dipengine_conv_cuda_forward needs the weights as dipengine_conv_cuda_pack leaves them.");
  const size_t moments = p.mean == nullptr ? 0 : merge_bytes(part_tree_of(plan), p.fits, plan.channels);
  DIPENGINE_REQUIRE(p.mean == nullptr || (p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 &&
                                          p.workspace_bytes >= moments),
                    "dipengine_conv_cuda_forward needs %zu bytes of workspace, 16-byte aligned.", moments);
  ForwardLaunch l{};
  l.plan = plan;
  l.active = p.active;
  l.numbers_fit_stride = p.fits == 1 ? 0 : p.numbers_fit_stride;
  l.parameters_fit_stride = p.fits == 1 ? 0 : p.parameters_fit_stride;
  l.packed = static_cast<const unsigned char*>(p.packed);
  l.bias = p.bias;
  l.raw = p.raw.data;
  l.raw_fit_stride = p.fits == 1 ? 0 : p.raw_fit_stride;
  l.raw_row_stride = p.raw.row_stride;
  l.raw_pixel_stride = p.raw.pixel_stride;
  l.raw_float = p.raw_dtype == DIPENGINE_FLOAT32;
  l.raw_aligned = in_sixteens(p.dtype, l.raw_fit_stride, p.raw);
  l.parts = p.mean == nullptr ? nullptr : static_cast<PartMoments*>(p.workspace);
  l.tree = place_part_tree(part_tree_of(plan), p.fits, plan.channels, p.workspace, p.mean == nullptr ? nullptr : p.tickets);
  l.merge = moments_launch(p, part_pixels_of(plan), conv_parts(plan), plan.channels, l.parts);
  DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
    return with_tile(plan.kind, [&](auto tile) {
      return launch_forward<decltype(element), decltype(tile)>(l, p, "conv_forward");
    });
  }));
  return p.mean == nullptr || p.tickets != nullptr ? DIPENGINE_OK : launch_moments(l.merge, p.fits, p.stream);
}

}  // extern "C"
