// BatchNorm's passes over a source in front of a concatenation, on a CUDA device.
//
// A block takes 256 pixels of 32 channels: a warp reads a pixel's 64 (float32: 128) contiguous bytes, its lanes keep a channel
// each, its eight warps every eighth pixel. Statistics go over the pixels twice, the second time in registers (bilinear: out of
// the first-level cache): the mean, then the squares of differences from it. Bilinear upsampling reads the neighbours too: the
// variance is that of the four upsampled values, and its transpose is U^T U = (3/8, 5/4, 3/8) per axis, ends clamped. Bound by
// memory.
#include "ops/norm/norm_cuda.h"

#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/element.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / cuda::kWarp;
constexpr int kPixels = 256, kEach = kPixels / kWarps;  // of a block, and of a warp

struct NormLaunch {
  int32_t height, width, channels, upsample;
  const void* x;
  int64_t x_fit_stride, x_row_stride, x_pixel_stride;
  const float *scale, *shift;  // inner
  float slope;
  const uint8_t* active;
  int64_t numbers_fit_stride;
  PartTree tree;
  PartMoments* moments;
  MomentsLaunch merge;
  // backward
  const void* g;
  int64_t g_fit_stride, g_row_stride, g_pixel_stride;
  void* d_x;
  int64_t d_x_fit_stride, d_x_row_stride, d_x_pixel_stride;
  int32_t accumulate;
  const float *a, *b, *c, *centre;
  PartSums* sums;
  SumsLaunch add;
};

struct Channel {
  int64_t fit;
  int index;
  float scale, shift;
};

DIPENGINE_DEVICE Channel load_channel(const NormLaunch& l) {
  Channel c = {cuda::block_z(), cuda::block_y() * cuda::kWarp + cuda::lane_index(), 1, 0};
  if (c.index < l.channels && l.scale != nullptr) {
    c.scale = l.scale[c.fit * l.numbers_fit_stride + c.index];
    c.shift = l.shift[c.fit * l.numbers_fit_stride + c.index];
  }
  return c;
}

DIPENGINE_DEVICE int clamped(int i, int n) { return i < 0 ? 0 : i < n ? i : n - 1; }

DIPENGINE_DEVICE int64_t x_place(const NormLaunch& l, const Channel& c, int y, int x) {
  return c.fit * l.x_fit_stride + y * l.x_row_stride + x * l.x_pixel_stride + c.index;
}
template <typename Element>
DIPENGINE_DEVICE float x_at(const NormLaunch& l, const Channel& c, int y, int x) {
  return Element::widen(static_cast<const typename Element::Stored*>(l.x)[x_place(l, c, y, x)]);
}

DIPENGINE_DEVICE float leaky(float t, float slope) { return t > 0 ? t : t * slope; }

template <typename Element>
DIPENGINE_DEVICE float t_at(const NormLaunch& l, const Channel& c, int y, int x) {
  return leaky(fma(x_at<Element>(l, c, clamped(y, l.height), clamped(x, l.width)), c.scale, c.shift), l.slope);
}

// The mean of the values of v that pixel (y, x) becomes, and the sum of their squared differences from `mean`.
struct Upsampled {
  float mean, m2;
};
template <typename Element>
DIPENGINE_DEVICE Upsampled upsampled(const NormLaunch& l, const Channel& c, int y, int x, float mean) {
  if (l.upsample != DIPENGINE_UPSAMPLE_BILINEAR) {
    const float t = t_at<Element>(l, c, y, x);
    return {t, (t - mean) * (t - mean)};
  }
  float row[3][2];  // three rows, upsampled along x
  DIPENGINE_UNROLL
  for (int i = 0; i < 3; ++i) {
    const float left = t_at<Element>(l, c, y + i - 1, x - 1), own = t_at<Element>(l, c, y + i - 1, x),
                right = t_at<Element>(l, c, y + i - 1, x + 1);
    row[i][0] = fma(0.25f, left, 0.75f * own);
    row[i][1] = fma(0.25f, right, 0.75f * own);
  }
  Upsampled sum{};
  DIPENGINE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float v = fma(0.25f, row[i / 2 * 2][i % 2], 0.75f * row[1][i % 2]);
    sum.mean += 0.25f * v;
    sum.m2 += 0.25f * (v - mean) * (v - mean);
  }
  return sum;
}

