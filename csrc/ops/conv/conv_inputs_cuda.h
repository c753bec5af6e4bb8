// What a tile of a convolution sees of a source, brought into shared memory: folds, leaky ReLU and upsampling in float32,
// rounded once to what products take; borders by index maps alone.
#pragma once

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
  return fma(t > 0 ? t : t * slope, outer_scale, outer_shift);
}

template <typename Element>
DIPENGINE_DEVICE void add_pixel(const SourcePlan& s, const typename Element::Stored* x, const Fold<Element>& f, int channel,
                                float weight, float (&sum)[Element::kEach]) {
  cuda::Bytes16 bytes{};
  if (s.aligned != 0) {
    bytes = cuda::load16_constant(x + channel);
  } else {
    DIPENGINE_UNROLL
    for (int e = 0; e < Element::kEach; ++e) {
      if (channel + e < s.channels) Element::put(bytes, e, x[channel + e]);
    }
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < Element::kEach; ++e) {
    const float value = Element::widen(Element::get(bytes, e));
    sum[e] =
        fma(weight, activated(value, f.inner_scale[e], f.inner_shift[e], f.slope, f.outer_scale[e], f.outer_shift[e]), sum[e]);
  }
}

// The sample of an axis that input position i reads; -1: a zero, or a place that no output of the image sees.
DIPENGINE_DEVICE int source_index(int i, int n, bool clamped, int padding) {
  if (clamped && padding == DIPENGINE_PADDING_REFLECTION) return i < 0 ? 0 : i < n ? i : n - 1;
  if (clamped) return i >= 0 && i < n ? i : -1;
  const int at = static_cast<int>(padded_index(i, n, padding));
  return at >= 0 && at < n ? at : -1;
}

// Two samples of an axis and their weights: bilinear upsampling with half-pixel centres of sample q of 2 n.
struct AxisPair {
  int own, beside;
};
DIPENGINE_DEVICE AxisPair bilinear_pair(int q, int n) {
  const int i = q / 2, beside = q % 2 != 0 ? i + 1 : i - 1;
  return {i, beside < 0 ? 0 : beside < n ? beside : n - 1};
}

template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 input_of(const SourcePlan& s, const typename Element::Stored* x, const Fold<Element>& f, int y,
                                        int column, int channel, int padding) {
  const bool bilinear = s.upsample == DIPENGINE_UPSAMPLE_BILINEAR, clamped = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  const int factor = bilinear ? 2 : 1;
  const int sy = source_index(y, factor * s.height, clamped, padding),
            sx = source_index(column, factor * s.width, clamped, padding);
  float sum[Element::kEach] = {};
  if (sy >= 0 && sx >= 0 && channel < s.channels) {
    if (bilinear) {
      const AxisPair py = bilinear_pair(sy, s.height), px = bilinear_pair(sx, s.width);
      const typename Element::Stored *own = x + py.own * s.row_stride, *beside = x + py.beside * s.row_stride;
      add_pixel<Element>(s, own + px.own * s.pixel_stride, f, channel, 0.5625f, sum);
      add_pixel<Element>(s, own + px.beside * s.pixel_stride, f, channel, 0.1875f, sum);
      add_pixel<Element>(s, beside + px.own * s.pixel_stride, f, channel, 0.1875f, sum);
      add_pixel<Element>(s, beside + px.beside * s.pixel_stride, f, channel, 0.0625f, sum);
    } else {
      add_pixel<Element>(s, x + sy * s.row_stride + sx * s.pixel_stride, f, channel, 1.0f, sum);
    }
  }
  cuda::Bytes16 out{};
  DIPENGINE_UNROLL
  for (int e = 0; e < Element::kEach; ++e) Element::put(out, e, Element::operand(sum[e]));
  return out;
}

// A chunk of a source: rows of input pixels. (top, left): the input position of the tile's first row and column.
template <typename Element, int threads, int depth>
DIPENGINE_DEVICE void load_tile(const ConvPlan& p, const SourcePlan& s, int64_t fit, int64_t numbers, int chunk, int top,
                                int left, unsigned char* inputs) {
  constexpr int kEach = Element::kEach;
  const int groups = depth / kEach * chunk_products(s, chunk, depth);  // of 16 bytes
  const int group = cuda::thread_index() % (s.chunk / kEach), first = cuda::thread_index() / (s.chunk / kEach);
  const int channel = chunk * s.chunk + kEach * group;
  if (group >= groups) return;
  const auto* x = static_cast<const typename Element::Stored*>(s.x) + fit * s.x_fit_stride;
  const Fold<Element> fold = load_fold<Element>(s, numbers, channel);
  for (int at = first; at < s.rows * s.columns; at += threads / (s.chunk / kEach)) {
    const int row = at / s.columns, column = at % s.columns;
    const int place = row * s.columns + (s.stride == 2 ? column % 2 * s.half + column / 2 : column);
    cuda::store16(inputs + place * s.pitch + 16 * group,
                  input_of<Element>(s, x, fold, top + row, left + column, channel, p.padding));
  }
}

// A gathered source: a row is an output pixel, with all taps of all channels.
template <typename Element, int threads, int pixels, int depth>
DIPENGINE_DEVICE void load_gathered(const ConvPlan& p, const SourcePlan& s, int64_t fit, int64_t numbers, int top, int left,
                                    unsigned char* inputs) {
  using Stored = typename Element::Stored;
  const Stored* x = static_cast<const Stored*>(s.x) + fit * s.x_fit_stride;
  const int taps = s.taps * s.taps, filled = taps * s.channels, width = depth * chunk_products(s, 0, depth);
  for (int at = cuda::thread_index(); at < pixels * (taps + 1); at += threads) {
    const int pixel = at % pixels, tap = at / pixels;
    Stored* row = reinterpret_cast<Stored*>(inputs + pixel * s.pitch);
    if (tap == taps) {
      for (int k = filled; k < width; ++k) row[k] = 0;
      continue;
    }
    const int sy = source_index(top + pixel / kTileColumns * s.stride + tap / s.taps, s.height, false, p.padding);
    const int sx = source_index(left + pixel % kTileColumns * s.stride + tap % s.taps, s.width, false, p.padding);
    for (int c = 0; c < s.channels; ++c) {
      float value = 0;
      if (sy >= 0 && sx >= 0) {
        const bool inner = s.inner.scale != nullptr, outer = s.outer.scale != nullptr;
        value = activated(Element::widen(x[sy * s.row_stride + sx * s.pixel_stride + c]),
                          inner ? s.inner.scale[numbers + c] : 1.0f, inner ? s.inner.shift[numbers + c] : 0.0f, s.slope,
                          outer ? s.outer.scale[numbers + c] : 1.0f, outer ? s.outer.shift[numbers + c] : 0.0f);
      }
      row[tap * s.channels + c] = Element::operand(value);
    }
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
