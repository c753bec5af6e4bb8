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
  int32_t copied;  // d_raw is g, in the dtype of operands
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
  s.copied = s.aligned != 0 && s.a == nullptr && p.dtype == DIPENGINE_BFLOAT16;
  return s;
}

// What the launch of a data gradient is told of its source.
template <typename Launch>
void set_source(const dipengine_conv_cuda_params& p, const dipengine_conv_cuda_source& s, Launch* l) {
  const bool single = p.fits == 1;
  l->x = s.x.data;
  l->x_fit_stride = single ? 0 : s.x_fit_stride;
  l->x_row_stride = s.x.row_stride;
  l->x_pixel_stride = s.x.pixel_stride;
  l->d_x = s.d_x.data;
  l->d_x_fit_stride = single ? 0 : s.d_x_fit_stride;
  l->d_x_row_stride = s.d_x.row_stride;
  l->d_x_pixel_stride = s.d_x.pixel_stride;
  l->accumulate = s.accumulate;
  l->through_outer = s.outer.scale != nullptr;
  l->inner = s.inner;
  l->slope = s.slope;
  l->centre = s.centre;
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

// What d_raw of the channels of 16 bytes at one place is formed from. Zeros behind the last channel, and where not `there`.
struct GradientBytes {
  cuda::Bytes16 gradient, raw;
};
// Of an aligned source.
template <typename Element>
DIPENGINE_DEVICE GradientBytes gradient_bytes(const GradientSource& s, bool there, int64_t fit, int y, int x, int channel,
                                              int channels) {
  using Stored = typename Element::Stored;
  GradientBytes bytes{};
  if (!there || channel >= channels) return bytes;
  bytes.gradient = cuda::load16_global(static_cast<const Stored*>(s.gradient) + fit * s.gradient_fit_stride +
                                         pixel_at(y, s.gradient_row_stride, x, s.gradient_pixel_stride) + channel);
  if (s.a != nullptr) {
    bytes.raw = cuda::load16_global(static_cast<const Stored*>(s.raw) + fit * s.raw_fit_stride +
                                      pixel_at(y, s.raw_row_stride, x, s.raw_pixel_stride) + channel);
  }
  return bytes;
}

// d_raw, rounded to what products take.
template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 d_raw_of(const GradientFold<Element>& f, const GradientBytes& bytes) {
  float value[Element::kEach];
  DIPENGINE_UNROLL
  for (int e = 0; e < Element::kEach; ++e) {
    value[e] = fma(f.a[e], Element::widen(Element::get(bytes.gradient, e)),
                   fma(f.b[e], Element::widen(Element::get(bytes.raw, e)), f.c[e]));
  }
  return Element::pack_operands(value);
}

// The same of a source that is not aligned.
template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 d_raw_of(const GradientSource& s, const GradientFold<Element>& f, int64_t fit, int64_t y,
                                        int64_t x, int channel, int channels) {
  constexpr int kEach = Element::kEach;
  const int64_t at = fit * s.gradient_fit_stride + y * s.gradient_row_stride + x * s.gradient_pixel_stride + channel;
  const int64_t raw_place = fit * s.raw_fit_stride + y * s.raw_row_stride + x * s.raw_pixel_stride + channel;
  float value[kEach] = {};
  DIPENGINE_UNROLL
  for (int e = 0; e < kEach; ++e) {
    if (channel + e >= channels) continue;
    const float g = gradient_at<Element>(s, at + e);
    value[e] = s.a == nullptr ? g : fma(f.a[e], g, fma(f.b[e], raw_at<Element>(s, raw_place + e), f.c[e]));
  }
  return Element::pack_operands(value);
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

// Of what is copied: the channels from `channel` on; NULL behind the last.
template <typename Element>
DIPENGINE_DEVICE const typename Element::Stored* copied_from(const GradientSource& s, int64_t fit, int channel, int channels) {
  return channel < channels ? static_cast<const typename Element::Stored*>(s.gradient) + fit * s.gradient_fit_stride + channel : nullptr;
}

// As above, of a head's gradient. Plain loads of raw: d_x may be written over it.
struct HeadBytes {
  cuda::Bytes16 raw;
  float gradient[DIPENGINE_CONV_CUDA_HEAD];
};
template <typename Element>
DIPENGINE_DEVICE HeadBytes head_bytes(const GradientSource& s, bool there, int64_t fit, int64_t y, int64_t x, int channel,
                                      int channels) {
  using Stored = typename Element::Stored;
  HeadBytes bytes{};
  if (!there) return bytes;
  const float* own = static_cast<const float*>(s.gradient) + fit * s.gradient_fit_stride + y * s.gradient_row_stride +
                     x * s.gradient_pixel_stride;
  const Stored* from =
      static_cast<const Stored*>(s.raw) + fit * s.raw_fit_stride + y * s.raw_row_stride + x * s.raw_pixel_stride + channel;
  DIPENGINE_UNROLL
  for (int k = 0; k < DIPENGINE_CONV_CUDA_HEAD; ++k) bytes.gradient[k] = k < s.head.channels ? own[k] : 0.0f;
  if (s.aligned != 0) {
    if (channel < channels) bytes.raw = cuda::load16(from);
  } else {
    DIPENGINE_UNROLL
    for (int e = 0; e < Element::kEach; ++e) {
      if (channel + e < channels) Element::put(bytes.raw, e, from[e]);
    }
  }
  return bytes;
}
template <typename Element>
DIPENGINE_DEVICE cuda::Bytes16 d_raw_of(const GradientSource& s, const GradientFold<Element>& f, const HeadFold<Element>& head,
                                        const HeadBytes& bytes) {
  constexpr int kEach = Element::kEach;
  float value[kEach] = {};
  DIPENGINE_UNROLL
  for (int k = 0; k < DIPENGINE_CONV_CUDA_HEAD; ++k) {
    const float h = Element::widen(Element::operand(bytes.gradient[k]));
    DIPENGINE_UNROLL
    for (int e = 0; e < kEach; ++e) value[e] = fma(Element::widen(Element::get(head.weight[k], e)), h, value[e]);
  }
  DIPENGINE_UNROLL
  for (int e = 0; e < kEach; ++e) {
    const float raw = Element::widen(Element::get(bytes.raw, e));
    const float formed = value[e] * (fma(raw, head.scale[e], head.shift[e]) > 0 ? 1.0f : s.head.slope);
    value[e] = fma(f.a[e], Element::widen(Element::narrow(formed)), fma(f.b[e], raw, f.c[e]));
  }
  return Element::pack_operands(value);
}

// Of one place after the other, load(there, y, x) and then form() of that to shared memory. next(&place, &y, &x, &there): the next of
// the thread's places, and whether it is in the image, where not it is zeros; false behind the last. What `at_once` of them load is
// asked for before the first is formed, since memory is far away.
template <int at_once, typename Next, typename Load, typename Form>
DIPENGINE_DEVICE void load_places(unsigned char* to, const Next& next, const Load& load, const Form& form) {
  int place = 0, y = 0, x = 0;
  bool there = false, more = true;
  while (more) {
    decltype(load(false, 0, 0)) bytes[at_once];
    int places[at_once];
    bool theres[at_once];
    DIPENGINE_UNROLL
    for (int i = 0; i < at_once; ++i) {
      more = more && next(&place, &y, &x, &there);
      places[i] = more ? place : -1;
      theres[i] = more && there;
      bytes[i] = load(theres[i], y, x);
    }
    DIPENGINE_UNROLL
    for (int i = 0; i < at_once; ++i) {
      if (places[i] < 0) continue;
      const cuda::Bytes16 out = form(bytes[i]);
      cuda::store16(to + places[i], theres[i] ? out : cuda::Bytes16{});
    }
  }
}

// The same of a source's d_raw, for the channels of 16 bytes from `channel` on.
template <typename Element, int at_once, typename Next>
DIPENGINE_DEVICE void load_d_raw_places(const GradientSource& s, int64_t fit, int channel, int channels, unsigned char* to,
                                        const Next& next) {
  const GradientFold<Element> fold = load_gradient_fold<Element>(s, fit, channel, channels);
  if (s.aligned != 0) {
    load_places<at_once>(
        to, next, [&](bool there, int y, int x) { return gradient_bytes<Element>(s, there, fit, y, x, channel, channels); },
        [&](const GradientBytes& bytes) { return d_raw_of<Element>(fold, bytes); });
  } else {
    load_places<1>(
        to, next,
        [&](bool there, int y, int x) {
          return there ? d_raw_of<Element>(s, fold, fit, y, x, channel, channels) : cuda::Bytes16{};
        },
        [](const cuda::Bytes16& bytes) { return bytes; });
  }
}

// The same behind a head, whose numbers for these channels `head` keeps.
template <typename Element, int at_once, typename Next>
DIPENGINE_DEVICE void load_head_places(const GradientSource& s, const unsigned char* head, int64_t fit, int channel, int channels,
                                       unsigned char* to, const Next& next) {
  const GradientFold<Element> fold = load_gradient_fold<Element>(s, fit, channel, channels);
  load_places<at_once>(
      to, next, [&](bool there, int y, int x) { return head_bytes<Element>(s, there, fit, y, x, channel, channels); },
      [&](const HeadBytes& bytes) { return d_raw_of<Element>(s, fold, kept_head<Element>(head), bytes); });
}

}  // namespace dipengine