// The sum over the block's warps of each lane's value, in every warp; the lanes of warp 0 give the order.
DIPENGINE_DEVICE float sum_of_warps(float own, float* shared) {
  shared[cuda::thread_index()] = own;
  cuda::sync_threads();
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared[warp * cuda::kWarp + cuda::lane_index()];
  return sum;
}

// A warp's pixels, one after the other: every kWarps-th of the block's.
struct PixelWalk {
  int at, y, x;
};
DIPENGINE_DEVICE PixelWalk begin_pixels(const NormLaunch& l, int begin) {
  const int at = begin + cuda::warp_index();
  return {at, at / l.width, at % l.width};
}
DIPENGINE_DEVICE void advance(const NormLaunch& l, PixelWalk* w) {
  w->at += kWarps;
  w->x += kWarps;
  while (w->x >= l.width) {
    w->x -= l.width;
    ++w->y;
  }
}

template <typename Element>
DIPENGINE_KERNEL(kThreads, 2)
norm_statistics_kernel(DIPENGINE_PARAMS(NormLaunch) l) {
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[cuda::block_z()] == 0) return;
  float* shared = reinterpret_cast<float*>(cuda::shared_memory());
  const Channel c = load_channel(l);
  const int pixels = l.height * l.width, begin = cuda::block_x() * kPixels,
            end = begin + kPixels < pixels ? begin + kPixels : pixels;
  const bool there = c.index < l.channels, bilinear = l.upsample == DIPENGINE_UPSAMPLE_BILINEAR;
  float sum = 0, m2 = 0;
  if (bilinear) {
    for (PixelWalk w = begin_pixels(l, begin); w.at < end && there; advance(l, &w)) sum += upsampled<Element>(l, c, w.y, w.x, 0).mean;
    const float mean = sum_of_warps(sum, shared) / static_cast<float>(end - begin);
    for (PixelWalk w = begin_pixels(l, begin); w.at < end && there; advance(l, &w)) m2 += upsampled<Element>(l, c, w.y, w.x, mean).m2;
    sum = mean;
  } else {
    // All are asked for before the first is looked at, since memory is far away.
    typename Element::Stored stored[kEach];
    PixelWalk w = begin_pixels(l, begin);
    DIPENGINE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      stored[i] = typename Element::Stored{};
      if (w.at < end && there) stored[i] = static_cast<const typename Element::Stored*>(l.x)[x_place(l, c, w.y, w.x)];
      advance(l, &w);
    }
    float t[kEach];
    DIPENGINE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      t[i] = leaky(fma(Element::widen(stored[i]), c.scale, c.shift), l.slope);
      if (begin + cuda::warp_index() + i * kWarps < end) sum += t[i];
    }
    sum = sum_of_warps(sum, shared) / static_cast<float>(end - begin);
    DIPENGINE_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const float difference = t[i] - sum;
      if (begin + cuda::warp_index() + i * kWarps < end) m2 = fma(difference, difference, m2);
    }
  }
  cuda::let_next_begin();
  m2 = sum_of_warps(m2, shared + kThreads);
  if (cuda::warp_index() == 0 && there) {
    l.moments[(c.fit * ((pixels + kPixels - 1) / kPixels) + cuda::block_x()) * l.channels + c.index] = {sum, m2};
  }
  if (l.tree.tickets == nullptr) return;
  merge_by_blocks<kThreads, cuda::kWarp>(l.tree, MomentsMerge{l.merge}, c.fit, cuda::block_y(), cuda::block_x());
}

// U^T U t at pixel (y, x) of a bilinearly upsampled source.
template <typename Element>
DIPENGINE_DEVICE float transposed_bilinear(const NormLaunch& l, const Channel& c, int y, int x) {
  float transposed = 0;
  DIPENGINE_UNROLL
  for (int i = 0; i < 9; ++i) {
    const float weight = (i / 3 == 1 ? 1.25f : 0.375f) * (i % 3 == 1 ? 1.25f : 0.375f);
    transposed = fma(weight, t_at<Element>(l, c, y + i / 3 - 1, x + i % 3 - 1), transposed);
  }
  return transposed;
}

