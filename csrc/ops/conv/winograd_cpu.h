// Winograd's F(2x2, 3x3) for stride-1 convolutions on a CPU: 16 products a 2x2 tile of outputs instead of 36
// (S. Winograd 1980; A. Lavin, S. Gray, CVPR 2016).
//
// Per axis, four samples d of the input give two outputs y of the kernel g:
//
//   V = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)    U = (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2)
//   y0 = m1 + m2 + m3,  y1 = m2 - m3 - m4       m = U V
//
// The data gradient is the same with the kernel turned around, on d_raw padded with zeros. What reflection adds there,
// g2 d1 to y1 of the first tile and g0 d2 to y0 of the last, is had by leaving d1 out of V4 and d2 out of V1: exact, free.
// Transforms run in Real from the float32 weights, so in bfloat16 each operand is rounded once.
#pragma once

#include "ops/conv/weights_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int kWinogradPlanes = 16;
constexpr int64_t kWinogradLeastTiles = 8;     // in a row, for the products to be worth the transforms
constexpr int64_t kWinogradLeastChannels = 32;

DIPENGINE_INLINE bool winograd_suits(const dipengine_conv_params& p) {
  return p.sources_count == 1 && p.sources[0].upsample == DIPENGINE_UPSAMPLE_NONE && p.kernel == 3 && p.stride == 1 && p.pad == 1 &&
         p.height % 2 == 0 && p.width % 2 == 0 && p.width >= 2 * kWinogradLeastTiles && p.channels >= kWinogradLeastChannels &&
         p.sources[0].channels >= kWinogradLeastChannels;
}

template <typename V>
struct WinogradWeights {
  static constexpr int kSide = 4;
  using Register = typename V::Register;
  DIPENGINE_MEMBER void axis(Register g0, Register g1, Register g2, Register* out) {
    const Register half = V::set(0.5f), even = V::mul(V::add(g0, g2), half), odd = V::mul(g1, half);
    out[0] = g0;
    out[1] = V::add(even, odd);
    out[2] = V::sub(even, odd);
    out[3] = g2;
  }
};

// Where transforms put their planes, for one or more rows of tiles: as multiply() reads them, [planes][channels / V::size][tiles]
// [V::size], and packed along the tiles for multiply_outer(), with a tile of zeros after a row of an odd number. Without pairs
// of elements that is the same thing, and `pairs` stays unused.
template <typename Element, int kPlanes>
struct TilePlanes {
  using V = Vec<typename Mac<Element>::Real>;
  static constexpr int kPair = Mac<Element>::kPair;
  Element *rows, *pairs;  // either may be null
  int64_t tiles, total, plane, offset = 0;
  typename V::Register kept[kPlanes];

  TilePlanes(Element* rows_, Element* pairs_, int64_t tiles_, int64_t count, int64_t padded)
      : rows(kPair == 1 && rows_ == nullptr ? pairs_ : rows_),
        pairs(kPair == 1 ? nullptr : pairs_),
        tiles(tiles_),
        total(count * pitch(tiles_)),
        plane(padded * total) {}

  static int64_t pitch(int64_t tiles) { return round_up(tiles, kPair); }  // from a row to the next
  void begin_row(int64_t i) { offset = i * pitch(tiles); }

  // Planes [k, k + count) of tile t of the row, channels from c on.
  __attribute__((always_inline)) inline void put(int64_t c, int64_t t, int k, int count, const typename V::Register* values) {
    const bool last = kPair == 2 && t % 2 == 0 && t + 1 == tiles;  // without another to make a pair
    if (kPair == 1 || rows != nullptr) {
      Element* at = rows + k * plane + c * total + (offset + t) * V::size;
      for (int i = 0; i < count; ++i) {
        V::store(at + i * plane, values[i]);
        if (last) V::store(at + i * plane + V::size, V::zero());
      }
    }
    if (kPair == 1 || pairs == nullptr) return;
    Element* at = pairs + k * plane + c * total + (offset + t) / kPair * kPair * V::size;
    for (int i = 0; i < count; ++i) {
      if (t % 2 != 0) {
        store_pair<Element>(at + i * plane, kept[k + i], values[i]);
      } else if (last) {
        store_pair<Element>(at + i * plane, values[i], V::zero());
      } else {
        kept[k + i] = values[i];
      }
    }
  }
};

