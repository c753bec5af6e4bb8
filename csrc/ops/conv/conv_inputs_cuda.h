// What a tile of a convolution sees of a source, brought into shared memory: folds, leaky ReLU and upsampling in float32,
// rounded once to what products take; borders by index maps alone.
#pragma once

#include "ops/conv/conv_copy_cuda.h"
#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/element.h"

namespace dipengine {

// outer(leaky_relu(inner(x))) of the channels of 16 bytes.
template <typename Element>
struct Fold {
  float inner_scale[Element::kEach], inner_shift[Element::kEach], outer_scale[Element::kEach], outer_shift[Element::kEach];
  float slope;
};

// Channels behind the last get zeros.
template <typename Element>
DIPENGINE_DEVICE Fold<Element> load_fold(const SourcePlan& s, int64_t numbers, int channel) {
  Fold<Element> f;
  f.slope = s.slope;
  DIPENGINE_UNROLL
  for (int e = 0; e < Element::kEach; ++e) {
    const int64_t at = numbers + channel + e;
    const bool there = channel + e < s.channels;
    f.inner_scale[e] = !there ? 0.0f : s.inner.scale == nullptr ? 1.0f : s.inner.scale[at];
    f.inner_shift[e] = !there || s.inner.scale == nullptr ? 0.0f : s.inner.shift[at];
    f.outer_scale[e] = !there ? 0.0f : s.outer.scale == nullptr ? 1.0f : s.outer.scale[at];
    f.outer_shift[e] = !there || s.outer.scale == nullptr ? 0.0f : s.outer.shift[at];
  }
  return f;
}

DIPENGINE_DEVICE float activated(float x, float inner_scale, float inner_shift, float slope, float outer_scale,
                                 float outer_shift) {
  const float t = fma(x, inner_scale, inner_shift);
  return fma(greater_of(t, t * slope), outer_scale, outer_shift);  // slopes are 1 at most
}

template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 pixel_bytes(const SourcePlan& s, const typename Element::Stored* x, int channel) {
  if (s.aligned != 0) return cuda::load16_global(x + channel);
  cuda::Bytes16 bytes{};
  DIPENGINE_UNROLL
  for (int e = 0; e < Element::kEach; ++e) {
    if (channel + e < s.channels) Element::put(bytes, e, x[channel + e]);
  }
  return bytes;
}

template <typename Element>
DIPENGINE_DEVICE float folded(const cuda::Bytes16& bytes, const Fold<Element>& f, int e) {
  return activated(Element::widen(Element::get(bytes, e)), f.inner_scale[e], f.inner_shift[e], f.slope, f.outer_scale[e],
                   f.outer_shift[e]);
}

// The sample of an axis that input position i reads; -1: a zero, or a place that no output of the image sees.
DIPENGINE_DEVICE int source_index(int i, int n, bool clamped, int padding) {
  if (clamped && padding == DIPENGINE_PADDING_REFLECTION) return i < 0 ? 0 : i < n ? i : n - 1;
  if (clamped) return i >= 0 && i < n ? i : -1;
  const int at = static_cast<int>(padded_index(i, n, padding));
  return at >= 0 && at < n ? at : -1;
}

// The same for all positions of an axis, without a branch: r = min(a, last - back a) with a = max(i, fore i), which is a sample where
// it is one of n.
struct AxisMap {
  int fore, back, last, n;
};
DIPENGINE_DEVICE AxisMap axis_map(int n, bool clamped, int padding) {
  if (padding != DIPENGINE_PADDING_REFLECTION) return {1, 0, 0x7fffffff, n};
  return clamped ? AxisMap{0, 0, n - 1, n} : AxisMap{-1, 1, 2 * (n - 1), n};
}
DIPENGINE_DEVICE int mapped(const AxisMap& m, int i) {
  const int a = i > m.fore * i ? i : m.fore * i, b = m.last - m.back * a;
  return a < b ? a : b;
}

// Two samples of an axis and their weights: bilinear upsampling with half-pixel centres of sample q of 2 n.
struct AxisPair {
  int own, beside;
};
DIPENGINE_DEVICE AxisPair bilinear_pair(int q, int n) {
  const int i = q / 2, beside = q % 2 != 0 ? i + 1 : i - 1;
  return {i, beside < 0 ? 0 : beside < n ? beside : n - 1};
}

// 16 bytes of what products take of input position (y, column).
template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 input_of(const SourcePlan& s, const typename Element::Stored* x, const Fold<Element>& f, int y,
                                        int column, int channel, int padding) {
  constexpr int kEach = Element::kEach;
  const bool bilinear = s.upsample == DIPENGINE_UPSAMPLE_BILINEAR, clamped = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  const int factor = bilinear ? 2 : 1;
  const int sy = source_index(y, factor * s.height, clamped, padding),
            sx = source_index(column, factor * s.width, clamped, padding);
  float value[kEach] = {};
  if (sy >= 0 && sx >= 0 && channel < s.channels) {
    if (bilinear) {
      const AxisPair py = bilinear_pair(sy, s.height), px = bilinear_pair(sx, s.width);
      const auto *own = x + py.own * s.row_stride, *beside = x + py.beside * s.row_stride;
      const cuda::Bytes16 pixels[4] = {pixel_bytes<Element>(s, own + px.own * s.pixel_stride, channel),
                                       pixel_bytes<Element>(s, own + px.beside * s.pixel_stride, channel),
                                       pixel_bytes<Element>(s, beside + px.own * s.pixel_stride, channel),
                                       pixel_bytes<Element>(s, beside + px.beside * s.pixel_stride, channel)};
      DIPENGINE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float weight = i == 0 ? 0.5625f : i == 3 ? 0.0625f : 0.1875f;
        DIPENGINE_UNROLL
        for (int e = 0; e < kEach; ++e) value[e] = fma(weight, folded<Element>(pixels[i], f, e), value[e]);
      }
    } else {
      const cuda::Bytes16 pixel = pixel_bytes<Element>(s, x + sy * s.row_stride + sx * s.pixel_stride, channel);
      DIPENGINE_UNROLL
      for (int e = 0; e < kEach; ++e) value[e] = folded<Element>(pixel, f, e);
    }
  }
  return Element::pack_operands(value);
}

