// A convolution's weight gradient on the tensor cores, and the sum of its parts.
//
//   d_W[tap, c, o] = sum over pixels r  u[stride * r + tap - pad, c] * d_raw[r, o],      d_raw = A * g + B * raw + C
//
// A block owns 64 input channels of up to `taps` taps and 64 output channels, and goes over some of the image's tiles: it brings
// u (with its halo, as the forward pass does) and d_raw into shared memory, and multiplies their transposes for all its taps,
// 16 (tf32: 8) pixels at a time. Blocks that share weights leave parts in the workspace, which a second kernel adds up in
// float64 in their order. How many parts there are depends on the layer alone; a single one is
// written where the sum would be.
//
// A source upsampled by nearest samples has 4 taps in each of 4 phases, whose gradients add up to those of the raw taps
// that they are sums of (design 3.1). A gathered source is one tap whose channels are all taps of all its channels.
//
// In bfloat16, with 9 taps: 4.7 M multiply-adds a tile against 23 + 16 KB from the second-level cache; bound by the tensor cores.
#include "ops/conv/conv_bias_gradient_cuda.h"
#include "ops/conv/conv_inputs_cuda.h"
#include "ops/conv/conv_weight_sum_cuda.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kThreads = 256;
constexpr int kInputs = 64;  // channels of a block
template <int taps>
constexpr int kAtOnce = taps == 9 ? 3 : 4;  // places on their way to registers, as many as these hold
template <int taps>
constexpr bool kMayCopy = taps != 9;  // which has no register left; operands are made beforehand for upsampling alone
template <typename Element, int taps>
constexpr bool kMayGoAhead = Element::kBytes == 2 && taps == 4;

template <typename Element>
constexpr int kPixels = gradient_tile_rows(Element::kBytes) * kTileColumns;

struct GradientLaunch {
  ConvPlan plan;
  int32_t source, splits, tap_groups;
  int32_t ahead;  // bytes from a tile's place in shared memory to the next tile's, which is copied meanwhile; 0: there is one
  const uint8_t* active;
  int64_t numbers_fit_stride;
  GradientSource d_raw;
  float* parts;  // [fits, splits, rows, channels] of the source; or d_weight, where one part is all there is
  int64_t fit_parts, tap_rows, first_row;
};

// Rows of a source's parts: phase, tap, channel.
DIPENGINE_HD int64_t part_rows(const ConvPlan& p, const SourcePlan& s) {
  return static_cast<int64_t>(p.phases) * p.phases * s.taps * s.taps * s.channels;
}

// d_raw of the tile's pixels and of 64 output channels; zeros outside of the image. `heads`: a head's numbers, or NULL.
template <typename Element, int taps>
DIPENGINE_DEVICE void load_gradient(const GradientLaunch& l, const unsigned char* heads, int64_t fit, int tile_row,
                                    int tile_column, int phase, int first_channel, unsigned char* to) {
  const ConvPlan& p = l.plan;
  constexpr int kGroups = kGradientChannels / Element::kEach;
  const int group = cuda::thread_index() % kGroups, channel = first_channel + Element::kEach * group;
  int pixel = cuda::thread_index() / kGroups;
  const auto next = [&](int* place, int* y, int* x, bool* there) {
    if (pixel >= kPixels<Element>) return false;
    const int row = tile_row + pixel / kTileColumns, column = tile_column + pixel % kTileColumns;
    *y = row * p.phases + phase / p.phases;
    *x = column * p.phases + phase % p.phases;
    *there = row < p.grid_height && column < p.grid_width;
    *place = pixel * gradient_pitch(Element::kBytes) + 16 * group;
    pixel += kThreads / kGroups;
    return true;
  };
  if (taps == 1 && heads != nullptr)
    return load_head_places<Element, 4>(l.d_raw, heads + group * gradient_head_pitch(Element::kBytes), fit, channel, p.channels, to,
                                        next);
  if (kMayCopy<taps> && Element::kBytes == 2 && l.d_raw.copied != 0) {
    const int phase_y = phase / p.phases, phase_x = phase % p.phases;
    return copy_pixels(
        copied_from<Element>(l.d_raw, fit, channel, p.channels), l.d_raw.gradient_row_stride, l.d_raw.gradient_pixel_stride,
        {pixel, kThreads / kGroups, kPixels<Element> / kTileColumns, kTileColumns}, kTileColumns * gradient_pitch(Element::kBytes),
        to + 16 * group, [&](int row) { return tile_row + row < p.grid_height ? (tile_row + row) * p.phases + phase_y : -1; },
        [&](int column, int* place) {
          *place = column * gradient_pitch(Element::kBytes);
          return tile_column + column < p.grid_width ? (tile_column + column) * p.phases + phase_x : -1;
        });
  }
  load_d_raw_places<Element, kAtOnce<taps>>(l.d_raw, fit, channel, p.channels, to, next);
}