// Products of `tiles` tiles of all planes with one block's packed U (panel): to [planes][tiles][kBlock].
template <typename Element>
static void multiply_planes(int planes, const Element* v, int64_t plane, int64_t tiles, int groups, const Element* panel, int vectors,
                            typename Mac<Element>::Real* products, Fetch* beside = nullptr) {
  using Real = typename Mac<Element>::Real;
  Segments<Element> segments;
  segments.count = 1;
  segments.beside = beside;
  segments.block_stride = tiles * Vec<Real>::size;
  for (int k = 0; k < planes; ++k, panel += static_cast<int64_t>(groups) * vectors * Vec<Real>::size * Mac<Element>::kPair) {
    segments.start[0] = v + k * plane;
    multiply<Element>(tiles, segments, Vec<Real>::size, groups, panel, vectors, products + k * tiles * kBlock<Real>, kBlock<Real>, false);
  }
}

// One block of channels: from the products of a row of tiles, planes `size` apart, kOut rows of kOut columns a tile, rows row_size
// elements apart; tile t's columns from place(t) on, later tiles over earlier ones. axis(m, y) makes kOut registers of kIn.
template <int kIn, int kOut, typename Real, typename Axis, typename Place>
DIPENGINE_INLINE void tiles_to_rows(const Real* products, int64_t size, int64_t tiles, int vectors, Real* rows, int64_t row_size,
                                    const Axis& axis, const Place& place) {
  using V = Vec<Real>;
  for (int64_t t = 0; t < tiles; ++t) {
    for (int lane = 0; lane < vectors * V::size; lane += V::size) {
      const Real* from = products + t * kBlock<Real> + lane;
      typename V::Register down[kOut][kIn];  // [row][product across]
      for (int x = 0; x < kIn; ++x) {
        typename V::Register m[kIn], y[kOut];
        for (int i = 0; i < kIn; ++i) m[i] = V::load(from + (kIn * i + x) * size);
        axis(m, y);
        for (int i = 0; i < kOut; ++i) down[i][x] = y[i];
      }
      for (int y = 0; y < kOut; ++y) {
        typename V::Register out[kOut];
        axis(down[y], out);
        for (int x = 0; x < kOut; ++x) V::store(rows + y * row_size + (place(t) + x) * kBlock<Real> + lane, out[x]);
      }
    }
  }
}

// Planes of the weight gradient's other operand: of two samples (y0, y0 + y1, y0 - y1, y1) per axis.
// load.at(channel)(row 0..1, column); columns from `first` on.
template <typename Real, typename Load, typename Planes>
static void winograd_samples(const Load& load, int64_t first, int64_t tiles, int64_t padded, Planes& planes) {
  using V = Vec<Real>;
  auto axis = [](typename V::Register y0, typename V::Register y1, typename V::Register* out) {
    out[0] = y0;
    out[1] = V::add(y0, y1);
    out[2] = V::sub(y0, y1);
    out[3] = y1;
  };
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    for (int64_t t = 0; t < tiles; ++t) {
      typename V::Register left[4], right[4], row[4];
      axis(at(0, first + 2 * t), at(1, first + 2 * t), left);
      axis(at(0, first + 2 * t + 1), at(1, first + 2 * t + 1), right);
      for (int y = 0; y < 4; ++y) {
        axis(left[y], right[y], row);
        planes.put(c, t, 4 * y, 4, row);
      }
    }
  }
}

