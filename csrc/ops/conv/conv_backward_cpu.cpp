// The convolutions backward on a CPU; see conv.h. Compiled once per instruction set.
//
// A task is a chunk of rows: output rows r (and the source rows they start at), or low-resolution rows where a source is
// upsampled. It goes through its chunk in blocks of columns, forms d_raw once per row in a ring, and from there makes both
// the data gradient (rows times transposed weights) and its share of the weight gradient (pixels packed in pairs), the
// latter summed per chunk and merged in a fixed order. Chunks follow from the shape alone.
//
// Plain source: the data gradient is a sum over taps of shifted rows of d_raw, computed on the padded source; what falls
// on reflected pixels is added where it came from. Upsampled source: see E_t in conv.h.
#include "ops/conv/conv_kernels.h"
#include "ops/conv/conv_math.h"
#include "ops/conv/gradient_rows_cpu.h"
#include "ops/conv/weights_cpu.h"
#include "ops/conv/winograd_cpu.h"
#include "platform/thread_pool.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

using Params = dipengine_conv_params;
using Source = dipengine_conv_source;

constexpr int64_t kColumns = 128;       // of a block, about
constexpr int64_t kChunkPixels = 2048;  // of a chunk, at least, where there are more than two chunks
constexpr int64_t kMostChunks = 8;
constexpr int64_t kMostBatchRows = 16;
constexpr int kMargin = DIPENGINE_CONV_MAX_KERNEL - 1;  // columns of d_raw beside a block

template <typename Stored>
struct Backward {
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

  explicit Backward(const Params& params) : p(params), winograd(winograd_suits(params)) {
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

  void run() {
    int64_t jobs[DIPENGINE_CONV_MAX_SOURCES] = {}, total = 0;
    for (int i = 0; i < p.sources_count; ++i) {
      Prepared& s = sources[i];
      s.prologue.fill(*s.source, s.padded);
      for (int64_t c = 0; c < s.padded; ++c) {
        s.centre[c] = s.source->centre != nullptr && c < s.source->channels ? static_cast<Real>(s.source->centre[c]) : Real(0);
      }
      jobs[i] = s.wants_data() ? s.blocks : 0;
      total += jobs[i];
    }
    map.fill(p, padded);
    const Real* weight = static_cast<const Real*>(p.weight);
    if (winograd && sources[0].wants_data()) {
      run_tasks(p.pool, inputs, [&](int64_t c) {
        winograd_weights(static_cast<const Real*>(p.weight), inputs, p.channels, c, true, transformed);
      });
      weight = transformed;
    }
    memset(zeros, 0, static_cast<size_t>(d_columns() * padded) * sizeof(Element));
    run_tasks(p.pool, total, [&](int64_t task) {
      const int i = task < jobs[0] ? 0 : 1;
      const int block = static_cast<int>(i == 0 ? task : task - jobs[0]);
      const Prepared& s = sources[i];
      if (s.narrow) return pack_narrow(s);
      int plain[kMaxSegments];
      for (int t = 0; t < kMaxSegments; ++t) plain[t] = t;
      pack_transposed<Element, Real>(p.channels, weight, winograd ? kWinogradPlanes : taps, &s == up || winograd ? plain : tap_order, s.first,
                                     s.source->channels, inputs, block, vectors_of(s, block), s.panels + block * s.panel_size);
    });
    if (up != nullptr) {
      fill_map(rows_map, grid_height);
      fill_map(columns_map, grid_width);
    }
    run_tasks_with_scratch(p.pool, chunks, [&](int64_t chunk, int slot) { run_chunk(chunk, slot); });
    finish();
  }

  // [ky][groups of channels out][lane kx * channels + c][kPair]
  void pack_narrow(const Prepared& s) const {
    const int64_t channels = s.source->channels, lanes = narrow_vectors(s) * V::size;
    memset(s.panels, 0, static_cast<size_t>(p.kernel * groups * lanes * kPair) * sizeof(Element));
    for (int t = 0; t < taps; ++t) {
      for (int64_t c = 0; c < channels; ++c) {
        const Real* from = static_cast<const Real*>(p.weight) + (t * inputs + s.first + c) * p.channels;
        Element* to = s.panels + (t / p.kernel * groups * lanes + t % p.kernel * channels + c) * kPair;
        for (int64_t o = 0; o < p.channels; ++o) {
          Element rounded[V::size];
          V::store(rounded, V::set(from[o]));
          to[o / kPair * lanes * kPair + o % kPair] = rounded[0];
        }
      }
    }
  }

  int narrow_vectors(const Prepared& s) const { return p.kernel * s.source->channels > V::size ? 2 : 1; }

  void fill_map(AxisTerms* terms, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      for (int t = 0; t < 3; ++t) terms[i * 3 + t] = up_tap_transposed(i, t, n, up->source->upsample, p.padding);
    }
  }

