// What the convolutions make while loading, made once where many blocks would make it again: u of a source, and d_raw. A thread keeps
// the numbers of its channels for the pixels that it goes over, and asks for all of these before it looks at the first. Bound by memory.
#include "ops/conv/conv_gradient_cuda.h"
#include "ops/conv/conv_inputs_cuda.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

using Element = cuda::Bfloat16;

constexpr int kThreads = 256, kEach = 8;  // of a block; pixels of a thread

struct OperandLaunch {
  SourcePlan source;     // of u
  GradientSource d_raw;  // or of this
  int32_t width, pixels, channels;
  const uint8_t* active;
  int64_t numbers_fit_stride;
  void* out;
  int64_t out_fit_stride, out_row_stride, out_pixel_stride;
};

// Sixteen bytes of channels, and a pixel in every `rows`: of them a block has kEach times as many.
struct Own {
  int group, rows;
  TileWalk first;
};
DIPENGINE_DEVICE bool own_of(const OperandLaunch& l, Own* own) {
  const int groups = l.channels / Element::kEach;
  own->rows = kThreads / groups;
  own->group = cuda::thread_index() % groups;
  const int row = cuda::thread_index() / groups;
  if (row >= own->rows) return false;
  own->first = begin_walk(cuda::block_x() * own->rows * kEach + row, l.width, own->rows);
  return true;
}

// Whether the thread has anything to do.
DIPENGINE_DEVICE bool begin(const OperandLaunch& l, int64_t fit, Own* own) {
  const bool some = own_of(l, own);
  cuda::wait_for_launches();
  cuda::let_next_begin();
  return some && (l.active == nullptr || l.active[fit] != 0);
}

// load(pixel's row, column) of all of the thread's pixels, then form(what it gave) to `out`.
template <typename Load, typename Form>
DIPENGINE_DEVICE void form_pixels(const OperandLaunch& l, int64_t fit, const Own& own, const Load& load, const Form& form) {
  decltype(load(0, 0)) bytes[kEach]{};
  TileWalk w = own.first;
  DIPENGINE_UNROLL
  for (int i = 0; i < kEach; ++i) {
    if (w.at < l.pixels) bytes[i] = load(w.row, w.column);
    advance(&w);
  }
  auto* const out = static_cast<Element::Stored*>(l.out) + fit * l.out_fit_stride + Element::kEach * own.group;
  w = own.first;
  DIPENGINE_UNROLL
  for (int i = 0; i < kEach; ++i) {
    if (w.at < l.pixels) cuda::store16(out + pixel_at(w.row, l.out_row_stride, w.column, l.out_pixel_stride), form(bytes[i]));
    advance(&w);
  }
}

DIPENGINE_KERNEL(kThreads, 2) conv_input_operand_kernel(DIPENGINE_PARAMS(OperandLaunch) l) {
  const int64_t fit = cuda::block_y();
  Own own;
  if (!begin(l, fit, &own)) return;
  const int channel = Element::kEach * own.group;
  const Fold<Element> fold = load_fold<Element>(l.source, fit * l.numbers_fit_stride, channel);
  const auto* const x = static_cast<const Element::Stored*>(l.source.x) + fit * l.source.x_fit_stride + channel;
  form_pixels(
      l, fit, own,
      [&](int row, int column) { return cuda::load16_global(x + pixel_at(row, l.source.row_stride, column, l.source.pixel_stride)); },
      [&](const cuda::Bytes16& bytes) {
        float value[Element::kEach];
        DIPENGINE_UNROLL
        for (int e = 0; e < Element::kEach; ++e) value[e] = folded<Element>(bytes, fold, e);
        return Element::pack_operands(value);
      });
}

DIPENGINE_KERNEL(kThreads, 2) conv_gradient_operand_kernel(DIPENGINE_PARAMS(OperandLaunch) l) {
  const int64_t fit = cuda::block_y();
  Own own;
  if (!begin(l, fit, &own)) return;
  const int channel = Element::kEach * own.group;
  const GradientFold<Element> fold = load_gradient_fold<Element>(l.d_raw, fit, channel, l.channels);
  form_pixels(
      l, fit, own,
      [&](int row, int column) { return gradient_bytes<Element>(l.d_raw, true, fit, row, column, channel, l.channels); },
      [&](const GradientBytes& bytes) { return d_raw_of<Element>(fold, bytes); });
}

