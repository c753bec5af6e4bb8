// What the parts of the convolutions' backward pass share: how a layer is cut into chunks, blocks and batches, the workspace,
// the ring of d_raw, and where the sums of a chunk go.
#pragma once

#include "ops/conv/conv_kernels.h"
#include "ops/conv/conv_math.h"
#include "ops/conv/gradient_rows_cpu.h"
#include "ops/conv/strided_cpu.h"
#include "ops/conv/weights_cpu.h"
#include "ops/conv/winograd_wide_cpu.h"
#include "platform/thread_pool.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int64_t kColumns = 128;       // of a block, about
constexpr int64_t kChunkPixels = 2048;  // of a chunk, at least
constexpr int64_t kMostChunks = 8;
constexpr int64_t kMostBatchRows = 16;
constexpr int64_t kMergedChannels = 16;  // of the weights, of a task that merges the chunks' sums
constexpr int64_t kTileColumns = 65;    // of a block of tiles: 128 samples in pairs, and one more at each end
constexpr int64_t kBatchTiles = 153;    // whose products are taken at once, at most
constexpr int kMargin = DIPENGINE_CONV_MAX_KERNEL - 1;  // columns of d_raw beside a block

template <typename Stored>
struct BackwardLayout {
  using Params = dipengine_conv_params;
  using Source = dipengine_conv_source;
  using Element = typename ElementOf<Stored>::type;
  using Real = typename Mac<Element>::Real;
  using V = Vec<Real>;
  static constexpr int kPair = Mac<Element>::kPair;

  struct Prepared {
    const Source* source;
    Prologue<Real> prologue;
    Real* centre;      // [padded]
    int64_t padded;    // channels
    int64_t first;     // input channel of the weights
    int blocks;        // of channels
    Element* panels;   // [blocks][taps][groups][columns][kPair]
    int64_t panel_size;
    bool narrow;       // few channels: all taps of a kernel row share the lanes of one product
    bool together;     // so few that the taps of a kernel row also share a register of the weights' gradient
    bool swapped;      // weight gradient as [channels out][channels in]: fewer idle lanes where few come out
    bool direct;       // the only chunk's weight gradient is the layer's, and written where that goes
    int64_t tap_size;  // elements from one tap's weight gradient to the next one's
    Real* d_weight;    // [chunks][taps][tap_size]
    double *sum, *product;  // [chunks][padded]
    bool wants_data() const { return source->d_x.data != nullptr; }
  };

  const Params& p;
  Prepared sources[DIPENGINE_CONV_MAX_SOURCES];
  const Prepared* up = nullptr;
  // Outputs are taken tile by tile: Winograd's 2x2, or 4x4 if wide, 2x2 of stride 2, or two by two samples of a nearest
  // upsampled source. The grid is then of tiles.
  const bool winograd, wide, strided;
  bool paired = false;
  Real* transposed;  // the weights of the source of the tiles, [9][outputs][its padded channels]
  int64_t inputs = 0, padded, grid_height, grid_width, chunks, columns, batch_rows;
  int groups, taps;
  int tap_order[kMaxSegments];                                       // taps by phase: (ky % stride, kx % stride)
  GradientMap<Real> map;
  Real* largest;     // of each row of g, in size
  double* bias_sum;  // [chunks][padded]
  Element* zeros;    // a row of d_raw outside the image
  AxisTerms *rows_map, *columns_map;  // [height][3], [width][3], transposed maps of an upsampled source
  char* scratch;
  size_t scratch_bytes = 0, bytes = 0;

  struct Scratch {
    Element* d_rows;  // ring [d_capacity][padded / V::size][d_columns][V::size]
    int64_t d_held[32];
    Element* d_packed;                                       // [batch rows] packed pixels
    Element* x_rows[DIPENGINE_CONV_MAX_SOURCES];             // pixels yet to be packed
    Element* x_packed[DIPENGINE_CONV_MAX_SOURCES];           // ring [x_capacity][copies] packed pixels
    int64_t x_held[DIPENGINE_CONV_MAX_SOURCES][64];
    Real* sums;                                              // [columns of a data gradient][kBlock]
    Real* narrow;                                            // [columns of a data gradient][kBlock]
    Real* vertical;                                          // [2 columns + 2 margin][kBlock]
    Element *d_tiles, *d_tile_pairs, *x_tiles;               // of TilePlanes
    Real* products;                                          // [planes][batch tiles][kBlock]
    Real* plane_weights;                                     // [planes][channels][padded], sums of a chunk
    bool added;                                              // whether there is anything in the chunk's sums
    bool weights, data;                                      // which gradients the task makes
    Element* mapped;                                         // E_t: [9][padded / V::size][batch pixels][V::size]
    Element* mapped_packed;                                  // [9] packed pixels
    Fetch fetch;                                             // of the next rows
  };