// Operands of products along pixels out of rows of shared memory that are pixels, for a warp's 16 inputs and 32 outputs:
// which channel, of these, a row of a and a column of product n are; what a lane reads.
template <typename Element>
struct AlongPixels;

// 16 pixels at a time, two rows of the tile; ldmatrix transposes both operands.
template <>
struct AlongPixels<cuda::Bfloat16> {
  DIPENGINE_DEVICE int input(int row) { return row; }
  DIPENGINE_DEVICE int output(int n, int column) { return 8 * n + column; }
  DIPENGINE_DEVICE int a_offset(const SourcePlan& s, int step, int lane) {
    return pixel_offset(s, 2 * step + lane / 16, lane % 8) + 16 * (lane / 8 % 2);
  }
  DIPENGINE_DEVICE void load_a(uint32_t (&a)[4], const unsigned char* from, int) { cuda::load_matrices_transposed(a, from); }
  DIPENGINE_DEVICE void load_b(uint32_t (&b)[4][2], const unsigned char* outputs, int step, int lane) {
    const unsigned char* from = outputs + (16 * step + lane % 16) * gradient_pitch(2) + 16 * (lane / 16);
    DIPENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint32_t both[4];
      cuda::load_matrices_transposed(both, from + 32 * half);
      DIPENGINE_UNROLL
      for (int i = 0; i < 4; ++i) b[2 * half + i / 2][i % 2] = both[i];
    }
  }
};

// 8 pixels at a time. ldmatrix transposes no 32-bit elements, so channels are shuffled instead, such that what a lane needs of
// a pixel is 8 neighbouring bytes of the inputs, 16 of the outputs.
template <>
struct AlongPixels<cuda::Float32> {
  DIPENGINE_DEVICE int input(int row) { return row % 8 * 2 + row / 8; }
  DIPENGINE_DEVICE int output(int n, int column) { return 4 * column + n; }
  DIPENGINE_DEVICE int a_offset(const SourcePlan& s, int step, int lane) {
    return pixel_offset(s, step, lane % 4) + 8 * (lane / 4);
  }
  DIPENGINE_DEVICE void load_a(uint32_t (&a)[4], const unsigned char* from, int pitch) {
    DIPENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const cuda::Bytes8 two = cuda::load8(from + 4 * half * pitch);
      a[2 * half] = two.word[0];
      a[2 * half + 1] = two.word[1];
    }
  }
  DIPENGINE_DEVICE void load_b(uint32_t (&b)[4][2], const unsigned char* outputs, int step, int lane) {
    DIPENGINE_UNROLL
    for (int half = 0; half < 2; ++half) {
      const cuda::Bytes16 four = cuda::load16(outputs + (8 * step + 4 * half + lane % 4) * gradient_pitch(4) + 16 * (lane / 4));
      DIPENGINE_UNROLL
      for (int n = 0; n < 4; ++n) b[n][half] = four.word[n];
    }
  }
};

