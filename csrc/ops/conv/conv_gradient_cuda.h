// The gradient of a convolution's raw output, d_raw = A * g + B * raw + C per channel, formed while loading (design 3.7).
#pragma once

#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/element.h"
#include "platform/error.h"
#include "platform/pixels.h"

namespace dipengine {

struct GradientSource {
  const void* gradient;
  int64_t gradient_fit_stride, gradient_row_stride, gradient_pixel_stride;
  int32_t gradient_float, aligned;
  const void* raw;  // as the images
  int64_t raw_fit_stride, raw_row_stride, raw_pixel_stride;
  int64_t numbers_fit_stride;
  const float *a, *b, *c;  // all NULL: d_raw = g
  dipengine_conv_cuda_head head;
  int64_t parameters_fit_stride;  // of its weight
};

static inline dipengine_status check_gradient(const dipengine_conv_cuda_params& p, const char* op) {
  DIPENGINE_REQUIRE(p.gradient_dtype == DIPENGINE_BFLOAT16 || p.gradient_dtype == DIPENGINE_FLOAT32,
                    "%s takes gradients in bfloat16 or float32, not dtype %d.", op, p.gradient_dtype);
  const bool head = p.head.weight != nullptr;
  DIPENGINE_TRY(check_pixels(p.gradient, p.width, head ? p.head.channels : p.channels, op, "gradient"));
  DIPENGINE_REQUIRE(
      (p.gradient_scale == nullptr) == (p.raw_scale == nullptr) && (p.gradient_scale == nullptr) == (p.gradient_shift == nullptr),
      "%s needs all of A, B and C, or none.", op);
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_BFLOAT16 || p.gradient_dtype == DIPENGINE_FLOAT32,
                    "%s takes float32 gradients of float32 images; convert them.", op);
  DIPENGINE_REQUIRE(!head || (p.head.channels >= 1 && p.head.channels <= DIPENGINE_CONV_CUDA_HEAD && p.kernel == 1 &&
                              p.stride == 1 && p.pad == 0 && p.gradient_dtype == DIPENGINE_FLOAT32 &&
                              p.gradient_scale != nullptr && p.d_bias == nullptr && p.head.inner.scale != nullptr &&
                              p.head.inner.shift != nullptr),
                    "%s takes a head of 1 to %d channels, of a float32 gradient, behind kernel 1, stride 1, pad 0 and a norm.",
                    op, DIPENGINE_CONV_CUDA_HEAD);
  if (p.gradient_scale == nullptr) return DIPENGINE_OK;
  DIPENGINE_REQUIRE(p.raw_dtype == p.dtype, "%s reads raw in the dtype of x alone.", op);
  return check_pixels(p.raw, p.width, p.channels, op, "raw");
}

static inline GradientSource gradient_source(const dipengine_conv_cuda_params& p) {
  GradientSource s{};
  const bool single = p.fits == 1;
  s.gradient = p.gradient.data;
  s.gradient_fit_stride = single ? 0 : p.gradient_fit_stride;
  s.gradient_row_stride = p.gradient.row_stride;
  s.gradient_pixel_stride = p.gradient.pixel_stride;
  s.gradient_float = p.gradient_dtype == DIPENGINE_FLOAT32;
  s.raw = p.raw.data;
  s.raw_fit_stride = single ? 0 : p.raw_fit_stride;
  s.raw_row_stride = p.raw.row_stride;
  s.raw_pixel_stride = p.raw.pixel_stride;
  s.numbers_fit_stride = single ? 0 : p.numbers_fit_stride;
  s.a = p.gradient_scale;
  s.b = p.raw_scale;
  s.c = p.gradient_shift;
  s.head = p.head;
  s.parameters_fit_stride = single ? 0 : p.parameters_fit_stride;
  const bool whole =
      s.head.weight != nullptr || (p.gradient_dtype == p.dtype && in_sixteens(p.dtype, s.gradient_fit_stride, p.gradient));
  s.aligned = whole && p.channels % values_in_16_bytes(p.dtype) == 0 &&
              (s.a == nullptr || in_sixteens(p.dtype, s.raw_fit_stride, p.raw));
  return s;
}

template <typename Element>
struct GradientFold {
  float a[Element::kEach], b[Element::kEach], c[Element::kEach];
};

