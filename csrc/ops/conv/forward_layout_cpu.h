// What the parts of the convolutions' forward pass share: how a layer is cut into chunks, the workspace, how rows of sums are
// stored; and plain sources, added to rows of sums.
#pragma once

#include "ops/conv/conv_kernels.h"
#include "ops/conv/conv_math.h"
#include "ops/conv/strided_cpu.h"
#include "ops/conv/weights_cpu.h"
#include "ops/conv/winograd_wide_cpu.h"
#include "platform/thread_pool.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int64_t kChunkPixels = 2048;  // of a chunk of plain rows, about
constexpr int64_t kPlainColumns = 256;  // of a chunk, at most: what is held of a row stays in the second-level cache
constexpr int64_t kWinogradColumns = 128;
constexpr int64_t kBatchTiles = 64;       // whose products are taken at once, about
constexpr int64_t kMostRingRows = 48;
constexpr int64_t kUpRows = 64;         // low-resolution rows of a task: two more are computed for its neighbours
constexpr int64_t kUpColumns = 128;     // and columns

template <typename Stored>
struct ForwardLayout {
  using Params = dipengine_conv_params;
  using Source = dipengine_conv_source;
  using Element = typename ElementOf<Stored>::type;
  using Real = typename Mac<Element>::Real;
  using V = Vec<Real>;
  static constexpr int kPair = Mac<Element>::kPair;

  struct Prepared {
    const Source* source;
    Prologue<Real> prologue;
    int64_t padded;      // channels
    int groups;          // of channels, kPair each
    int64_t first;       // input channel of the weights
    Element* panels;     // [blocks][taps][groups][columns][kPair]
    int64_t panel_size;  // elements of a block's panel of kVectors registers
  };

  const Params& p;
  Prepared sources[DIPENGINE_CONV_MAX_SOURCES];
  const Prepared* up = nullptr;  // the upsampled source
  bool paired = false;           // its low-resolution samples are taken two by two
  const bool winograd, wide;     // outputs are taken tile by tile, of 2x2 or of 4x4
  const bool strided;            // so are those of stride 2, of 2x2
  int blocks;                    // of output channels
  int64_t padded;                // output channels, in whole blocks
  int64_t inputs = 0;
  // Chunks: rows x columns of a grid of output pixels, or of low-resolution ones.
  int64_t grid_height, grid_width, chunk_rows, chunk_columns, row_chunks, column_chunks;
  Real* bias;
  double *chunk_mean, *chunk_m2;  // [chunks][padded]
  Element* low;                   // the upsampled source, normalised: [height][width][padded]
  AxisTerms* rows_map;            // [2 height][3]
  AxisTerms* columns_map;         // [2 width][3]
  char* scratch;
  size_t scratch_bytes = 0;  // of a thread
  size_t bytes = 0;

  struct Scratch {
    Real* sums;                                  // [columns][kBlock]; of all the rows made at once
    Element* tiles;                              // the tiles' samples, transformed
    Element* ring[DIPENGINE_CONV_MAX_SOURCES];   // [ring rows][padded columns][padded]
    int64_t held[DIPENGINE_CONV_MAX_SOURCES][kMostRingRows];
    Real* products;                              // [3][low columns + 2][kBlock]
    Real* mapped;                                // [3 rows][3][2 low columns][kBlock]
    Fetch fetch;                                 // of the next rows
  };

