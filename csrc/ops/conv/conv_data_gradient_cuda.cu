// A convolution's data gradient on the tensor cores: one implicit matrix product per tile of the source.
//
//   du[i] = sum over entries (y, x):  d_raw[position] (sum of taps W^T),      d_raw = A * g + B * raw + C
//   without outer:  d_x = leaky_relu'(inner(x)) du,   sum = sum d_x,  product = sum d_x (x - centre)
//   with outer:     d_x = du,                         sum = sum d_x,  product = sum d_x leaky_relu(inner(x))
//
// What reflection and the clamped ends of upsampling add at the borders are entries of their own, which only tiles at a
// border run: each lane gives ldmatrix the row of its own pixel, or, where an entry does not apply to it, a row of zeros.
// Weights come by cp.async through a ring of stages. A block's warps leave their sums in the workspace, which the last block or a second
// kernel adds in a fixed order. Where warps share out the products, the first group adds up what all come to. Nearest upsampling: 16
// products a low-resolution pixel, against 36 at full resolution.
//
// A d_x that takes raw's place: a block has brought d_raw of its pixels, all channels of it, before it writes the first.
#include "ops/conv/conv_data_gradient_cuda.h"

#include <algorithm>

#include "ops/conv/conv_bias_gradient_cuda.h"
#include "ops/conv/conv_data_work_cuda.h"
#include "ops/conv/conv_inputs_cuda.h"
#include "ops/conv/conv_joint_gradients_cuda.h"
#include "ops/conv/conv_tile_cuda.h"
#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/device.h"
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

struct TileShape {
  int step, top, left, rows, columns, half;  // positions of d_raw; even columns first where the step is 2
};
DIPENGINE_DEVICE int place_of(const TileShape& t, int row, int column) {
  return row * t.columns + (t.step == 2 ? column % 2 * t.half + column / 2 : column);
}

// Where the products of a chunk read d_raw, one after the other: for each pair of entries, its channels.
template <typename Tile>
struct EntryWalk {
  int products, product, row, column;  // of an entry; the product, the entry's place in both lists
  int rows[Tile::kProductsM];          // of shared memory, that the lane addresses for each product
  int offset;
};

// A chunk of d_raw around the tile, and a row of zeros behind it.
template <typename Element, typename Tile, bool behind_head, int at_once>
DIPENGINE_DEVICE void load_d_raw(const DataLaunch& l, const TileShape& t, const unsigned char* heads, int64_t fit, int chunk,
                                 unsigned char* inputs) {
  const DataPlan& p = l.plan;
  constexpr int kEach = Element::kEach;
  const int each = p.chunk / kEach, groups = 2 * chunk_products(p, chunk, Element::kDepth), group = cuda::thread_index() % each;
  const int channel = chunk * p.chunk + kEach * group, first = cuda::thread_index() / each, step = Tile::kThreads / each;
  if (group >= groups) return;
  if constexpr (behind_head) {  // the tile's own pixels
    const unsigned char* const head = heads + channel / kEach * gradient_head_pitch(Element::kBytes);
    int at = first;
    const auto next = [&](int* place, int* y, int* x, bool* there) {
      if (at > Tile::kPixels) return false;
      *y = t.top + at / kTileColumns;
      *x = t.left + at % kTileColumns;
      *there = at < Tile::kPixels && *y < p.out_height && *x < p.out_width;
      *place = at * p.pitch + 16 * group;
      at += step;
      return true;
    };
    load_head_places<Element, (at_once + 1) / 2>(l.d_raw, head, fit, channel, p.out_channels, inputs, next);
  } else {
    if (Tile::kMayCopy && Element::kBytes == 2 && l.d_raw.copied != 0) {
      copy_pixels(
          copied_from<Element>(l.d_raw, fit, channel, p.out_channels), l.d_raw.gradient_row_stride, l.d_raw.gradient_pixel_stride,
          {first, step, t.rows, t.columns}, t.columns * p.pitch, inputs + 16 * group,
          [&](int row) { return static_cast<uint32_t>(t.top + row) < static_cast<uint32_t>(p.out_height) ? t.top + row : -1; },
          [&](int column, int* place) {
            *place = place_of(t, 0, column) * p.pitch;
            return static_cast<uint32_t>(t.left + column) < static_cast<uint32_t>(p.out_width) ? t.left + column : -1;
          });
      if (first == 0) cuda::store16(inputs + t.rows * t.columns * p.pitch + 16 * group, cuda::Bytes16{});
      return wait_for_copies();
    }
    TileWalk w = begin_walk(first, t.columns, step);
    load_d_raw_places<Element, (at_once + 1) / 2>(
        l.d_raw, fit, channel, p.out_channels, inputs, [&](int* place, int* y, int* x, bool* there) {
          if (w.row > t.rows || (w.row == t.rows && w.column > 0)) return false;  // the row behind the last is the one of zeros
          *y = t.top + w.row;
          *x = t.left + w.column;
          *there = w.row < t.rows && static_cast<uint32_t>(*y) < static_cast<uint32_t>(p.out_height) &&
                   static_cast<uint32_t>(*x) < static_cast<uint32_t>(p.out_width);
          *place = place_of(t, w.row, w.column) * p.pitch + 16 * group;
          advance(&w);
          return true;
        });
  }
}