// Channels behind the last get zeros.
template <typename Element>
DIPENGINE_DEVICE GradientFold<Element> load_gradient_fold(const GradientSource& s, int64_t fit, int channel, int channels) {
  GradientFold<Element> f;
  DIPENGINE_UNROLL
  for (int e = 0; e < Element::kEach; ++e) {
    const bool there = channel + e < channels;
    const int64_t at = fit * s.numbers_fit_stride + channel + e;
    f.a[e] = !there ? 0.0f : s.a == nullptr ? 1.0f : s.a[at];
    f.b[e] = !there || s.a == nullptr ? 0.0f : s.b[at];
    f.c[e] = !there || s.a == nullptr ? 0.0f : s.c[at];
  }
  return f;
}

// A gradient may be float32 beside images in bfloat16.
template <typename Element>
DIPENGINE_DEVICE float gradient_at(const GradientSource& s, int64_t at) {
  return Element::kBytes == 4 || s.gradient_float != 0
             ? static_cast<const float*>(s.gradient)[at]
             : Element::widen(static_cast<const typename Element::Stored*>(s.gradient)[at]);
}

template <typename Element>
DIPENGINE_DEVICE float raw_at(const GradientSource& s, int64_t at) {
  return Element::widen(static_cast<const typename Element::Stored*>(s.raw)[at]);
}

// One value of d_raw, in float32.
template <typename Element>
DIPENGINE_DEVICE float d_raw_at(const GradientSource& s, int64_t fit, int64_t y, int64_t x, int channel) {
  const float g =
      gradient_at<Element>(s, fit * s.gradient_fit_stride + y * s.gradient_row_stride + x * s.gradient_pixel_stride + channel);
  if (s.a == nullptr) return g;
  const int64_t number = fit * s.numbers_fit_stride + channel;
  const float raw = raw_at<Element>(s, fit * s.raw_fit_stride + y * s.raw_row_stride + x * s.raw_pixel_stride + channel);
  return fma(s.a[number], g, fma(s.b[number], raw, s.c[number]));
}

// The channels of 16 bytes of d_raw at (y, x), rounded to what products take.
template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 d_raw_of(const GradientSource& s, const GradientFold<Element>& f, int64_t fit, int64_t y,
                                        int64_t x, int channel, int channels) {
  using Stored = typename Element::Stored;
  constexpr int kEach = Element::kEach;
  const int64_t at = fit * s.gradient_fit_stride + y * s.gradient_row_stride + x * s.gradient_pixel_stride + channel;
  const int64_t raw_place = fit * s.raw_fit_stride + y * s.raw_row_stride + x * s.raw_pixel_stride + channel;
  float g[kEach] = {}, raw[kEach] = {};
  if (s.aligned != 0) {
    if (channel < channels) {
      const cuda::Bytes16 gs = cuda::load16_constant(static_cast<const Stored*>(s.gradient) + at);
      const cuda::Bytes16 raws =
          s.a == nullptr ? cuda::Bytes16{} : cuda::load16_constant(static_cast<const Stored*>(s.raw) + raw_place);
      DIPENGINE_UNROLL
      for (int e = 0; e < kEach; ++e) {
        g[e] = Element::widen(Element::get(gs, e));
        raw[e] = Element::widen(Element::get(raws, e));
      }
    }
  } else {
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      if (channel + e >= channels) continue;
      g[e] = gradient_at<Element>(s, at + e);
      if (s.a != nullptr) raw[e] = raw_at<Element>(s, raw_place + e);
    }
  }
  cuda::Bytes16 out{};
  DIPENGINE_UNROLL
  for (int e = 0; e < kEach; ++e) {
    const float value = s.a == nullptr ? g[e] : fma(f.a[e], g[e], fma(f.b[e], raw[e], f.c[e]));
    Element::put(out, e, Element::operand(value));
  }
  return out;
}

// A head's numbers for the channels of 16 bytes: its weights by its own channels, as operands.
template <typename Element>
struct HeadFold {
  cuda::Bytes16 weight[DIPENGINE_CONV_CUDA_HEAD];
  float scale[Element::kEach], shift[Element::kEach];
};