template <typename Element>
DIPENGINE_KERNEL(kThreads, 2)
norm_backward_kernel(DIPENGINE_PARAMS(NormLaunch) l) {
  using Stored = typename Element::Stored;
  constexpr int kAtOnce = 8;  // pixels that are asked for before the first is looked at
  static_assert(kEach % kAtOnce == 0, "all pixels");
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[cuda::block_z()] == 0) return;
  float* shared = reinterpret_cast<float*>(cuda::shared_memory());
  const Channel c = load_channel(l);
  const int pixels = l.height * l.width, begin = cuda::block_x() * kPixels,
            end = begin + kPixels < pixels ? begin + kPixels : pixels;
  const bool there = c.index < l.channels, bilinear = l.upsample == DIPENGINE_UPSAMPLE_BILINEAR;
  const int64_t number = c.fit * l.numbers_fit_stride + c.index;
  const bool folded = there && l.a != nullptr;
  const float a = folded ? l.a[number] : 1.0f, b = folded ? l.b[number] : 0.0f, shift = folded ? l.c[number] : 0.0f;
  const float centre = there && l.centre != nullptr ? l.centre[number] : 0.0f;
  const float ones = l.upsample == DIPENGINE_UPSAMPLE_NONE ? 1.0f : 4.0f;  // U^T 1
  const Stored* const g = static_cast<const Stored*>(l.g) + c.fit * l.g_fit_stride + c.index;
  Stored* const d_x = static_cast<Stored*>(l.d_x) + c.fit * l.d_x_fit_stride + c.index;
  float sum = 0, product = 0;
  PixelWalk w = begin_pixels(l, begin);
  while (w.at < end && there) {
    Stored values[kAtOnce], gs[kAtOnce], olds[kAtOnce];
    float transposed[kAtOnce];
    PixelWalk ahead = w;
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      values[i] = gs[i] = olds[i] = Stored{};
      transposed[i] = 0;
      if (ahead.at < end) {
        values[i] = static_cast<const Stored*>(l.x)[x_place(l, c, ahead.y, ahead.x)];
        gs[i] = g[ahead.y * l.g_row_stride + ahead.x * l.g_pixel_stride];
        if (l.accumulate != 0) olds[i] = d_x[ahead.y * l.d_x_row_stride + ahead.x * l.d_x_pixel_stride];
        if (bilinear) transposed[i] = transposed_bilinear<Element>(l, c, ahead.y, ahead.x);
      }
      advance(l, &ahead);
    }
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      if (w.at < end) {
        const float value = Element::widen(values[i]), inner = fma(value, c.scale, c.shift), own = Element::widen(gs[i]);
        const float behind = bilinear ? transposed[i] : ones * leaky(inner, l.slope);  // U^T U t
        const float d_t = l.a == nullptr ? own : fma(a, own, fma(b, behind, shift * ones));
        const Stored stored = Element::narrow(d_t * (inner > 0 ? 1.0f : l.slope) + Element::widen(olds[i]));
        d_x[w.y * l.d_x_row_stride + w.x * l.d_x_pixel_stride] = stored;
        sum += Element::widen(stored);
        product += Element::widen(stored) * (value - centre);
      }
      advance(l, &w);
    }
  }
  cuda::let_next_begin();
  if (l.sums == nullptr) return;
  sum = sum_of_warps(sum, shared);
  product = sum_of_warps(product, shared + kThreads);
  if (cuda::warp_index() == 0 && there) {
    l.sums[(c.fit * ((pixels + kPixels - 1) / kPixels) + cuda::block_x()) * l.channels + c.index] = {sum, product};
  }
  if (l.tree.tickets == nullptr) return;
  merge_by_blocks<kThreads, cuda::kWarp>(l.tree, SumsMerge{l.add}, c.fit, cuda::block_y(), cuda::block_x());
}

DIPENGINE_KERNEL(kThreads, 2) norm_fold_gradient_kernel(DIPENGINE_PARAMS(dipengine_norm_cuda_gradient) p) {
  const int64_t fit = cuda::block_y();
  const int channel = cuda::block_x() * kThreads + cuda::thread_index();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (channel >= p.channels || (p.active != nullptr && p.active[fit] == 0)) return;
  const int64_t at = fit * p.numbers_fit_stride + channel;
  fold_gradient(p, fit, channel, p.sum[at], p.product[at]);
}

using Params = dipengine_norm_cuda_params;

