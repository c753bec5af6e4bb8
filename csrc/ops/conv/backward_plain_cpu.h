// Plain sources of the convolutions backward: the data gradient is a sum over taps of shifted rows of d_raw, computed on the
// padded source; what falls on reflected pixels is added where it came from.
#pragma once

#include "ops/conv/backward_tiles_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

template <typename Stored>
struct PlainBackward : TiledBackward<Stored> {
  using Base = TiledBackward<Stored>;
  using typename Base::Element, typename Base::Real, typename Base::V, typename Base::Prepared, typename Base::Scratch,
      typename Base::Source;
  using Base::p, Base::sources, Base::up, Base::inputs, Base::padded, Base::groups, Base::taps, Base::zeros,
      Base::x_capacity, Base::x_copies, Base::x_copy_pixels, Base::out_columns, Base::vectors_of, Base::d_row, Base::d_block,
      Base::d_columns, Base::map, Base::store_gradient, Base::add_weight, Base::kPair;
  using Base::Base;

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

  // What rows [row, row + rows) need that the rows before them do not.
  void fetch_rows(Scratch& area, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    area.fetch.count = 0;
    for (int64_t r = row; r < least(row + rows, p.height); ++r) {
      area.fetch.add(p.gradient, p.gradient_dtype == p.dtype ? sizeof(Stored) : sizeof(Real), r, begin, end);
      if (map.folded) area.fetch.add(p.raw, sizeof(Stored), r, begin, end);
      for (int i = 0; i < p.sources_count; ++i) {
        const Source& s = *sources[i].source;
        for (int64_t y = r * p.stride; y < least((r + 1) * p.stride, s.height); ++y) {
          area.fetch.add(s.x, sizeof(Stored), y, begin * p.stride, least(end * p.stride, s.width));
          if (area.data && sources[i].wants_data()) area.fetch.add(s.d_x, sizeof(Stored), y, begin * p.stride, least(end * p.stride, s.width));
        }
      }
    }
  }

  void run_plain_rows(Scratch& area, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end) const {
    if (fetches(p)) fetch_rows(area, row + rows, rows, begin, end);
    for (int i = 0; i < p.sources_count; ++i) {
      if (area.weights) add_plain_weights(area, i, chunk, row, rows, begin, end, area.added);
      add_plain_rows(area, sources[i], chunk, row, row + rows, begin, end);
    }
  }