// Channels behind the last get zeros.
template <typename Element>
DIPENGINE_DEVICE HeadFold<Element> load_head(const GradientSource& s, int64_t fit, int channel, int channels) {
  HeadFold<Element> f{};
  DIPENGINE_UNROLL
  for (int e = 0; e < Element::kEach; ++e) {
    const bool there = channel + e < channels;
    const int64_t number = fit * s.numbers_fit_stride + channel + e;
    f.scale[e] = there ? s.head.inner.scale[number] : 0.0f;
    f.shift[e] = there ? s.head.inner.shift[number] : 0.0f;
    const float* weight = s.head.weight + fit * s.parameters_fit_stride + static_cast<int64_t>(channel + e) * s.head.channels;
    DIPENGINE_UNROLL
    for (int k = 0; k < DIPENGINE_CONV_CUDA_HEAD; ++k)
      Element::put(f.weight[k], e, Element::operand(there && k < s.head.channels ? weight[k] : 0.0f));
  }
  return f;
}

// To shared memory and back, in sixteens: weights, then scale, then shift.
template <typename Element>
DIPENGINE_DEVICE void keep_head(const HeadFold<Element>& f, unsigned char* to) {
  static_assert(sizeof(f) + 16 == gradient_head_pitch(Element::kBytes), "what is kept");
  DIPENGINE_UNROLL
  for (int k = 0; k < DIPENGINE_CONV_CUDA_HEAD; ++k, to += 16) cuda::store16(to, f.weight[k]);
  DIPENGINE_UNROLL
  for (int e = 0; e < 2 * Element::kEach; e += 4, to += 16) {
    const float* from = e < Element::kEach ? f.scale + e : f.shift + (e - Element::kEach);
    cuda::store16(to, {{float_bits(from[0]), float_bits(from[1]), float_bits(from[2]), float_bits(from[3])}});
  }
}

template <typename Element>
DIPENGINE_DEVICE HeadFold<Element> kept_head(const unsigned char* from) {
  HeadFold<Element> f;
  DIPENGINE_UNROLL
  for (int k = 0; k < DIPENGINE_CONV_CUDA_HEAD; ++k, from += 16) f.weight[k] = cuda::load16(from);
  DIPENGINE_UNROLL
  for (int e = 0; e < 2 * Element::kEach; e += 4, from += 16) {
    const cuda::Bytes16 four = cuda::load16(from);
    DIPENGINE_UNROLL
    for (int i = 0; i < 4; ++i)
      (e < Element::kEach ? f.scale[e + i] : f.shift[e - Element::kEach + i]) = float_from_bits(four.word[i]);
  }
  return f;
}

// As d_raw_of, of a head's gradient. Plain loads of raw: d_x may be written over it.
template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 d_raw_of_head(const GradientSource& s, const GradientFold<Element>& f,
                                             const HeadFold<Element>& head, int64_t fit, int64_t y, int64_t x, int channel,
                                             int channels) {
  using Stored = typename Element::Stored;
  constexpr int kEach = Element::kEach;
  const float* own = static_cast<const float*>(s.gradient) + fit * s.gradient_fit_stride + y * s.gradient_row_stride +
                     x * s.gradient_pixel_stride;
  const Stored* from =
      static_cast<const Stored*>(s.raw) + fit * s.raw_fit_stride + y * s.raw_row_stride + x * s.raw_pixel_stride + channel;
  cuda::Bytes16 raws{}, out{};
  if (s.aligned != 0) {
    if (channel < channels) raws = cuda::load16(from);
  } else {
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) {
      if (channel + e < channels) Element::put(raws, e, from[e]);
    }
  }
  float g[kEach] = {};
  DIPENGINE_UNROLL
  for (int k = 0; k < DIPENGINE_CONV_CUDA_HEAD; ++k) {
    const float h = k < s.head.channels ? Element::widen(Element::operand(own[k])) : 0.0f;
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) g[e] = fma(Element::widen(Element::get(head.weight[k], e)), h, g[e]);
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < kEach; ++e) {
    const float raw = Element::widen(Element::get(raws, e));
    const float formed = g[e] * (fma(raw, head.scale[e], head.shift[e]) > 0 ? 1.0f : s.head.slope);
    const float value = fma(f.a[e], Element::widen(Element::narrow(formed)), fma(f.b[e], raw, f.c[e]));
    Element::put(out, e, Element::operand(value));
  }
  return out;
}

}  // namespace dipengine
