// The convolutions forward on a CPU; see conv.h. Compiled once per instruction set.
//
// Tasks. Without an upsampled source: chunks of output rows; each keeps a ring of normalised input rows and multiplies
// one row of outputs by one block of output channels at a time, from registers to a row buffer to memory.
// With one: the normalised low-resolution input is laid out once; a task is a block of output channels over a chunk of
// rows. Of each low-resolution row it makes the nine products x W_t, maps them along x (3 kernel rows x 2 phases), keeps
// three rows of that, and puts two output rows together from them. Other sources are then added to those rows directly.
#include "ops/conv/conv_kernels.h"
#include "ops/conv/conv_math.h"
#include "ops/conv/upsampled_cpu.h"
#include "ops/conv/weights_cpu.h"
#include "platform/thread_pool.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

using Params = dipengine_conv_params;
using Source = dipengine_conv_source;

constexpr int64_t kChunkPixels = 2048;  // of a chunk of plain rows, about
constexpr int64_t kPlainColumns = 256;  // of a chunk, at most: what is held of a row stays in the second-level cache
constexpr int64_t kWinogradColumns = 128;
constexpr int64_t kUpRows = 64;         // low-resolution rows of a task: two more are computed for its neighbours
constexpr int64_t kUpColumns = 128;     // and columns

// ---- sources --------------------------------------------------------------------------------------------------------

template <typename Element, typename Real>
struct PreparedSource {
  const Source* source;
  Prologue<Real> prologue;
  int64_t padded;      // channels
  int groups;          // of channels, kPair each
  int64_t first;       // input channel of the weights
  Element* panels;     // [blocks][taps][groups][columns][kPair]
  int64_t panel_size;  // elements of a block's panel of kVectors registers
};

template <typename Stored>
struct Forward {
  using Element = typename ElementOf<Stored>::type;
  using Real = typename Mac<Element>::Real;
  using V = Vec<Real>;
  static constexpr int kPair = Mac<Element>::kPair;
  using Prepared = PreparedSource<Element, Real>;

  const Params& p;
  Prepared sources[DIPENGINE_CONV_MAX_SOURCES];
  const Prepared* up = nullptr;  // the upsampled source
  bool paired = false;           // its low-resolution samples are taken two by two
  const bool winograd;
  int blocks;                    // of output channels
  int64_t padded;                // output channels, in whole blocks
  int64_t inputs = 0;
  // Chunks: rows x columns of a grid of output pixels, or of low-resolution ones.
  int64_t grid_height, grid_width, chunk_rows, chunk_columns, row_chunks, column_chunks;
  Real* transformed;             // the weights in Winograd's form, [16][in][out]; paired: of the upsampled source, [25][in][out]
  Real* bias;
  double *chunk_mean, *chunk_m2;  // [chunks][padded]
  Element* low;                   // the upsampled source, normalised: [height][width][padded]
  AxisTerms* rows_map;            // [2 height][3]
  AxisTerms* columns_map;         // [2 width][3]
  char* scratch;
  size_t scratch_bytes = 0;  // of a thread
  size_t bytes = 0;

  struct Scratch {
    Real* sums;                                  // [columns][kBlock]; two rows for Winograd, four if paired
    Element* tiles;                              // [16][tiles][padded]
    Element* ring[DIPENGINE_CONV_MAX_SOURCES];   // [ring rows][padded columns][padded]
    int64_t held[DIPENGINE_CONV_MAX_SOURCES][DIPENGINE_CONV_MAX_KERNEL];
    Real* products;                              // [3][low columns + 2][kBlock]
    Real* mapped;                                // [3 rows][3][2 low columns][kBlock]
  };

