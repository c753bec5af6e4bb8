// A convolution's data gradient on the tensor cores: one implicit matrix product per tile of the source.
//
//   du[i] = sum over entries (y, x):  d_raw[position] (sum of taps W^T),      d_raw = A * g + B * raw + C
//   without outer:  d_x = leaky_relu'(inner(x)) du,   sum = sum d_x,  product = sum d_x (x - centre)
//   with outer:     d_x = du,                         sum = sum d_x,  product = sum d_x leaky_relu(inner(x))
//
// What reflection and the clamped ends of upsampling add at the borders are entries of their own, which only tiles at a
// border run: each lane gives ldmatrix the row of its own pixel, or, where an entry does not apply to it, a row of zeros.
// Weights come by cp.async through kStages stages. A block's warps leave their sums in the workspace; a second kernel adds
// them in a fixed order. Nearest upsampling: 16 products a low-resolution pixel, against 36 at full resolution.
//
// A d_x that takes raw's place: a block has brought d_raw of its pixels, all channels of it, before it writes the first.
#include "ops/conv/conv_data_gradient_cuda.h"

#include <algorithm>

#include "ops/conv/conv_bias_gradient_cuda.h"
#include "ops/conv/conv_tile_cuda.h"
#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {
namespace {

struct DataLaunch {
  DataPlan plan;
  GradientSource d_raw;
  const uint8_t* active;
  const unsigned char* packed;
  const void* x;
  int64_t x_fit_stride, x_row_stride, x_pixel_stride;
  void* d_x;
  int64_t d_x_fit_stride, d_x_row_stride, d_x_pixel_stride;
  int32_t accumulate, through_outer, aligned;
  dipengine_affine_cuda inner;
  float slope;
  const float* centre;
  PartSums* parts;
  SumsLaunch add;
  PartTree tree;
};

DIPENGINE_DEVICE void choose_entries(const AxisEntries& axis, int first, int samples, Applying* to) {
  to->count = 0;
  for (int e = 0; e < axis.count; ++e) {
    const int gate = axis.entry[e].gate;
    if (gate >= 0 && (gate < first || gate >= first + samples)) continue;
    to->index[to->count] = static_cast<uint8_t>(e);
    ++to->count;
  }
}

// Where a block is, and how its work is numbered: pairs of blocks of weights, within a chunk by entry, then by 16 channels.
struct Work {
  const AxisEntries *y, *x;
  const Applying *ys, *xs;
  int chunk_pairs, pairs;
};

DIPENGINE_DEVICE int pairs_of(const DataPlan& p, const Work& w, int chunk, int depth) {
  return (w.ys->count * w.xs->count * chunk_products(p, chunk, depth) + 1) / 2;
}

template <typename Tile, int depth>
DIPENGINE_DEVICE void begin_stage(const DataPlan& p, const Work& w, const unsigned char* stream, unsigned char* stages,
                                  int pair) {
  constexpr int kBytes = Tile::kBlockBytes;
  if (pair < w.pairs) {
    const int chunk = pair / w.chunk_pairs, products = chunk_products(p, chunk, depth);
    const int64_t chunk_first = static_cast<int64_t>(chunk) * w.y->vectors * w.x->vectors * (p.chunk / depth);
    for (int half = 0; half < 2; ++half) {
      const int block = pair % w.chunk_pairs * 2 + half, entry = block / products;
      if (entry >= w.ys->count * w.xs->count) continue;
      const int vy = w.y->entry[w.ys->index[entry / w.xs->count]].vector,
                vx = w.x->entry[w.xs->index[entry % w.xs->count]].vector;
      const unsigned char* from = stream + (chunk_first + (vy * w.x->vectors + vx) * products + block % products) * kBytes;
      for (int at = 16 * cuda::thread_index(); at < kBytes; at += 16 * Tile::kThreads) {
        cuda::copy_async16(stages + (pair % kStages * 2 + half) * kBytes + at, from + at);
      }
    }
  }
  cuda::copy_commit();
}

struct TileShape {
  int top, left, rows, columns, half;  // positions of d_raw; even columns first where the step is 2
};

template <typename Element, typename Tile>
DIPENGINE_DEVICE void load_d_raw(const DataLaunch& l, const TileShape& t, int step, int64_t fit, int chunk,
                                 unsigned char* inputs) {
  const DataPlan& p = l.plan;
  constexpr int kEach = Element::kEach;
  const int groups = 2 * chunk_products(p, chunk, Element::kDepth), group = cuda::thread_index() % (p.chunk / kEach);
  const int channel = chunk * p.chunk + kEach * group;
  if (group >= groups) return;
  const GradientFold<Element> fold = load_gradient_fold<Element>(l.d_raw, fit, channel, p.out_channels);
  if (Tile::kChannels == HeadTile::kChannels && l.d_raw.head.weight != nullptr) {  // the tile's own pixels
    const HeadFold<Element> head = load_head<Element>(l.d_raw, fit, channel, p.out_channels);
    for (int at = cuda::thread_index() / (p.chunk / kEach); at <= Tile::kPixels; at += Tile::kThreads / (p.chunk / kEach)) {
      const int y = t.top + at / kTileColumns, x = t.left + at % kTileColumns;
      cuda::Bytes16 out{};
      if (at < Tile::kPixels && y < p.out_height && x < p.out_width)
        out = d_raw_of_head<Element>(l.d_raw, fold, head, fit, y, x, channel, p.out_channels);
      cuda::store16(inputs + at * p.pitch + 16 * group, out);
    }
    return;
  }
  for (int at = cuda::thread_index() / (p.chunk / kEach); at <= t.rows * t.columns; at += Tile::kThreads / (p.chunk / kEach)) {
    const int row = at / t.columns, column = at % t.columns, y = t.top + row, x = t.left + column;
    const int place = row * t.columns + (step == 2 ? column % 2 * t.half + column / 2 : column);
    cuda::Bytes16 out{};  // the row behind the last is the one of zeros
    if (row < t.rows && y >= 0 && y < p.out_height && x >= 0 && x < p.out_width) {
      out = d_raw_of<Element>(l.d_raw, fold, fit, y, x, channel, p.out_channels);
    }
    cuda::store16(inputs + (row < t.rows ? place : t.rows * t.columns) * p.pitch + 16 * group, out);
  }
}

// `each` neighbouring channels of a pixel, as many as there are: 16 bytes at once where that can be.
template <typename Element, int each>
DIPENGINE_DEVICE void load_channels(const typename Element::Stored* from, bool whole, int there, float (&to)[each]) {
  constexpr int kEach = Element::kEach;
  if (each % kEach == 0 && whole) {
    DIPENGINE_UNROLL
    for (int e = 0; e < each; e += kEach) {
      const cuda::Bytes16 bytes = cuda::load16(from + e);
      DIPENGINE_UNROLL
      for (int i = 0; i < kEach; ++i) to[(e + i) % each] = Element::widen(Element::get(bytes, i));
    }
    return;
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < each; ++e) to[e] = e < there ? Element::widen(from[e]) : 0.0f;
}

// Rounds `values` to what it stores; NULL: that alone.
template <typename Element, int each>
DIPENGINE_DEVICE void store_channels(typename Element::Stored* to, bool whole, int there, float (&values)[each]) {
  constexpr int kEach = Element::kEach;
  typename Element::Stored stored[each];
  DIPENGINE_UNROLL
  for (int e = 0; e < each; ++e) {
    stored[e] = Element::narrow(values[e]);
    values[e] = Element::widen(stored[e]);
  }
  if (to == nullptr) return;
  if (each % kEach == 0 && whole) {
    DIPENGINE_UNROLL
    for (int e = 0; e < each; e += kEach) {
      cuda::Bytes16 bytes{};
      DIPENGINE_UNROLL
      for (int i = 0; i < kEach; ++i) Element::put(bytes, i, stored[(e + i) % each]);
      cuda::store16(to + e, bytes);
    }
    return;
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < each; ++e) {
    if (e < there) to[e] = stored[e];
  }
}

// d_x of the warp's pixels, and its sums.
template <typename Element, typename Tile>
DIPENGINE_DEVICE void store_d_x(const DataLaunch& l, int row, int column, int phase, int64_t fit, int first_channel,
                                const Accumulators<Tile>& sums, PartSums* part) {
  using Stored = typename Element::Stored;
  constexpr int kGroup = Tile::kProductsN >= 2 ? 4 : 2, kEach = 2 * kGroup, kGroups = 2 * Tile::kProductsN / kGroup;
  const DataPlan& p = l.plan;
  const int lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const int x_at = (column + group) * p.phases + phase % p.phases;
  DIPENGINE_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const int channel = first_channel + g * 8 * kGroup + member * kEach, there = p.channels - channel;
    const bool whole = l.aligned != 0 && there >= kEach;
    float scale[kEach], shift[kEach], centre[kEach], sum[kEach] = {}, product[kEach] = {};
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const int64_t number = fit * l.d_raw.numbers_fit_stride + channel + e;
      const bool inner = e < there && l.inner.scale != nullptr;
      scale[e] = inner ? l.inner.scale[number] : 1.0f;
      shift[e] = inner ? l.inner.shift[number] : 0.0f;
      centre[e] = e < there && l.centre != nullptr ? l.centre[number] : 0.0f;
    }
    DIPENGINE_UNROLL
    for (int m = 0; m < 2 * Tile::kProductsM; ++m) {
      const int y_at = (row + m) * p.phases + phase / p.phases;
      if (there <= 0 || x_at >= p.width || y_at >= p.height) continue;
      Stored* const to = l.d_x == nullptr ? nullptr
                                          : static_cast<Stored*>(l.d_x) + fit * l.d_x_fit_stride + y_at * l.d_x_row_stride +
                                                x_at * l.d_x_pixel_stride + channel;
      const Stored* const from =
          static_cast<const Stored*>(l.x) + fit * l.x_fit_stride + y_at * l.x_row_stride + x_at * l.x_pixel_stride + channel;
      float x[kEach], old[kEach] = {}, value[kEach];
      load_channels<Element>(from, whole, there, x);
      if (l.accumulate != 0) load_channels<Element>(to, whole, there, old);
      DIPENGINE_UNROLL
      for (int e = 0; e < kEach; ++e) {
        const float slope = l.through_outer != 0 || fma(x[e], scale[e], shift[e]) > 0 ? 1.0f : l.slope;
        value[e] = sums.of[m / 2][g * kGroup + e / 2][2 * (m % 2) + e % 2] * slope + old[e];
      }
      store_channels<Element>(to, whole, there, value);
      DIPENGINE_UNROLL
      for (int e = 0; e < kEach; ++e) {
        const float t = fma(x[e], scale[e], shift[e]);
        sum[e] += value[e];
        product[e] += value[e] * (l.through_outer != 0 ? (t > 0 ? t : t * l.slope) : x[e] - centre[e]);
      }
    }
    if (part == nullptr) continue;
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const PartSums all = {sum_of_rows(sum[e]), sum_of_rows(product[e])};
      if (group == 0 && e < there) part[channel + e] = all;
    }
  }
}

