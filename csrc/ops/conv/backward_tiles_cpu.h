// The convolutions backward where outputs are taken tile by tile: Winograd's forms and stride 2, and what they share with
// paired_gradient_cpu.h. Both gradients take the same transform of d_raw.
#pragma once

#include "ops/conv/backward_layout_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

template <typename Stored>
struct TiledBackward : BackwardLayout<Stored> {
  using Base = BackwardLayout<Stored>;
  using typename Base::Element, typename Base::Real, typename Base::V, typename Base::Prepared, typename Base::Scratch;
  using Base::p, Base::sources, Base::padded, Base::groups, Base::taps, Base::zeros, Base::grid_width, Base::kPair, Base::map,
      Base::vectors_of, Base::d_row, Base::d_columns, Base::store_gradient, Base::out_column;
  using Base::Base;

  // Winograd: tile rows [row, row + rows), tiles [begin, end) of them.
  void run_winograd(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    const Prepared& s = sources[0];
    const int64_t tiles = end - begin;
    TilePlanes<Element, kWinogradPlanes> d(area.d_tiles, area.weights ? area.d_tile_pairs : nullptr, tiles, rows, padded);
    TilePlanes<Element, kWinogradPlanes> x(nullptr, area.x_tiles, tiles, rows, s.padded);
    for (int64_t i = 0; i < rows; ++i) {
      d.begin_row(i);
      transform_gradient(area, 2 * (row + i), begin, end, d);
    }
    for (int block = 0; block < s.blocks && area.data && s.wants_data(); ++block) {
      multiply_planes(kWinogradPlanes, d.rows, d.plane, d.total, groups, s.panels + block * s.panel_size, vectors_of(s, block),
                      area.products);
      for (int64_t i = 0; i < rows; ++i) {
        Real* second = area.sums + 2 * tiles * kBlock<Real>;
        winograd_outputs(area.products + i * d.pitch(tiles) * kBlock<Real>, d.total * kBlock<Real>, tiles, vectors_of(s, block),
                         area.sums, second);
        store_gradient(s, chunk, area.sums, 2 * (row + i), 2 * begin, 2 * tiles, block);
        store_gradient(s, chunk, second, 2 * (row + i) + 1, 2 * begin, 2 * tiles, block);
      }
    }
    for (int64_t i = 0; i < rows && area.weights; ++i) {
      x.begin_row(i);
      with_samples<Real, Stored, 2>(*s.source, s.prologue, p.padding, 2 * (row + i) + 1, 2 * begin, 2 * end, [&](const auto& samples) {
        winograd_samples<Real>(samples, 2 * begin, tiles, s.padded, x);
      });
    }
    for (int k = 0; k < kWinogradPlanes && area.weights; ++k) add_plane_weight(area, s, k, x, k, d, k);
  }

  // V of the data gradient of rows r and r + 1.
  template <typename Planes>
  void transform_gradient(Scratch& area, int64_t r, int64_t begin, int64_t end, Planes& planes) const {
    const bool reflected = p.padding == DIPENGINE_PADDING_REFLECTION;
    winograd_input<Real>(this->template rows_of_d<4>(area, r - 1, 2 * begin), 2 * begin, end - begin,
                         {reflected && r == 0, reflected && r + 2 == p.height},
                         {reflected && begin == 0, reflected && end == grid_width}, padded, planes);
  }

