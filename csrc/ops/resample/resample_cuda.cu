// Downsampling and its transpose on a CUDA device; index maps and weights of resample_math.h.
//
// One axis a kernel, vertical first, with rows of the other axis' size in the workspace between them; a thread makes an
// element, its sum in the order of the taps as on the CPU, product and sum rounded. An element of the image is read
// taps / factor times, mostly out of the caches; with the pass between, (1 + 2 / factor + 1 / factor^2) 4 bytes an image
// element move: bound by memory.
#include "ops/resample/resample_cuda.h"

#include "ops/resample/resample_checks.h"
#include "ops/resample/resample_math.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {
namespace {

using Params = dipengine_downsample_cuda_params;

constexpr int kThreads = 256;
struct Launch {
  Params p;
  ResampleAxis vertical, horizontal;
  int64_t elements;  // of a row that is written
  int64_t between;   // elements of a row between the passes
  float* rows;       // [fits, rows, between]
};

// What a thread makes: one element of one row; the axes are those of its fit.
struct Place {
  int64_t fit, row;
  int32_t element, pixel, channel;
  bool there;
  ResampleAxis vertical, horizontal;
};

DIPENGINE_DEVICE Place place_of(const Launch& l) {
  const int32_t elements = static_cast<int32_t>(l.elements), channels = static_cast<int32_t>(l.p.channels);
  const int32_t pieces = (elements + kThreads - 1) / kThreads;
  Place place;
  place.fit = cuda::block_y();
  place.row = cuda::block_x() / pieces;
  place.element = cuda::block_x() % pieces * kThreads + cuda::thread_index();
  place.pixel = place.element / channels;
  place.channel = place.element % channels;
  place.there = place.element < elements && (l.p.active == nullptr || l.p.active[place.fit] != 0);
  place.vertical = l.vertical;
  place.horizontal = l.horizontal;
  if (l.p.sizes != nullptr) {
    place.vertical.size = l.p.sizes[2 * place.fit];
    place.horizontal.size = l.p.sizes[2 * place.fit + 1] / l.p.channels;
  }
  return place;
}

DIPENGINE_DEVICE float* at(const dipengine_pixels& image, int64_t fit_offset, int64_t row, int64_t pixel, int64_t channel) {
  return static_cast<float*>(image.data) + fit_offset + row * image.row_stride + pixel * image.pixel_stride + channel;
}

DIPENGINE_DEVICE float* between(const Launch& l, int64_t fit, int64_t rows, int64_t row) {
  return l.rows + (fit * rows + row) * l.between;
}

DIPENGINE_KERNEL(kThreads, 4) downsample_rows_kernel(DIPENGINE_PARAMS(Launch) l) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const Place e = place_of(l);
  if (!e.there || e.row >= outputs_of(e.vertical) || e.pixel >= e.horizontal.size) return;
  const int64_t fit = e.fit * l.p.image_fit_stride;
  float sum = 0;
  for (int64_t t = 0; t < l.p.taps_count; ++t) {
    const int64_t y = sample_at(e.vertical, e.row * l.p.factor + t);
    sum += l.p.taps[t] * *at(l.p.image, fit, y, e.pixel, e.channel);
  }
  between(l, e.fit, outputs_of(l.vertical), e.row)[e.element] = sum;
}

DIPENGINE_KERNEL(kThreads, 4) downsample_columns_kernel(DIPENGINE_PARAMS(Launch) l) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const Place e = place_of(l);
  if (!e.there || e.row >= outputs_of(e.vertical) || e.pixel >= outputs_of(e.horizontal)) return;
  const float* row = between(l, e.fit, outputs_of(l.vertical), e.row) + e.channel;
  float sum = 0;
  for (int64_t t = 0; t < l.p.taps_count; ++t) {
    sum += l.p.taps[t] * row[sample_at(e.horizontal, e.pixel * l.p.factor + t) * l.p.channels];
  }
  *at(l.p.out, e.fit * l.p.out_fit_stride, e.row, e.pixel, e.channel) = sum;
}

DIPENGINE_KERNEL(kThreads, 4) upsample_rows_kernel(DIPENGINE_PARAMS(Launch) l) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const Place e = place_of(l);
  if (!e.there || e.row >= e.vertical.size || e.pixel >= outputs_of(e.horizontal)) return;
  const Span shown = positions_showing(e.vertical, e.row), reading = outputs_reading(e.vertical, shown);
  const int64_t fit = e.fit * l.p.d_out_fit_stride;
  float sum = 0;
  for (int64_t i = reading.first; i <= reading.last; ++i) {
    sum += resample_weight<float>(e.vertical, l.p.taps, i, shown) * *at(l.p.d_out, fit, i, e.pixel, e.channel);
  }
  between(l, e.fit, l.p.height, e.row)[e.element] = sum;
}

// The gradient of one position of the horizontal axis: outputs position / factor - m under taps position % factor + m factor.
DIPENGINE_DEVICE float gradient_at(const Launch& l, const ResampleAxis& axis, const float* row, int64_t position) {
  const int64_t quotient = position / l.p.factor, phase = position - quotient * l.p.factor, outputs = outputs_of(axis);
  float sum = 0;
  for (int64_t m = 0, tap = phase; tap < l.p.taps_count && m <= quotient; ++m, tap += l.p.factor) {
    if (quotient - m < outputs) sum += l.p.taps[tap] * row[(quotient - m) * l.p.channels];
  }
  return sum;
}