  explicit Forward(const Params& params) : p(params), winograd(winograd_suits(params)) {
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
    const int64_t most_columns = up != nullptr ? kUpColumns : winograd ? kWinogradColumns : kPlainColumns;
    chunk_columns = ceil_divide(grid_width, ceil_divide(grid_width, most_columns));
    chunk_rows = up != nullptr && !paired ? least(kUpRows, grid_height)
                               : most(1, least(ceil_divide(grid_height, 16), ceil_divide(kChunkPixels, chunk_columns)));
    if (winograd || paired) {
      chunk_rows = round_up(chunk_rows, 2);
      chunk_columns = round_up(chunk_columns, 2);
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
    transformed = carver.take<Real>(winograd ? kWinogradPlanes * inputs * p.channels : paired ? kPairedPlanes * up->source->channels * p.channels : 0);
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

  int weight_planes(const Prepared& s) const {
    return winograd ? kWinogradPlanes : paired && &s == up ? kPairedPlanes : p.kernel * p.kernel;
  }
  int64_t ring_rows() const { return paired ? 4 + p.kernel - 1 : p.kernel; }  // of all the output rows made at once
  int64_t out_columns() const { return up != nullptr ? 2 * chunk_columns : chunk_columns; }
  int64_t ring_columns() const { return (out_columns() - 1) * p.stride + p.kernel; }

  Scratch carve_scratch(Carver& carver) const {
    Scratch s;
    s.sums = carver.take<Real>((winograd ? 2 : paired ? 4 : 1) * out_columns() * kBlock<Real>);
    if (winograd || paired) {
      s.tiles = carver.take<Element>(kWinogradPlanes * (chunk_columns / 2) * (paired ? up : &sources[0])->padded);
      s.products = carver.take<Real>((paired ? kPairedPlanes : kWinogradPlanes) * (chunk_columns / 2) * kBlock<Real>);
    }
    if (winograd) return s;
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

  void run() {
    for (int i = 0; i < p.sources_count; ++i) sources[i].prologue.fill(*sources[i].source, sources[i].padded);
    for (int64_t c = 0; c < padded; ++c) {
      bias[c] = p.bias != nullptr && c < p.channels ? static_cast<const Real*>(p.bias)[c] : Real(0);
    }
    const Real* weight = static_cast<const Real*>(p.weight);
    if (winograd) {
      run_tasks(p.pool, inputs, [&](int64_t c) { winograd_weights(weight, inputs, p.channels, c, false, transformed); });
      weight = transformed;
    }
    if (paired) {
      run_tasks(p.pool, up->source->channels, [&](int64_t c) {
        paired_weights(static_cast<const Real*>(p.weight), inputs, up->first, up->source->channels, p.channels, c, transformed);
      });
    }
    const int64_t layouts = up != nullptr && !paired ? grid_height : 0;
    run_tasks(p.pool, static_cast<int64_t>(blocks) * p.sources_count + layouts, [&](int64_t task) {
      if (task < static_cast<int64_t>(blocks) * p.sources_count) {
        const int block = static_cast<int>(task % blocks);
        Prepared& s = sources[task / blocks];
        Element* panel = s.panels + block * s.panel_size;
        if (paired && &s == up) {
          pack_weights<Element, Real>(p.channels, transformed, kPairedPlanes, 0, s.source->channels, s.source->channels, block,
                                      vectors_of(block), panel);
        } else {
          pack_weights<Element, Real>(p.channels, weight, weight_planes(s), s.first, s.source->channels, inputs, block,
                                      vectors_of(block), panel);
        }
        return;
      }
      const int64_t y = task - static_cast<int64_t>(blocks) * p.sources_count;
      load_row<Real, Stored>(*up->source, up->prologue, p.padding, y, 0, grid_width, low + y * grid_width * up->padded);
    });
    if (up != nullptr && !paired) {
      fill_map(rows_map, grid_height);
      fill_map(columns_map, grid_width);
      run_tasks_with_scratch(p.pool, row_chunks * column_chunks * blocks,
                             [&](int64_t task, int slot) { run_up(task / blocks, static_cast<int>(task % blocks), slot); });
    } else {
      run_tasks_with_scratch(p.pool, row_chunks * column_chunks, [&](int64_t task, int slot) {
        paired ? run_paired(task, slot) : winograd ? run_winograd(task, slot) : run_plain(task, slot);
      });
    }
    if (p.mean != nullptr) finish_moments();
  }

  void fill_map(AxisTerms* map, int64_t n) const {
    for (int64_t o = 0; o < 2 * n; ++o) {
      for (int t = 0; t < 3; ++t) map[o * 3 + t] = up_tap(o, t, n, up->source->upsample, p.padding);
    }
  }

  // ---- plain sources ------------------------------------------------------------------------------------------------

  // Adds source `i` to sums of output row r, columns [begin, begin + columns), one block.
  void add_plain(int i, Scratch& scratch_area, int64_t r, int64_t begin, int64_t columns, int block, bool accumulate, Real* sums) const {
    const Prepared& s = sources[i];
    const int64_t row_elements = ring_columns() * s.padded, from = begin * p.stride - p.pad;
    Segments<Element> segments;
    segments.count = p.kernel * p.kernel;
    for (int ky = 0; ky < p.kernel; ++ky) {
      const int64_t y = r * p.stride - p.pad + ky, place = (y + p.kernel * 2) % ring_rows();
      Element* row = scratch_area.ring[i] + place * row_elements;
      if (scratch_area.held[i][place] != y) {
        scratch_area.held[i][place] = y;
        load_row<Real, Stored>(*s.source, s.prologue, p.padding, y, from, from + (columns - 1) * p.stride + p.kernel, row);
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

  void run_plain(int64_t chunk, int slot) const {
    Scratch area = scratch_of(slot);
    clear_moments(chunk, 0, padded);
    const Piece piece = piece_of(chunk);
    const int64_t columns = piece.right - piece.left;
    for (int64_t r = piece.top; r < piece.bottom; ++r) {
      for (int block = 0; block < blocks; ++block) {
        for (int i = 0; i < p.sources_count; ++i) add_plain(i, area, r, piece.left, columns, block, i > 0, area.sums);
        store_row(area.sums, r, piece.left, columns, block, (r - piece.top) * columns, chunk);
      }
    }
  }

  // ---- Winograd -----------------------------------------------------------------------------------------------------

  void run_winograd(int64_t chunk, int slot) const {
    Scratch area = scratch_of(slot);
    const Prepared& s = sources[0];
    const Piece piece = piece_of(chunk);
    const int64_t columns = piece.right - piece.left, tiles = columns / 2, plane = tiles * s.padded;
    Real* second = area.sums + columns * kBlock<Real>;
    clear_moments(chunk, 0, padded);
    for (int64_t r = piece.top; r < piece.bottom; r += 2) {
      transform_rows(s, r, piece.left, tiles, area.tiles, plane);
      const int64_t before = (r - piece.top) * columns;
      for (int block = 0; block < blocks; ++block) {
        winograd_rows<Element>(area.tiles, plane, tiles, s.padded, s.groups, s.panels + block * s.panel_size, vectors_of(block),
                               area.products, area.sums, second);
        store_row(area.sums, r, piece.left, columns, block, before, chunk);
        store_row(second, r + 1, piece.left, columns, block, before + columns, chunk);
      }
    }
  }

  // V of the tiles of source rows r and r + 1, from column `first` on.
  void transform_rows(const Prepared& s, int64_t r, int64_t first, int64_t tiles, Element* to, int64_t plane) const {
    with_samples<Real, Stored>(*s.source, s.prologue, p.padding, r, [&](const auto& samples) {
      winograd_input<Real>(samples, first, tiles, {false, false}, {false, false}, s.padded, to, plane);
    });
  }

  // ---- an upsampled source ------------------------------------------------------------------------------------------

  // sums[o] = sum over terms of weight * from[tap][index - first], whole blocks; `plane` is the distance of taps.
  void combine_columns(const Real* products, int64_t plane, int64_t first, const AxisTerms* terms, Real* to, int vectors) const {
    for (int v = 0; v < vectors; ++v) {
      typename V::Register sum = V::zero();
      for (int t = 0; t < 3; ++t) {
        for (int e = 0; e < terms[t].count; ++e) {
          const Real* from = products + t * plane + (terms[t].index[e] - first) * kBlock<Real> + v * V::size;
          sum = V::fma(V::set(static_cast<Real>(terms[t].weight[e])), V::load(from), sum);
        }
      }
      V::store(to + v * V::size, sum);
    }
  }

  // Nearest, away from the borders: 2j sees taps 0, 1, 2 at j-1, j, j; 2j+1 at j, j, j+1.
  static void combine_nearest(const Real* at, int64_t plane, int64_t count, Real* to, int vectors) {
    for (int v = 0; v < vectors; ++v) {
      const Real* m = at + v * V::size;
      Real* out = to + v * V::size;
      typename V::Register left = V::load(m - kBlock<Real>), right = V::load(m + 2 * plane);
      for (int64_t j = 0; j < count; ++j, m += kBlock<Real>, out += 2 * kBlock<Real>) {
        const typename V::Register middle = V::load(m + plane), here = V::load(m), next = V::load(m + 2 * plane + kBlock<Real>);
        V::store(out, V::add(V::add(left, right), middle));
        V::store(out + kBlock<Real>, V::add(V::add(here, next), middle));
        left = here;
        right = next;
      }
    }
  }

  // Bilinear, away from the borders.
  static void combine_bilinear(const Real* at, int64_t plane, int64_t count, Real* to, int vectors) {
    const typename V::Register quarter = V::set(Real(0.25)), most_ = V::set(Real(0.75));
    for (int v = 0; v < vectors; ++v) {
      const Real* m = at + v * V::size;
      Real* out = to + v * V::size;
      constexpr int kStep = kBlock<Real>;
      typename V::Register a0 = V::load(m - kStep), b0 = V::load(m);
      typename V::Register a1 = V::load(m + plane - kStep), b1 = V::load(m + plane), b2 = V::load(m + 2 * plane);
      for (int64_t j = 0; j < count; ++j, m += kStep, out += 2 * kStep) {
        const typename V::Register c0 = V::load(m + kStep), c1 = V::load(m + plane + kStep), c2 = V::load(m + 2 * plane + kStep);
        // 2j: U0[2j-1] + U1[2j] + U2[2j+1];  2j+1: U0[2j] + U1[2j+1] + U2[2j+2]
        const typename V::Register even = V::fma(most_, V::add(V::add(a0, b1), b2), V::mul(quarter, V::add(V::add(b0, a1), c2)));
        const typename V::Register odd = V::fma(most_, V::add(V::add(b0, b1), c2), V::mul(quarter, V::add(V::add(a0, c1), b2)));
        V::store(out, even);
        V::store(out + kStep, odd);
        a0 = b0, b0 = c0, a1 = b1, b1 = c1, b2 = c2;
      }
    }
  }

  // The three products of kernel row ky on low-resolution row i, mapped along x: to [2 columns][kBlock].
  void map_row(int64_t i, int ky, int64_t begin, int64_t end, int block, Real* products, Real* to) const {
    const int64_t first = most(0, begin - 1), last = least(grid_width, end + 1), plane = (chunk_columns + 2) * kBlock<Real>;
    const int vectors = vectors_of(block);
    const int64_t tap_size = static_cast<int64_t>(up->groups) * vectors * V::size * kPair;
    Segments<Element> segments;
    segments.count = 1;
    segments.start[0] = low + (i * grid_width + first) * up->padded;
    for (int kx = 0; kx < 3; ++kx) {
      multiply<Element>(last - first, segments, up->padded, up->groups,
                        up->panels + block * up->panel_size + (ky * 3 + kx) * tap_size, vectors, products + kx * plane,
                        kBlock<Real>, false);
    }
    // Two samples of every border take the general way: bilinear outputs reach that far.
    const int64_t inner_begin = most(begin, 1), inner_end = most(inner_begin, least(end, grid_width - 1));
    auto general = [&](int64_t from, int64_t until) {
      for (int64_t o = 2 * from; o < 2 * until; ++o) {
        combine_columns(products, plane, first, columns_map + o * 3, to + (o - 2 * begin) * kBlock<Real>, vectors);
      }
    };
    general(begin, least(inner_begin, end));
    if (inner_end > inner_begin) {
      const Real* at = products + (inner_begin - first) * kBlock<Real>;
      Real* out = to + 2 * (inner_begin - begin) * kBlock<Real>;
      if (up->source->upsample == DIPENGINE_UPSAMPLE_NEAREST) {
        combine_nearest(at, plane, inner_end - inner_begin, out, vectors);
      } else {
        combine_bilinear(at, plane, inner_end - inner_begin, out, vectors);
      }
    }
    general(most(inner_end, begin), end);
  }

  template <int kTerms>
  static void combine_rows(const Real* const* from, const Real* weight, int64_t count, Real* to) {
    for (int64_t i = 0; i < count; i += V::size) {
      typename V::Register sum = V::mul(V::set(weight[0]), V::load(from[0] + i));
      for (int e = 1; e < kTerms; ++e) sum = V::fma(V::set(weight[e]), V::load(from[e] + i), sum);
      V::store(to + i, sum);
    }
  }

  // Output row o from the mapped rows: [2 columns][kBlock].
  void sum_rows(int64_t o, const Real* mapped, int64_t columns, Real* to) const {
    const int64_t plane = 2 * chunk_columns * kBlock<Real>, count = 2 * columns * kBlock<Real>;
    const Real* from[3 * AxisTerms::kMost];
    Real weight[3 * AxisTerms::kMost];
    int terms = 0;
    for (int ky = 0; ky < 3; ++ky) {
      const AxisTerms& t = rows_map[o * 3 + ky];
      for (int e = 0; e < t.count; ++e, ++terms) {
        from[terms] = mapped + (t.index[e] % 3 * 3 + ky) * plane;
        weight[terms] = static_cast<Real>(t.weight[e]);
      }
    }
    switch (terms) {
      case 3: return combine_rows<3>(from, weight, count, to);
      case 6: return combine_rows<6>(from, weight, count, to);
      default: break;
    }
    combine_rows<1>(from, weight, count, to);
    for (int e = 1; e < terms; ++e) {
      const Real* both[2] = {to, from[e]};
      const Real weights[2] = {Real(1), weight[e]};
      combine_rows<2>(both, weights, count, to);
    }
  }

  void run_up(int64_t chunk, int block, int slot) const {
    Scratch area = scratch_of(slot);
    const auto [top, bottom, begin, end] = piece_of(chunk);
    const int64_t columns = end - begin, plane = 2 * chunk_columns * kBlock<Real>;
    clear_moments(chunk, static_cast<int64_t>(block) * kBlock<Real>, kBlock<Real>);
    int64_t before = 0;
    const int64_t last = least(bottom, grid_height - 1);  // one row below the chunk, where there is one
    for (int64_t i = most(0, top - 1); i <= last; ++i) {
      for (int ky = 0; ky < 3; ++ky) map_row(i, ky, begin, end, block, area.products, area.mapped + (i % 3 * 3 + ky) * plane);
      // Rows 2j and 2j + 1 need mapped rows up to j + 1.
      for (int64_t j = i - 1; j <= i; ++j) {
        if (j < top || j >= bottom || (j == i && i + 1 < grid_height)) continue;
        for (int64_t o = 2 * j; o < 2 * j + 2; ++o) {
          sum_rows(o, area.mapped, columns, area.sums);
          for (int s = 0; s < p.sources_count; ++s) {
            if (&sources[s] != up) add_plain(s, area, o, 2 * begin, 2 * columns, block, true, area.sums);
          }
          store_row(area.sums, o, 2 * begin, 2 * columns, block, before, chunk);
          before += 2 * columns;
        }
      }
    }
  }

  // The same from 2x2 low-resolution samples at a time.
  void run_paired(int64_t chunk, int slot) const {
    Scratch area = scratch_of(slot);
    const Piece piece = piece_of(chunk);
    const int64_t columns = piece.right - piece.left, tiles = columns / 2, plane = tiles * up->padded;
    const int64_t row_size = out_columns() * kBlock<Real>;
    clear_moments(chunk, 0, padded);
    for (int64_t r = piece.top; r < piece.bottom; r += 2) {
      transform_rows(*up, r, piece.left, tiles, area.tiles, plane);
      for (int block = 0; block < blocks; ++block) {
        paired_rows<Element>(area.tiles, plane, tiles, up->padded, up->groups, up->panels + block * up->panel_size, vectors_of(block),
                             area.products, area.sums, row_size);
        for (int y = 0; y < 4; ++y) {
          Real* sums = area.sums + y * row_size;
          for (int s = 0; s < p.sources_count; ++s) {
            if (&sources[s] != up) add_plain(s, area, 2 * r + y, 2 * piece.left, 2 * columns, block, true, sums);
          }
          store_row(sums, 2 * r + y, 2 * piece.left, 2 * columns, block, (2 * (r - piece.top) + y) * 2 * columns, chunk);
        }
      }
    }
  }

  // ---- moments ------------------------------------------------------------------------------------------------------

  void finish_moments() const {
    const int64_t scale = up != nullptr ? 4 : 1;
    for (int64_t c = 0; c < p.channels; ++c) {
      double mean = 0, m2 = 0, count = 0;
      for (int64_t chunk = 0; chunk < row_chunks * column_chunks; ++chunk) {
        const int64_t height = least(chunk_rows, grid_height - chunk / column_chunks * chunk_rows);
        const int64_t width = least(chunk_columns, grid_width - chunk % column_chunks * chunk_columns);
        const double pixels = static_cast<double>(height * width * scale);
        merge_moments(count, &mean, &m2, pixels, chunk_mean[chunk * padded + c], chunk_m2[chunk * padded + c]);
        count += pixels;
      }
      p.mean[c] = mean;
      p.variance[c] = m2 / count;
    }
  }
};

template <typename Stored>
size_t workspace(const Params& p) {
  Params sized = p;
  sized.workspace = nullptr;
  return Forward<Stored>(sized).bytes;
}

template <typename Stored>
void run(const Params& p) {
  Forward<Stored>(p).run();
}

template <typename Stored>
constexpr ConvKernels kernels() {
  return {workspace<Stored>, run<Stored>};
}

}  // namespace

extern const ConvTable conv_forward_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const ConvTable conv_forward_kernels = {kernels<float>(), kernels<uint16_t>(), kernels<double>()};
#else
const ConvTable conv_forward_kernels = {kernels<float>(), kernels<uint16_t>(), {nullptr, nullptr}};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