  // The same by 4x4 tiles.
  void run_wide(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    const Prepared& s = sources[0];
    const int64_t tiles = end - begin;
    const WideAxis down{p.height}, across{p.width};
    TilePlanes<Element, kWidePlanes> d(area.d_tiles, nullptr, tiles, rows, padded), x(nullptr, area.x_tiles, tiles, rows, s.padded);
    for (int64_t i = 0; i < rows; ++i) {
      d.begin_row(i);
      transform_wide_gradient(area, down.start(row + i) - 1, begin, end, d);
    }
    for (int block = 0; block < s.blocks && area.data && s.wants_data(); ++block) {
      multiply_planes(kWidePlanes, d.rows, d.plane, d.total, groups, s.panels + block * s.panel_size, vectors_of(s, block),
                      area.products);
      for (int64_t i = 0; i < rows; ++i) {
        add_wide_rows(area, chunk, row + i, begin, end, block, area.products + i * d.pitch(tiles) * kBlock<Real>,
                      d.total * kBlock<Real>);
      }
    }
    for (int64_t i = 0; i < rows && area.weights; ++i) {
      x.begin_row(i);
      with_samples<Real, Stored, 4>(*s.source, s.prologue, p.padding, down.start(row + i) + 1, across.start(begin),
                                    across.start(end - 1) + 4, [&](const auto& samples) {
        wide_samples<Real>(samples, [&](int64_t t) { return across.start(begin + t); }, down.taken(row + i),
                           [&](int64_t t) { return across.taken(begin + t); }, tiles, s.padded, x);
      });
    }
    for (int k = 0; k < kWidePlanes && area.weights; ++k) add_plane_weight(area, s, k, x, k, d, k);
  }

  // V of the data gradient from row `top` of d_raw on.
  template <typename Planes>
  void transform_wide_gradient(Scratch& area, int64_t top, int64_t begin, int64_t end, Planes& planes) const {
    const WideAxis across{p.width};
    wide_input<Real>(this->template rows_of_d<6>(area, top, out_column(begin)),
                     [&](int64_t t) { return across.start(begin + t) - 1; }, end - begin, padded, planes);
  }

  // Data gradient of tile row r from its products; samples beyond the image belong to the ones that they show.
  void add_wide_rows(Scratch& area, int64_t chunk, int64_t r, int64_t begin, int64_t end, int block, const Real* products,
                     int64_t size) const {
    const Prepared& s = sources[0];
    const WideAxis down{p.height}, across{p.width};
    const bool reflected = p.padding == DIPENGINE_PADDING_REFLECTION;
    const int64_t left = across.start(begin), row_size = (across.start(end - 1) + 4 - left) * kBlock<Real>;
    const int64_t x = across.first(begin), top = down.start(r);
    wide_outputs(products, size, end - begin, vectors_of(s, block), area.sums, row_size,
                 [&](int64_t t) { return across.start(begin + t) - left; });
    if (reflected && top < 0) add_samples(area.sums, row_size, area.sums + 2 * row_size);
    if (reflected && top + 4 > p.height) add_samples(area.sums + 3 * row_size, row_size, area.sums + row_size);
    for (int64_t y = down.first(r); y < down.first(r + 1); ++y) {
      Real *sums = area.sums + (y - top) * row_size, *last = sums + row_size - kBlock<Real>;
      if (reflected && left < 0) add_samples(sums, kBlock<Real>, sums + 2 * kBlock<Real>);
      if (reflected && end == grid_width) add_samples(last, kBlock<Real>, last - 2 * kBlock<Real>);
      store_gradient(s, chunk, sums + (x - left) * kBlock<Real>, y, x, across.first(end) - x, block);
    }
  }

  // Stride 2: tile rows [row, row + rows), tiles [begin, end) of them.
  void run_strided(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    const Prepared& s = sources[0];
    const int64_t tiles = end - begin;
    TilePlanes<Element, 16> d(area.d_tiles, area.weights ? area.d_tile_pairs : nullptr, tiles, rows, padded);
    TilePlanes<Element, kStridedPlanes> x(nullptr, area.x_tiles, tiles, rows, s.padded);
    for (int64_t i = 0; i < rows; ++i) {
      d.begin_row(i);
      const int64_t left = out_column(begin);
      strided_gradient_input<Real>(this->template rows_of_d<3>(area, 2 * (row + i) - 1, left), 2 * begin - 1, tiles, padded, d);
    }
    for (int block = 0; block < s.blocks && area.data && s.wants_data(); ++block) {
      multiply_pairs(d.rows, d.plane, d.total, groups, s.panels + block * s.panel_size, vectors_of(s, block), area.products);
      for (int64_t i = 0; i < rows; ++i) {
        add_strided_rows(area, chunk, row + i, begin, end, block, area.products + i * d.pitch(tiles) * kBlock<Real>,
                         d.total * kBlock<Real>);
      }
    }
    for (int64_t i = 0; i < rows && area.weights; ++i) {
      x.begin_row(i);
      with_samples<Real, Stored, 4>(*s.source, s.prologue, p.padding, 4 * (row + i) - 1, 4 * begin - 2, 4 * end - 2, [&](const auto& samples) {
        strided_samples<Real>(samples, 4 * begin - 2, tiles, s.padded, x);
      });
    }
    for (int k = 0; k < kStridedPlanes && area.weights; ++k) {
      add_plane_weight(area, s, k, x, k, d, 4 * kPairedInput[k / 5] + kPairedInput[k % 5]);
    }
  }