// `each` neighbouring channels of a pixel, as many as there are: 16 bytes at once where that can be.
template <typename Element, int each>
struct Channels {
  static constexpr int kSixteens = (each + Element::kEach - 1) / Element::kEach;
  static constexpr bool kWhole = each % Element::kEach == 0;
  cuda::Bytes16 of[kSixteens];
};
template <typename Element, int each>
DIPENGINE_DEVICE Channels<Element, each> load_channels(const typename Element::Stored* from, bool whole, int there) {
  constexpr int kEach = Element::kEach;
  using All = Channels<Element, each>;
  All all{};
  if (All::kWhole && whole) {
    DIPENGINE_UNROLL
    for (int i = 0; i < All::kSixteens; ++i) all.of[i] = cuda::load16(from + i * kEach);
    return all;
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < each; ++e) {
    if (e < there) Element::put(all.of[e / kEach], e % kEach, from[e]);
  }
  return all;
}
template <typename Element, int each>
DIPENGINE_DEVICE float channel_of(const Channels<Element, each>& all, int e) {
  return Element::widen(Element::get(all.of[e / Element::kEach], e % Element::kEach));
}

// Rounds `values` to what it stores; NULL: that alone.
template <typename Element, int each>
DIPENGINE_DEVICE void store_channels(typename Element::Stored* to, bool whole, int there, float (&values)[each]) {
  constexpr int kEach = Element::kEach;
  using All = Channels<Element, each>;
  All all{};
  DIPENGINE_UNROLL
  for (int i = 0; i < All::kSixteens; ++i) {
    float own[kEach];
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) own[e] = i * kEach + e < each ? values[(i * kEach + e) % each] : 0.0f;
    all.of[i] = Element::pack(own);
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < each; ++e) values[e] = channel_of(all, e);
  if (to == nullptr) return;
  if (All::kWhole && whole) {
    DIPENGINE_UNROLL
    for (int i = 0; i < All::kSixteens; ++i) cuda::store16(to + i * kEach, all.of[i]);
    return;
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < each; ++e) {
    if (e < there) to[e] = Element::get(all.of[e / kEach], e % kEach);
  }
}