// The weights' gradient from that of U, whose last element has the other sign there.
template <typename V>
DIPENGINE_INLINE void winograd_weight_axis(const typename V::Register* u, typename V::Register* g) {
  const typename V::Register half = V::set(0.5f), even = V::mul(V::add(u[1], u[2]), half);
  g[0] = V::add(u[0], even);
  g[1] = V::mul(V::sub(u[1], u[2]), half);
  g[2] = V::sub(even, u[3]);
}

// Which of an axis' borders a tile touches where reflection has to be folded into V (data gradient), else neither.
struct WinogradFold {
  bool first, last;
};

template <typename V>
DIPENGINE_INLINE void winograd_axis(const typename V::Register d0, const typename V::Register d1, const typename V::Register d2,
                                    const typename V::Register d3, WinogradFold fold, typename V::Register* out) {
  out[0] = fold.last ? d0 : V::sub(d0, d2);
  out[1] = V::add(d1, d2);
  out[2] = V::sub(d2, d1);
  out[3] = V::sub(fold.first ? V::zero() : d1, d3);
}

// V of a row of `tiles` tiles, to planes.put(): load.at(channel)(row 0..3, column) gives sample (2 i - 1 + row, column), columns
// from -1 + `first` on.
template <typename Real, typename Load, typename Planes>
static void winograd_input(const Load& load, int64_t first, int64_t tiles, WinogradFold rows, WinogradFold columns, int64_t padded,
                           Planes& planes) {
  using V = Vec<Real>;
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    typename V::Register window[4][4];  // [column][vertical product]
    auto column = [&](int64_t u, typename V::Register* out) {
      winograd_axis<V>(at(0, u), at(1, u), at(2, u), at(3, u), rows, out);
    };
    column(first - 1, window[0]);
    column(first, window[1]);
    for (int64_t t = 0; t < tiles; ++t) {
      column(first + 2 * t + 1, window[2]);
      column(first + 2 * t + 2, window[3]);
      const WinogradFold fold{columns.first && t == 0, columns.last && t + 1 == tiles};
      for (int y = 0; y < 4; ++y) {
        typename V::Register products[4];
        winograd_axis<V>(window[0][y], window[1][y], window[2][y], window[3][y], fold, products);
        planes.put(c, t, 4 * y, 4, products);
        window[0][y] = window[2][y];
        window[1][y] = window[3][y];
      }
    }
  }
}

// Rows of d_raw, as the ring holds them: [padded / V::size][columns][V::size].
template <typename Element, int kRowsRead>
struct TileRows {
  using V = Vec<typename Mac<Element>::Real>;
  const Element* rows[kRowsRead];  // at column 0
  int64_t columns;

  struct Lanes {
    const Element* rows[kRowsRead];
    __attribute__((always_inline)) inline typename V::Register operator()(int row, int64_t u) const {
      return V::load(rows[row] + u * V::size);
    }
  };
  Lanes at(int64_t c) const {
    Lanes lanes;
    for (int i = 0; i < kRowsRead; ++i) lanes.rows[i] = rows[i] + c * columns;
    return lanes;
  }
};

// The samples of a source that a row of tiles reads, normalised. Behind an upsampling (by the nearest sample), reflection
// repeats the border sample.
template <typename Real, typename Stored, int kRowsRead, bool kOuter>
struct TileSamples {
  using V = Vec<Real>;
  static constexpr int64_t kMostColumns = 272;
  const dipengine_conv_source& source;
  const Prologue<Real>& prologue;
  int padding;
  bool gaps = false;             // some samples lie outside the image and are zero
  const Stored* rows[kRowsRead];  // null outside the image
  int64_t first;                  // column
  int64_t places[kMostColumns];   // where the samples of columns from `first` on lie in their rows; negative outside the image

