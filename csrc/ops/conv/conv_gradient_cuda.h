// The gradient of a convolution's raw output, d_raw = A * g + B * raw + C per channel, formed while loading (design 3.7).
#pragma once

#include "math/bf16.h"
#include "ops/conv/conv_cuda.h"
#include "platform/cuda/copy.h"
#include "platform/error.h"

namespace dipengine {

struct GradientSource {
  const void* gradient;
  int64_t gradient_fit_stride, gradient_row_stride, gradient_pixel_stride;
  int32_t gradient_float, aligned;
  const uint16_t* raw;
  int64_t raw_fit_stride, raw_row_stride, raw_pixel_stride;
  int64_t numbers_fit_stride;
  const float *a, *b, *c;  // all NULL: d_raw = g
};

static inline dipengine_status check_gradient(const dipengine_conv_cuda_params& p, const char* op) {
  DIPENGINE_REQUIRE(p.gradient_dtype == DIPENGINE_BFLOAT16 || p.gradient_dtype == DIPENGINE_FLOAT32,
                    "%s takes gradients in bfloat16 or float32, not dtype %d.", op, p.gradient_dtype);
  DIPENGINE_REQUIRE(p.gradient.data != nullptr, "%s was given no gradient.", op);
  DIPENGINE_REQUIRE(
      (p.gradient_scale == nullptr) == (p.raw_scale == nullptr) && (p.gradient_scale == nullptr) == (p.gradient_shift == nullptr),
      "%s needs all of A, B and C, or none.", op);
  DIPENGINE_REQUIRE(p.gradient_scale == nullptr || p.raw_dtype == DIPENGINE_BFLOAT16, "%s reads raw in bfloat16 alone.", op);
  return DIPENGINE_OK;
}

static inline GradientSource gradient_source(const dipengine_conv_cuda_params& p) {
  GradientSource s{};
  const bool single = p.fits == 1;
  s.gradient = p.gradient.data;
  s.gradient_fit_stride = single ? 0 : p.gradient_fit_stride;
  s.gradient_row_stride = p.gradient.row_stride;
  s.gradient_pixel_stride = p.gradient.pixel_stride;
  s.gradient_float = p.gradient_dtype == DIPENGINE_FLOAT32;
  s.raw = static_cast<const uint16_t*>(p.raw.data);
  s.raw_fit_stride = single ? 0 : p.raw_fit_stride;
  s.raw_row_stride = p.raw.row_stride;
  s.raw_pixel_stride = p.raw.pixel_stride;
  s.numbers_fit_stride = single ? 0 : p.numbers_fit_stride;
  s.a = p.gradient_scale;
  s.b = p.raw_scale;
  s.c = p.gradient_shift;
  const auto apart = [](int64_t fit, const dipengine_pixels& pixels) {
    return fit % 8 == 0 && pixels.row_stride % 8 == 0 && pixels.pixel_stride % 8 == 0 &&
           reinterpret_cast<uintptr_t>(pixels.data) % 16 == 0;
  };
  s.aligned = s.gradient_float == 0 && p.channels % 8 == 0 && apart(s.gradient_fit_stride, p.gradient) &&
              (s.a == nullptr || apart(s.raw_fit_stride, p.raw));
  return s;
}

struct GradientFold8 {
  float a[8], b[8], c[8];
};

// Channels behind the last get zeros.
DIPENGINE_DEVICE GradientFold8 load_gradient_fold(const GradientSource& s, int64_t fit, int channel, int channels) {
  GradientFold8 f;
  DIPENGINE_UNROLL
  for (int e = 0; e < 8; ++e) {
    const bool there = channel + e < channels;
    const int64_t at = fit * s.numbers_fit_stride + channel + e;
    f.a[e] = !there ? 0.0f : s.a == nullptr ? 1.0f : s.a[at];
    f.b[e] = !there || s.a == nullptr ? 0.0f : s.b[at];
    f.c[e] = !there || s.a == nullptr ? 0.0f : s.c[at];
  }
  return f;
}

// One value of d_raw, in float32.
DIPENGINE_DEVICE float d_raw_at(const GradientSource& s, int64_t fit, int64_t y, int64_t x, int channel) {
  const int64_t at = fit * s.gradient_fit_stride + y * s.gradient_row_stride + x * s.gradient_pixel_stride + channel;
  const float g = s.gradient_float != 0 ? static_cast<const float*>(s.gradient)[at]
                                        : float_from_bf16(static_cast<const uint16_t*>(s.gradient)[at]);
  if (s.a == nullptr) return g;
  const int64_t number = fit * s.numbers_fit_stride + channel;
  const float raw = float_from_bf16(s.raw[fit * s.raw_fit_stride + y * s.raw_row_stride + x * s.raw_pixel_stride + channel]);
  return fma(s.a[number], g, fma(s.b[number], raw, s.c[number]));
}

// Eight channels of d_raw at (y, x), in bfloat16.
DIPENGINE_DEVICE cuda::Bytes16 d_raw_of(const GradientSource& s, const GradientFold8& f, int64_t fit, int64_t y, int64_t x,
                                        int channel, int channels) {
  const int64_t at = fit * s.gradient_fit_stride + y * s.gradient_row_stride + x * s.gradient_pixel_stride + channel;
  const int64_t raw_at = fit * s.raw_fit_stride + y * s.raw_row_stride + x * s.raw_pixel_stride + channel;
  float g[8] = {}, raw[8] = {};
  if (s.aligned != 0) {
    if (channel < channels) {
      const cuda::Bytes16 gs = cuda::load16_constant(static_cast<const uint16_t*>(s.gradient) + at);
      const cuda::Bytes16 raws = s.a == nullptr ? cuda::Bytes16{} : cuda::load16_constant(s.raw + raw_at);
      DIPENGINE_UNROLL
      for (int e = 0; e < 8; ++e) {
        g[e] = float_from_bf16(static_cast<uint16_t>(gs.word[e / 2] >> (16 * (e % 2))));
        raw[e] = float_from_bf16(static_cast<uint16_t>(raws.word[e / 2] >> (16 * (e % 2))));
      }
    }
  } else {
    DIPENGINE_UNROLL
    for (int e = 0; e < 8; ++e) {
      if (channel + e >= channels) continue;
      g[e] = s.gradient_float != 0 ? static_cast<const float*>(s.gradient)[at + e]
                                   : float_from_bf16(static_cast<const uint16_t*>(s.gradient)[at + e]);
      if (s.a != nullptr) raw[e] = float_from_bf16(s.raw[raw_at + e]);
    }
  }
  cuda::Bytes16 out{};
  DIPENGINE_UNROLL
  for (int e = 0; e < 8; ++e) {
    const float value = s.a == nullptr ? g[e] : fma(f.a[e], g[e], fma(f.b[e], raw[e], f.c[e]));
    out.word[e / 2] |= static_cast<uint32_t>(bf16_from_float(value)) << (16 * (e % 2));
  }
  return out;
}

}  // namespace dipengine