template <typename Element, typename Tile>
DIPENGINE_KERNEL(Tile::kThreads, 2)
conv_data_gradient_kernel(DIPENGINE_PARAMS(DataLaunch) l) {
  const DataPlan& p = l.plan;
  const int64_t fit = cuda::block_z();
  if (l.active != nullptr && l.active[fit] == 0) return;
  const int phase = cuda::block_y() % (p.phases * p.phases), channel_tile = cuda::block_y() / (p.phases * p.phases);
  const int tile = cuda::block_x(), warp = cuda::warp_index(), lane = cuda::lane_index();
  const int warp_m = warp % Tile::kWarpsM, warp_n = warp / Tile::kWarpsM;
  const int tile_row = tile / p.tiles_x * Tile::kRows, tile_column = tile % p.tiles_x * kTileColumns;

  unsigned char* const stages = cuda::shared_memory();
  Applying* const applying = reinterpret_cast<Applying*>(stages + kStages * 2 * Tile::kBlockBytes);
  unsigned char* const inputs = stages + kStages * 2 * Tile::kBlockBytes + kApplyingBytes;
  Work w = {&p.y[phase / p.phases], &p.x[phase % p.phases], applying, applying + 1, 0, 0};
  if (cuda::thread_index() == 0) {
    choose_entries(*w.y, tile_row, Tile::kRows, applying);
    choose_entries(*w.x, tile_column, kTileColumns, applying + 1);
  }
  cuda::sync_threads();
  w.chunk_pairs = pairs_of(p, w, 0, Element::kDepth);
  w.pairs = (p.chunks - 1) * w.chunk_pairs + pairs_of(p, w, p.chunks - 1, Element::kDepth);
  const int step = w.y->step;
  TileShape t;
  t.top = step * tile_row + w.y->low;
  t.left = step * tile_column + w.x->low;
  t.rows = step * (Tile::kRows - 1) + w.y->high - w.y->low + 1;
  t.columns = step * (kTileColumns - 1) + w.x->high - w.x->low + 1;
  t.half = (t.columns + 1) / 2;
  const unsigned char* const stream =
      l.packed +
      ((fit * p.channel_tiles + channel_tile) * p.phase_blocks[p.phases * p.phases] + p.phase_blocks[phase]) * Tile::kBlockBytes;

  Accumulators<Tile> sums{};
  int pair = 0;
  for (; pair < kStages - 1; ++pair) begin_stage<Tile, Element::kDepth>(p, w, stream, stages, pair);
  pair = 0;
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    if (chunk > 0) cuda::sync_threads();  // all have read the chunk before
    load_d_raw<Element, Tile>(l, t, step, fit, chunk, inputs);
    const int products = chunk_products(p, chunk, Element::kDepth), blocks = w.ys->count * w.xs->count * products;
    for (int block = 0; block < blocks; block += 2, ++pair) {
      cuda::copy_wait<kStages - 2>();
      cuda::sync_threads();  // this pair's weights and d_raw have come; all have read the pair before
      begin_stage<Tile, Element::kDepth>(p, w, stream, stages, pair + kStages - 1);
      const unsigned char* weights =
          stages + pair % kStages * 2 * Tile::kBlockBytes + warp_n * Tile::kProductsN * 512 + lane * 16;
      for (int half = 0; half < 2 && block + half < blocks; ++half) {
        const int entry = (block + half) / products, product = (block + half) % products;
        const AxisEntry ey = w.y->entry[w.ys->index[entry / w.xs->count]], ex = w.x->entry[w.xs->index[entry % w.xs->count]];
        const int x = tile_column + lane % 8, from_x = step * x + ex.offset - t.left;
        const int column = step == 2 ? from_x % 2 * t.half + from_x / 2 : from_x;
        int rows[Tile::kProductsM];
        DIPENGINE_UNROLL
        for (int m = 0; m < Tile::kProductsM; ++m) {
          const int y = tile_row + (warp_m * Tile::kProductsM + m) * 2 + lane / 8 % 2;
          const int from_y = step * y + ey.offset - t.top;
          const bool applies = (ey.gate < 0 || ey.gate == y) && (ex.gate < 0 || ex.gate == x);
          rows[m] = (applies ? from_y * t.columns + column : t.rows * t.columns) * p.pitch + lane / 16 * 16;
        }
        multiply<Element, Tile>(inputs, rows, 32 * product, weights + half * Tile::kBlockBytes, sums);
      }
    }
  }
  const int64_t part = ((fit * p.phases * p.phases + phase) * p.tiles_y * p.tiles_x + tile) * Tile::kWarpsM + warp_m;
  store_d_x<Element, Tile>(l, tile_row + warp_m * Tile::kProductsM * 2, tile_column, phase, fit,
                  channel_tile * Tile::kChannels + warp_n * 16 * Tile::kProductsN, sums,
                  l.parts == nullptr ? nullptr : l.parts + part * p.channels);
  if (l.tree.tickets == nullptr) return;
  merge_by_blocks<Tile::kThreads, Tile::kChannels>(l.tree, SumsMerge{l.add}, fit, channel_tile, phase * p.tiles_y * p.tiles_x + tile);
}

