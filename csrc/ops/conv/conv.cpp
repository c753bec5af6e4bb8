// Validation and dispatch of the convolutions.
#include "ops/conv/conv.h"

#include "ops/conv/conv_kernels.h"
#include "platform/cpu_dispatch.h"

namespace dipengine {

DIPENGINE_TABLES(ConvTable, conv_forward_kernels, kForward)
DIPENGINE_TABLES(ConvTable, conv_backward_kernels, kBackward)

namespace {

using Params = dipengine_conv_params;
using Source = dipengine_conv_source;

long long number(int64_t n) { return static_cast<long long>(n); }

int64_t grid_side(const Source& s, int64_t side) { return s.upsample == DIPENGINE_UPSAMPLE_NONE ? side : 2 * side; }

dipengine_status check_source(const Params& p, int32_t index) {
  const Source& s = p.sources[index];
  DIPENGINE_REQUIRE(s.height >= 1 && s.width >= 1 && s.channels >= 1,
                    "The convolution's source %d is %lld x %lld x %lld; each side and the channels must be at least 1.", index,
                    number(s.height), number(s.width), number(s.channels));
  DIPENGINE_REQUIRE(s.upsample >= DIPENGINE_UPSAMPLE_NONE && s.upsample <= DIPENGINE_UPSAMPLE_BILINEAR,
                    "The convolution's source %d has upsampling %d; it takes none (0), nearest (1) or bilinear (2).", index,
                    s.upsample);
  if (s.upsample != DIPENGINE_UPSAMPLE_NONE && (p.kernel != 3 || p.stride != 1 || p.pad != 1)) {
    return fail(DIPENGINE_UNSUPPORTED,
                "A convolution of an upsampled source has kernel 3, stride 1 and pad 1, not %d, %d and %d; use the twin.", p.kernel,
                p.stride, p.pad);
  }
  const int64_t height = grid_side(s, s.height), width = grid_side(s, s.width);
  DIPENGINE_REQUIRE(p.padding == DIPENGINE_PADDING_ZERO || (p.pad < height && p.pad < width),
                    "Reflection by %d needs a source of more than %d pixels a side; source %d has %lld x %lld.", p.pad, p.pad,
                    index, number(height), number(width));
  DIPENGINE_REQUIRE((height + 2 * p.pad - p.kernel) / p.stride + 1 == p.height && height + 2 * p.pad >= p.kernel &&
                        (width + 2 * p.pad - p.kernel) / p.stride + 1 == p.width && width + 2 * p.pad >= p.kernel,
                    "The convolution of source %d (%lld x %lld, kernel %d, stride %d, pad %d) does not give %lld x %lld.", index,
                    number(height), number(width), p.kernel, p.stride, p.pad, number(p.height), number(p.width));
  DIPENGINE_REQUIRE(s.x.data != nullptr && s.x.pixel_stride >= s.channels && s.x.row_stride >= s.width * s.x.pixel_stride,
                    "The convolution's source %d has no pixels or overlapping ones; give channels contiguous, pixels and rows "
                    "apart.",
                    index);
  DIPENGINE_REQUIRE((s.inner.scale == nullptr) == (s.inner.shift == nullptr) &&
                        (s.outer.scale == nullptr) == (s.outer.shift == nullptr),
                    "An affine map of the convolution's source %d has a scale or a shift alone; give both or none.", index);
  return DIPENGINE_OK;
}

dipengine_status check_pixels(const dipengine_pixels& pixels, int64_t width, int64_t channels, const char* name) {
  DIPENGINE_REQUIRE(pixels.data != nullptr && pixels.pixel_stride >= channels && pixels.row_stride >= width * pixels.pixel_stride,
                    "The convolution's %s has no pixels or overlapping ones; give channels contiguous, pixels and rows apart.", name);
  return DIPENGINE_OK;
}

bool beside(int32_t dtype, int32_t other) {
  return other == dtype || (dtype == DIPENGINE_BFLOAT16 && other == DIPENGINE_FLOAT32);
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_struct(params, "dipengine_conv"));
  const Params& p = *params;
  if (p.source_size != sizeof(Source)) {
    return fail(DIPENGINE_STRUCT_SIZE,
                "dipengine_conv was given source_size %zu where this library has %zu; build the host against its headers.",
                p.source_size, sizeof(Source));
  }
  DIPENGINE_REQUIRE(p.sources != nullptr && p.sources_count >= 1 && p.sources_count <= DIPENGINE_CONV_MAX_SOURCES,
                    "A convolution has 1 or 2 sources; it was given %d.", p.sources_count);
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_FLOAT32 || p.dtype == DIPENGINE_BFLOAT16 || p.dtype == DIPENGINE_FLOAT64,
                    "Convolutions take images in float32, bfloat16 or float64, not dtype %d; convert them.", p.dtype);
  DIPENGINE_REQUIRE(beside(p.dtype, p.raw_dtype) && beside(p.dtype, p.gradient_dtype),
                    "A convolution's raw output and gradient have the images' dtype, or float32 beside bfloat16.");
  DIPENGINE_REQUIRE(p.kernel >= 1 && p.kernel <= DIPENGINE_CONV_MAX_KERNEL && p.stride >= 1 && p.stride <= 2 && p.pad >= 0 &&
                        p.pad < p.kernel && p.channels >= 1,
                    "The convolution has kernel %d, stride %d, pad %d, %lld channels; a kernel is 1 to %d, a stride 1 or 2, a "
                    "pad below the kernel.",
                    p.kernel, p.stride, p.pad, number(p.channels), DIPENGINE_CONV_MAX_KERNEL);
  DIPENGINE_REQUIRE(p.padding == DIPENGINE_PADDING_REFLECTION || p.padding == DIPENGINE_PADDING_ZERO,
                    "The convolution has padding %d; it takes reflection (0) or zero (1).", p.padding);
  DIPENGINE_REQUIRE(p.weight != nullptr, "The convolution was given no weight; point it at [kernel, kernel, in, out].");
  int upsampled = 0;
  for (int32_t i = 0; i < p.sources_count; ++i) {
    DIPENGINE_TRY(check_source(p, i));
    upsampled += p.sources[i].upsample != DIPENGINE_UPSAMPLE_NONE;
  }
  if (upsampled > 1) return fail(DIPENGINE_UNSUPPORTED, "At most one source of a convolution is upsampled; use the twin.");
  return DIPENGINE_OK;
}

