// An upsampled source of the convolutions backward, by the nine images E_t of d_raw at its resolution; see conv.h.
#pragma once

#include "ops/conv/backward_plain_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

template <typename Stored>
struct UpsampledBackward : PlainBackward<Stored> {
  using Plain = PlainBackward<Stored>;
  using typename Plain::Element, typename Plain::Real, typename Plain::V, typename Plain::Scratch;
  using Plain::p, Plain::sources, Plain::up, Plain::padded, Plain::grid_width, Plain::columns, Plain::groups, Plain::rows_map,
      Plain::columns_map, Plain::batch_pixels, Plain::vectors_of, Plain::d_row, Plain::store_gradient, Plain::add_weight,
      Plain::add_plain_weights, Plain::add_plain_rows, Plain::kPair;
  using Plain::Plain;

  void fill_map(AxisTerms* terms, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      for (int t = 0; t < 3; ++t) terms[i * 3 + t] = up_tap_transposed(i, t, n, up->source->upsample, p.padding);
    }
  }

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
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