dipengine_status check(const Params* params, const char* op) {
  DIPENGINE_TRY(check_struct(params, op));
  const Params& p = *params;
  DIPENGINE_REQUIRE(p.source_size == sizeof(dipengine_conv_cuda_source),
                    "%s was given source_size %zu where this library has %zu; build the host against its headers.", op,
                    p.source_size, sizeof(dipengine_conv_cuda_source));
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_BFLOAT16 || p.dtype == DIPENGINE_FLOAT32,
                    "%s takes images in bfloat16 or float32, not dtype %d.", op, p.dtype);
  DIPENGINE_REQUIRE(p.fits >= 1 && p.source != nullptr, "%s needs at least one fit and a source.", op);
  const dipengine_conv_cuda_source& s = *p.source;
  DIPENGINE_TRY(check_size(s.height, s.width, s.channels, op));
  DIPENGINE_TRY(check_pixels(s.x, s.width, s.channels, op, "x"));
  DIPENGINE_REQUIRE(s.upsample >= DIPENGINE_UPSAMPLE_NONE && s.upsample <= DIPENGINE_UPSAMPLE_BILINEAR,
                    "%s has no upsampling %d.", op, s.upsample);
  DIPENGINE_REQUIRE((s.inner.scale == nullptr) == (s.inner.shift == nullptr), "%s was given an inner scale or shift alone.", op);
  DIPENGINE_REQUIRE(static_cast<int64_t>(s.height) * s.width <= 0x7fffffff, "%s was given %d x %d pixels, more than it counts.",
                    op, s.height, s.width);
  return DIPENGINE_OK;
}

int64_t parts_of(const dipengine_conv_cuda_source& s) {
  return (static_cast<int64_t>(s.height) * s.width + kPixels - 1) / kPixels;
}

PartTree tree_of(const Params& p) {
  return make_part_tree(parts_of(*p.source), 1, (p.source->channels + cuda::kWarp - 1) / cuda::kWarp);
}

size_t workspace_bytes(const Params& p) { return merge_bytes(tree_of(p), p.fits, p.source->channels); }

dipengine_status check_space(const Params& p, const char* op) {
  DIPENGINE_REQUIRE(
      p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 && p.workspace_bytes >= workspace_bytes(p),
      "%s needs %zu bytes of workspace, 16-byte aligned.", op, workspace_bytes(p));
  return DIPENGINE_OK;
}

NormLaunch begin_launch(const Params& p) {
  const dipengine_conv_cuda_source& s = *p.source;
  NormLaunch l{};
  l.height = s.height;
  l.width = s.width;
  l.channels = s.channels;
  l.upsample = s.upsample;
  l.x = s.x.data;
  l.x_fit_stride = s.x_fit_stride;
  l.x_row_stride = s.x.row_stride;
  l.x_pixel_stride = s.x.pixel_stride;
  l.scale = s.inner.scale;
  l.shift = s.inner.shift;
  l.slope = s.slope;
  l.active = p.active;
  l.numbers_fit_stride = p.numbers_fit_stride;
  return l;
}

cuda::Grid grid_of(const Params& p) {
  return {parts_of(*p.source), (p.source->channels + cuda::kWarp - 1) / cuda::kWarp, p.fits, kThreads,
          p.tickets == nullptr ? 2 * kThreads * sizeof(float) : merge_shared_bytes(kThreads)};
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_norm_cuda_workspace(const dipengine_norm_cuda_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check(params, "dipengine_norm_cuda_workspace"));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_norm_cuda_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_norm_cuda_tickets(const dipengine_norm_cuda_params* params, int64_t* count) {
  DIPENGINE_TRY(dipengine::check(params, "dipengine_norm_cuda_tickets"));
  DIPENGINE_REQUIRE(count != nullptr, "dipengine_norm_cuda_tickets was given no place for its answer.");
  *count = dipengine::tickets_of(dipengine::tree_of(*params), params->fits);
  return DIPENGINE_OK;
}

dipengine_status dipengine_norm_cuda_statistics(const dipengine_norm_cuda_params* params) {
  using namespace dipengine;
  const char* const op = "dipengine_norm_cuda_statistics";
  DIPENGINE_TRY(check(params, op));
  const dipengine_norm_cuda_params& p = *params;
  DIPENGINE_TRY(check_space(p, op));
  DIPENGINE_REQUIRE(p.mean != nullptr && p.variance != nullptr && (p.scale == nullptr) == (p.shift == nullptr),
                    "%s needs mean and variance, and scale and shift both or neither.", op);
  NormLaunch l = begin_launch(p);
  l.moments = static_cast<PartMoments*>(p.workspace);
  l.tree = place_part_tree(tree_of(p), p.fits, l.channels, p.workspace, p.tickets);
  const PartPixels pixels = {l.height * l.width, 1, 1, 1, kPixels, 0};
  l.merge = moments_launch(p, pixels, parts_of(*p.source), l.channels, l.moments);
  DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
    return cuda::launch(norm_statistics_kernel<decltype(element)>, "norm_statistics", grid_of(p), l, p.stream);
  }));
  return p.tickets != nullptr ? DIPENGINE_OK : launch_moments(l.merge, p.fits, p.stream);
}

