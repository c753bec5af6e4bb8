// The data gradient of a source of few channels on the tensor cores.
//
//   Y[r, (t, c)] = sum over o  d_raw[r, o] W[t, c, o]         du[i, c] = sum over (r, t) with r + t - pad at i  of  Y[r, (t, c)]
//
// and from du on as in conv_data_gradient_cuda.cu. A block owns 16 x 8 pixels of the source: it brings d_raw of all pixels that see them,
// a chunk of channels at a time, with the weights of that chunk, rounded from their masters; multiplies; and leaves Y in shared memory,
// where each pixel's thread adds up its own in the order of the taps, mirrored places behind them. 576 products a tile by 128
// channels of d_raw; bound by memory.
#include "ops/conv/conv_few_gradient_cuda.h"

#include <algorithm>

#include "ops/conv/conv_gradient_cuda.h"
#include "ops/conv/conv_inputs_cuda.h"
#include "ops/conv/conv_math.h"
#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kRows = 16, kThreads = kRows * kTileColumns, kWarps = kThreads / cuda::kWarp;
constexpr int kProductsM = 3, kProductsN = kMostFewColumns / 8;  // of a warp; of 16 places and 8 columns
constexpr int kPlaces = 16 * kProductsM * kWarps;
static_assert((kRows + kMostFewKernel - 1) * (kTileColumns + kMostFewKernel - 1) <= kPlaces, "all that a tile sees");
constexpr int kRowBytes = 256;  // of a chunk
constexpr int kSumsBytes = kWarps * kMostFew * 2 * static_cast<int>(sizeof(float));

struct FewLaunch {
  FewPlan plan;
  GradientSource d_raw;
  const uint8_t* active;
  const float* weight;
  int64_t parameters_fit_stride;
  const void* x;
  int64_t x_fit_stride, x_row_stride, x_pixel_stride;
  void* d_x;
  int64_t d_x_fit_stride, d_x_row_stride, d_x_pixel_stride;
  int32_t accumulate, through_outer;
  dipengine_affine_cuda inner;
  float slope;
  const float* centre;
  PartSums* parts;
  SumsLaunch add;
  PartTree tree;
};

// Weights of a chunk, as operands: a row for each tap of each channel, zeros behind the last and behind the last channel of d_raw.
template <typename Element>
DIPENGINE_DEVICE void load_few_weights(const FewLaunch& l, int64_t fit, int chunk, unsigned char* to) {
  const FewPlan& p = l.plan;
  constexpr int kEach = Element::kEach;
  const int groups = p.chunk / kEach, columns = p.kernel * p.kernel * p.channels;
  const float* const weight = l.weight + fit * l.parameters_fit_stride;
  for (int at = cuda::thread_index(); at < kMostFewColumns * groups; at += kThreads) {
    const int column = at / groups, group = at % groups, channel = chunk * p.chunk + kEach * group;
    const int tap = column / p.channels;
    const float* const from =
        weight + (static_cast<int64_t>(tap) * p.input_channels + p.first_channel + (column - tap * p.channels)) * p.out_channels + channel;
    float value[kEach];
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) value[e] = column < columns && channel + e < p.out_channels ? from[e] : 0.0f;
    cuda::store16(to + column * p.pitch + 16 * group, Element::pack_operands(value));
  }
}

// d_raw of a chunk around the tile; zeros outside of it, and in the places behind the last.
template <typename Element>
DIPENGINE_DEVICE void load_few_d_raw(const FewLaunch& l, int64_t fit, int chunk, int top, int left, unsigned char* to) {
  const FewPlan& p = l.plan;
  const int groups = p.chunk / Element::kEach, group = cuda::thread_index() % groups;
  const int channel = chunk * p.chunk + Element::kEach * group, first = cuda::thread_index() / groups, step = kThreads / groups;
  if (Element::kBytes == 2 && l.d_raw.copied != 0) {
    copy_pixels(
        copied_from<Element>(l.d_raw, fit, channel, p.out_channels), l.d_raw.gradient_row_stride, l.d_raw.gradient_pixel_stride,
        {first, step, p.rows, p.columns}, p.columns * p.pitch, to + 16 * group,
        [&](int row) { return static_cast<uint32_t>(top + row) < static_cast<uint32_t>(p.out_height) ? top + row : -1; },
        [&](int column, int* place) {
          *place = column * p.pitch;
          return static_cast<uint32_t>(left + column) < static_cast<uint32_t>(p.out_width) ? left + column : -1;
        });
    for (int place = p.rows * p.columns + first; place < kPlaces; place += step) {
      cuda::store16(to + place * p.pitch + 16 * group, cuda::Bytes16{});
    }
    return wait_for_copies();
  }
  TileWalk w = begin_walk(first, p.columns, step);
  load_d_raw_places<Element, 4>(
      l.d_raw, fit, channel, p.out_channels, to, [&](int* place, int* y, int* x, bool* there) {
        if (w.at >= kPlaces) return false;
        *y = top + w.row;
        *x = left + w.column;
        *there = w.row < p.rows && static_cast<uint32_t>(*y) < static_cast<uint32_t>(p.out_height) &&
                 static_cast<uint32_t>(*x) < static_cast<uint32_t>(p.out_width);
        *place = w.at * p.pitch + 16 * group;
        advance(&w);
        return true;
      });
}