  // Weight gradient of source i from output rows [row, row + rows) and columns [begin, end).
  void add_plain_weights(Scratch& area, int i, int64_t chunk, int64_t row, int64_t rows, int64_t begin, int64_t end,
                         bool accumulate) const {
    const Prepared& s = sources[i];
    const int64_t width = end - begin, pixel_groups = ceil_divide(width, kPair);
    const int64_t d_pixels = round_up(out_columns(), kPair), x_pixels = x_copy_pixels(), x_size = x_pixels * s.padded;
    Segments<Element> d, x;
    d.count = x.count = static_cast<int>(rows);
    d.block_stride = kPair == 1 ? d_block() : d_pixels * V::size;
    x.block_stride = x_pixels * V::size;
    x.beside = d.beside = fetches(p) ? &area.fetch : nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      d.start[r] = d_row(area, row + r, begin) + kMargin * V::size;
      if (kPair == 1) continue;
      Element* to = area.d_packed + r * d_pixels * padded;
      pack_pixels(d.start[r], in_blocks<Real>(d_columns()), width, padded, to, d.block_stride);
      d.start[r] = to;
    }
    const int64_t from = begin * p.stride - p.pad, span = (width - 1) * p.stride + p.kernel, copies = x_copies();
    for (int64_t y = row * p.stride - p.pad; y < (row + rows - 1) * p.stride - p.pad + p.kernel; ++y) {
      const int64_t place = x_place(y);
      if (area.x_held[i][place] == y) continue;
      area.x_held[i][place] = y;
      const RowLayout side = side_by_side<Real>(s.padded);
      if (kPair > 1 || s.together) {
        load_row<Real, Stored>(*s.source, s.prologue, p.padding, y, from, from + span, 1, area.x_rows[i], side);
      }
      if (s.together) {
        put_together(s, area.x_rows[i], width, area.x_packed[i] + place * x_size);
        continue;
      }
      for (int64_t copy = 0; copy < copies; ++copy) {
        Element* to = area.x_packed[i] + (place * copies + copy) * x_size;
        if (kPair == 1) {
          load_row<Real, Stored>(*s.source, s.prologue, p.padding, y, from + copy, from + span, p.stride, to,
                                 in_blocks<Real>(x_pixels));
        } else {
          pack_pixels(area.x_rows[i] + copy * s.padded, {p.stride * s.padded, side.block_stride}, width, s.padded, to,
                      x.block_stride);
        }
      }
    }
    for (int ky = 0; ky < p.kernel && s.together; ++ky) {
      for (int64_t r = 0; r < rows; ++r) x.start[r] = area.x_packed[i] + x_place(row + r - p.pad + ky) * x_size;
      Real* to = s.d_weight + (chunk * taps + ky * p.kernel) * s.tap_size;
      const int lanes = p.kernel * static_cast<int>(s.source->channels);
      multiply_outer<Element>(lanes, static_cast<int>(p.channels), x, d, static_cast<int>(width), to, padded, accumulate);
    }
    for (int ky = 0; ky < p.kernel && !s.together; ++ky) {
      for (int kx = 0; kx < p.kernel; ++kx) {
        for (int64_t r = 0; r < rows; ++r) {
          const Element* copy = area.x_packed[i] + (x_place((row + r) * p.stride - p.pad + ky) * copies + kx % copies) * x_size;
          x.start[r] = copy + kx / copies * V::size;
        }
        add_weight(s, chunk, ky * p.kernel + kx, x, d, pixel_groups, accumulate);
      }
    }
  }

  // Pixels as the taps of a kernel row see them, side by side in the lanes of one register: what a store leaves beyond its pixel is
  // overwritten by the next.
  void put_together(const Prepared& s, const Element* from, int64_t pixels, Element* to) const {
    if constexpr (kPair == 1) {
      for (int64_t w = 0; w < pixels; ++w, from += V::size, to += V::size) {
        for (int kx = 0; kx < p.kernel; ++kx) V::store(to + kx * s.source->channels, V::load(from + kx * V::size));
      }
    }
  }

  int64_t x_place(int64_t y) const { return (y + 2 * x_capacity()) % x_capacity(); }

  // Data gradient of the source rows that belong to output rows [top, bottom), columns of [begin, end).
  void add_plain_rows(Scratch& area, const Prepared& s, int64_t chunk, int64_t top, int64_t bottom, int64_t begin, int64_t end) const {
    if (!area.data || !s.wants_data()) return;
    for (int64_t r = top; r < bottom; ++r) add_plain_row(area, s, chunk, r, begin, end);
  }

  void add_plain_row(Scratch& area, const Prepared& s, int64_t chunk, int64_t r, int64_t begin, int64_t end) const {
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
        segments.block_stride = d_block();
        segments.beside = fetches(p) ? &area.fetch : nullptr;
        for (int ky = a; ky < p.kernel; ky += p.stride) {
          const int64_t r = (iy - ky) / p.stride;
          const Element* row = iy < ky || r >= p.height ? zeros : d_row(area, r, begin);
          for (int kx = b; kx < p.kernel; kx += p.stride) {
            // Exact: u and kx are of one phase.
            const int64_t column = (u - kx) / p.stride - begin + kMargin;
            segments.start[segments.count++] = row + column * V::size;
          }
        }
        if (u < u_end) {
          multiply<Element>(ceil_divide(u_end - u, p.stride), segments, V::size, groups, panel, vectors,
                            area.sums + (u - u_begin) * kBlock<Real>, p.stride * kBlock<Real>, accumulate);
        }
        panel += across * down * tap_elements;
      }
    }
  }

  // The same for few channels: first all taps of a kernel row at output column q, in lanes side by side, then
  // sums[u] = sum over kx of what lies at q = u - kx.
  void add_narrow_row(Scratch& area, const Prepared& s, int64_t iy, int64_t begin, int64_t u_begin, int64_t u_end,
                      bool accumulate) const {
    const int64_t first = u_begin - p.kernel + 1, channels = s.source->channels;
    Segments<Element> segments;
    segments.count = p.kernel;
    segments.block_stride = d_block();
    for (int ky = 0; ky < p.kernel; ++ky) {
      const Element* row = iy < ky || iy - ky >= p.height ? zeros : d_row(area, iy - ky, begin);
      segments.start[ky] = row + (first - begin + kMargin) * V::size;
    }
    multiply<Element>(u_end - first, segments, V::size, groups, s.panels, narrow_vectors(s), area.narrow, kBlock<Real>, false);
    for (int64_t u = u_begin; u < u_end; ++u) {
      Real* to = area.sums + (u - u_begin) * kBlock<Real>;
      const Real* from = area.narrow + (u - first) * kBlock<Real>;
      for (int64_t c = 0; c < channels; c += V::size) {  // lanes beyond the channels are other taps' and not read
        typename V::Register sum = accumulate ? V::load(to + c) : V::zero();
        for (int kx = 0; kx < p.kernel; ++kx) sum = V::add(sum, V::load(from + kx * (channels - kBlock<Real>) + c));
        V::store(to + c, sum);
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
};

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