// d_x of the warp's pixels, and its sums. What kRows rows need is asked for before the first of them is stored.
template <typename Element, typename Tile>
DIPENGINE_DEVICE void store_d_x(const DataLaunch& l, int row, int column, int phase, int64_t fit, int first_channel,
                                const Accumulators<Tile>& sums, PartSums* part) {
  using Stored = typename Element::Stored;
  constexpr int kGroup = Tile::kProductsN >= 2 ? 4 : 2, kEach = 2 * kGroup, kGroups = 2 * Tile::kProductsN / kGroup;
  constexpr int kRows = Tile::kProductsN == 4 ? 2 : 4;
  static_assert(2 * Tile::kProductsM % kRows == 0, "all rows");
  const DataPlan& p = l.plan;
  const int lane = cuda::lane_index(), member = lane % 4, group = lane / 4;
  const int x_at = (column + group) * p.phases + phase % p.phases;
  DIPENGINE_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const int channel = first_channel + g * 8 * kGroup + member * kEach, there = p.channels - channel;
    const bool whole = l.aligned != 0 && there >= kEach, some = there > 0 && x_at < p.width;
    float scale[kEach], shift[kEach], centre[kEach], sum[kEach] = {}, product[kEach] = {};
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      const int64_t number = fit * l.d_raw.numbers_fit_stride + channel + e;
      const bool inner = e < there && l.inner.scale != nullptr;
      scale[e] = inner ? l.inner.scale[number] : 1.0f;
      shift[e] = inner ? l.inner.shift[number] : 0.0f;
      centre[e] = e < there && l.centre != nullptr ? l.centre[number] : 0.0f;
    }
    const Stored* const from = static_cast<const Stored*>(l.x) + fit * l.x_fit_stride + x_at * l.x_pixel_stride + channel;
    Stored* const to =
        l.d_x == nullptr ? nullptr : static_cast<Stored*>(l.d_x) + fit * l.d_x_fit_stride + x_at * l.d_x_pixel_stride + channel;
    DIPENGINE_UNROLL
    for (int first = 0; first < 2 * Tile::kProductsM; first += kRows) {
      Channels<Element, kEach> x[kRows], old[kRows];
      DIPENGINE_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const int y_at = (row + first + i) * p.phases + phase / p.phases;
        x[i] = old[i] = Channels<Element, kEach>{};
        if (!some || y_at >= p.height) continue;
        x[i] = load_channels<Element, kEach>(from + y_at * l.x_row_stride, whole, there);
        if (l.accumulate != 0) old[i] = load_channels<Element, kEach>(to + y_at * l.d_x_row_stride, whole, there);
      }
      DIPENGINE_UNROLL
      for (int i = 0; i < kRows; ++i) {
        const int m = first + i, y_at = (row + m) * p.phases + phase / p.phases;
        if (!some || y_at >= p.height) continue;
        float value[kEach];
        DIPENGINE_UNROLL
        for (int e = 0; e < kEach; ++e) {
          const float slope = l.through_outer != 0 || fma(channel_of(x[i], e), scale[e], shift[e]) > 0 ? 1.0f : l.slope;
          value[e] = sums.of[m / 2][g * kGroup + e / 2][2 * (m % 2) + e % 2] * slope + channel_of(old[i], e);
        }
        store_channels<Element>(to == nullptr ? nullptr : to + y_at * l.d_x_row_stride, whole, there, value);
        DIPENGINE_UNROLL
        for (int e = 0; e < kEach; ++e) {
          const float own = channel_of(x[i], e), t = fma(own, scale[e], shift[e]);
          sum[e] += value[e];
          product[e] += value[e] * (l.through_outer != 0 ? (t > 0 ? t : t * l.slope) : own - centre[e]);
        }
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

template <typename Element, typename Tile, bool behind_head>
DIPENGINE_DEVICE void data_gradient(const DataLaunch& l) {
  const DataPlan& p = l.plan;
  const int64_t fit = cuda::block_z();
  const int phase = cuda::block_y() % (p.phases * p.phases), channel_tile = cuda::block_y() / (p.phases * p.phases);
  const int tile = cuda::block_x(), warp = cuda::warp_index(), lane = cuda::lane_index();
  const int warp_m = warp % Tile::kWarpsM, warp_n = warp / Tile::kWarpsM % Tile::kWarpsN, warp_k = warp / (Tile::kWarpsM * Tile::kWarpsN);
  const int tile_row = tile / p.tiles_x * Tile::kRows, tile_column = tile % p.tiles_x * kTileColumns;

  unsigned char* const stages = cuda::shared_memory();
  Lists* const lists = reinterpret_cast<Lists*>(stages + Tile::kWeightBytes);
  unsigned char* const heads = stages + Tile::kWeightBytes + kListsBytes;
  unsigned char* const inputs = heads + (behind_head ? p.head_bytes : 0);
  const AxisEntries &axis_y = p.y[phase / p.phases], &axis_x = p.x[phase % p.phases];
  static_assert(Tile::kThreads >= 2 * kMostEntries, "a thread for each entry");
  if (cuda::thread_index() < kMostEntries) {
    choose_entry(axis_y, cuda::thread_index(), tile_row, Tile::kRows, &lists->y);
  } else if (cuda::thread_index() < 2 * kMostEntries) {
    choose_entry(axis_x, cuda::thread_index() - kMostEntries, tile_column, kTileColumns, &lists->x);
  }
  cuda::sync_threads();
  if (cuda::thread_index() == 0) make_work(p, phase, Element::kDepth, lists);
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[fit] == 0) return;
  if constexpr (behind_head) {
    for (int group = cuda::thread_index(); group < p.chunks * (p.chunk / Element::kEach); group += Tile::kThreads)
      keep_head<Element>(load_head<Element>(l.d_raw, fit, group * Element::kEach, p.out_channels),
                         heads + group * gradient_head_pitch(Element::kBytes));
  }
  cuda::sync_threads();
  TileShape t;
  t.step = axis_y.step;
  t.top = t.step * tile_row + axis_y.low;
  t.left = t.step * tile_column + axis_x.low;
  t.rows = t.step * (Tile::kRows - 1) + axis_y.high - axis_y.low + 1;
  t.columns = t.step * (kTileColumns - 1) + axis_x.high - axis_x.low + 1;
  t.half = (t.columns + 1) / 2;
  const unsigned char* const stream =
      l.packed +
      ((fit * p.channel_tiles + channel_tile) * p.phase_blocks[p.phases * p.phases] + p.phase_blocks[phase]) * Tile::kBlockBytes;

  int stage = 0;
  for (; stage < Tile::kStages - 1; ++stage) begin_stage<Tile>(*lists, stream, stages, stage, stage);
  // The first chunk while registers hold no sums yet.
  load_d_raw<Element, Tile, behind_head, Tile::kAtFirst>(l, t, heads, fit, 0, inputs);
  Accumulators<Tile> sums{};
  int slot = stage;  // of the stage that is brought next
  const int own_weights = warp_k * 2 * Tile::kBlockBytes + warp_n * Tile::kProductsN * 512 + lane * 16;
  WeightRing<Tile> ring = {own_weights, own_weights, 0};
  const auto next_stage = [&] {
    cuda::copy_wait<Tile::kStages - 2>();
    cuda::sync_threads();  // its weights and d_raw have come; all have read the stage before
    begin_stage<Tile>(*lists, stream, stages, stage++, slot);
    slot = slot + 1 < Tile::kStages ? slot + 1 : 0;
  };
  const int row = warp_m * Tile::kProductsM * 2 + lane / 8 % 2, column = lane % 8, zeros = t.rows * t.columns * p.pitch + lane / 16 * 16;
  EntryWalk<Tile> walk;
  const auto enter = [&] {
    const AxisEntry ey = lists->y.entry[walk.row], ex = lists->x.entry[walk.column];
    const int from_x = ex.offset - axis_x.low;
    const int first = ((ey.offset - axis_y.low) * t.columns + (t.step == 2 ? from_x % 2 * t.half + from_x / 2 : from_x) + column) * p.pitch;
    const bool applies_x = ex.gate < 0 || ex.gate == tile_column + column;
    DIPENGINE_UNROLL
    for (int m = 0; m < Tile::kProductsM; ++m) {
      const bool applies = applies_x && (ey.gate < 0 || ey.gate == tile_row + row + 2 * m);
      walk.rows[m] = applies ? first + t.step * (row + 2 * m) * t.columns * p.pitch + lane / 16 * 16 : zeros;
    }
  };
  const auto next_entry = [&] {
    if (++walk.column == lists->work.columns) {
      walk.column = 0;
      ++walk.row;
    }
  };
  const auto go_on = [&](int n) {
    walk.product += n;
    walk.offset += 32 * n;
    if (walk.product < walk.products) return;
    if (Tile::kWarpsK == 1) {  // n is 1
      walk.product = 0;
      next_entry();
    } else {
      while (walk.product >= walk.products) {
        walk.product -= walk.products;
        next_entry();
      }
      if (walk.row * lists->work.columns >= lists->work.entries) return;  // this group of warps has nothing to do
    }
    walk.offset = 32 * walk.product;
    enter();
  };
  for (int chunk = 0; chunk < p.chunks && lists->work.entries > 0; ++chunk) {
    if (chunk > 0) {
      cuda::sync_threads();  // all have read the chunk before
      load_d_raw<Element, Tile, behind_head, Tile::kAtOnce>(l, t, heads, fit, chunk, inputs);
    }
    if (ring.used != 0) cuda::sync_threads();  // d_raw has come; the weights had
    walk.products = chunk_products(p, chunk, Element::kDepth);
    walk.product = walk.row = walk.column = walk.offset = 0;
    enter();
    multiply_chunk<Element, Tile>(
        lists->work.entries * walk.products, warp_k, &ring, go_on,
        [&](Operands<Tile>* to) { load_operands<Tile>(inputs, walk.rows, walk.offset, *to); }, next_stage, sums);
  }
  cuda::let_next_begin();
  const int own_phase = lists->work.phase;  // no register held it until here
  add_groups<Tile>(warp_k, sums);
  const int64_t part = ((fit * p.phases * p.phases + own_phase) * p.tiles_y * p.tiles_x + tile) * Tile::kWarpsM + warp_m;
  if (warp_k == 0) {
    store_d_x<Element, Tile>(l, tile_row + warp_m * Tile::kProductsM * 2, tile_column, own_phase, fit,
                             channel_tile * Tile::kChannels + warp_n * 16 * Tile::kProductsN, sums,
                             l.parts == nullptr ? nullptr : l.parts + part * p.channels);
  }
  if (l.tree.tickets == nullptr) return;
  static_assert(Tile::kWeightBytes >= static_cast<int>(merge_shared_bytes(Tile::kThreads)) ||
                    Tile::kSumBytes >= static_cast<int>(merge_shared_bytes(Tile::kThreads)),
                "parts are merged there");
  merge_by_blocks<Tile::kThreads, Tile::kChannels>(l.tree, SumsMerge{l.add}, fit, channel_tile, own_phase * p.tiles_y * p.tiles_x + tile);
}