  explicit ForwardLayout(const Params& params)
      : p(params), winograd(winograd_suits(params)), wide(wide_suits<Stored>(params)), strided(strided_suits(params)) {
    blocks = static_cast<int>(ceil_divide(p.channels, kBlock<Real>));
    padded = static_cast<int64_t>(blocks) * kBlock<Real>;
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.source = &p.sources[i];
      s.padded = round_up(s.source->channels, V::size);
      s.groups = static_cast<int>(ceil_divide(s.source->channels, kPair));
      s.first = inputs;
      if (s.source->upsample != DIPENGINE_UPSAMPLE_NONE) {
        up = &s;
        paired = paired_suits(p, *s.source);
      }
      s.panel_size = static_cast<int64_t>(weight_planes(s)) * s.groups * kBlock<Real> * kPair;
      inputs += s.source->channels;
    }
    grid_height = up != nullptr ? up->source->height : p.height;
    grid_width = up != nullptr ? up->source->width : p.width;
    const int64_t most_columns = up != nullptr ? kUpColumns : tiled() ? kWinogradColumns : kPlainColumns;
    chunk_columns = ceil_divide(grid_width, ceil_divide(grid_width, most_columns));
    chunk_rows = up != nullptr && !paired ? least(kUpRows, grid_height)
                               : most(1, least(ceil_divide(grid_height, 16), ceil_divide(kChunkPixels, chunk_columns)));
    if (tiled()) {
      // A whole batch of tiles at least: the weights of all planes are read once a batch.
      chunk_columns = round_up(chunk_columns, tile_side());
      const int64_t tile_rows = ceil_divide(grid_height, tile_side()), least_rows = ceil_divide(kBatchTiles, chunk_columns / tile_side());
      const int64_t rows = most(ceil_divide(chunk_rows, tile_side()), least_rows);
      chunk_rows = tile_side() * ceil_divide(tile_rows, ceil_divide(tile_rows, rows));
    }
    row_chunks = ceil_divide(grid_height, chunk_rows);
    column_chunks = ceil_divide(grid_width, chunk_columns);
    carve(p.workspace);
  }

  void carve(void* workspace) {
    Carver carver(workspace);
    for (int i = 0; i < p.sources_count; ++i) {
      sources[i].prologue.carve(carver, sources[i].padded);
      sources[i].panels = carver.take<Element>(sources[i].panel_size * blocks);
    }
    bias = carver.take<Real>(padded);
    chunk_mean = carver.take<double>(row_chunks * column_chunks * padded);
    chunk_m2 = carver.take<double>(row_chunks * column_chunks * padded);
    low = nullptr;
    if (up != nullptr && !paired) {
      low = carver.take<Element>(grid_height * grid_width * up->padded);
      rows_map = carver.take<AxisTerms>(grid_height * 6);
      columns_map = carver.take<AxisTerms>(grid_width * 6);
    }
    scratch = carver.take<char>(0);
    Carver one(nullptr);
    carve_scratch(one);
    scratch_bytes = one.used();
    bytes = carver.used() + scratch_bytes * static_cast<size_t>(dipengine_pool_size(p.pool));
  }

  bool tiled() const { return winograd || paired || strided; }
  const Prepared& tiled_source() const { return paired ? *up : sources[0]; }
  int winograd_planes() const { return wide ? kWidePlanes : kWinogradPlanes; }
  int input_planes() const { return strided ? kStridedPlanes : winograd_planes(); }
  int product_planes() const { return strided ? kStridedPlanes : paired ? kPairedPlanes : winograd_planes(); }
  int sum_planes() const { return strided ? 9 : product_planes(); }  // that products are added to
  int64_t tile_side() const { return wide ? 4 : 2; }
  int weight_planes(const Prepared& s) const { return tiled() && &s == &tiled_source() ? product_planes() : p.kernel * p.kernel; }
  int64_t ring_rows() const { return paired ? 4 * tile_rows() + p.kernel - 1 : p.kernel; }  // of all the output rows made at once
  int64_t out_columns() const { return up != nullptr ? 2 * chunk_columns : chunk_columns; }
  int64_t ring_columns() const { return (out_columns() - 1) * p.stride + p.kernel; }

  // Rows of tiles whose products are taken at once, and all their tiles.
  int64_t tile_rows() const { return least(chunk_rows / tile_side(), most(1, kBatchTiles / (chunk_columns / tile_side()))); }
  int64_t batch_tiles() const { return tile_rows() * round_up(chunk_columns / tile_side(), kPair); }

  Scratch carve_scratch(Carver& carver) const {
    Scratch s;
    s.sums = carver.take<Real>((wide || paired ? 4 : tiled() ? 2 : 1) * out_columns() * kBlock<Real>);
    if (tiled()) {
      s.tiles = carver.take<Element>(input_planes() * batch_tiles() * tiled_source().padded);
      s.products = carver.take<Real>(sum_planes() * batch_tiles() * kBlock<Real>);
    }
    if (tiled() && !paired) return s;
    for (int i = 0; i < p.sources_count; ++i) {
      if (&sources[i] == up) continue;
      s.ring[i] = carver.take<Element>(ring_rows() * ring_columns() * sources[i].padded);
      for (int64_t& row : s.held[i]) row = -(int64_t{1} << 40);
    }
    if (up != nullptr && !paired) {
      s.products = carver.take<Real>(3 * (chunk_columns + 2) * kBlock<Real>);
      s.mapped = carver.take<Real>(3 * 3 * 2 * chunk_columns * kBlock<Real>);
    }
    return s;
  }

  Scratch scratch_of(int slot) const {
    Carver carver(scratch + scratch_bytes * static_cast<size_t>(slot));
    return carve_scratch(carver);
  }

  int vectors_of(int block) const { return p.channels - static_cast<int64_t>(block) * kBlock<Real> > V::size ? 2 : 1; }
  int columns_of(int block) const {
    return static_cast<int>(least(kBlock<Real>, p.channels - static_cast<int64_t>(block) * kBlock<Real>));
  }

  // Adds source `i` to sums of output row r, columns [begin, begin + columns), one block.
  void add_plain(int i, Scratch& scratch_area, int64_t r, int64_t begin, int64_t columns, int block, bool accumulate,
                 Real* sums) const {
    const Prepared& s = sources[i];
    const int64_t row_elements = ring_columns() * s.padded, from = begin * p.stride - p.pad;
    Segments<Element> segments;
    segments.count = p.kernel * p.kernel;
    segments.beside = fetches(p) ? &scratch_area.fetch : nullptr;
    for (int ky = 0; ky < p.kernel; ++ky) {
      const int64_t y = r * p.stride - p.pad + ky, place = (y + ring_rows()) % ring_rows();
      Element* row = scratch_area.ring[i] + place * row_elements;
      if (scratch_area.held[i][place] != y) {
        scratch_area.held[i][place] = y;
        load_row<Real, Stored>(*s.source, s.prologue, p.padding, y, from, from + (columns - 1) * p.stride + p.kernel, 1, row,
                               side_by_side<Real>(s.padded));
      }
      for (int kx = 0; kx < p.kernel; ++kx) segments.start[ky * p.kernel + kx] = row + kx * s.padded;
    }
    multiply<Element>(columns, segments, p.stride * s.padded, s.groups, s.panels + block * s.panel_size, vectors_of(block),
                      sums, kBlock<Real>, accumulate);
  }

  void store_row(const Real* sums, int64_t r, int64_t begin, int64_t columns, int block, int64_t before, int64_t chunk) const {
    const int64_t c = static_cast<int64_t>(block) * kBlock<Real>;
    Moments moments{nullptr, nullptr};
    if (p.mean != nullptr) moments = {chunk_mean + chunk * padded + c, chunk_m2 + chunk * padded + c};
    const int64_t at = r * p.raw.row_stride + begin * p.raw.pixel_stride + c;
    if (p.raw_dtype == p.dtype) {
      store_raw(sums, columns, columns_of(block), bias + c, static_cast<Stored*>(p.raw.data) + at, p.raw.pixel_stride, before, moments);
    } else {
      store_raw(sums, columns, columns_of(block), bias + c, static_cast<Real*>(p.raw.data) + at, p.raw.pixel_stride, before, moments);
    }
  }

  void clear_moments(int64_t chunk, int64_t c, int64_t count) const {
    memset(chunk_mean + chunk * padded + c, 0, static_cast<size_t>(count) * sizeof(double));
    memset(chunk_m2 + chunk * padded + c, 0, static_cast<size_t>(count) * sizeof(double));
  }

  // The rows and columns of the grid that a chunk covers.
  struct Piece {
    int64_t top, bottom, left, right;
  };
  Piece piece_of(int64_t chunk) const {
    const int64_t top = chunk / column_chunks * chunk_rows, left = chunk % column_chunks * chunk_columns;
    return {top, least(top + chunk_rows, grid_height), left, least(left + chunk_columns, grid_width)};
  }

  // A chunk, and the blocks of output channels that a task makes of it.
  struct Task {
    int64_t chunk;
    int first, last;
  };

  // In how many tasks the blocks of a chunk are made, each of which transforms the chunk's samples for itself: one, but for
  // small layers, that there is something to do for every thread. It changes no bit.
  int block_parts() const {
    const int64_t threads = dipengine_pool_size(p.pool), chunks = row_chunks * column_chunks;
    int parts = 1;
    while (parts < blocks && chunks * parts % threads != 0 && chunks * parts < 2 * threads) ++parts;
    return parts;
  }
  Task task_of(int64_t task, int parts) const {
    const int64_t part = task % parts;
    return {task / parts, static_cast<int>(part * blocks / parts), static_cast<int>((part + 1) * blocks / parts)};
  }
  void clear_moments(const Task& task) const {
    clear_moments(task.chunk, task.first * kBlock<Real>, (task.last - task.first) * kBlock<Real>);
  }

  // V of a row of tiles from source row r on, from column `first` on.
  template <typename Planes>
  void transform_row(const Prepared& s, int64_t r, int64_t first, Planes& planes) const {
    with_samples<Real, Stored, 4>(*s.source, s.prologue, p.padding, r, first - 1, first + 2 * planes.tiles + 1, [&](const auto& samples) {
      winograd_input<Real>(samples, first, planes.tiles, {false, false}, {false, false}, s.padded, planes);
    });
  }
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