  // Of source rows r - 1 on, columns [begin, end).
  TileSamples(const dipengine_conv_source& source_, const Prologue<Real>& prologue_, int padding_, int64_t r, int64_t begin, int64_t end)
      : source(source_), prologue(prologue_), padding(padding_), first(begin) {
    for (int i = 0; i < kRowsRead; ++i) {
      const int64_t y = place(r - 1 + i, source.height);
      rows[i] = y < 0 ? nullptr : static_cast<const Stored*>(source.x.data) + y * source.x.row_stride;
      gaps = gaps || y < 0;
    }
    for (int64_t u = begin; u < end; ++u) {
      const int64_t x = place(u, source.width);
      places[u - begin] = x * source.x.pixel_stride;
      gaps = gaps || x < 0;
    }
  }

  int64_t place(int64_t i, int64_t n) const {
    if (i >= 0 && i < n) return i;
    if (source.upsample == DIPENGINE_UPSAMPLE_NONE || padding == DIPENGINE_PADDING_ZERO) return padded_index(i, n, padding);
    return i < 0 ? 0 : n - 1;
  }

  // Those of one register of channels; what normalises them stays in registers.
  struct Lanes {
    const TileSamples& of;
    int64_t c;
    int lanes;
    typename V::Register inner_scale, inner_shift, outer_scale, outer_shift, slope;

    __attribute__((always_inline)) inline typename V::Register operator()(int row, int64_t u) const {
      const int64_t x = of.places[u - of.first];
      if (of.gaps && (of.rows[row] == nullptr || x < 0)) return V::zero();
      const Stored* at = of.rows[row] + x + c;
      typename V::Register value = lanes == V::size ? V::load(at) : V::load_part(at, lanes);
      value = V::fma(value, inner_scale, inner_shift);
      value = V::where_positive(value, value, V::mul(value, slope));
      return kOuter ? V::fma(value, outer_scale, outer_shift) : value;
    }
  };
  Lanes at(int64_t c) const {
    return {*this, c, static_cast<int>(least(V::size, source.channels - c)), V::load(prologue.inner_scale + c),
            V::load(prologue.inner_shift + c), V::load(prologue.outer_scale + c), V::load(prologue.outer_shift + c), V::set(prologue.slope)};
  }
};

// use(samples) with the tiles' samples of kRowsRead source rows from r - 1 on, columns [begin, end).
template <typename Real, typename Stored, int kRowsRead, typename Use>
static void with_samples(const dipengine_conv_source& source, const Prologue<Real>& prologue, int padding, int64_t r, int64_t begin,
                         int64_t end, const Use& use) {
  if (prologue.has_outer) {
    use(TileSamples<Real, Stored, kRowsRead, true>(source, prologue, padding, r, begin, end));
  } else {
    use(TileSamples<Real, Stored, kRowsRead, false>(source, prologue, padding, r, begin, end));
  }
}

// One block of channels: from the products of a row of tiles, planes `size` apart, two rows of outputs [2 tiles][kBlock].
template <typename Real>
static void winograd_outputs(const Real* products, int64_t size, int64_t tiles, int vectors, Real* top, Real* bottom) {
  using V = Vec<Real>;
  for (int64_t t = 0; t < tiles; ++t) {
    for (int lane = 0; lane < vectors * V::size; lane += V::size) {
      const Real* m = products + t * kBlock<Real> + lane;
      typename V::Register upper[4], lower[4];
      for (int x = 0; x < 4; ++x) {
        const typename V::Register m1 = V::load(m + x * size), m2 = V::load(m + (4 + x) * size), m3 = V::load(m + (8 + x) * size),
                                   m4 = V::load(m + (12 + x) * size);
        upper[x] = V::add(V::add(m1, m2), m3);
        lower[x] = V::sub(V::sub(m2, m3), m4);
      }
      Real *one = top + 2 * t * kBlock<Real> + lane, *two = bottom + 2 * t * kBlock<Real> + lane;
      V::store(one, V::add(V::add(upper[0], upper[1]), upper[2]));
      V::store(one + kBlock<Real>, V::sub(V::sub(upper[1], upper[2]), upper[3]));
      V::store(two, V::add(V::add(lower[0], lower[1]), lower[2]));
      V::store(two + kBlock<Real>, V::sub(V::sub(lower[1], lower[2]), lower[3]));
    }
  }
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