  void run_chunk(int64_t chunk, int slot) const {
    Scratch area = scratch_of(slot);
    for (int i = 0; i < p.sources_count; ++i) {
      const Prepared& s = sources[i];
      if (s.d_weight != nullptr) {
        memset(s.d_weight + chunk * taps * s.tap_size, 0, static_cast<size_t>(taps * s.tap_size) * sizeof(Real));
      }
      memset(s.sum + chunk * s.padded, 0, static_cast<size_t>(s.padded) * sizeof(double));
      memset(s.product + chunk * s.padded, 0, static_cast<size_t>(s.padded) * sizeof(double));
    }
    const int64_t top = chunk * chunk_rows, bottom = least(top + chunk_rows, grid_height);
    add_bias(chunk, top, bottom);
    for (int64_t begin = 0; begin < grid_width; begin += columns) {
      const int64_t end = least(begin + columns, grid_width);
      for (int64_t& row : area.d_held) row = -(int64_t{1} << 40);
      for (auto& rows : area.x_held) {
        for (int64_t& row : rows) row = -(int64_t{1} << 40);
      }
      for (int64_t row = top; row < bottom; row += batch_rows) {
        const int64_t rows = least(batch_rows, bottom - row);
        if (up != nullptr) {
          run_up(area, chunk, row, rows, begin, end);
        } else {
          run_plain_rows(area, chunk, row, rows, begin, end);
        }
      }
    }
  }