DIPENGINE_KERNEL(kThreads, 4) upsample_columns_kernel(DIPENGINE_PARAMS(Launch) l) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const Place e = place_of(l);
  if (!e.there || e.row >= e.vertical.size || e.pixel >= e.horizontal.size) return;
  const float* row = between(l, e.fit, l.p.height, e.row) + e.channel;
  const Span q = positions_showing(e.horizontal, e.pixel);
  float* to = at(l.p.d_image, e.fit * l.p.d_image_fit_stride, e.row, e.pixel, e.channel);
  if (q.first == q.last) {
    *to = gradient_at(l, e.horizontal, row, q.first);
    return;
  }
  double sum = 0;
  for (int64_t position = q.first; position <= q.last; ++position) sum += static_cast<double>(gradient_at(l, e.horizontal, row, position));
  *to = static_cast<float>(sum);
}

Launch begin_launch(const Params& p) {
  Launch l{};
  l.p = p;
  l.vertical = {p.height, p.factor, p.before, p.taps_count};
  l.horizontal = {p.width, p.factor, p.before, p.taps_count};
  l.rows = static_cast<float*>(p.workspace);
  return l;
}

dipengine_status check_dims(const Params* params, const char* op) {
  DIPENGINE_TRY(check_resample_dims(params, op));
  const Params& p = *params;
  constexpr int64_t most = int64_t{1} << 30;
  DIPENGINE_REQUIRE(p.fits >= 1, "%s was given %lld fits; give at least one.", op, static_cast<long long>(p.fits));
  DIPENGINE_REQUIRE(p.height <= most && p.width <= most / p.channels,
                    "%s was given %lld x %lld pixels of %lld channels; a row holds at most 2^30 elements.", op,
                    static_cast<long long>(p.height), static_cast<long long>(p.width), static_cast<long long>(p.channels));
  return DIPENGINE_OK;
}

size_t workspace_bytes(const Params& p) {
  const Launch l = begin_launch(p);
  const int64_t forward = outputs_of(l.vertical) * p.width, backward = p.height * outputs_of(l.horizontal);
  return static_cast<size_t>(p.fits * p.channels * (forward > backward ? forward : backward)) * sizeof(float);
}

dipengine_status check(const Params* params, const char* op) {
  DIPENGINE_TRY(check_dims(params, op));
  const Params& p = *params;
  DIPENGINE_TRY(check_resample_taps(p, op));
  DIPENGINE_REQUIRE(
      p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 && p.workspace_bytes >= workspace_bytes(p),
      "%s needs %zu bytes of workspace, 16-byte aligned, in device memory.", op, workspace_bytes(p));
  return DIPENGINE_OK;
}

dipengine_status check_fits(const Params& p, int64_t stride, const char* op, const char* name) {
  DIPENGINE_REQUIRE(p.fits == 1 || stride != 0, "%s cannot write %s of several fits into one place; space them.", op, name);
  return DIPENGINE_OK;
}

// `rows` rows of `elements` elements.
dipengine_status run(Launch& l, void (*kernel)(Launch), const char* name, int64_t rows, int64_t elements) {
  l.elements = elements;
  const int64_t pieces = (elements + kThreads - 1) / kThreads;
  return cuda::launch(kernel, name, {rows * pieces, l.p.fits, 1, kThreads, 0}, l, l.p.stream);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_downsample_cuda_workspace(const dipengine_downsample_cuda_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_dims(params, "dipengine_downsample_cuda"));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_downsample_cuda_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_downsample_cuda(const dipengine_downsample_cuda_params* params) {
  using namespace dipengine;
  const char* op = "dipengine_downsample_cuda";
  DIPENGINE_TRY(check(params, op));
  Launch l = begin_launch(*params);
  const int64_t rows = outputs_of(l.vertical), width = outputs_of(l.horizontal);
  DIPENGINE_TRY(check_pixels(params->image, params->width, params->channels, op, "image"));
  DIPENGINE_TRY(check_pixels(params->out, width, params->channels, op, "out"));
  DIPENGINE_TRY(check_fits(*params, params->out_fit_stride, op, "out"));
  l.between = params->width * params->channels;
  DIPENGINE_TRY(run(l, downsample_rows_kernel, "downsample_rows", rows, l.between));
  return run(l, downsample_columns_kernel, "downsample_columns", rows, width * params->channels);
}

dipengine_status dipengine_downsample_cuda_backward(const dipengine_downsample_cuda_params* params) {
  using namespace dipengine;
  const char* op = "dipengine_downsample_cuda_backward";
  DIPENGINE_TRY(check(params, op));
  Launch l = begin_launch(*params);
  const int64_t width = outputs_of(l.horizontal);
  DIPENGINE_TRY(check_pixels(params->d_out, width, params->channels, op, "d_out"));
  DIPENGINE_TRY(check_pixels(params->d_image, params->width, params->channels, op, "d_image"));
  DIPENGINE_TRY(check_fits(*params, params->d_image_fit_stride, op, "d_image"));
  l.between = width * params->channels;
  DIPENGINE_TRY(run(l, upsample_rows_kernel, "upsample_rows", params->height, l.between));
  return run(l, upsample_columns_kernel, "upsample_columns", params->height, params->width * params->channels);
}

}  // extern "C"