using Params = dipengine_conv_cuda_params;

// `height`, `width` and `channels` of what is formed, which the launch is given else.
dipengine_status run(const Params& p, void (*kernel)(OperandLaunch), const char* name, const char* op, int64_t height, int32_t width,
                     int32_t channels, const dipengine_pixels& out, int64_t out_fit_stride, OperandLaunch* l) {
  l->active = p.active;
  l->numbers_fit_stride = p.fits == 1 ? 0 : p.numbers_fit_stride;
  l->width = width;
  l->channels = channels;
  l->out = out.data;
  l->out_fit_stride = p.fits == 1 ? 0 : out_fit_stride;
  l->out_row_stride = out.row_stride;
  l->out_pixel_stride = out.pixel_stride;
  DIPENGINE_TRY(check_pixels(out, width, channels, op, "its output"));
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_BFLOAT16 && channels % Element::kEach == 0 && channels <= Element::kEach * kThreads &&
                        in_sixteens(p.dtype, l->out_fit_stride, out),
                    "%s takes bfloat16 images whose pixels begin at multiples of 16 bytes, of up to %d channels.", op,
                    Element::kEach * kThreads);
  DIPENGINE_REQUIRE(p.fits == 1 || out_fit_stride >= (height - 1) * out.row_stride + width * out.pixel_stride,
                    "%s was given overlapping fits of its output; space them further apart.", op);
  const int64_t pixels = height * width, each = int64_t{kThreads} / (channels / Element::kEach) * kEach;
  DIPENGINE_REQUIRE(pixels <= INT32_MAX - 2 * each, "%s was given %lld pixels, more than it counts.", op, static_cast<long long>(pixels));
  l->pixels = static_cast<int32_t>(pixels);
  return cuda::launch(kernel, name, {(pixels + each - 1) / each, p.fits, 1, kThreads, 0}, *l, p.stream);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_input_operand(const dipengine_conv_cuda_params* params, int32_t source, dipengine_pixels u,
                                                   int64_t u_fit_stride) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_input_operand";
  ConvPlan plan;
  DIPENGINE_TRY(make_conv_plan(params, op, &plan));
  DIPENGINE_REQUIRE(source >= 0 && source < params->sources_count, "%s has no source %d.", op, source);
  OperandLaunch l{};
  const int32_t first = source == 0 ? 0 : params->sources[0].channels;
  for (int i = 0; i < plan.sources_count; ++i) {
    if (plan.sources[i].first_channel == first) l.source = plan.sources[i];
  }
  DIPENGINE_REQUIRE(l.source.upsample != DIPENGINE_UPSAMPLE_BILINEAR && l.source.aligned != 0,
                    "%s takes no source that is upsampled bilinearly, and pixels of it that begin at multiples of 16 bytes.", op);
  return run(*params, conv_input_operand_kernel, "conv_input_operand", op, l.source.height, l.source.width, l.source.channels, u, u_fit_stride, &l);
}

dipengine_status dipengine_conv_cuda_gradient_operand(const dipengine_conv_cuda_params* params, dipengine_pixels d_raw,
                                                      int64_t d_raw_fit_stride) {
  using namespace dipengine;
  const char* const op = "dipengine_conv_cuda_gradient_operand";
  ConvPlan plan;
  DIPENGINE_TRY(make_conv_plan(params, op, &plan));
  DIPENGINE_TRY(check_gradient(*params, op));
  OperandLaunch l{};
  l.d_raw = gradient_source(*params);
  DIPENGINE_REQUIRE(l.d_raw.aligned != 0 && params->head.weight == nullptr,
                    "%s takes gradients in the images' dtype whose pixels begin at multiples of 16 bytes, and none behind a head.", op);
  return run(*params, conv_gradient_operand_kernel, "conv_gradient_operand", op, params->height, params->width, params->channels, d_raw,
             d_raw_fit_stride, &l);
}

}  // extern "C"