using Params = dipengine_conv_cuda_params;

template <typename Element, typename Tile>
dipengine_status launch_product(const DataLaunch& l, const Params& p, const char* name) {
  const DataPlan& d = l.plan;
  return cuda::launch(conv_data_gradient_kernel<Element, Tile>, name,
                      {static_cast<int64_t>(d.tiles_y) * d.tiles_x, static_cast<int64_t>(d.channel_tiles) * d.phases * d.phases,
                       p.fits, Tile::kThreads, d.shared_bytes},
                      l, p.stream);
}

dipengine_status launch_source(const Params& p, const DataSource& source) {
  const dipengine_conv_cuda_source& s = p.sources[source.index];
  const DataPlan& plan = source.plan;
  const bool single = p.fits == 1;
  DataLaunch l{};
  l.plan = plan;
  l.d_raw = gradient_source(p);
  l.active = p.active;
  l.packed = static_cast<const unsigned char*>(p.packed) + source.packed_at;
  l.x = s.x.data;
  l.x_fit_stride = single ? 0 : s.x_fit_stride;
  l.x_row_stride = s.x.row_stride;
  l.x_pixel_stride = s.x.pixel_stride;
  l.d_x = s.d_x.data;
  l.d_x_fit_stride = single ? 0 : s.d_x_fit_stride;
  l.d_x_row_stride = s.d_x.row_stride;
  l.d_x_pixel_stride = s.d_x.pixel_stride;
  l.aligned = in_sixteens(p.dtype, l.x_fit_stride, s.x) &&
              (s.d_x.data == nullptr || in_sixteens(p.dtype, l.d_x_fit_stride, s.d_x));
  l.accumulate = s.accumulate;
  l.through_outer = s.outer.scale != nullptr;
  l.inner = s.inner;
  l.slope = s.slope;
  l.centre = s.centre;
  l.parts = s.sum == nullptr ? nullptr : static_cast<PartSums*>(p.workspace);
  const bool merges = s.sum != nullptr && p.tickets != nullptr;
  l.tree = place_part_tree(part_tree_of(plan), p.fits, plan.channels, p.workspace, merges ? p.tickets + source.tickets_at : nullptr);
  l.add = {data_parts(plan), plan.channels, l.parts, p.active, single ? 0 : p.numbers_fit_stride, s.sum, s.product, 0, {}};
  DIPENGINE_TRY(set_fold(s.fold, "dipengine_conv_cuda_data_gradient", &l.add));
  DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
    return with_tile(plan.kind, [&](auto tile) {
      return launch_product<decltype(element), decltype(tile)>(l, p, "conv_data_gradient");
    });
  }));
  return s.sum == nullptr || merges ? DIPENGINE_OK : launch_sums(l.add, p.fits, p.stream);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_data_gradient_sizes(const dipengine_conv_cuda_params* params, size_t* packed_bytes,
                                                         size_t* workspace_bytes) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_data_gradient_sizes";
  DIPENGINE_REQUIRE(packed_bytes != nullptr && workspace_bytes != nullptr, "%s was given no place for its answers.", op);
  *packed_bytes = *workspace_bytes = 0;
  return for_data_sources(params, op, [&](const DataSource& source) {
    const size_t parts = params->sources[source.index].sum == nullptr
                             ? 0
                             : merge_bytes(part_tree_of(source.plan), params->fits, source.plan.channels);
    *packed_bytes += source.packed_bytes(params->fits);
    *workspace_bytes = parts > *workspace_bytes ? parts : *workspace_bytes;
    return DIPENGINE_OK;
  });
}