template <typename Element, int taps>
DIPENGINE_KERNEL(kThreads, 1)
conv_weight_gradient_kernel(DIPENGINE_PARAMS(GradientLaunch) l) {
  using Along = AlongPixels<Element>;
  const ConvPlan& p = l.plan;
  const SourcePlan& s = p.sources[l.source];
  const int64_t fit = cuda::block_z();
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[fit] == 0) return;
  int rest = cuda::block_y();
  const int phase = rest % (p.phases * p.phases);
  rest /= p.phases * p.phases;
  const int channel_tile = rest % p.channel_tiles;
  rest /= p.channel_tiles;
  const int first_tap = rest % l.tap_groups * taps, input_tile = rest / l.tap_groups;

  int* const offsets = reinterpret_cast<int*>(cuda::shared_memory());
  unsigned char* const outputs = cuda::shared_memory() + kGradientOffsets;
  unsigned char* const inputs = outputs + kPixels<Element> * gradient_pitch(Element::kBytes);
  const int warp = cuda::warp_index(), lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const int warp_m = warp % 4, warp_n = warp / 4;  // 16 inputs, 32 outputs
  const bool gathered = taps == 1 && s.gathered != 0;
  const int columns = gathered ? s.taps * s.taps * s.channels : s.channels;  // of u, all chunks
  // Within its tile of shared memory; a gathered source has all its columns there.
  const int first_column = (gathered ? input_tile * kInputs : 0) + 16 * warp_m;
  const bool there = first_column < kGradientDepth * chunk_products(s, gathered ? 0 : input_tile, kGradientDepth);

  // In shared memory: as registers they would be what makes 9 taps spill on sm_80.
  if (cuda::thread_index() < taps) {
    const int tap = first_tap + cuda::thread_index() < s.taps * s.taps ? first_tap + cuda::thread_index() : 0;
    offsets[cuda::thread_index()] = gathered ? 0 : tap_offset(s, tap / s.taps, tap % s.taps);
  }
  float sums[taps][4][4] = {};
  // A head is behind kernel 1 alone. Its numbers are in shared memory for all the tiles: in registers they would be many.
  unsigned char* const heads = taps == 1 && l.d_raw.head.weight != nullptr ? inputs + s.rows * s.columns * s.pitch : nullptr;
  if (heads != nullptr && cuda::thread_index() < kGradientChannels / Element::kEach) {
    const int channel = channel_tile * kGradientChannels + Element::kEach * cuda::thread_index();
    keep_head(load_head<Element>(l.d_raw, fit, channel, p.channels),
              heads + cuda::thread_index() * gradient_head_pitch(Element::kBytes));
  }
  const int tiles = p.tiles_y * p.tiles_x, each = (tiles + l.splits - 1) / l.splits;
  const int begin = cuda::block_x() * each, end = begin + each < tiles ? begin + each : tiles;
  const bool ahead = kMayGoAhead<Element, taps> && l.ahead != 0;
  // A turn brings a tile, or, going ahead, the next one, and multiplies what has come.
  for (int tile = begin - (ahead ? 1 : 0); tile < end; ++tile) {
    const int brought = tile + (ahead ? 1 : 0), place = ahead ? (brought - begin) % 2 * l.ahead : 0;
    const int tile_row = brought / p.tiles_x * gradient_tile_rows(Element::kBytes), tile_column = brought % p.tiles_x * kTileColumns;
    const int top = first_input(p, s, tile_row, phase / p.phases), left = first_input(p, s, tile_column, phase % p.phases);
    if (tile > begin || heads != nullptr) cuda::sync_threads();  // all have read the tile before; a head has come
    if (brought < end) {
      if (gathered) {
        load_gathered<Element, kThreads, kPixels<Element>, kGradientDepth>(p, s, fit, fit * l.numbers_fit_stride, top, left,
                                                                           inputs);
      } else {
        load_tile<Element, kThreads, kGradientDepth, kAtOnce<taps>, kMayCopy<taps>>(
            p, s, fit, fit * l.numbers_fit_stride, input_tile, top, left, inputs + place);
      }
      load_gradient<Element, taps>(l, heads, fit, tile_row, tile_column, phase, channel_tile * kGradientChannels, outputs + place);
    }
    if (ahead) {
      cuda::copy_commit();
      if (tile < begin) continue;
      cuda::copy_wait<1>();  // but for the tile that is brought now
    } else if (kMayCopy<taps> && Element::kBytes == 2 && (s.copied != 0 || l.d_raw.copied != 0)) {
      wait_for_copies();
    }
    cuda::sync_threads();
    const int own_place = ahead ? (tile - begin) % 2 * l.ahead : 0;
    for (int step = 0; step < kPixels<Element> / Element::kDepth && there; ++step) {
      uint32_t b[4][2];
      Along::load_b(b, outputs + own_place + 32 * warp_n * Element::kBytes, step, lane);
      const unsigned char* from = inputs + own_place + first_column * Element::kBytes + Along::a_offset(s, step, lane);
      DIPENGINE_UNROLL
      for (int t = 0; t < taps; ++t) {
        uint32_t a[4];
        Along::load_a(a, from + offsets[t], s.pitch);
        DIPENGINE_UNROLL
        for (int n = 0; n < 4; ++n) Element::multiply(sums[t][n], a, b[n][0], b[n][1]);
      }
    }
  }

  cuda::let_next_begin();
  float* part = l.parts + fit * l.fit_parts + cuda::block_x() * part_rows(p, s) * p.channels;
  const int input = input_tile * (gathered ? kInputs : s.chunk) + 16 * warp_m;
  DIPENGINE_UNROLL
  for (int t = 0; t < taps; ++t) {
    const int tap = gathered ? 0 : first_tap + t;
    if (!there || tap >= s.taps * s.taps) continue;
    DIPENGINE_UNROLL
    for (int n = 0; n < 4; ++n) {
      DIPENGINE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int column = input + Along::input(group + 8 * (i / 2)),
                  channel = channel_tile * kGradientChannels + 32 * warp_n + Along::output(n, 2 * member + i % 2);
        if (column >= columns || channel >= p.channels) continue;
        const int64_t row = (static_cast<int64_t>(phase) * s.taps * s.taps + tap) * l.tap_rows + l.first_row + column;
        part[row * p.channels + channel] = sums[t][n][i];
      }
    }
  }
}