  explicit BackwardLayout(const Params& params)
      : p(params), winograd(winograd_suits(params)), wide(wide_suits<Stored>(params)), strided(strided_suits(params)) {
    taps = p.kernel * p.kernel;
    groups = static_cast<int>(ceil_divide(p.channels, kPair));
    padded = round_up(p.channels, V::size);
    for (int i = 0; i < p.sources_count; ++i) paired = paired || paired_suits(p, p.sources[i]);
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.source = &p.sources[i];
      s.padded = round_up(s.source->channels, V::size);
      s.first = inputs;
      s.blocks = static_cast<int>(ceil_divide(s.source->channels, kBlock<Real>));
      s.panel_size = static_cast<int64_t>(planes_of(s)) * groups * kBlock<Real> * kPair;
      s.narrow = s.source->upsample == DIPENGINE_UPSAMPLE_NONE && p.stride == 1 && p.kernel > 1 &&
                 p.kernel * s.source->channels <= kBlock<Real>;
      s.swapped = p.channels < V::size && s.source->channels > p.channels;
      s.together = s.narrow && !s.swapped && kPair == 1 && p.kernel * s.source->channels <= V::size;
      inputs += s.source->channels;
      if (s.source->upsample != DIPENGINE_UPSAMPLE_NONE) up = &s;
    }
    cut();
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.direct = chunks == 1 && padded == p.channels && !s.swapped && !s.together && (tiled(s) || !kScaled<Element>);
      s.tap_size = s.direct ? inputs * p.channels : s.swapped ? p.channels * s.padded : s.source->channels * padded;
    }
    order_taps();
    carve(p.workspace);
  }

  bool tiled() const { return winograd || paired || strided; }
  bool tiled(const Prepared& s) const { return tiled() && &s == &tiled_source(); }
  const Prepared& tiled_source() const { return paired ? *up : sources[0]; }
  int planes() const { return paired ? kPairedGradientPlanes : strided ? kStridedPlanes : wide ? kWidePlanes : kWinogradPlanes; }
  int d_planes() const { return strided ? 16 : planes(); }
  int x_planes() const { return paired ? 9 : planes(); }
  int planes_of(const Prepared& s) const {  // of its weights
    return winograd || strided || (paired && s.source->upsample != DIPENGINE_UPSAMPLE_NONE) ? planes() : taps;
  }

  // Chunks of rows, blocks of columns and batches of rows, in units of the grid.
  void cut() {
    const int64_t height = up != nullptr ? up->source->height : p.height, width = up != nullptr ? up->source->width : p.width;
    grid_height = wide ? WideAxis{height}.tiles() : paired || strided ? height / 2 + 1 : winograd ? height / 2 : height;
    grid_width = wide ? WideAxis{width}.tiles() : paired || strided ? width / 2 + 1 : winograd ? width / 2 : width;
    chunks = least(grid_height, least(kMostChunks, most(1, height * width / kChunkPixels)));
    const int64_t most_rows = ceil_divide(grid_height, chunks);
    if (tiled()) {
      columns = ceil_divide(grid_width, ceil_divide(grid_width, kTileColumns));
      batch_rows = least(least(kMostBatchRows, most_rows), most(1, kBatchTiles / columns));
      return;
    }
    columns = ceil_divide(grid_width, ceil_divide(grid_width, kColumns));
    // What falls on reflected columns is folded back within a block, so the last one must be wide enough to hold it.
    while (grid_width % columns != 0 && grid_width % columns <= 2 * kMargin) ++columns;
    batch_rows = least(least(kMostBatchRows, most_rows), most(1, kColumns / columns));
  }

  int64_t chunk_top(int64_t chunk) const { return grid_height * chunk / chunks; }

  // Tasks of a chunk: one, or where there are fewer chunks than threads one a gradient, each of which forms d_raw for itself. It
  // changes no bit.
  int parts() const {
    bool data = false;
    for (int i = 0; i < p.sources_count; ++i) data = data || sources[i].wants_data();
    return data && p.d_weight != nullptr && chunks < dipengine_pool_size(p.pool) ? 2 : 1;
  }

  // Rows (or columns) of d_raw before row i of a grid of n that yields `side` of them.
  int64_t outputs_before(int64_t i, int64_t n, int64_t side) const {
    if (i == n) return side;
    if (wide) return WideAxis{side}.first(i);
    if (strided) return most(0, 2 * i - 1);
    return paired ? most(0, 4 * i - 2) : winograd || up != nullptr ? 2 * i : i;
  }
  int64_t out_row(int64_t i) const { return outputs_before(i, grid_height, p.height); }
  int64_t out_column(int64_t i) const { return outputs_before(i, grid_width, p.width); }

  void order_taps() {
    int place = 0;
    for (int a = 0; a < p.stride; ++a) {
      for (int b = 0; b < p.stride; ++b) {
        for (int ky = a; ky < p.kernel; ky += p.stride) {
          for (int kx = b; kx < p.kernel; kx += p.stride) tap_order[place++] = ky * p.kernel + kx;
        }
      }
    }
  }

  int64_t out_columns() const { return (paired || wide ? 4 : tiled() || up != nullptr ? 2 : 1) * columns; }  // of d_raw in a block
  int64_t plain_rows() const { return up != nullptr ? (paired ? 4 : 1) : batch_rows; }  // of a batch of a plain source's weights
  int64_t d_columns() const { return out_columns() + 2 * kMargin; }
  // A window of rows for one row of data gradient, and a batch that is packed at once.
  int64_t d_capacity() const {
    if (tiled()) return 8;
    return up == nullptr ? p.kernel + batch_rows : up->source->upsample == DIPENGINE_UPSAMPLE_NEAREST ? 5 : 8;
  }
  int64_t d_block() const { return d_columns() * V::size; }
  int64_t x_columns() const { return (out_columns() - 1) * p.stride + p.kernel; }
  int64_t x_capacity() const { return (plain_rows() - 1) * p.stride + p.kernel; }
  // Pairs of pixels begin at every tap; single pixels are read at an offset, from one copy a phase of the stride.
  int64_t x_copies() const { return kPair == 1 ? p.stride : p.kernel; }
  int64_t x_copy_pixels() const { return kPair == 1 ? out_columns() + p.kernel : round_up(out_columns(), kPair); }
  int64_t batch_pixels() const { return round_up(batch_rows * columns, kPair); }
  int64_t batch_tiles() const { return batch_rows * round_up(columns, kPair); }

  void carve(void* workspace) {
    Carver carver(workspace);
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.prologue.carve(carver, s.padded);
      s.centre = carver.take<Real>(s.padded);
      s.panels = s.wants_data() ? carver.take<Element>(s.panel_size * s.blocks) : nullptr;
      if (p.d_weight == nullptr) {
        s.d_weight = nullptr;
      } else if (s.direct) {
        s.d_weight = static_cast<Real*>(p.d_weight) + s.first * p.channels;
      } else {
        s.d_weight = carver.take<Real>(chunks * taps * s.tap_size);
      }
      s.sum = carver.take<double>(chunks * s.padded);
      s.product = carver.take<double>(chunks * s.padded);
    }
    const bool transforms = tiled() && tiled_source().wants_data();
    transposed = carver.take<Real>(transforms ? 9 * p.channels * tiled_source().padded : 0);
    map.carve(carver, padded);
    largest = carver.take<Real>(kScaled<Element> ? p.height : 0);
    bias_sum = carver.take<double>(chunks * padded);
    zeros = carver.take<Element>(d_columns() * padded);
    if (up != nullptr && !paired) {
      rows_map = carver.take<AxisTerms>(grid_height * 3);
      columns_map = carver.take<AxisTerms>(grid_width * 3);
    }
    scratch = carver.take<char>(0);
    Carver one(nullptr);
    carve_scratch(one);
    scratch_bytes = one.used();
    bytes = carver.used() + scratch_bytes * static_cast<size_t>(dipengine_pool_size(p.pool));
  }

  Scratch carve_scratch(Carver& carver) const {
    Scratch s{};
    s.d_rows = carver.take<Element>(d_capacity() * d_columns() * padded);
    const bool packs = kPair > 1;
    s.d_packed = carver.take<Element>(packs ? plain_rows() * round_up(out_columns(), kPair) * padded : 0);
    int64_t widest = up != nullptr && !paired ? batch_pixels() : 1;
    for (int i = 0; i < p.sources_count; ++i) {
      const int64_t channels = sources[i].padded;
      if (tiled() && &sources[i] == &tiled_source()) continue;
      if (&sources[i] == up) {
        s.x_rows[i] = carver.take<Element>(packs ? batch_pixels() * channels : 0);
        s.x_packed[i] = carver.take<Element>(batch_pixels() * channels);
      } else {
        s.x_rows[i] = carver.take<Element>(packs || sources[i].together ? x_columns() * channels : 0);
        s.x_packed[i] = carver.take<Element>(x_capacity() * x_copies() * x_copy_pixels() * channels);
        widest = most(widest, out_columns() * p.stride + p.stride + 2 * p.pad + p.kernel);
      }
    }
    s.narrow = carver.take<Real>((widest + p.kernel) * kBlock<Real>);
    if (tiled()) {
      const Prepared& of = tiled_source();
      s.d_tiles = carver.take<Element>(d_planes() * batch_tiles() * padded);
      s.d_tile_pairs = kPair == 1 ? s.d_tiles : carver.take<Element>(d_planes() * batch_tiles() * padded);
      s.x_tiles = carver.take<Element>(x_planes() * batch_tiles() * of.padded);
      s.products = carver.take<Real>(x_planes() * batch_tiles() * kBlock<Real>);
      s.plane_weights = carver.take<Real>(p.d_weight != nullptr ? planes() * of.source->channels * padded : 0);
      widest = most(widest, (wide || strided ? 16 : 4) * columns);
    } else if (up != nullptr) {
      s.vertical = carver.take<Real>(d_columns() * kBlock<Real>);
      s.mapped = carver.take<Element>(9 * batch_pixels() * padded);
      s.mapped_packed = carver.take<Element>(packs ? 9 * batch_pixels() * padded : 0);
    }
    s.sums = carver.take<Real>(widest * kBlock<Real>);
    return s;
  }

  Scratch scratch_of(int slot) const {
    Carver carver(scratch + scratch_bytes * static_cast<size_t>(slot));
    return carve_scratch(carver);
  }

  int vectors_of(const Prepared& s, int block) const {
    return s.source->channels - static_cast<int64_t>(block) * kBlock<Real> > V::size ? 2 : 1;
  }

  // Row r of d_raw at output column `first` - kMargin on; blocks of channels are d_block() elements apart.
  const Element* d_row(Scratch& area, int64_t r, int64_t first) const {
    const int64_t place = (r + 2 * d_capacity()) % d_capacity();
    Element* row = area.d_rows + place * d_columns() * padded;
    if (area.d_held[place] != r) {
      area.d_held[place] = r;
      if (p.gradient_dtype == p.dtype) {
        load_gradient_row<Real, Stored, Stored>(p, map, r, first - kMargin, first + out_columns() + kMargin, row);
      } else {
        load_gradient_row<Real, Real, Stored>(p, map, r, first - kMargin, first + out_columns() + kMargin, row);
      }
    }
    return row;
  }

  // kRows rows of d_raw from `top` on, in a block that begins at output column `left`.
  template <int kRows>
  TileRows<Element, kRows> rows_of_d(Scratch& area, int64_t top, int64_t left) const {
    TileRows<Element, kRows> rows;
    rows.columns = d_columns();
    for (int i = 0; i < kRows; ++i) {
      const int64_t y = top + i;
      rows.rows[i] = (y < 0 || y >= p.height ? zeros : d_row(area, y, left)) + (kMargin - left) * V::size;
    }
    return rows;
  }

  void store_gradient(const Prepared& s, int64_t chunk, const Real* du, int64_t y, int64_t x, int64_t pixels, int block) const {
    const Source& source = *s.source;
    const Stored* from = static_cast<const Stored*>(source.x.data) + y * source.x.row_stride + x * source.x.pixel_stride;
    Stored* to = static_cast<Stored*>(source.d_x.data) + y * source.d_x.row_stride + x * source.d_x.pixel_stride;
    const bool summed = source.sum != nullptr;
    for (int v = 0; v < vectors_of(s, block); ++v) {
      const int64_t c = static_cast<int64_t>(block) * kBlock<Real> + v * V::size;
      store_gradient_lanes(source, s.prologue, s.centre, du + v * V::size, map.inverse, kBlock<Real>, pixels, c,
                           static_cast<int>(least(V::size, source.channels - c)), from, to,
                           summed ? s.sum + chunk * s.padded : nullptr, summed ? s.product + chunk * s.padded : nullptr);
    }
  }

  // One tap's weight gradient over packed pixels.
  void add_weight(const Prepared& s, int64_t chunk, int tap, const Segments<Element>& x, const Segments<Element>& d,
                  int64_t pixel_groups, bool accumulate) const {
    Real* to = s.d_weight + (chunk * taps + tap) * s.tap_size;
    const int channels = static_cast<int>(s.source->channels), outputs = static_cast<int>(p.channels);
    if (s.swapped) {
      multiply_outer<Element>(outputs, channels, d, x, static_cast<int>(pixel_groups), to, s.padded, accumulate);
    } else {
      multiply_outer<Element>(channels, outputs, x, d, static_cast<int>(pixel_groups), to, padded, accumulate);
    }
  }
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
