// An upsampled source of the convolutions forward; see conv.h.
//
// A task is a block of output channels over a chunk of low-resolution rows. Of each it makes the nine products x W_t, maps
// them along x (3 kernel rows x 2 phases), keeps three rows of that, and puts two output rows together from them. Other
// sources are then added to those rows directly. By the nearest sample: two by two samples, see upsampled_cpu.h.
#pragma once

#include "ops/conv/forward_layout_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

template <typename Stored>
struct UpsampledForward : ForwardLayout<Stored> {
  using Base = ForwardLayout<Stored>;
  using typename Base::Element, typename Base::Real, typename Base::V, typename Base::Scratch, typename Base::Piece,
      typename Base::Task;
  using Base::p, Base::sources, Base::up, Base::blocks, Base::padded, Base::grid_height, Base::grid_width,
      Base::chunk_columns, Base::low, Base::rows_map, Base::columns_map, Base::out_columns, Base::vectors_of,
      Base::scratch_of, Base::add_plain, Base::store_row, Base::clear_moments, Base::piece_of, Base::transform_row,
      Base::tile_rows, Base::kPair;
  using Base::Base;

  void fill_map(AxisTerms* map, int64_t n) const {
    for (int64_t o = 0; o < 2 * n; ++o) {
      for (int t = 0; t < 3; ++t) map[o * 3 + t] = up_tap(o, t, n, up->source->upsample, p.padding);
    }
  }

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
  void run_paired(const Task& task, int slot) const {
    Scratch area = scratch_of(slot);
    const Piece piece = piece_of(task.chunk);
    const int64_t tiles = (piece.right - piece.left) / 2, row_size = out_columns() * kBlock<Real>;
    clear_moments(task);
    for (int64_t r = piece.top; r < piece.bottom; r += 2 * tile_rows()) {
      const int64_t rows = least(tile_rows(), (piece.bottom - r) / 2);
      TilePlanes<Element, kWinogradPlanes> planes(area.tiles, nullptr, tiles, rows, up->padded);
      for (int64_t i = 0; i < rows; ++i) {
        planes.begin_row(i);
        transform_row(*up, r + 2 * i, piece.left, planes);
      }
      fetch_rows(area.fetch, 2 * r, 2 * (r + 2 * rows), 2 * piece.left, 2 * piece.right);
      for (int block = task.first; block < task.last; ++block) {
        multiply_pairs(planes.rows, planes.plane, planes.total, up->groups, up->panels + block * up->panel_size, vectors_of(block),
                       area.products, &area.fetch);
        for (int64_t i = 0; i < rows; ++i) {
          paired_rows(area.products + i * planes.pitch(tiles) * kBlock<Real>, planes.total * kBlock<Real>, tiles,
                      vectors_of(block), area.sums, row_size);
          store_paired_rows(area, piece, task.chunk, 2 * (r + 2 * i), block, row_size);
        }
      }
    }
  }

  // Where output rows [top, bottom) go.
  void fetch_rows(Fetch& fetch, int64_t top, int64_t bottom, int64_t left, int64_t right) const {
    fetch.count = 0;
    for (int64_t r = bottom; r-- > top;) fetch.add(p.raw, p.raw_dtype == p.dtype ? sizeof(Stored) : sizeof(Real), r, left, right);
  }

  // Four output rows from `top` on, with what other sources add to them.
  void store_paired_rows(Scratch& area, const Piece& piece, int64_t chunk, int64_t top, int block, int64_t row_size) const {
    const int64_t left = 2 * piece.left, columns = 2 * (piece.right - piece.left);
    for (int y = 0; y < 4; ++y) {
      Real* sums = area.sums + y * row_size;
      for (int s = 0; s < p.sources_count; ++s) {
        if (&sources[s] != up) add_plain(s, area, top + y, left, columns, block, true, sums);
      }
      store_row(sums, top + y, left, columns, block, (top + y - 2 * piece.top) * columns, chunk);
    }
  }
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