struct SumLaunch {
  ConvPlan plan;
  int32_t source, splits;
  const uint8_t* active;
  const float* parts;
  int64_t fit_parts;
  float* d_weight;
  int64_t parameters_fit_stride, elements;  // of a fit, of this source
};

// The tap of a phase that holds raw tap `raw`.
DIPENGINE_DEVICE int tap_of(bool nearest, int phase, int raw) {
  if (!nearest) return raw;
  return phase == 0 ? (raw == 0 ? 0 : 1) : (raw == 2 ? 1 : 0);
}

DIPENGINE_KERNEL(kThreads, 4) conv_weight_sum_kernel(DIPENGINE_PARAMS(SumLaunch) l) {
  const ConvPlan& p = l.plan;
  const SourcePlan& s = p.sources[l.source];
  const int64_t fit = cuda::block_y(), index = static_cast<int64_t>(cuda::block_x()) * kThreads + cuda::thread_index();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (index >= l.elements || (l.active != nullptr && l.active[fit] == 0)) return;
  const int out = static_cast<int>(index % p.channels), input = static_cast<int>(index / p.channels % s.channels);
  const int raw = static_cast<int>(index / p.channels / s.channels);
  const bool nearest = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  const float* parts = l.parts + fit * l.fit_parts;
  const int64_t rows = part_rows(p, s);
  double sum = 0;
  for (int phase = 0; phase < p.phases * p.phases; ++phase) {
    const int tap =
        tap_of(nearest, phase / p.phases, raw / p.kernel) * s.taps + tap_of(nearest, phase % p.phases, raw % p.kernel);
    const int64_t row = (static_cast<int64_t>(phase) * s.taps * s.taps + tap) * s.channels + input;
    DIPENGINE_UNROLL_BY_8  // so many loads on their way at a time
    for (int split = 0; split < l.splits; ++split) sum += static_cast<double>(parts[(split * rows + row) * p.channels + out]);
  }
  l.d_weight[fit * l.parameters_fit_stride +
             (static_cast<int64_t>(raw) * p.input_channels + s.first_channel + input) * p.channels + out] =
      static_cast<float>(sum);
}

// How a source's work is cut: taps of a block, blocks along the layer's weights, parts of the pixels.
struct Cut {
  int taps, tap_groups, blocks, splits;
};

Cut cut(const ConvPlan& p, const SourcePlan& s) {
  Cut c;
  const int taps = s.gathered != 0 ? 1 : s.taps * s.taps;
  c.taps = taps == 1 ? 1 : taps == 4 ? 4 : 9;
  c.tap_groups = (taps + c.taps - 1) / c.taps;
  const int input_tiles = s.gathered != 0 ? (s.taps * s.taps * s.channels + kInputs - 1) / kInputs : s.chunks;
  c.blocks = p.phases * p.phases * p.channel_tiles * c.tap_groups * input_tiles;
  // A multiprocessor holds one block. Some 256 fill a large device about twice; one each of its 132, where so many have few tiles:
  // there what parts take to write and to read again is much of the time. No part of fewer than two tiles.
  constexpr int kFewTiles = 16;
  const int tiles = p.tiles_y * p.tiles_x, most = (tiles + 1) / 2, once = 132 / c.blocks > 1 ? 132 / c.blocks : 1;
  const int wanted = tiles <= kFewTiles * once ? once : (256 + c.blocks - 1) / c.blocks;
  const int splits = wanted < most ? wanted : most;
  const int each = (tiles + splits - 1) / splits;
  c.splits = (tiles + each - 1) / each;
  return c;
}

int64_t parts_of(const ConvPlan& p, const SourcePlan& s) { return cut(p, s).splits * part_rows(p, s) * p.channels; }

// Of a fit; sources one after the other, each in the same place.
int64_t workspace_elements(const ConvPlan& p) {
  int64_t most = 0;
  for (int i = 0; i < p.sources_count; ++i) most = parts_of(p, p.sources[i]) > most ? parts_of(p, p.sources[i]) : most;
  return most;
}

