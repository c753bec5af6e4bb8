// What the parts of the convolutions' backward pass share: how a layer is cut into chunks, blocks and batches, the workspace,
// the ring of d_raw, and where the sums of a chunk go.
#pragma once

#include "ops/conv/conv_kernels.h"
#include "ops/conv/conv_math.h"
#include "ops/conv/gradient_rows_cpu.h"
#include "ops/conv/weights_cpu.h"
#include "ops/conv/winograd_cpu.h"
#include "platform/thread_pool.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int64_t kColumns = 128;       // of a block, about
constexpr int64_t kChunkPixels = 2048;  // of a chunk, at least, where there are more than two chunks
constexpr int64_t kMostChunks = 8;
constexpr int64_t kMostBatchRows = 16;
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
    bool swapped;      // weight gradient as [channels out][channels in]: fewer idle lanes where few come out
    int64_t tap_size;  // elements of one tap's weight gradient
    Real* d_weight;    // [chunks][taps][tap_size]
    double *sum, *product;  // [chunks][padded]
    bool wants_data() const { return source->d_x.data != nullptr; }
  };

  const Params& p;
  Prepared sources[DIPENGINE_CONV_MAX_SOURCES];
  const Prepared* up = nullptr;
  const bool winograd;   // of the data gradient
  Real* transformed;     // the turned weights in Winograd's form, [16][in][out]
  int64_t inputs = 0, padded, grid_height, grid_width, chunks, chunk_rows, columns, batch_rows;
  int groups, taps;
  int tap_order[kMaxSegments];                                       // taps by phase: (ky % stride, kx % stride)
  GradientMap<Real> map;
  double* bias_sum;  // [chunks][padded]
  Element* zeros;    // a row of d_raw outside the image
  AxisTerms *rows_map, *columns_map;  // [height][3], [width][3], transposed maps of an upsampled source
  char* scratch;
  size_t scratch_bytes = 0, bytes = 0;

  struct Scratch {
    Element* d_rows;  // ring [d_capacity][d_columns][padded]
    int64_t d_held[2 * DIPENGINE_CONV_MAX_KERNEL + 2];
    Element* d_packed;                                       // [batch rows][column groups][padded][kPair]
    Element* x_rows[DIPENGINE_CONV_MAX_SOURCES];             // one row [x_columns][padded]
    Element* x_packed[DIPENGINE_CONV_MAX_SOURCES];           // ring [x_capacity][kernel][column groups][padded][kPair]
    int64_t x_held[DIPENGINE_CONV_MAX_SOURCES][64];
    Real* sums;                                              // [columns of a data gradient][kBlock]
    Real* narrow;                                            // [columns of a data gradient][kBlock]
    Real* vertical;                                          // [2 columns + 2 margin][kBlock]
    Element* tiles;                                          // Winograd's [16][tiles][padded]
    Real* products;                                          // [16][tiles][kBlock]
    Element* mapped;                                         // E_t: [9][batch pixels][padded]
    Element* mapped_packed;                                  // [9][batch groups][padded][kPair]
  };

  explicit BackwardLayout(const Params& params) : p(params), winograd(winograd_suits(params)) {
    taps = p.kernel * p.kernel;
    groups = static_cast<int>(ceil_divide(p.channels, kPair));
    padded = round_up(p.channels, V::size);
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.source = &p.sources[i];
      s.padded = round_up(s.source->channels, V::size);
      s.first = inputs;
      s.blocks = static_cast<int>(ceil_divide(s.source->channels, kBlock<Real>));
      s.panel_size = static_cast<int64_t>(winograd ? kWinogradPlanes : taps) * groups * kBlock<Real> * kPair;
      s.narrow = s.source->upsample == DIPENGINE_UPSAMPLE_NONE && p.stride == 1 && p.kernel > 1 &&
                 p.kernel * s.source->channels <= kBlock<Real>;
      s.swapped = p.channels < V::size && s.source->channels > p.channels;
      s.tap_size = s.swapped ? p.channels * s.padded : s.source->channels * padded;
      inputs += s.source->channels;
      if (s.source->upsample != DIPENGINE_UPSAMPLE_NONE) up = &s;
    }
    grid_height = up != nullptr ? up->source->height : p.height;
    grid_width = up != nullptr ? up->source->width : p.width;
    const int64_t most_chunks = least(kMostChunks, most(2, grid_height * grid_width / kChunkPixels));
    chunk_rows = ceil_divide(grid_height, most_chunks);
    if (winograd) chunk_rows = round_up(chunk_rows, 2);
    chunks = ceil_divide(grid_height, chunk_rows);
    columns = ceil_divide(grid_width, ceil_divide(grid_width, kColumns));
    // What falls on reflected columns is folded back within a block, so the last one must be wide enough to hold it.
    while (grid_width % columns != 0 && grid_width % columns <= 2 * kMargin) ++columns;
    if (winograd) columns = round_up(columns, 2);
    batch_rows = least(least(kMostBatchRows, chunk_rows), most(1, kColumns / columns));
    if (winograd) batch_rows = round_up(batch_rows, 2);
    order_taps();
    carve(p.workspace);
  }

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

  int64_t out_columns() const { return up != nullptr ? 2 * columns : columns; }  // of d_raw in a block
  int64_t out_rows() const { return up != nullptr ? 2 * batch_rows : batch_rows; }
  int64_t d_columns() const { return out_columns() + 2 * kMargin; }
  // A window of rows for one row of data gradient, and a batch that is packed at once.
  int64_t d_capacity() const { return up == nullptr ? p.kernel + 1 : up->source->upsample == DIPENGINE_UPSAMPLE_NEAREST ? 5 : 8; }
  int64_t x_columns() const { return (out_columns() - 1) * p.stride + p.kernel; }
  int64_t x_capacity() const { return (out_rows() - 1) * p.stride + p.kernel; }
  int64_t column_groups() const { return ceil_divide(out_columns(), kPair); }
  int64_t batch_pixels() const { return round_up(batch_rows * columns, kPair); }

  void carve(void* workspace) {
    Carver carver(workspace);
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.prologue.carve(carver, s.padded);
      s.centre = carver.take<Real>(s.padded);
      s.panels = s.wants_data() ? carver.take<Element>(s.panel_size * s.blocks) : nullptr;
      s.d_weight = p.d_weight != nullptr ? carver.take<Real>(chunks * taps * s.tap_size) : nullptr;
      s.sum = carver.take<double>(chunks * s.padded);
      s.product = carver.take<double>(chunks * s.padded);
    }
    transformed = carver.take<Real>(winograd && sources[0].wants_data() ? kWinogradPlanes * inputs * p.channels : 0);
    map.carve(carver, padded);
    bias_sum = carver.take<double>(chunks * padded);
    zeros = carver.take<Element>(d_columns() * padded);
    if (up != nullptr) {
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
    s.d_packed = carver.take<Element>(out_rows() * column_groups() * padded * kPair);
    int64_t widest = up != nullptr ? batch_pixels() : 1;
    for (int i = 0; i < p.sources_count; ++i) {
      const int64_t channels = sources[i].padded;
      if (&sources[i] == up) {
        s.x_rows[i] = carver.take<Element>(batch_pixels() * channels);
        s.x_packed[i] = carver.take<Element>(batch_pixels() * channels);
      } else {
        s.x_rows[i] = carver.take<Element>(x_columns() * channels);
        s.x_packed[i] = carver.take<Element>(x_capacity() * p.kernel * column_groups() * channels * kPair);
        widest = most(widest, out_columns() * p.stride + p.stride + 2 * p.pad + p.kernel);
      }
    }
    s.sums = carver.take<Real>((winograd ? 2 : 1) * widest * kBlock<Real>);
    s.tiles = carver.take<Element>(winograd ? kWinogradPlanes * (columns / 2) * padded : 0);
    s.products = carver.take<Real>(winograd ? kWinogradPlanes * (columns / 2) * kBlock<Real> : 0);
    s.narrow = carver.take<Real>((widest + p.kernel) * kBlock<Real>);
    if (up != nullptr) {
      s.vertical = carver.take<Real>(d_columns() * kBlock<Real>);
      s.mapped = carver.take<Element>(9 * batch_pixels() * padded);
      s.mapped_packed = carver.take<Element>(9 * batch_pixels() * padded);
    }
    return s;
  }

  Scratch scratch_of(int slot) const {
    Carver carver(scratch + scratch_bytes * static_cast<size_t>(slot));
    return carve_scratch(carver);
  }

  int vectors_of(const Prepared& s, int block) const {
    return s.source->channels - static_cast<int64_t>(block) * kBlock<Real> > V::size ? 2 : 1;
  }

  // Row r of d_raw at output column `first` - kMargin on; [d_columns][padded].
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

  void store_gradient(const Prepared& s, int64_t chunk, const Real* du, int64_t y, int64_t x, int64_t pixels, int block) const {
    const Source& source = *s.source;
    const Stored* from = static_cast<const Stored*>(source.x.data) + y * source.x.row_stride + x * source.x.pixel_stride;
    Stored* to = static_cast<Stored*>(source.d_x.data) + y * source.d_x.row_stride + x * source.d_x.pixel_stride;
    const bool summed = source.sum != nullptr;
    for (int v = 0; v < vectors_of(s, block); ++v) {
      const int64_t c = static_cast<int64_t>(block) * kBlock<Real> + v * V::size;
      store_gradient_lanes(source, s.prologue, s.centre, du + v * V::size, kBlock<Real>, pixels, c,
                           static_cast<int>(least(V::size, source.channels - c)), from, to,
                           summed ? s.sum + chunk * s.padded : nullptr, summed ? s.product + chunk * s.padded : nullptr);
    }
  }

  // One tap's weight gradient over packed pixels: x [groups][channels], d [groups][padded].
  void add_weight(const Prepared& s, int64_t chunk, int tap, const Segments<Element>& x, const Segments<Element>& d, int pixel_groups) const {
    Real* to = s.d_weight + (chunk * taps + tap) * s.tap_size;
    const int64_t x_stride = s.padded * kPair, d_stride = padded * kPair;
    const int channels = static_cast<int>(s.source->channels), outputs = static_cast<int>(p.channels);
    if (s.swapped) {
      multiply_outer<Element>(outputs, channels, d, d_stride, x, x_stride, pixel_groups, to, s.padded);
    } else {
      multiply_outer<Element>(channels, outputs, x, x_stride, d, d_stride, pixel_groups, to, padded);
    }
  }
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