dipengine_status dipengine_conv_cuda_tickets(const dipengine_conv_cuda_params* params, int64_t* count) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_tickets";
  DIPENGINE_REQUIRE(count != nullptr, "%s was given no place for its answer.", op);
  ConvPlan forward;
  DIPENGINE_TRY(make_conv_plan(params, op, &forward));
  int64_t data = 0;
  DIPENGINE_TRY(for_data_sources(params, op, [&](const DataSource& source) {
    data = source.tickets_at + tickets_of(part_tree_of(source.plan), params->fits);
    return DIPENGINE_OK;
  }));
  *count = std::max({tickets_of(part_tree_of(forward), params->fits), data, bias_gradient_tickets(*params)});
  return DIPENGINE_OK;
}

dipengine_status dipengine_conv_cuda_data_gradient(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_data_gradient";
  size_t packed = 0, workspace = 0;
  DIPENGINE_TRY(dipengine_conv_cuda_data_gradient_sizes(params, &packed, &workspace));
  const Params& p = *params;
  DIPENGINE_TRY(check_gradient(p, op));
  DIPENGINE_REQUIRE(p.packed != nullptr && reinterpret_cast<uintptr_t>(p.packed) % 16 == 0 && p.packed_bytes >= packed,
                    "%s needs the weights as dipengine_conv_cuda_data_pack leaves them.", op);
  DIPENGINE_REQUIRE(workspace == 0 || (p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 &&
                                       p.workspace_bytes >= workspace),
                    "%s needs %zu bytes of workspace, 16-byte aligned.", op, workspace);
  return for_data_sources(params, op, [&](const DataSource& source) { return launch_source(p, source); });
}

}  // extern "C"