  // Data gradient of samples 4 r - 2 .. 4 r + 1 from their products; x[-1] belongs to x[1], which it repeats.
  void add_strided_rows(Scratch& area, int64_t chunk, int64_t r, int64_t begin, int64_t end, int block, const Real* products,
                        int64_t size) const {
    const Prepared& s = sources[0];
    const bool reflected = p.padding == DIPENGINE_PADDING_REFLECTION;
    const int64_t tiles = end - begin, row_size = 4 * tiles * kBlock<Real>, first = 4 * begin - 2, top = 4 * r - 2;
    const int64_t left = most(0, first), right = least(first + 4 * tiles, s.source->width);
    strided_gradient_rows(products, size, tiles, vectors_of(s, block), area.sums, row_size);
    if (reflected && r == 0) add_samples(area.sums + row_size, row_size, area.sums + 3 * row_size);
    for (int64_t y = most(0, top); y < least(top + 4, s.source->height); ++y) {
      Real* sums = area.sums + (y - top) * row_size;
      if (reflected && begin == 0) add_samples(sums + kBlock<Real>, kBlock<Real>, sums + 3 * kBlock<Real>);
      store_gradient(s, chunk, sums + (left - first) * kBlock<Real>, y, left, right - left, block);
    }
  }

  static void add_samples(const Real* from, int64_t count, Real* to) {
    for (int64_t i = 0; i < count; i += V::size) V::store(to + i, V::add(V::load(to + i), V::load(from + i)));
  }

  // The gradient of plane k of the transformed weights, from plane `of` of the samples and plane `with` of d_raw.
  template <typename Samples, typename Planes>
  void add_plane_weight(Scratch& area, const Prepared& s, int k, const Samples& samples, int of, const Planes& planes, int with) const {
    Segments<Element> x, d;
    x.count = d.count = 1;
    x.block_stride = d.block_stride = planes.total * V::size;
    x.start[0] = (kPair == 1 ? samples.rows : samples.pairs) + of * samples.plane;
    d.start[0] = (kPair == 1 ? planes.rows : planes.pairs) + with * planes.plane;
    const int channels = static_cast<int>(s.source->channels), outputs = static_cast<int>(p.channels);
    multiply_outer<Element>(channels, outputs, x, d, static_cast<int>(planes.total / kPair),
                            area.plane_weights + k * s.source->channels * padded, padded, area.added);
  }

  // A chunk's sums of the transformed weights' gradient -> of the weights'. axis(u, w): kSide elements to three.
  template <int kSide, typename Axis>
  void fold_plane_weights(const Scratch& area, const Prepared& s, int64_t chunk, bool turned, const Axis& axis) const {
    const int64_t plane = s.source->channels * padded;
    for (int64_t c = 0; c < plane; c += V::size) {
      typename V::Register down[kSide][3];
      for (int x = 0; x < kSide; ++x) {
        typename V::Register u[kSide];
        for (int y = 0; y < kSide; ++y) u[y] = V::load(area.plane_weights + (kSide * y + x) * plane + c);
        axis(u, down[x]);
      }
      for (int y = 0; y < 3; ++y) {
        typename V::Register u[kSide], w[3];
        for (int x = 0; x < kSide; ++x) u[x] = down[x][y];
        axis(u, w);
        for (int x = 0; x < 3; ++x) {
          const int tap = turned ? 8 - (3 * y + x) : 3 * y + x;
          V::store(s.d_weight + (chunk * taps + tap) * s.tap_size + c, V::mul(w[x], V::set(map.inverse)));
        }
      }
    }
  }
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
