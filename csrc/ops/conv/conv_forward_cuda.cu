// A convolution's forward pass on the tensor cores: one implicit matrix product per tile of outputs.
//
//   raw[pixels x channels] = sum over sources, chunks, taps:  u[pixels shifted by the tap x 16 channels] W[16 channels x channels]
//
// The tiles, chunks and the weights' order: conv_cuda_plan.h. Inputs go global memory -> registers (folds, leaky ReLU,
// upsampling, in float32) -> bfloat16 in shared memory, borders by index maps alone; the taps then read it at shifted
// addresses (ldmatrix). Weights stream through a pipeline of kStages by cp.async, one barrier a stage. The epilogue adds
// the bias, writes raw and leaves each warp's mean and sum of squared differences of the values as stored.
//
// For 128 channels at stride 1, 3x3: 18.9 M multiply-adds a tile of 128 pixels against 46 KB of inputs (once), 295 KB of
// weights (from the second-level cache) and 32 KB of outputs: bound by the tensor cores. 1x1: bound by memory.
#include "math/bf16.h"
#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"
#include "platform/cuda/tensor_core.h"

namespace dipengine {
namespace {

struct ForwardLaunch {
  ConvPlan plan;
  const uint8_t* active;
  int64_t numbers_fit_stride;
  const uint16_t* packed;
  const float* bias;
  void* raw;
  int64_t raw_fit_stride, raw_row_stride, raw_pixel_stride;
  int32_t raw_float, raw_aligned;
  PartMoments* parts;
};

// ---- inputs ---------------------------------------------------------------------------------------------------------

// outer(leaky_relu(inner(x))) of 8 channels.
struct Fold8 {
  float inner_scale[8], inner_shift[8], outer_scale[8], outer_shift[8];
  float slope;
};

// Channels behind the last get zeros.
DIPENGINE_DEVICE Fold8 load_fold(const SourcePlan& s, int64_t numbers, int channel) {
  Fold8 f;
  f.slope = s.slope;
  DIPENGINE_UNROLL
  for (int e = 0; e < 8; ++e) {
    const int64_t at = numbers + channel + e;
    const bool there = channel + e < s.channels;
    f.inner_scale[e] = !there ? 0.0f : s.inner.scale == nullptr ? 1.0f : s.inner.scale[at];
    f.inner_shift[e] = !there || s.inner.scale == nullptr ? 0.0f : s.inner.shift[at];
    f.outer_scale[e] = !there ? 0.0f : s.outer.scale == nullptr ? 1.0f : s.outer.scale[at];
    f.outer_shift[e] = !there || s.outer.scale == nullptr ? 0.0f : s.outer.shift[at];
  }
  return f;
}

DIPENGINE_DEVICE float activated(float x, float inner_scale, float inner_shift, float slope, float outer_scale, float outer_shift) {
  const float t = fma(x, inner_scale, inner_shift);
  return fma(t > 0 ? t : t * slope, outer_scale, outer_shift);
}

DIPENGINE_DEVICE void add_pixel(const SourcePlan& s, const uint16_t* x, const Fold8& f, int channel, float weight, float (&sum)[8]) {
  uint32_t word[4] = {};
  if (s.aligned != 0) {
    const cuda::Bytes16 bytes = cuda::load16_constant(x + channel);
    DIPENGINE_UNROLL
    for (int i = 0; i < 4; ++i) word[i] = bytes.word[i];
  } else {
    DIPENGINE_UNROLL
    for (int e = 0; e < 8; ++e) {
      if (channel + e < s.channels) word[e / 2] |= static_cast<uint32_t>(x[channel + e]) << (16 * (e % 2));
    }
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < 8; ++e) {
    const float value = float_from_bf16(static_cast<uint16_t>(word[e / 2] >> (16 * (e % 2))));
    sum[e] = fma(weight, activated(value, f.inner_scale[e], f.inner_shift[e], f.slope, f.outer_scale[e], f.outer_shift[e]), sum[e]);
  }
}

// The sample of an axis that input position i reads; -1: a zero, or a place that no output of the image sees.
DIPENGINE_DEVICE int source_index(int i, int n, bool clamped, int padding) {
  if (clamped && padding == DIPENGINE_PADDING_REFLECTION) return i < 0 ? 0 : i < n ? i : n - 1;
  if (clamped) return i >= 0 && i < n ? i : -1;
  const int at = static_cast<int>(padded_index(i, n, padding));
  return at >= 0 && at < n ? at : -1;
}

// Two samples of an axis and their weights: bilinear upsampling with half-pixel centres of sample q of 2 n.
struct AxisPair {
  int own, beside;
};
DIPENGINE_DEVICE AxisPair bilinear_pair(int q, int n) {
  const int i = q / 2, beside = q % 2 != 0 ? i + 1 : i - 1;
  return {i, beside < 0 ? 0 : beside < n ? beside : n - 1};
}

DIPENGINE_DEVICE cuda::Bytes16 input_of(const SourcePlan& s, const uint16_t* x, const Fold8& f, int y, int column, int channel, int padding) {
  const bool bilinear = s.upsample == DIPENGINE_UPSAMPLE_BILINEAR, clamped = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  const int factor = bilinear ? 2 : 1;
  const int sy = source_index(y, factor * s.height, clamped, padding), sx = source_index(column, factor * s.width, clamped, padding);
  float sum[8] = {};
  if (sy >= 0 && sx >= 0 && channel < s.channels) {
    if (bilinear) {
      const AxisPair py = bilinear_pair(sy, s.height), px = bilinear_pair(sx, s.width);
      const uint16_t *own = x + py.own * s.row_stride, *beside = x + py.beside * s.row_stride;
      add_pixel(s, own + px.own * s.pixel_stride, f, channel, 0.5625f, sum);
      add_pixel(s, own + px.beside * s.pixel_stride, f, channel, 0.1875f, sum);
      add_pixel(s, beside + px.own * s.pixel_stride, f, channel, 0.1875f, sum);
      add_pixel(s, beside + px.beside * s.pixel_stride, f, channel, 0.0625f, sum);
    } else {
      add_pixel(s, x + sy * s.row_stride + sx * s.pixel_stride, f, channel, 1.0f, sum);
    }
  }
  cuda::Bytes16 out{};
  DIPENGINE_UNROLL
  for (int e = 0; e < 8; ++e) out.word[e / 2] |= static_cast<uint32_t>(bf16_from_float(sum[e])) << (16 * (e % 2));
  return out;
}

// A chunk of a source: rows of input pixels. (top, left): the input position of the tile's first row and column.
template <int threads>
DIPENGINE_DEVICE void load_tile(const ConvPlan& p, const SourcePlan& s, int64_t fit, int64_t numbers, int chunk, int top, int left,
                                unsigned char* inputs) {
  const int groups = 2 * chunk_products(s, chunk);  // of 8 channels
  const int group = cuda::thread_index() % (s.chunk / 8), first = cuda::thread_index() / (s.chunk / 8);
  const int channel = chunk * s.chunk + 8 * group;
  if (group >= groups) return;
  const uint16_t* x = s.x + fit * s.x_fit_stride;
  const Fold8 fold = load_fold(s, numbers, channel);
  for (int at = first; at < s.rows * s.columns; at += threads / (s.chunk / 8)) {
    const int row = at / s.columns, column = at % s.columns;
    const int place = row * s.columns + (s.stride == 2 ? column % 2 * s.half + column / 2 : column);
    cuda::store16(inputs + place * s.pitch + 16 * group, input_of(s, x, fold, top + row, left + column, channel, p.padding));
  }
}

// A gathered source: a row is an output pixel, with all taps of all channels.
template <int threads, int pixels>
DIPENGINE_DEVICE void load_gathered(const ConvPlan& p, const SourcePlan& s, int64_t fit, int64_t numbers, int top, int left, unsigned char* inputs) {
  const uint16_t* x = s.x + fit * s.x_fit_stride;
  const int taps = s.taps * s.taps, filled = taps * s.channels, width = (s.pitch - 16) / 2;
  for (int at = cuda::thread_index(); at < pixels * (taps + 1); at += threads) {
    const int pixel = at % pixels, tap = at / pixels;
    uint16_t* row = reinterpret_cast<uint16_t*>(inputs + pixel * s.pitch);
    if (tap == taps) {
      for (int k = filled; k < width; ++k) row[k] = 0;
      continue;
    }
    const int sy = source_index(top + pixel / kTileColumns * s.stride + tap / s.taps, s.height, false, p.padding);
    const int sx = source_index(left + pixel % kTileColumns * s.stride + tap % s.taps, s.width, false, p.padding);
    for (int c = 0; c < s.channels; ++c) {
      float value = 0;
      if (sy >= 0 && sx >= 0) {
        const bool inner = s.inner.scale != nullptr, outer = s.outer.scale != nullptr;
        value = activated(float_from_bf16(x[sy * s.row_stride + sx * s.pixel_stride + c]), inner ? s.inner.scale[numbers + c] : 1.0f,
                          inner ? s.inner.shift[numbers + c] : 0.0f, s.slope, outer ? s.outer.scale[numbers + c] : 1.0f,
                          outer ? s.outer.shift[numbers + c] : 0.0f);
      }
      row[tap * s.channels + c] = bf16_from_float(value);
    }
  }
}

// ---- outputs --------------------------------------------------------------------------------------------------------

DIPENGINE_DEVICE float sum_of_rows(float value) {  // over the lanes of one `member`: 8 rows of a product
  value += cuda::shuffle_xor(value, 4);
  value += cuda::shuffle_xor(value, 8);
  return value + cuda::shuffle_xor(value, 16);
}

template <typename Tile>
struct Accumulators {
  float of[Tile::kProductsM][2 * Tile::kProductsN][4];
};

// Where a warp's outputs lie: its first row and column in the grid of its phase, how many of them are in the image.
struct WarpPlace {
  int row, column, rows, columns, phase_y, phase_x;
};

template <typename Tile>
DIPENGINE_DEVICE void store_outputs(const ForwardLaunch& l, const WarpPlace& w, int64_t fit, int first_channel, Accumulators<Tile>& sums) {
  constexpr int kGroup = Tile::kProductsN >= 2 ? 4 : 2;         // products whose channels are neighbours in a lane
  constexpr int kEach = 2 * kGroup;                             // channels of them
  constexpr int kGroups = 2 * Tile::kProductsN / kGroup;
  const ConvPlan& p = l.plan;
  const int lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const bool inside_column = group < w.columns;
  DIPENGINE_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const int channel = first_channel + g * 8 * kGroup + member * kEach;
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const float bias = l.bias != nullptr && channel + e < p.channels ? l.bias[fit * l.numbers_fit_stride + channel + e] : 0.0f;
      DIPENGINE_UNROLL
      for (int m = 0; m < Tile::kProductsM; ++m) {
        DIPENGINE_UNROLL
        for (int h = 0; h < 2; ++h) {
          float& value = sums.of[m][g * kGroup + e / 2][2 * h + e % 2];
          value += bias;
          if (l.raw_float == 0) value = float_from_bf16(bf16_from_float(value));
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
        if (l.raw_float == 0 && l.raw_aligned != 0 && kEach == 8 && channel + 8 <= p.channels) {
          cuda::Bytes16 bytes;
          DIPENGINE_UNROLL
          for (int i = 0; i < 4; ++i) bytes.word[i] = float_bits(value(2 * i)) >> 16 | (float_bits(value((2 * i + 1) % kEach)) & 0xffff0000u);
          cuda::store16(static_cast<uint16_t*>(l.raw) + at, bytes);
          continue;
        }
        DIPENGINE_UNROLL
        for (int e = 0; e < kEach; ++e) {
          if (channel + e >= p.channels) continue;
          if (l.raw_float != 0) {
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
DIPENGINE_DEVICE void store_moments(const ConvPlan& p, const WarpPlace& w, int first_channel, const Accumulators<Tile>& sums, PartMoments* part) {
  const int lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const bool inside_column = group < w.columns;
  const int pixels = (w.rows < 0 ? 0 : w.rows < 2 * Tile::kProductsM ? w.rows : 2 * Tile::kProductsM) *
                     (w.columns < kTileColumns ? w.columns : kTileColumns);
  const float share = pixels > 0 ? 1.0f / static_cast<float>(pixels) : 0.0f;
  DIPENGINE_UNROLL
  for (int j = 0; j < 2 * Tile::kProductsN; ++j) {
    DIPENGINE_UNROLL
    for (int e = 0; e < 2; ++e) {
      float sum = 0;
      DIPENGINE_UNROLL
      for (int i = 0; i < 2 * Tile::kProductsM; ++i) sum += i < w.rows && inside_column ? sums.of[i / 2][j][2 * (i % 2) + e] : 0.0f;
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

// Two blocks of weights to their stage. Nothing behind the last.
template <typename Tile>
DIPENGINE_DEVICE void begin_stage(const ConvPlan& p, const unsigned char* stream, unsigned char* stages, int pair) {
  constexpr int kBytes = 2 * Tile::kBlockBytes;
  if (2 * pair < p.blocks) {
    for (int at = 16 * cuda::thread_index(); at < kBytes; at += 16 * Tile::kThreads) {
      cuda::copy_async16(stages + pair % kStages * kBytes + at, stream + static_cast<int64_t>(pair) * kBytes + at);
    }
  }
  cuda::copy_commit();
}

// 16 channels of the warp's pixels times as many rows of weights.
template <typename Tile>
DIPENGINE_DEVICE void multiply(const unsigned char* inputs, const int (&rows)[Tile::kProductsM], int offset, const unsigned char* weights,
                               Accumulators<Tile>& sums) {
  uint32_t a[Tile::kProductsM][4];
  DIPENGINE_UNROLL
  for (int m = 0; m < Tile::kProductsM; ++m) cuda::load_matrices(a[m], inputs + rows[m] + offset);
  DIPENGINE_UNROLL
  for (int n = 0; n < Tile::kProductsN; ++n) {
    const cuda::Bytes16 b = cuda::load16(weights + 512 * n);
    DIPENGINE_UNROLL
    for (int m = 0; m < Tile::kProductsM; ++m) {
      cuda::mma_bf16(sums.of[m][2 * n], a[m], b.word[0], b.word[1]);
      cuda::mma_bf16(sums.of[m][2 * n + 1], a[m], b.word[2], b.word[3]);
    }
  }
}

template <typename Tile>
DIPENGINE_KERNEL(Tile::kThreads, 2) conv_forward_kernel(DIPENGINE_PARAMS(ForwardLaunch) l) {
  const ConvPlan& p = l.plan;
  const int64_t fit = cuda::block_z();
  if (l.active != nullptr && l.active[fit] == 0) return;
  const int phase = cuda::block_y() % (p.phases * p.phases), channel_tile = cuda::block_y() / (p.phases * p.phases);
  const int tile = cuda::block_x(), warp = cuda::warp_index(), lane = cuda::lane_index();
  const int warp_m = warp % Tile::kWarpsM, warp_n = warp / Tile::kWarpsM;
  const int tile_row = tile / p.tiles_x * Tile::kRows, tile_column = tile % p.tiles_x * kTileColumns;
  const int64_t numbers = fit * l.numbers_fit_stride;

  unsigned char* const stages = cuda::shared_memory();
  unsigned char* const inputs = stages + kStages * 2 * Tile::kBlockBytes;
  const unsigned char* const stream =
      reinterpret_cast<const unsigned char*>(l.packed) +
      ((fit * p.channel_tiles + channel_tile) * (p.phases * p.phases) + phase) * static_cast<int64_t>(p.blocks) * Tile::kBlockBytes;

  Accumulators<Tile> sums{};
  int pair = 0;
  for (; pair < kStages - 1; ++pair) begin_stage<Tile>(p, stream, stages, pair);
  pair = 0;
  for (int index = 0; index < p.sources_count; ++index) {
    const SourcePlan& s = p.sources[index];
    const bool nearest = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
    const int top = nearest ? tile_row - 1 + phase / p.phases : tile_row * s.stride + phase / p.phases - p.pad;
    const int left = nearest ? tile_column - 1 + phase % p.phases : tile_column * s.stride + phase % p.phases - p.pad;
    // The row of shared memory that each lane addresses for each product (platform/cuda/tensor_core.h), in bytes.
    int rows[Tile::kProductsM];
    DIPENGINE_UNROLL
    for (int m = 0; m < Tile::kProductsM; ++m) {
      const int y = (warp_m * Tile::kProductsM + m) * 2 + lane / 8 % 2, x = lane % 8;
      rows[m] = (s.gathered != 0 ? y * kTileColumns + x : y * s.stride * s.columns + x) * s.pitch + lane / 16 * 16;
    }
    for (int chunk = 0; chunk < s.chunks; ++chunk) {
      if (index + chunk > 0) cuda::sync_threads();  // all have read the chunk before
      if (s.gathered != 0) {
        load_gathered<Tile::kThreads, Tile::kPixels>(p, s, fit, numbers, top, left, inputs);
      } else {
        load_tile<Tile::kThreads>(p, s, fit, numbers, chunk, top, left, inputs);
      }
      const int products = chunk_products(s, chunk), blocks = chunk_blocks(s, chunk);
      int product = 0, tap_y = 0, tap_x = 0;
      for (int block = 0; block < blocks; block += 2, ++pair) {
        cuda::copy_wait<kStages - 2>();
        cuda::sync_threads();  // this pair's weights and the inputs have come; all have read the pair before
        begin_stage<Tile>(p, stream, stages, pair + kStages - 1);
        const unsigned char* weights = stages + pair % kStages * 2 * Tile::kBlockBytes + warp_n * Tile::kProductsN * 512 + lane * 16;
        for (int half = 0; half < 2 && block + half < blocks; ++half) {
          const int column = s.stride == 2 && s.gathered == 0 ? tap_x % 2 * s.half + tap_x / 2 : tap_x;
          const int offset = s.gathered != 0 ? 32 * product : (tap_y * s.columns + column) * s.pitch + 32 * product;
          multiply<Tile>(inputs, rows, offset, weights + half * Tile::kBlockBytes, sums);
          if (++product < products || s.gathered != 0) continue;
          product = 0;
          if (++tap_x < s.taps) continue;
          tap_x = 0;
          ++tap_y;
        }
      }
    }
  }

  const WarpPlace place = {tile_row + warp_m * Tile::kProductsM * 2, tile_column, p.grid_height - (tile_row + warp_m * Tile::kProductsM * 2),
                           p.grid_width - tile_column, phase / p.phases, phase % p.phases};
  const int first_channel = channel_tile * Tile::kChannels + warp_n * 16 * Tile::kProductsN;
  store_outputs<Tile>(l, place, fit, first_channel, sums);
  if (l.parts == nullptr) return;
  const int64_t part = (fit * p.phases * p.phases + phase) * p.tiles_y * p.tiles_x + tile;
  store_moments<Tile>(p, place, first_channel, sums, l.parts + (part * Tile::kWarpsM + warp_m) * p.channels);
}

template <typename Tile>
dipengine_status launch_forward(const ForwardLaunch& l, const dipengine_conv_cuda_params& params, const char* name) {
  const ConvPlan& p = l.plan;
  return cuda::launch(conv_forward_kernel<Tile>, name,
                      {static_cast<int64_t>(p.tiles_y) * p.tiles_x, static_cast<int64_t>(p.channel_tiles) * p.phases * p.phases, params.fits,
                       Tile::kThreads, p.shared_bytes},
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
  DIPENGINE_REQUIRE(p.packed != nullptr && reinterpret_cast<uintptr_t>(p.packed) % 16 == 0 &&
                        p.packed_bytes >= static_cast<size_t>(p.fits * packed_elements(plan)) * 2,
                    "dipengine_conv_cuda_forward needs the weights as dipengine_conv_cuda_pack leaves them.");
  const size_t moments = p.mean == nullptr ? 0 : static_cast<size_t>(p.fits * conv_parts(plan) * plan.channels) * sizeof(PartMoments);
  DIPENGINE_REQUIRE(p.mean == nullptr || (p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 && p.workspace_bytes >= moments),
                    "dipengine_conv_cuda_forward needs %zu bytes of workspace, 16-byte aligned.", moments);
  ForwardLaunch l{};
  l.plan = plan;
  l.active = p.active;
  l.numbers_fit_stride = p.fits == 1 ? 0 : p.numbers_fit_stride;
  l.packed = static_cast<const uint16_t*>(p.packed);
  l.bias = p.bias;
  l.raw = p.raw.data;
  l.raw_fit_stride = p.fits == 1 ? 0 : p.raw_fit_stride;
  l.raw_row_stride = p.raw.row_stride;
  l.raw_pixel_stride = p.raw.pixel_stride;
  l.raw_float = p.raw_dtype == DIPENGINE_FLOAT32;
  l.raw_aligned = p.raw.pixel_stride % 8 == 0 && p.raw.row_stride % 8 == 0 && l.raw_fit_stride % 8 == 0 && reinterpret_cast<uintptr_t>(p.raw.data) % 16 == 0;
  l.parts = p.mean == nullptr ? nullptr : static_cast<PartMoments*>(p.workspace);
  switch (plan.kind) {
    case TileKind::wide: DIPENGINE_TRY(launch_forward<WideTile>(l, p, "conv_forward_wide")); break;
    case TileKind::middle: DIPENGINE_TRY(launch_forward<MiddleTile>(l, p, "conv_forward_middle")); break;
    case TileKind::slim: DIPENGINE_TRY(launch_forward<SlimTile>(l, p, "conv_forward_slim")); break;
    case TileKind::narrow: DIPENGINE_TRY(launch_forward<NarrowTile>(l, p, "conv_forward_narrow")); break;
  }
  return p.mean == nullptr ? DIPENGINE_OK : launch_conv_moments(p, plan);
}

}  // extern "C"