// Positions of a tile, one after the other, that a thread brings: place `at` counts by rows.
struct TileWalk {
  int at, row, column, columns, step, step_rows, step_columns;
};
DIPENGINE_DEVICE TileWalk begin_walk(int at, int columns, int step) {
  return {at, at / columns, at % columns, columns, step, step / columns, step % columns};
}
DIPENGINE_DEVICE void advance(TileWalk* w) {
  w->at += w->step;
  w->row += w->step_rows;
  w->column += w->step_columns;
  if (w->column < w->columns) return;
  w->column -= w->columns;
  ++w->row;
}

// A chunk of a source: rows of input pixels. (top, left): the input position of the tile's first row and column. What `at_once`
// positions read is asked for before the first is looked at, since memory is far away. may_copy: where it can, what is to be brought as it
// is goes past registers, and has come where the thread has waited for its copies (wait_for_copies).
template <typename Element, int threads, int depth, int at_once, bool may_copy>
DIPENGINE_DEVICE void load_tile(const ConvPlan& p, const SourcePlan& s, int64_t fit, int64_t numbers, int chunk, int top,
                                int left, unsigned char* inputs) {
  constexpr int kEach = Element::kEach;
  const int groups = depth / kEach * chunk_products(s, chunk, depth);  // of 16 bytes
  const int group = cuda::thread_index() % (s.chunk / kEach), first = cuda::thread_index() / (s.chunk / kEach);
  const int channel = chunk * s.chunk + kEach * group;
  if (group >= groups) return;
  const auto* x = static_cast<const typename Element::Stored*>(s.x) + fit * s.x_fit_stride;
  const int end = s.rows * s.columns;
  const bool bilinear = s.upsample == DIPENGINE_UPSAMPLE_BILINEAR, clamped = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  const auto place_of = [&](const TileWalk& w) {
    return (w.row * s.columns + (s.stride == 2 ? w.column % 2 * s.half + w.column / 2 : w.column)) * s.pitch + 16 * group;
  };
  TileWalk w = begin_walk(first, s.columns, threads / (s.chunk / kEach));
  const AxisMap rows = axis_map(s.height, clamped, p.padding), columns = axis_map(s.width, clamped, p.padding);
  const bool some = channel < s.channels;
  // Whether one of the thread's positions is in the image, and then of which pixel.
  const auto find = [&](const TileWalk& at, int* sy, int* sx) {
    *sy = mapped(rows, top + at.row);
    *sx = mapped(columns, left + at.column);
    return some && at.at < end && static_cast<uint32_t>(*sy) < static_cast<uint32_t>(rows.n) &&
           static_cast<uint32_t>(*sx) < static_cast<uint32_t>(columns.n);
  };
  if (may_copy && Element::kBytes == 2 && s.copied != 0) {
    const auto sample = [](const AxisMap& axis, int at) {
      const int i = mapped(axis, at);
      return static_cast<uint32_t>(i) < static_cast<uint32_t>(axis.n) ? i : -1;
    };
    copy_pixels(
        some ? x + channel : nullptr, s.row_stride, s.pixel_stride, {first, threads / (s.chunk / kEach), s.rows, s.columns},
        s.columns * s.pitch, inputs + 16 * group, [&](int row) { return sample(rows, top + row); },
        [&](int column, int* place) {
          *place = (s.stride == 2 ? column % 2 * s.half + column / 2 : column) * s.pitch;
          return sample(columns, left + column);
        });
    return;
  }
  const Fold<Element> fold = load_fold<Element>(s, numbers, channel);
  if (bilinear || s.aligned == 0) {
    for (; w.at < end; advance(&w)) {
      cuda::store16(inputs + place_of(w), input_of<Element>(s, x, fold, top + w.row, left + w.column, channel, p.padding));
    }
    return;
  }
  while (w.at < end) {
    cuda::Bytes16 pixels[at_once];
    bool there[at_once];
    TileWalk ahead = w;
    DIPENGINE_UNROLL
    for (int i = 0; i < at_once; ++i) {
      int sy, sx;
      there[i] = find(ahead, &sy, &sx);
      pixels[i] = cuda::Bytes16{};
      if (there[i]) pixels[i] = cuda::load16_global(x + pixel_at(sy, s.row_stride, sx, s.pixel_stride) + channel);
      advance(&ahead);
    }
    DIPENGINE_UNROLL
    for (int i = 0; i < at_once; ++i) {
      if (w.at < end) {
        float value[kEach];
        DIPENGINE_UNROLL
        for (int e = 0; e < kEach; ++e) value[e] = folded<Element>(pixels[i], fold, e);
        const cuda::Bytes16 out = Element::pack_operands(value);
        cuda::store16(inputs + place_of(w), there[i] ? out : cuda::Bytes16{});
      }
      advance(&w);
    }
  }
}