dipengine_status dipengine_norm_cuda_backward(const dipengine_norm_cuda_params* params) {
  using namespace dipengine;
  const char* const op = "dipengine_norm_cuda_backward";
  DIPENGINE_TRY(check(params, op));
  const dipengine_norm_cuda_params& p = *params;
  const dipengine_conv_cuda_source& s = *p.source;
  DIPENGINE_TRY(check_pixels(p.g, s.width, s.channels, op, "g"));
  DIPENGINE_TRY(check_pixels(s.d_x, s.width, s.channels, op, "d_x"));
  DIPENGINE_REQUIRE((p.a == nullptr) == (p.b == nullptr) && (p.a == nullptr) == (p.c == nullptr),
                    "%s needs all of A, B and C, or none.", op);
  DIPENGINE_REQUIRE((s.sum == nullptr) == (s.product == nullptr), "%s needs sum and product both or neither.", op);
  if (s.sum != nullptr) DIPENGINE_TRY(check_space(p, op));
  NormLaunch l = begin_launch(p);
  l.g = p.g.data;
  l.g_fit_stride = p.g_fit_stride;
  l.g_row_stride = p.g.row_stride;
  l.g_pixel_stride = p.g.pixel_stride;
  l.d_x = s.d_x.data;
  l.d_x_fit_stride = s.d_x_fit_stride;
  l.d_x_row_stride = s.d_x.row_stride;
  l.d_x_pixel_stride = s.d_x.pixel_stride;
  l.accumulate = s.accumulate;
  l.a = p.a;
  l.b = p.b;
  l.c = p.c;
  l.centre = s.centre;
  l.sums = s.sum == nullptr ? nullptr : static_cast<PartSums*>(p.workspace);
  l.tree = place_part_tree(tree_of(p), p.fits, l.channels, p.workspace, p.tickets);
  l.add = {parts_of(s), s.channels, l.sums, p.active, p.numbers_fit_stride, s.sum, s.product, 0, {}};
  DIPENGINE_TRY(set_fold(s.fold, op, &l.add));
  DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
    return cuda::launch(norm_backward_kernel<decltype(element)>, "norm_backward", grid_of(p), l, p.stream);
  }));
  return s.sum == nullptr || p.tickets != nullptr ? DIPENGINE_OK : launch_sums(l.add, p.fits, p.stream);
}

dipengine_status dipengine_norm_cuda_fold_gradient(const dipengine_norm_cuda_gradient* gradient) {
  using namespace dipengine;
  const char* const op = "dipengine_norm_cuda_fold_gradient";
  DIPENGINE_TRY(check_struct(gradient, op));
  const dipengine_norm_cuda_gradient& p = *gradient;
  DIPENGINE_REQUIRE(p.fits >= 1 && p.channels >= 1 && p.count > 0, "%s needs at least one fit, one channel and one value.", op);
  DIPENGINE_REQUIRE(p.mean != nullptr && p.variance != nullptr && p.sum != nullptr && p.product != nullptr && p.a != nullptr &&
                        p.b != nullptr && p.c != nullptr,
                    "%s needs mean, variance, sum, product, a, b and c; one of them is NULL.", op);
  return cuda::launch(norm_fold_gradient_kernel, "norm_fold_gradient",
                      {(p.channels + kThreads - 1) / kThreads, p.fits, 1, kThreads, 0}, p, p.stream);
}

}  // extern "C"