size_t workspace_bytes(const dipengine_conv_cuda_params& p, const ConvPlan& plan) {
  const size_t weights = static_cast<size_t>(p.fits * workspace_elements(plan)) * sizeof(float),
               bias = bias_gradient_workspace(p);
  return weights > bias ? weights : bias;
}

template <typename Element>
dipengine_status launch_product(const GradientLaunch& l, int taps, const cuda::Grid& grid, void* stream) {
  switch (taps) {
    case 1: return cuda::launch(conv_weight_gradient_kernel<Element, 1>, "conv_weight_gradient_1", grid, l, stream);
    case 4: return cuda::launch(conv_weight_gradient_kernel<Element, 4>, "conv_weight_gradient_4", grid, l, stream);
    default: break;
  }
  return cuda::launch(conv_weight_gradient_kernel<Element, 9>, "conv_weight_gradient_9", grid, l, stream);
}

dipengine_status launch_source(const dipengine_conv_cuda_params& q, const ConvPlan& plan, int source) {
  const SourcePlan& s = plan.sources[source];
  const Cut c = cut(plan, s);
  GradientLaunch l{};
  l.plan = plan;
  l.source = source;
  l.splits = c.splits;
  l.tap_groups = c.tap_groups;
  l.active = q.active;
  l.numbers_fit_stride = q.fits == 1 ? 0 : q.numbers_fit_stride;
  l.d_raw = gradient_source(q);
  const bool single = c.splits == 1 && plan.phases == 1 && (s.gathered == 0 || plan.sources_count == 1);
  l.parts = single ? q.d_weight : static_cast<float*>(q.workspace);
  l.fit_parts = !single ? workspace_elements(plan) : q.fits == 1 ? 0 : q.parameters_fit_stride;
  l.tap_rows = single ? plan.input_channels : s.channels;
  l.first_row = single ? s.first_channel : 0;
  size_t limit = 0, shared = plan.shared_bytes;
  DIPENGINE_TRY(cuda::shared_memory_limit(&limit));
  const size_t tile_bytes = plan.shared_bytes - kGradientOffsets;
  if (c.taps == 4 && s.copied != 0 && l.d_raw.copied != 0 && shared + tile_bytes <= limit) {
    l.ahead = static_cast<int32_t>(tile_bytes);
    shared += tile_bytes;
  }
  const cuda::Grid grid = {c.splits, c.blocks, q.fits, kThreads, shared};
  DIPENGINE_TRY(cuda::with_element(
      q.dtype, [&](auto element) { return launch_product<decltype(element)>(l, c.taps, grid, q.stream); }));
  if (single) return DIPENGINE_OK;
  return launch_weight_sum(q, plan, source, c.splits, l.parts, l.fit_parts);
}

}  // namespace

dipengine_status launch_weight_sum(const dipengine_conv_cuda_params& p, const ConvPlan& plan, int source, int splits, const float* parts,
                                   int64_t fit_parts) {
  const int64_t elements = static_cast<int64_t>(plan.kernel) * plan.kernel * plan.sources[source].channels * plan.channels;
  const SumLaunch sum = {
      plan, source, splits, p.active, parts, fit_parts, p.d_weight, p.fits == 1 ? 0 : p.parameters_fit_stride, elements};
  return cuda::launch(conv_weight_sum_kernel, "conv_weight_sum", {(elements + kThreads - 1) / kThreads, p.fits, 1, kThreads, 0}, sum,
                      p.stream);
}

}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_weight_gradient_workspace(const dipengine_conv_cuda_params* params, size_t* bytes) {
  dipengine::ConvPlan plan;
  DIPENGINE_TRY(dipengine::make_weight_gradient_plan(params, "dipengine_conv_cuda_weight_gradient_workspace", &plan));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_conv_cuda_weight_gradient_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params, plan);
  return DIPENGINE_OK;
}

dipengine_status dipengine_conv_cuda_weight_gradient(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_weight_gradient";
  ConvPlan plan;
  DIPENGINE_TRY(make_weight_gradient_plan(params, op, &plan));
  const dipengine_conv_cuda_params& p = *params;
  DIPENGINE_TRY(check_gradient(p, op));
  DIPENGINE_REQUIRE(p.d_weight != nullptr, "%s needs d_weight.", op);
  const size_t needed = workspace_bytes(p, plan);
  DIPENGINE_REQUIRE(p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 && p.workspace_bytes >= needed,
                    "%s needs %zu bytes of workspace, 16-byte aligned.", op, needed);
  for (int i = 0; i < p.sources_count; ++i) DIPENGINE_TRY(launch_source(p, plan, i));
  return p.d_bias == nullptr ? DIPENGINE_OK : launch_bias_gradient(p);
}

}  // extern "C"