// A gathered source: a row is an output pixel, with all taps of all channels.
template <typename Element, int threads, int pixels, int depth>
DIPENGINE_DEVICE void load_gathered(const ConvPlan& p, const SourcePlan& s, int64_t fit, int64_t numbers, int top, int left,
                                    unsigned char* inputs) {
  using Stored = typename Element::Stored;
  constexpr int kAtOnce = 2;
  const Stored* x = static_cast<const Stored*>(s.x) + fit * s.x_fit_stride;
  const int taps = s.taps * s.taps, filled = taps * s.channels, width = depth * chunk_products(s, 0, depth);
  float inner_scale[kMostGathered], inner_shift[kMostGathered], outer_scale[kMostGathered], outer_shift[kMostGathered];
  DIPENGINE_UNROLL
  for (int c = 0; c < kMostGathered; ++c) {
    const bool inner = c < s.channels && s.inner.scale != nullptr, outer = c < s.channels && s.outer.scale != nullptr;
    inner_scale[c] = inner ? s.inner.scale[numbers + c] : 1.0f;
    inner_shift[c] = inner ? s.inner.shift[numbers + c] : 0.0f;
    outer_scale[c] = outer ? s.outer.scale[numbers + c] : 1.0f;
    outer_shift[c] = outer ? s.outer.shift[numbers + c] : 0.0f;
  }
  for (int from = cuda::thread_index(); from < pixels * taps; from += kAtOnce * threads) {
    Stored raw[kAtOnce][kMostGathered];
    uint32_t there = 0;
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = from + i * threads, pixel = at % pixels, tap = at / pixels;
      const int tap_y = static_cast<int>(static_cast<uint32_t>(tap) / static_cast<uint32_t>(s.taps)), tap_x = tap - tap_y * s.taps;
      const int sy = source_index(top + pixel / kTileColumns * s.stride + tap_y, s.height, false, p.padding);
      const int sx = source_index(left + pixel % kTileColumns * s.stride + tap_x, s.width, false, p.padding);
      if (tap < taps && sy >= 0 && sx >= 0) there |= 1u << i;
      DIPENGINE_UNROLL
      for (int c = 0; c < kMostGathered; ++c) {
        raw[i][c] = Stored{};
        if ((there >> i & 1u) != 0 && c < s.channels) raw[i][c] = x[sy * s.row_stride + sx * s.pixel_stride + c];
      }
    }
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = from + i * threads, pixel = at % pixels, tap = at / pixels;
      if (tap >= taps) continue;
      Stored* row = reinterpret_cast<Stored*>(inputs + pixel * s.pitch) + tap * s.channels;
      DIPENGINE_UNROLL
      for (int c = 0; c < kMostGathered; ++c) {
        if (c >= s.channels) continue;
        const float value =
            activated(Element::widen(raw[i][c]), inner_scale[c], inner_shift[c], s.slope, outer_scale[c], outer_shift[c]);
        row[c] = Element::operand((there >> i & 1u) != 0 ? value : 0.0f);
      }
    }
  }
  for (int at = cuda::thread_index(); at < pixels * (width - filled); at += threads) {
    reinterpret_cast<Stored*>(inputs + at % pixels * s.pitch)[filled + at / pixels] = 0;
  }
}

// The input position of the first row (or column) of a tile that begins at `first` of its phase's grid.
DIPENGINE_DEVICE int first_input(const ConvPlan& p, const SourcePlan& s, int first, int phase) {
  return s.upsample == DIPENGINE_UPSAMPLE_NEAREST ? first - 1 + phase : first * s.stride + phase - p.pad;
}

// Bytes from the row of shared memory of a pixel to that which tap (y, x) reads.
DIPENGINE_DEVICE int tap_offset(const SourcePlan& s, int y, int x) {
  return (y * s.columns + (s.stride == 2 ? x % 2 * s.half + x / 2 : x)) * s.pitch;
}

// The row of shared memory of output pixel (y, x) of the tile, in bytes.
DIPENGINE_DEVICE int pixel_offset(const SourcePlan& s, int y, int x) {
  return (s.gathered != 0 ? y * kTileColumns + x : y * s.stride * s.columns + x) * s.pitch;
}

}  // namespace dipengine
