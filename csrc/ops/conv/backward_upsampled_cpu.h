// An upsampled source of the convolutions backward, by the nine images E_t of d_raw at its resolution; see conv.h.
#pragma once

#include "ops/conv/backward_plain_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

template <typename Stored>
struct UpsampledBackward : PlainBackward<Stored> {
  using Base = PlainBackward<Stored>;
  using typename Base::Element, typename Base::Real, typename Base::V, typename Base::Scratch;
  using Base::p, Base::zeros, Base::sources, Base::up, Base::padded, Base::grid_width, Base::columns, Base::groups,
      Base::rows_map, Base::columns_map, Base::batch_pixels, Base::vectors_of, Base::d_row, Base::store_gradient,
      Base::add_weight, Base::add_plain_weights, Base::add_plain_rows, Base::add_plane_weight, Base::add_samples,
      Base::out_row, Base::out_column, Base::grid_height, Base::d_columns, Base::kPair;
  using Base::Base;

  void fill_map(AxisTerms* terms, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      for (int t = 0; t < 3; ++t) terms[i * 3 + t] = up_tap_transposed(i, t, n, up->source->upsample, p.padding);
    }
  }

  void run_up(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    const int64_t width = end - begin, pixels = rows * width, plane = batch_pixels() * padded;
    for (int64_t r = 0; r < rows; ++r) map_gradient(area, row + r, begin, end, area.mapped + r * width * V::size, plane);
    Segments<Element> segments;
    segments.count = 9;
    segments.block_stride = batch_pixels() * V::size;
    for (int t = 0; t < 9; ++t) segments.start[t] = area.mapped + t * plane;
    if (area.data && up->wants_data()) {
      for (int block = 0; block < up->blocks; ++block) {
        multiply<Element>(pixels, segments, V::size, groups, up->panels + block * up->panel_size, vectors_of(*up, block), area.sums,
                          kBlock<Real>, false);
        for (int64_t r = 0; r < rows; ++r) {
          store_gradient(*up, chunk, area.sums + r * width * kBlock<Real>, row + r, begin, width, block);
        }
      }
    }
    if (area.weights) {
      const int i = static_cast<int>(up - sources);
      const int64_t block = batch_pixels() * V::size;
      const RowLayout layout = in_blocks<Real>(batch_pixels());
      Element* loaded = kPair == 1 ? area.x_packed[i] : area.x_rows[i];
      for (int64_t r = 0; r < rows; ++r) {
        load_row<Real, Stored>(*up->source, up->prologue, p.padding, row + r, begin, end, 1, loaded + r * width * V::size, layout);
      }
      pack_pixels(loaded, layout, pixels, up->padded, area.x_packed[i], block);
      Segments<Element> x, d;
      x.count = d.count = 1;
      x.block_stride = d.block_stride = block;
      x.start[0] = area.x_packed[i];
      for (int t = 0; t < 9; ++t) {
        d.start[0] = kPair == 1 ? area.mapped + t * plane : area.mapped_packed + t * plane;
        pack_pixels(area.mapped + t * plane, layout, pixels, padded, area.mapped_packed + t * plane, block);
        add_weight(*up, chunk, t, x, d, ceil_divide(pixels, kPair), area.added);
      }
    }
    if (p.sources_count > 1) {
      const int other = up == &sources[0] ? 1 : 0;
      for (int64_t r = 2 * row; r < 2 * (row + rows); ++r) {
        if (area.weights) add_plain_weights(area, other, chunk, r, 1, 2 * begin, 2 * end, area.added || r > 2 * row);
        add_plain_rows(area, sources[other], chunk, r, r + 1, 2 * begin, 2 * end);
      }
    }
  }

  // The same from two by two samples: tile rows [row, row + rows), tiles [begin, end) of them.
  void run_paired(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    const int64_t tiles = end - begin;
    TilePlanes<Element, kPairedGradientPlanes> d(area.d_tiles, area.weights ? area.d_tile_pairs : nullptr, tiles, rows,
                                                 padded);
    TilePlanes<Element, 9> x(nullptr, area.x_tiles, tiles, rows, up->padded);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t r = row + i, top = out_row(r), bottom = out_row(r + 1), left = out_column(begin), right = out_column(end);
      d.begin_row(i);
      transform_pairs(area, r, begin, end, d);
      for (int s = 0; s < p.sources_count; ++s) {
        if (&sources[s] == up) continue;
        if (area.weights) add_plain_weights(area, s, chunk, top, bottom - top, left, right, area.added || i > 0);
        add_plain_rows(area, sources[s], chunk, top, bottom, left, right);
      }
    }
    for (int block = 0; block < up->blocks && area.data && up->wants_data(); ++block) {
      multiply_paired_gradient(d.rows, d.plane, d.total, groups, up->panels + block * up->panel_size, vectors_of(*up, block),
                               area.products);
      for (int64_t i = 0; i < rows; ++i) {
        add_paired_rows(area, chunk, row + i, begin, end, block, area.products + i * d.pitch(tiles) * kBlock<Real>,
                        d.total * kBlock<Real>);
      }
    }
    for (int64_t i = 0; i < rows && area.weights; ++i) {
      x.begin_row(i);
      with_samples<Real, Stored, 2>(*up->source, up->prologue, p.padding, 2 * (row + i), 2 * begin - 1, 2 * end - 1, [&](const auto& samples) {
        paired_gradient_samples<Real>(samples, 2 * begin - 1, tiles, up->padded, x);
      });
    }
    for (int k = 0; k < kPairedGradientPlanes && area.weights; ++k) {
      add_plane_weight(area, *up, k, x, 3 * kPairedSums[k / 5] + kPairedSums[k % 5], d, k);
    }
  }

  template <typename Planes>
  void transform_pairs(Scratch& area, int64_t r, int64_t begin, int64_t end, Planes& planes) const {
    paired_gradient_input<Real>(this->template rows_of_d<6>(area, 4 * r - 3, out_column(begin)), 4 * begin - 3, end - begin, padded,
                                planes);
  }

  // Data gradient of samples 2 r - 1 and 2 r from P; those beyond the image belong to the ones that they repeat.
  void add_paired_rows(Scratch& area, int64_t chunk, int64_t r, int64_t begin, int64_t end, int block, const Real* products,
                       int64_t size) const {
    const bool first = r == 0, last = r + 1 == grid_height, reflected = p.padding == DIPENGINE_PADDING_REFLECTION;
    const int64_t tiles = end - begin, row_size = 2 * tiles * kBlock<Real>;
    const int64_t left = most(0, 2 * begin - 1), right = least(2 * end - 1, up->source->width);
    Real *top = area.sums, *bottom = area.sums + row_size;
    paired_gradient_rows(products, size, tiles, vectors_of(*up, block), top, bottom);
    if (first && reflected) add_samples(top, row_size, bottom);
    if (last && reflected) add_samples(bottom, row_size, top);
    for (int i = first ? 1 : 0; i < (last ? 1 : 2); ++i) {
      Real *sums = area.sums + i * row_size, *far = sums + row_size - kBlock<Real>;
      if (begin == 0 && reflected) add_samples(sums, kBlock<Real>, sums + kBlock<Real>);
      if (end == grid_width && reflected) add_samples(far, kBlock<Real>, far - kBlock<Real>);
      store_gradient(*up, chunk, sums + (left - (2 * begin - 1)) * kBlock<Real>, 2 * r - 1 + i, left, right - left, block);
    }
  }

  // E_t of low-resolution row i, columns [begin, end), to nine planes.
  void map_gradient(Scratch& area, int64_t i, int64_t begin, int64_t end, Element* to, int64_t plane) const {
    const int64_t first = 2 * begin - kMargin, count = 2 * (end - begin) + 2 * kMargin;
    for (int ky = 0; ky < 3; ++ky) {
      const AxisTerms& terms = rows_map[i * 3 + ky];
      const Element* rows[AxisTerms::kMost];
      for (int e = 0; e < terms.count; ++e) rows[e] = d_row(area, terms.index[e], 2 * begin);
      for (int64_t c = 0; c < padded; c += V::size) {
        sum_gradient_rows(terms, rows, c * d_columns(), count, area.vertical);
        Element* first_plane = to + ky * 3 * plane + c * batch_pixels();
        Element* planes[3] = {first_plane, first_plane + plane, first_plane + 2 * plane};
        map_gradient_columns(area.vertical, first, begin, end, planes);
      }
    }
  }

  void sum_gradient_rows(const AxisTerms& terms, const Element* const* rows, int64_t offset, int64_t count, Real* to) const {
    if (terms.count == 2 && terms.weight[0] == 1 && terms.weight[1] == 1) {
      for (int64_t q = 0; q < count; ++q) {
        V::store(to + q * V::size, V::add(V::load(rows[0] + q * V::size + offset), V::load(rows[1] + q * V::size + offset)));
      }
      return;
    }
    if (terms.count == 4) {
      typename V::Register weight[4];
      for (int e = 0; e < 4; ++e) weight[e] = V::set(static_cast<Real>(terms.weight[e]));
      for (int64_t q = 0; q < count; ++q) {
        typename V::Register sum = V::mul(weight[0], V::load(rows[0] + q * V::size + offset));
        for (int e = 1; e < 4; ++e) sum = V::fma(weight[e], V::load(rows[e] + q * V::size + offset), sum);
        V::store(to + q * V::size, sum);
      }
      return;
    }
    for (int64_t q = 0; q < count; ++q) {
      typename V::Register sum = V::zero();
      for (int e = 0; e < terms.count; ++e) {
        sum = V::fma(V::set(static_cast<Real>(terms.weight[e])), V::load(rows[e] + q * V::size + offset), sum);
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
          V::store(planes[t] + (j - begin) * V::size, sum);
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
        V::store(planes[0] + (j - begin) * V::size, V::add(next, after));
        V::store(planes[1] + (j - begin) * V::size, V::add(here, next));
        V::store(planes[2] + (j - begin) * V::size, V::add(before, here));
        before = next;
        here = after;
      }
    } else {
      const typename V::Register quarter = V::set(Real(0.25)), most_ = V::set(Real(0.75));
      for (int64_t j = inner_begin; j < inner_end; ++j, at += 2 * V::size) {
        const typename V::Register s0 = sample(-2), s1 = sample(-1), s2 = sample(0), s3 = sample(1), s4 = sample(2), s5 = sample(3);
        V::store(planes[0] + (j - begin) * V::size, V::fma(most_, V::add(s3, s4), V::mul(quarter, V::add(s2, s5))));
        V::store(planes[1] + (j - begin) * V::size, V::fma(most_, V::add(s2, s3), V::mul(quarter, V::add(s1, s4))));
        V::store(planes[2] + (j - begin) * V::size, V::fma(most_, V::add(s1, s2), V::mul(quarter, V::add(s0, s3))));
      }
    }
    general(inner_end, end);
  }
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