struct FewSums {
  float of[kProductsM][kProductsN][4];
};

// A warp's places, every kWarps-th sixteen of them, by all columns.
template <typename Element>
DIPENGINE_DEVICE void multiply_few(const FewPlan& p, int products, const unsigned char* places, const unsigned char* weights,
                                   FewSums* sums) {
  const int lane = cuda::lane_index();
  const unsigned char* const a_row = places + (16 * cuda::warp_index() + lane % 16) * p.pitch + 16 * (lane / 16);
  const unsigned char* const b_row = weights + (lane % 8 + 8 * (lane / 16)) * p.pitch + 16 * (lane / 8 % 2);
  DIPENGINE_NO_UNROLL
  for (int product = 0; product < products; ++product) {
    uint32_t a[kProductsM][4];
    DIPENGINE_UNROLL
    for (int m = 0; m < kProductsM; ++m) cuda::load_matrices(a[m], a_row + 16 * kWarps * m * p.pitch + 32 * product);
    DIPENGINE_UNROLL
    for (int n = 0; n < kProductsN; n += 2) {
      uint32_t b[4];  // of two products
      cuda::load_matrices(b, b_row + 8 * n * p.pitch + 32 * product);
      DIPENGINE_UNROLL
      for (int m = 0; m < kProductsM; ++m) {
        Element::multiply(sums->of[m][n], a[m], b[0], b[1]);
        Element::multiply(sums->of[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

DIPENGINE_DEVICE void keep_few(const FewPlan& p, const FewSums& sums, float* to) {
  const int lane = cuda::lane_index(), columns = p.kernel * p.kernel * p.channels;
  DIPENGINE_UNROLL
  for (int m = 0; m < kProductsM; ++m) {
    DIPENGINE_UNROLL
    for (int n = 0; n < kProductsN; ++n) {
      DIPENGINE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int place = 16 * (kWarps * m + cuda::warp_index()) + lane / 4 + 8 * (i / 2), column = 8 * n + 2 * (lane % 4) + i % 2;
        if (place < p.rows * p.columns && column < columns) to[place * p.sums_pitch + column] = sums.of[m][n][i];
      }
    }
  }
}

// Position `which` of those that read sample i of an axis of n samples: its own, and what reflects to it from before the first sample and
// from behind the last. False where there is none.
DIPENGINE_DEVICE bool shown_at(int which, int i, int n, int pad, bool reflects, int* position) {
  *position = which == 0 ? i : which == 1 ? -i : 2 * (n - 1) - i;
  if (which == 0) return true;
  return reflects && (which == 1 ? i >= 1 && i <= pad : i <= n - 2 && *position <= n - 1 + pad);
}

// du of pixel (y, x).
DIPENGINE_DEVICE void add_few(const FewPlan& p, const float* sums, int y, int x, int top, int left, float (&du)[kMostFew]) {
  for (int which = 0; which < 9; ++which) {
    int at_y, at_x;
    const bool seen_y = shown_at(which / 3, y, p.height, p.pad, p.reflects != 0, &at_y),
               seen_x = shown_at(which % 3, x, p.width, p.pad, p.reflects != 0, &at_x);
    if (!seen_y || !seen_x) continue;
    for (int tap = 0; tap < p.kernel * p.kernel; ++tap) {
      const int row = at_y + p.pad - tap / p.kernel, column = at_x + p.pad - tap % p.kernel;
      if (static_cast<uint32_t>(row) >= static_cast<uint32_t>(p.out_height) ||
          static_cast<uint32_t>(column) >= static_cast<uint32_t>(p.out_width))
        continue;
      const float* const own = sums + ((row - top) * p.columns + column - left) * p.sums_pitch + tap * p.channels;
      DIPENGINE_UNROLL
      for (int c = 0; c < kMostFew; ++c) {
        if (c < p.channels) du[c] += own[c];
      }
    }
  }
}

// d_x of the thread's pixel, and what it adds to the sums.
template <typename Element>
DIPENGINE_DEVICE void store_few(const FewLaunch& l, int64_t fit, int y, int x, const float (&du)[kMostFew], float (&sum)[kMostFew],
                                float (&product)[kMostFew]) {
  using Stored = typename Element::Stored;
  const auto* const from = static_cast<const Stored*>(l.x) + fit * l.x_fit_stride + y * l.x_row_stride + x * l.x_pixel_stride;
  auto* const to = static_cast<Stored*>(l.d_x) + fit * l.d_x_fit_stride + y * l.d_x_row_stride + x * l.d_x_pixel_stride;
  DIPENGINE_UNROLL
  for (int c = 0; c < kMostFew; ++c) {
    if (c >= l.plan.channels) continue;
    const int64_t number = fit * l.d_raw.numbers_fit_stride + c;
    const float own = Element::widen(from[c]);
    const float t = l.inner.scale == nullptr ? own : fma(own, l.inner.scale[number], l.inner.shift[number]);
    const float old = l.accumulate != 0 ? Element::widen(to[c]) : 0.0f;
    const Stored stored = Element::narrow(du[c] * (l.through_outer != 0 || t > 0 ? 1.0f : l.slope) + old);
    if (l.d_x != nullptr) to[c] = stored;
    const float value = Element::widen(stored);
    sum[c] = value;
    product[c] = value * (l.through_outer != 0 ? (t > 0 ? t : t * l.slope) : own - (l.centre == nullptr ? 0.0f : l.centre[number]));
  }
}

// The block's part, of what its threads have.
DIPENGINE_DEVICE void leave_part(int channels, const float (&sum)[kMostFew], const float (&product)[kMostFew], float* of_warps,
                                 PartSums* part) {
  DIPENGINE_UNROLL
  for (int c = 0; c < kMostFew; ++c) {
    if (c >= channels) continue;
    const float sums = cuda::warp_sum(sum[c]), products = cuda::warp_sum(product[c]);
    if (cuda::lane_index() != 0) continue;
    of_warps[(cuda::warp_index() * kMostFew + c) * 2] = sums;
    of_warps[(cuda::warp_index() * kMostFew + c) * 2 + 1] = products;
  }
  cuda::sync_threads();
  const int c = cuda::thread_index();
  if (c >= channels) return;
  PartSums all = {0, 0};
  for (int warp = 0; warp < kWarps; ++warp) {
    all.sum += of_warps[(warp * kMostFew + c) * 2];
    all.product += of_warps[(warp * kMostFew + c) * 2 + 1];
  }
  part[c] = all;
}

template <typename Element>
DIPENGINE_KERNEL(kThreads, 3)
conv_few_gradient_kernel(DIPENGINE_PARAMS(FewLaunch) l) {
  const FewPlan& p = l.plan;
  const int64_t fit = cuda::block_y();
  const int tile = cuda::block_x(), thread = cuda::thread_index();
  const int tile_row = tile / p.tiles_x * kRows, tile_column = tile % p.tiles_x * kTileColumns;
  const int top = tile_row + p.pad - (p.kernel - 1), left = tile_column + p.pad - (p.kernel - 1);
  unsigned char* const places = cuda::shared_memory();
  unsigned char* const weights = places + kPlaces * p.pitch;
  float* const of_warps = reinterpret_cast<float*>(weights + kMostFewColumns * p.pitch);
  float* const kept = reinterpret_cast<float*>(places);
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[fit] == 0) return;
  FewSums sums{};
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    if (chunk > 0) cuda::sync_threads();  // all have read the chunk before
    load_few_weights<Element>(l, fit, chunk, weights);
    load_few_d_raw<Element>(l, fit, chunk, top, left, places);
    cuda::sync_threads();
    const int here = p.out_channels - chunk * p.chunk < p.chunk ? p.out_channels - chunk * p.chunk : p.chunk;
    multiply_few<Element>(p, (here + Element::kDepth - 1) / Element::kDepth, places, weights, &sums);
  }
  cuda::let_next_begin();
  cuda::sync_threads();  // all have read d_raw, in whose place sums are kept
  keep_few(p, sums, kept);
  cuda::sync_threads();
  const int y = tile_row + thread / kTileColumns, x = tile_column + thread % kTileColumns;
  float sum[kMostFew] = {}, product[kMostFew] = {};
  if (y < p.height && x < p.width) {
    float du[kMostFew] = {};
    add_few(p, kept, y, x, top, left, du);
    store_few<Element>(l, fit, y, x, du, sum, product);
  }
  if (l.parts == nullptr) return;
  leave_part(p.channels, sum, product, of_warps, l.parts + (fit * p.tiles_y * p.tiles_x + tile) * p.channels);
  if (l.tree.tickets == nullptr) return;
  merge_by_blocks<kThreads, kMostFew>(l.tree, SumsMerge{l.add}, fit, 0, tile);
}

size_t shared_bytes(const FewPlan& p) {
  return std::max(static_cast<size_t>((kPlaces + kMostFewColumns) * p.pitch + kSumsBytes), merge_shared_bytes(kThreads));
}

}  // namespace

bool is_few(const dipengine_conv_cuda_params& p, int source) {
  const dipengine_conv_cuda_source& s = p.sources[source];
  return s.upsample == DIPENGINE_UPSAMPLE_NONE && p.stride == 1 && p.kernel > 1 && p.kernel <= kMostFewKernel && 2 * p.pad <= p.kernel - 1 &&
         s.channels <= kMostFew && s.channels * p.kernel * p.kernel <= kMostFewColumns && !s.over_raw;
}

FewPlan make_few_plan(const dipengine_conv_cuda_params& p, int source) {
  const dipengine_conv_cuda_source& s = p.sources[source];
  FewPlan plan{};
  plan.height = s.height;
  plan.width = s.width;
  plan.channels = s.channels;
  for (int i = 0; i < p.sources_count; ++i) {
    if (i < source) plan.first_channel += p.sources[i].channels;
    plan.input_channels += p.sources[i].channels;
  }
  plan.out_height = p.height;
  plan.out_width = p.width;
  plan.out_channels = p.channels;
  plan.kernel = p.kernel;
  plan.pad = p.pad;
  plan.reflects = p.padding == DIPENGINE_PADDING_REFLECTION;
  plan.tiles_y = (s.height + kRows - 1) / kRows;
  plan.tiles_x = (s.width + kTileColumns - 1) / kTileColumns;
  plan.rows = kRows + p.kernel - 1;
  plan.columns = kTileColumns + p.kernel - 1;
  plan.chunk = kRowBytes / (p.dtype == DIPENGINE_FLOAT32 ? cuda::Float32::kBytes : cuda::Bfloat16::kBytes);
  plan.chunks = (p.channels + plan.chunk - 1) / plan.chunk;
  plan.pitch = kRowBytes + kPitchMargin;
  plan.sums_pitch = p.kernel * p.kernel * s.channels | 1;
  return plan;
}

dipengine_status launch_few_gradient(const dipengine_conv_cuda_params& p, int source, uint32_t* tickets, const char* op) {
  const dipengine_conv_cuda_source& s = p.sources[source];
  const bool single = p.fits == 1;
  FewLaunch l{};
  l.plan = make_few_plan(p, source);
  l.d_raw = gradient_source(p);
  l.active = p.active;
  l.weight = p.weight;
  l.parameters_fit_stride = single ? 0 : p.parameters_fit_stride;
  set_source(p, s, &l);
  const bool merges = s.sum != nullptr && tickets != nullptr;
  const PartTree tree = part_tree_of(l.plan);
  l.parts = s.sum == nullptr ? nullptr : static_cast<PartSums*>(p.workspace);
  l.tree = place_part_tree(tree, p.fits, s.channels, p.workspace, merges ? tickets : nullptr);
  l.add = {tree.blocks, s.channels, l.parts, p.active, single ? 0 : p.numbers_fit_stride, s.sum, s.product, 0, {}};
  DIPENGINE_TRY(set_fold(s.fold, op, &l.add));
  DIPENGINE_REQUIRE(p.weight != nullptr, "%s needs weight.", op);
  DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
    return cuda::launch(conv_few_gradient_kernel<decltype(element)>, "conv_few_gradient",
                        {static_cast<int64_t>(l.plan.tiles_y) * l.plan.tiles_x, p.fits, 1, kThreads, shared_bytes(l.plan)}, l, p.stream);
  }));
  return s.sum == nullptr || merges ? DIPENGINE_OK : launch_sums(l.add, p.fits, p.stream);
}

}  // namespace dipengine