// A channel that is nothing but a few of its n pixels reaches sqrt(n) behind its norm, and sums of 64 such products end at 65504 in
// float16: up to here they stay below it for weights and gammas of any size that a fit has been seen to reach.
constexpr int64_t kMostHalfPixels = int64_t{1} << 20;

dipengine_status choose(const Tables<ConvTable>& tables, const Params& p, const ConvKernels** kernels) {
  const ConvTable* table;
  DIPENGINE_TRY(tables.choose(&table));
  const ConvTable* const half = tables.by_isa[static_cast<int>(Isa::avx512fp16)];
  const ConvTable* const single = tables.by_isa[static_cast<int>(Isa::avx512)];
  for (int32_t i = 0; i < p.sources_count; ++i) {
    if (table == half && single != nullptr && p.sources[i].height * p.sources[i].width > kMostHalfPixels) table = single;
  }
  switch (p.dtype) {
    case DIPENGINE_FLOAT32: *kernels = &table->float32; break;
    case DIPENGINE_BFLOAT16: *kernels = &table->bfloat16; break;
    default: *kernels = &tables.by_isa[0]->float64; break;
  }
  return DIPENGINE_OK;
}

dipengine_status workspace(const Tables<ConvTable>& tables, const Params* params, size_t* bytes) {
  DIPENGINE_TRY(check(params));
  DIPENGINE_REQUIRE(bytes != nullptr, "The convolution's workspace was asked for with nowhere to put it; pass a pointer.");
  const ConvKernels* kernels;
  DIPENGINE_TRY(choose(tables, *params, &kernels));
  *bytes = kernels->workspace(*params);
  return DIPENGINE_OK;
}

dipengine_status run(const Tables<ConvTable>& tables, const Params& p) {
  const ConvKernels* kernels;
  DIPENGINE_TRY(choose(tables, p, &kernels));
  const size_t needed = kernels->workspace(p);
  DIPENGINE_REQUIRE(p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 64 == 0 && p.workspace_bytes >= needed,
                    "The convolution needs a workspace of %zu bytes, 64-byte aligned; it was given %zu.", needed,
                    p.workspace_bytes);
  kernels->run(p);
  return DIPENGINE_OK;
}

dipengine_status check_backward(const Params& p) {
  DIPENGINE_TRY(check_pixels(p.gradient, p.width, p.channels, "gradient"));
  DIPENGINE_REQUIRE((p.raw_scale == nullptr) == (p.gradient_scale == nullptr) &&
                        (p.raw_scale == nullptr) == (p.gradient_shift == nullptr),
                    "The convolution's gradient has some of A, B and C; give all three or none.");
  if (p.raw_scale != nullptr) {
    DIPENGINE_REQUIRE(p.raw_dtype == p.dtype, "A gradient folded with raw needs raw in the images' dtype.");
    DIPENGINE_TRY(check_pixels(p.raw, p.width, p.channels, "raw output"));
  }
  for (int32_t i = 0; i < p.sources_count; ++i) {
    const Source& s = p.sources[i];
    DIPENGINE_REQUIRE((s.sum == nullptr) == (s.product == nullptr),
                      "The convolution's source %d has a place for one of sum and product; give both or none.", i);
    DIPENGINE_REQUIRE(s.sum == nullptr || s.d_x.data != nullptr,
                      "The convolution's source %d has a place for sum and product but none for d_x, which they are sums of; give "
                      "all three.",
                      i);
    if (s.d_x.data != nullptr) DIPENGINE_TRY(check_pixels(s.d_x, s.width, s.channels, "data gradient"));
  }
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_forward_workspace(const dipengine_conv_params* params, size_t* bytes) {
  return dipengine::workspace(dipengine::kForward, params, bytes);
}

dipengine_status dipengine_conv_backward_workspace(const dipengine_conv_params* params, size_t* bytes) {
  return dipengine::workspace(dipengine::kBackward, params, bytes);
}

dipengine_status dipengine_conv_forward(const dipengine_conv_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  DIPENGINE_TRY(check_pixels(params->raw, params->width, params->channels, "raw output"));
  DIPENGINE_REQUIRE((params->mean == nullptr) == (params->variance == nullptr),
                    "The convolution has a place for one of mean and variance; give both or none.");
  return run(kForward, *params);
}

dipengine_status dipengine_conv_backward(const dipengine_conv_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  DIPENGINE_TRY(check_backward(*params));
  return run(kBackward, *params);
}

}  // extern "C"