  void add_bias(int64_t chunk, int64_t top, int64_t bottom) const {
    if (p.d_bias == nullptr) return;
    double* sum = bias_sum + chunk * padded;
    memset(sum, 0, static_cast<size_t>(padded) * sizeof(double));
    const int64_t scale = up != nullptr ? 2 : 1;
    for (int64_t r = scale * top; r < scale * bottom; ++r) {
      if (p.gradient_dtype == p.dtype) {
        add_gradient_row<Real, Stored, Stored>(p, map, r, sum);
      } else {
        add_gradient_row<Real, Real, Stored>(p, map, r, sum);
      }
    }
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

  // ---- plain sources ------------------------------------------------------------------------------------------------

  void run_plain_rows(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    for (int i = 0; i < p.sources_count; ++i) {
      if (sources[i].d_weight != nullptr) add_plain_weights(area, i, chunk, row, rows, begin, end);
      if (sources[i].wants_data() && winograd) {
        for (int64_t r = row; r < row + rows; r += 2) add_winograd_rows(area, sources[i], chunk, r, begin, end);
      } else if (sources[i].wants_data()) {
        for (int64_t r = row; r < row + rows; ++r) add_plain_rows(area, sources[i], chunk, r, begin, end);
      }
    }
  }

  // Weight gradient of source i from output rows [row, row + rows) and columns [begin, end).
  void add_plain_weights(Scratch& area, int i, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    const Prepared& s = sources[i];
    const int64_t width = end - begin, pixel_groups = ceil_divide(width, kPair);
    const int64_t d_size = column_groups() * padded * kPair, x_size = column_groups() * s.padded * kPair;
    Segments<Element> d, x;
    d.count = x.count = static_cast<int>(rows);
    for (int64_t r = 0; r < rows; ++r) {
      d.start[r] = pack_pixels(d_row(area, row + r, begin) + kMargin * padded, width, padded, padded, area.d_packed + r * d_size);
      if (kPair == 1) {  // the ring may move on: keep a copy
        memcpy(area.d_packed + r * d_size, d.start[r], static_cast<size_t>(width * padded) * sizeof(Element));
        d.start[r] = area.d_packed + r * d_size;
      }
    }
    const int64_t from = begin * p.stride - p.pad;
    for (int64_t y = row * p.stride - p.pad; y < (row + rows - 1) * p.stride - p.pad + p.kernel; ++y) {
      const int64_t place = x_place(y);
      if (area.x_held[i][place] == y) continue;
      area.x_held[i][place] = y;
      load_row<Real, Stored>(*s.source, s.prologue, p.padding, y, from, from + (width - 1) * p.stride + p.kernel, area.x_rows[i]);
      for (int kx = 0; kx < p.kernel; ++kx) {
        Element* to = area.x_packed[i] + (place * p.kernel + kx) * x_size;
        const Element* packed = pack_pixels(area.x_rows[i] + kx * s.padded, width, p.stride * s.padded, s.padded, to);
        if (packed != to) memcpy(to, packed, static_cast<size_t>(width * s.padded) * sizeof(Element));
      }
    }
    for (int ky = 0; ky < p.kernel; ++ky) {
      for (int kx = 0; kx < p.kernel; ++kx) {
        for (int64_t r = 0; r < rows; ++r) {
          x.start[r] = area.x_packed[i] + (x_place((row + r) * p.stride - p.pad + ky) * p.kernel + kx) * x_size;
        }
        add_weight(s, chunk, ky * p.kernel + kx, x, d, static_cast<int>(pixel_groups));
      }
    }
  }

  // Data gradient of source rows r and r + 1, columns [begin, end).
  void add_winograd_rows(Scratch& area, const Prepared& s, int64_t chunk, int64_t r, int64_t begin, int64_t end) const {
    const Element* rows[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t y = r - 1 + i;
      rows[i] = (y < 0 || y >= p.height ? zeros : d_row(area, y, begin)) + (kMargin - begin) * padded;
    }
    auto load = [&](int row, int64_t u, int64_t c) { return V::load(rows[row] + u * padded + c); };
    const bool reflected = p.padding == DIPENGINE_PADDING_REFLECTION;
    const int64_t tiles = (end - begin) / 2, plane = tiles * padded;
    winograd_input<Real>(load, begin, tiles, {reflected && r == 0, reflected && r + 2 == p.height},
                         {reflected && begin == 0, reflected && end == p.width}, padded, area.tiles, plane);
    for (int block = 0; block < s.blocks; ++block) {
      Real* second = area.sums + (end - begin) * kBlock<Real>;
      winograd_rows<Element>(area.tiles, plane, tiles, padded, groups, s.panels + block * s.panel_size, vectors_of(s, block),
                             area.products, area.sums, second);
      store_gradient(s, chunk, area.sums, r, begin, end - begin, block);
      store_gradient(s, chunk, second, r + 1, begin, end - begin, block);
    }
  }

  int64_t x_place(int64_t y) const { return (y + 2 * x_capacity()) % x_capacity(); }

  // Data gradient of the source rows that belong to output row r, columns of [begin, end).
  void add_plain_rows(Scratch& area, const Prepared& s, int64_t chunk, int64_t r, int64_t begin, int64_t end) const {
    const Source& source = *s.source;
    // The borders belong to the blocks and rows next to them; so does what stride leaves over at the far side.
    const int64_t step = up != nullptr ? 1 : p.stride;
    const int64_t bottom = r + 1 == p.height ? source.height : least(source.height, (r + 1) * step);
    const int64_t left = begin * step, right = end == p.width ? source.width : end * step;
    const int64_t u_begin = begin == 0 ? 0 : left + p.pad;
    const int64_t u_end = end == p.width ? source.width + 2 * p.pad : right + p.pad;
    for (int64_t y = r * step; y < bottom; ++y) {
      for (int block = 0; block < s.blocks; ++block) {
        add_padded_row(area, s, y + p.pad, begin, u_begin, u_end, block, false);
        for (int64_t i = 0; i < p.pad && p.padding == DIPENGINE_PADDING_REFLECTION; ++i) {
          for (const int64_t iy : {i, source.height + p.pad + i}) {  // border rows that show row y
            if (padded_index(iy - p.pad, source.height, p.padding) == y) {
              add_padded_row(area, s, iy, begin, u_begin, u_end, block, true);
            }
          }
        }
        if (p.padding == DIPENGINE_PADDING_REFLECTION) fold_columns(source, area.sums, u_begin, u_end);
        store_gradient(s, chunk, area.sums + (left + p.pad - u_begin) * kBlock<Real>, y, left, right - left, block);
      }
    }
  }

  // sums[u - u_begin] (+)= the data gradient of padded row iy.
  void add_padded_row(Scratch& area, const Prepared& s, int64_t iy, int64_t begin, int64_t u_begin, int64_t u_end, int block,
                      bool accumulate) const {
    if (s.narrow) return add_narrow_row(area, s, iy, begin, u_begin, u_end, accumulate);
    const int vectors = vectors_of(s, block);
    const int64_t tap_elements = static_cast<int64_t>(groups) * vectors * V::size * kPair;
    const int phase_y = static_cast<int>(iy % p.stride);
    const Element* panel = s.panels + block * s.panel_size;
    for (int a = 0; a < p.stride; ++a) {
      for (int b = 0; b < p.stride; ++b) {
        const int across = (p.kernel - b + p.stride - 1) / p.stride, down = (p.kernel - a + p.stride - 1) / p.stride;
        if (a != phase_y) {
          panel += across * down * tap_elements;
          continue;
        }
        const int64_t u = u_begin + ((b - u_begin) % p.stride + p.stride) % p.stride;  // the first of this phase
        Segments<Element> segments;
        segments.count = 0;
        for (int ky = a; ky < p.kernel; ky += p.stride) {
          const int64_t r = (iy - ky) / p.stride;
          const Element* row = iy < ky || r >= p.height ? zeros : d_row(area, r, begin);
          for (int kx = b; kx < p.kernel; kx += p.stride) {
            // Exact: u and kx are of one phase.
            const int64_t column = (u - kx) / p.stride - begin + kMargin;
            segments.start[segments.count++] = row + column * padded;
          }
        }
        if (u < u_end) {
          multiply<Element>(ceil_divide(u_end - u, p.stride), segments, padded, groups, panel, vectors,
                            area.sums + (u - u_begin) * kBlock<Real>, p.stride * kBlock<Real>, accumulate);
        }
        panel += across * down * tap_elements;
      }
    }
  }

  // The same for few channels: first all taps of a kernel row at output column q, in lanes side by side, then
  // sums[u] = sum over kx of what lies at q = u - kx.
  void add_narrow_row(Scratch& area, const Prepared& s, int64_t iy, int64_t begin, int64_t u_begin, int64_t u_end, bool accumulate) const {
    const int64_t first = u_begin - p.kernel + 1, channels = s.source->channels;
    Segments<Element> segments;
    segments.count = p.kernel;
    for (int ky = 0; ky < p.kernel; ++ky) {
      const Element* row = iy < ky || iy - ky >= p.height ? zeros : d_row(area, iy - ky, begin);
      segments.start[ky] = row + (first - begin + kMargin) * padded;
    }
    multiply<Element>(u_end - first, segments, padded, groups, s.panels, narrow_vectors(s), area.narrow, kBlock<Real>, false);
    for (int64_t u = u_begin; u < u_end; ++u) {
      Real* to = area.sums + (u - u_begin) * kBlock<Real>;
      for (int64_t c = 0; c < channels; ++c) {
        Real sum = accumulate ? to[c] : Real(0);
        for (int kx = 0; kx < p.kernel; ++kx) sum += area.narrow[(u - kx - first) * kBlock<Real> + kx * channels + c];
        to[c] = sum;
      }
    }
  }

  // Adds what fell on reflected columns to those that they show.
  void fold_columns(const Source& source, Real* sums, int64_t u_begin, int64_t u_end) const {
    auto fold = [&](int64_t u) {
      const int64_t home = padded_index(u - p.pad, source.width, p.padding) + p.pad;
      Real *to = sums + (home - u_begin) * kBlock<Real>, *from = sums + (u - u_begin) * kBlock<Real>;
      for (int c = 0; c < kBlock<Real>; c += V::size) V::store(to + c, V::add(V::load(to + c), V::load(from + c)));
    };
    for (int64_t u = u_begin; u < p.pad; ++u) fold(u);
    for (int64_t u = source.width + p.pad; u < u_end; ++u) fold(u);
  }

  // ---- an upsampled source ------------------------------------------------------------------------------------------

  void run_up(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    const int64_t width = end - begin, pixels = rows * width, plane = batch_pixels() * padded;
    for (int64_t r = 0; r < rows; ++r) map_gradient(area, row + r, begin, end, area.mapped + r * width * padded, plane);
    Segments<Element> segments;
    segments.count = 9;
    for (int t = 0; t < 9; ++t) segments.start[t] = area.mapped + t * plane;
    if (up->wants_data()) {
      for (int block = 0; block < up->blocks; ++block) {
        multiply<Element>(pixels, segments, padded, groups, up->panels + block * up->panel_size, vectors_of(*up, block), area.sums,
                          kBlock<Real>, false);
        for (int64_t r = 0; r < rows; ++r) {
          store_gradient(*up, chunk, area.sums + r * width * kBlock<Real>, row + r, begin, width, block);
        }
      }
    }
    if (up->d_weight != nullptr) {
      const int i = static_cast<int>(up - sources);
      for (int64_t r = 0; r < rows; ++r) {
        load_row<Real, Stored>(*up->source, up->prologue, p.padding, row + r, begin, end, area.x_rows[i] + r * width * up->padded);
      }
      Segments<Element> x, d;
      x.count = d.count = 1;
      x.start[0] = pack_pixels(area.x_rows[i], pixels, up->padded, up->padded, area.x_packed[i]);
      for (int t = 0; t < 9; ++t) {
        d.start[0] = pack_pixels(area.mapped + t * plane, pixels, padded, padded, area.mapped_packed + t * plane);
        add_weight(*up, chunk, t, x, d, static_cast<int>(ceil_divide(pixels, kPair)));
      }
    }
    if (p.sources_count > 1) {
      const int other = up == &sources[0] ? 1 : 0;
      for (int64_t r = 2 * row; r < 2 * (row + rows); ++r) {
        if (sources[other].d_weight != nullptr) add_plain_weights(area, other, chunk, r, 1, 2 * begin, 2 * end);
        if (sources[other].wants_data()) add_plain_rows(area, sources[other], chunk, r, 2 * begin, 2 * end);
      }
    }
  }

  // E_t of low-resolution row i, columns [begin, end): to [9 planes][columns][padded].
  void map_gradient(Scratch& area, int64_t i, int64_t begin, int64_t end, Element* to, int64_t plane) const {
    const int64_t first = 2 * begin - kMargin, count = 2 * (end - begin) + 2 * kMargin;
    for (int ky = 0; ky < 3; ++ky) {
      const AxisTerms& terms = rows_map[i * 3 + ky];
      const Element* rows[AxisTerms::kMost];
      for (int e = 0; e < terms.count; ++e) rows[e] = d_row(area, terms.index[e], 2 * begin);
      for (int64_t c = 0; c < padded; c += V::size) {
        sum_gradient_rows(terms, rows, c, count, area.vertical);
        Element* planes[3] = {to + (ky * 3) * plane + c, to + (ky * 3 + 1) * plane + c, to + (ky * 3 + 2) * plane + c};
        map_gradient_columns(area.vertical, first, begin, end, planes);
      }
    }
  }

  void sum_gradient_rows(const AxisTerms& terms, const Element* const* rows, int64_t c, int64_t count, Real* to) const {
    if (terms.count == 2 && terms.weight[0] == 1 && terms.weight[1] == 1) {
      for (int64_t q = 0; q < count; ++q) {
        V::store(to + q * V::size, V::add(V::load(rows[0] + q * padded + c), V::load(rows[1] + q * padded + c)));
      }
      return;
    }
    if (terms.count == 4) {
      typename V::Register weight[4];
      for (int e = 0; e < 4; ++e) weight[e] = V::set(static_cast<Real>(terms.weight[e]));
      for (int64_t q = 0; q < count; ++q) {
        typename V::Register sum = V::mul(weight[0], V::load(rows[0] + q * padded + c));
        for (int e = 1; e < 4; ++e) sum = V::fma(weight[e], V::load(rows[e] + q * padded + c), sum);
        V::store(to + q * V::size, sum);
      }
      return;
    }
    for (int64_t q = 0; q < count; ++q) {
      typename V::Register sum = V::zero();
      for (int e = 0; e < terms.count; ++e) {
        sum = V::fma(V::set(static_cast<Real>(terms.weight[e])), V::load(rows[e] + q * padded + c), sum);
      }
      V::store(to + q * V::size, sum);
    }
  }

  // One register of channels of a row: from [columns from output column `first` on] to E_t of columns [begin, end).
  void map_gradient_columns(const Real* from, int64_t first, int64_t begin, int64_t end, Element* const* planes) const {
    const int64_t border = up->source->upsample == DIPENGINE_UPSAMPLE_NEAREST ? 1 : 2;
    const int64_t inner_begin = least(most(begin, border), end), inner_end = most(inner_begin, least(end, grid_width - border));
    auto general = [&](int64_t from_column, int64_t until) {
      for (int64_t j = from_column; j < until; ++j) {
        for (int t = 0; t < 3; ++t) {
          const AxisTerms& terms = columns_map[j * 3 + t];
          typename V::Register sum = V::zero();
          for (int e = 0; e < terms.count; ++e) {
            sum = V::fma(V::set(static_cast<Real>(terms.weight[e])), V::load(from + (terms.index[e] - first) * V::size), sum);
          }
          V::store(planes[t] + (j - begin) * padded, sum);
        }
      }
    };
    general(begin, inner_begin);
    const Real* at = from + (2 * inner_begin - first) * V::size;
    auto sample = [&](int64_t offset) { return V::load(at + offset * V::size); };
    if (up->source->upsample == DIPENGINE_UPSAMPLE_NEAREST) {
      typename V::Register before = sample(-1), here = sample(0);
      for (int64_t j = inner_begin; j < inner_end; ++j, at += 2 * V::size) {
        const typename V::Register next = sample(1), after = sample(2);
        V::store(planes[0] + (j - begin) * padded, V::add(next, after));
        V::store(planes[1] + (j - begin) * padded, V::add(here, next));
        V::store(planes[2] + (j - begin) * padded, V::add(before, here));
        before = next;
        here = after;
      }
    } else {
      const typename V::Register quarter = V::set(Real(0.25)), most_ = V::set(Real(0.75));
      for (int64_t j = inner_begin; j < inner_end; ++j, at += 2 * V::size) {
        const typename V::Register s0 = sample(-2), s1 = sample(-1), s2 = sample(0), s3 = sample(1), s4 = sample(2), s5 = sample(3);
        V::store(planes[0] + (j - begin) * padded, V::fma(most_, V::add(s3, s4), V::mul(quarter, V::add(s2, s5))));
        V::store(planes[1] + (j - begin) * padded, V::fma(most_, V::add(s2, s3), V::mul(quarter, V::add(s1, s4))));
        V::store(planes[2] + (j - begin) * padded, V::fma(most_, V::add(s1, s2), V::mul(quarter, V::add(s0, s3))));
      }
    }
    general(inner_end, end);
  }

  // ---- the chunks' sums ---------------------------------------------------------------------------------------------

  void finish() const {
    if (p.d_weight != nullptr) {
      run_tasks(p.pool, static_cast<int64_t>(p.sources_count) * taps, [&](int64_t task) {
        merge_weights(sources[task / taps], static_cast<int>(task % taps));
      });
    }
    for (int64_t c = 0; p.d_bias != nullptr && c < p.channels; ++c) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += bias_sum[chunk * padded + c];
      static_cast<Real*>(p.d_bias)[c] = static_cast<Real>(sum);
    }
    for (int i = 0; i < p.sources_count; ++i) {
      const Prepared& s = sources[i];
      if (s.source->sum == nullptr || !s.wants_data()) continue;
      for (int64_t c = 0; c < s.source->channels; ++c) {
        double sum = 0, product = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          sum += s.sum[chunk * s.padded + c];
          product += s.product[chunk * s.padded + c];
        }
        s.source->sum[c] = sum;
        s.source->product[c] = product;
      }
    }
  }

  void merge_weights(const Prepared& s, int tap) const {
    for (int64_t c = 0; c < s.source->channels; ++c) {
      Real* to = static_cast<Real*>(p.d_weight) + (tap * inputs + s.first + c) * p.channels;
      const Real* from = s.d_weight + tap * s.tap_size + (s.swapped ? c : c * padded);
      const int64_t step = s.swapped ? s.padded : 1;
      for (int64_t o = 0; o < p.channels; ++o) {
        Real sum = from[o * step];
        for (int64_t chunk = 1; chunk < chunks; ++chunk) sum += from[o * step + chunk * taps * s.tap_size];
        to[o] = sum;
      }
    }
  }
};

template <typename Stored>
size_t workspace(const Params& p) {
  Params sized = p;
  sized.workspace = nullptr;
  return Backward<Stored>(sized).bytes;
}

template <typename Stored>
void run(const Params& p) {
  Backward<Stored>(p).run();
}

template <typename Stored>
constexpr ConvKernels kernels() {
  return {workspace<Stored>, run<Stored>};
}

}  // namespace

extern const ConvTable conv_backward_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const ConvTable conv_backward_kernels = {kernels<float>(), kernels<uint16_t>(), kernels<double>()};
#else
const ConvTable conv_backward_kernels = {kernels<float>(), kernels<uint16_t>(), {nullptr, nullptr}};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