template <typename Element, typename Tile>
DIPENGINE_KERNEL(Tile::kThreads, Tile::kBlocks)
conv_data_gradient_kernel(DIPENGINE_PARAMS(DataLaunch) l) {
  data_gradient<Element, Tile, false>(l);
}

// Behind a head, whose numbers take many registers.
template <typename Element>
DIPENGINE_KERNEL(HeadTile::kThreads, HeadTile::kBlocks)
conv_head_gradient_kernel(DIPENGINE_PARAMS(DataLaunch) l) {
  data_gradient<Element, HeadTile, true>(l);
}

using Params = dipengine_conv_cuda_params;

template <typename Tile, typename Kernel>
dipengine_status launch_product(const Kernel& kernel, const DataLaunch& l, const Params& p, const char* name) {
  const DataPlan& d = l.plan;
  return cuda::launch(kernel, name,
                      {static_cast<int64_t>(d.tiles_y) * d.tiles_x, static_cast<int64_t>(d.channel_tiles) * d.phases * d.phases,
                       p.fits, Tile::kThreads, d.shared_bytes},
                      l, p.stream);
}

dipengine_status launch_source(const Params& p, const DataSource& source) {
  const dipengine_conv_cuda_source& s = p.sources[source.index];
  if (source.few) {
    return launch_few_gradient(p, source.index, p.tickets == nullptr ? nullptr : p.tickets + source.tickets_at,
                               "dipengine_conv_cuda_data_gradient");
  }
  const DataPlan& plan = source.plan;
  const bool single = p.fits == 1;
  DataLaunch l{};
  l.plan = plan;
  l.d_raw = gradient_source(p);
  l.active = p.active;
  l.packed = static_cast<const unsigned char*>(p.packed) + source.packed_at;
  set_source(p, s, &l);
  l.aligned = in_sixteens(p.dtype, l.x_fit_stride, s.x) &&
              (s.d_x.data == nullptr || in_sixteens(p.dtype, l.d_x_fit_stride, s.d_x));
  l.parts = s.sum == nullptr ? nullptr : static_cast<PartSums*>(p.workspace);
  const bool merges = s.sum != nullptr && p.tickets != nullptr;
  l.tree = place_part_tree(source.tree, p.fits, plan.channels, p.workspace, merges ? p.tickets + source.tickets_at : nullptr);
  l.add = {data_parts(plan), plan.channels, l.parts, p.active, single ? 0 : p.numbers_fit_stride, s.sum, s.product, 0, {}};
  DIPENGINE_TRY(set_fold(s.fold, "dipengine_conv_cuda_data_gradient", &l.add));
  DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
    using Element = decltype(element);
    if (l.d_raw.head.weight != nullptr)
      return launch_product<HeadTile>(conv_head_gradient_kernel<Element>, l, p, "conv_head_gradient");
    return with_tile(plan.kind, [&](auto tile) {
      using Tile = decltype(tile);
      return launch_product<Tile>(conv_data_gradient_kernel<Element, Tile>, l, p, "conv_data_gradient");
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
                             : merge_bytes(source.tree, params->fits, params->sources[source.index].channels);
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
    data = source.tickets_at + tickets_of(source.tree, params->fits);
    return DIPENGINE_OK;
  }));
  JointPlan both;
  size_t limit = 0;
  DIPENGINE_TRY(cuda::shared_memory_limit(&limit));
  const int64_t joint = make_joint_plan(*params, limit, &both) ? tickets_of(part_tree_of(both), params->fits) : 0;
  *count = std::max({tickets_of(part_tree_of(forward), params->fits), data, joint, bias_gradient_tickets(*params)});
  return DIPENGINE_OK;
}

dipengine_status dipengine_conv_cuda_data_gradient(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_data_gradient";
  size_t packed = 0, workspace = 0;
  DIPENGINE_TRY(dipengine_conv_cuda_data_gradient_sizes(params, &packed, &workspace));
  const Params& p = *params;
  DIPENGINE_TRY(check_gradient(p, op));
  DIPENGINE_REQUIRE(packed == 0 || (p.packed != nullptr && reinterpret_cast<uintptr_t>(p.packed) % 16 == 0 && p.packed_bytes >= packed),
                    "%s needs the weights as dipengine_conv_cuda_data_pack leaves them.", op);
  DIPENGINE_REQUIRE(workspace == 0 || (p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 &&
                                       p.workspace_bytes >= workspace),
                    "%s needs %zu bytes of workspace, 16-byte aligned.", op, workspace);
  return for_data_sources(params, op, [&](const DataSource& source) { return launch_source(p, source); });
}

}  // extern "C"
