#include "fit/params.h"

#include <algorithm>
#include <cmath>

#include "fit/architecture.h"
#include "ops/conv/conv.h"
#include "platform/error.h"

namespace dipengine {
namespace {

using Params = dipengine_fit_params;

constexpr int32_t kMostCudaFits = 65535;  // of a grid's dimension
constexpr int32_t kFarthest = 1 << 30;
constexpr double kMostElements = 0x1p40;  // of one tensor: beyond all memory, and its bytes still fit their types

bool within(double value, double low, double high) { return value >= low && value <= high; }  // false for NaN

bool finite(const double* values, int64_t count) {
  return std::all_of(values, values + count, [](double value) { return std::isfinite(value); });
}

long long shown(int64_t value) { return static_cast<long long>(value); }

// That the operator makes x0 of the image.
dipengine_status check_data(const Params& p, const Extent& e, const char* whose) {
  if (p.operator_kind == DIPENGINE_OPERATOR_IDENTITY) return DIPENGINE_OK;
  int64_t height = (e.height + p.factor - 1) / std::max(p.factor, 1), width = (e.width + p.factor - 1) / std::max(p.factor, 1);
  if (p.operator_kind == DIPENGINE_OPERATOR_BLUR) {
    DIPENGINE_REQUIRE(p.kernel_height <= e.height && p.kernel_width <= e.width,
                      "The fit's blur has a kernel of %d x %d for an image of %lld x %lld; give one that lies in it.",
                      p.kernel_height, p.kernel_width, shown(e.height), shown(e.width));
    height = e.height - p.kernel_height + 1;
    width = e.width - p.kernel_width + 1;
  }
  DIPENGINE_REQUIRE(e.data_height == height && e.data_width == width,
                    "The %s's data is %lld x %lld where the operator gives %lld x %lld; give data of that size.", whose,
                    shown(e.data_height), shown(e.data_width), shown(height), shown(width));
  return DIPENGINE_OK;
}

dipengine_status check_operator(const Params& p) {
  DIPENGINE_REQUIRE(p.operator_kind >= DIPENGINE_OPERATOR_IDENTITY && p.operator_kind <= DIPENGINE_OPERATOR_BLUR,
                    "The fit has operator %d; it takes identity (0), downsampling (1) or blur (2).", p.operator_kind);
  if (p.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    DIPENGINE_REQUIRE(p.factor >= 1 && p.taps_count >= 1 && p.taps != nullptr,
                      "The fit's downsampling has factor %d and %d taps; give at least 1 of both.", p.factor, p.taps_count);
    DIPENGINE_REQUIRE(finite(p.taps, p.taps_count), "The fit's downsampling has a tap that is not finite; give numbers.");
    DIPENGINE_REQUIRE(p.before >= -kFarthest && p.before <= kFarthest,
                      "The fit's downsampling begins %d samples before the image, which no filter does.", p.before);
  } else if (p.operator_kind == DIPENGINE_OPERATOR_BLUR) {
    DIPENGINE_REQUIRE(p.kernel != nullptr && p.kernel_height >= 1 && p.kernel_width >= 1,
                      "The fit's blur has a kernel of %d x %d, or none; give one of at least 1 x 1.", p.kernel_height,
                      p.kernel_width);
    DIPENGINE_REQUIRE(finite(p.kernel, int64_t{p.kernel_height} * p.kernel_width),
                      "The fit's blur has a kernel with a weight that is not finite; give numbers.");
  }
  return check_data(p, {p.height, p.width, p.data_height, p.data_width}, "fit");
}

}  // namespace

dipengine_status check_extent(const Params& p, const Extent& e, const char* whose) {
  DIPENGINE_REQUIRE(e.height >= 1 && e.width >= 1 && e.height <= p.height && e.width <= p.width,
                    "The %s's image is %lld x %lld where this fit has room for 1 x 1 to %lld x %lld; create one for the largest "
                    "image.",
                    whose, shown(e.height), shown(e.width), shown(p.height), shown(p.width));
  const int64_t height = canvas_side(p.generator, p.height), width = canvas_side(p.generator, p.width);
  DIPENGINE_REQUIRE(canvas_side(p.generator, e.height) == height && canvas_side(p.generator, e.width) == width,
                    "The %s's image is %lld x %lld, which is not fitted on this fit's canvas of %lld x %lld; create a fit for its "
                    "own canvas.",
                    whose, shown(e.height), shown(e.width), shown(height), shown(width));
  return check_data(p, e, whose);
}

dipengine_status check_params(const Params* params) {
  DIPENGINE_TRY(check_struct(params, "dipengine_fit"));
  const Params& p = *params;
  DIPENGINE_TRY(check_generator(p.generator));
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_FLOAT32 || p.dtype == DIPENGINE_BFLOAT16,
                    "A fit keeps its activations in float32 or bfloat16, not dtype %d.", p.dtype);
  DIPENGINE_REQUIRE(p.device == DIPENGINE_DEVICE_CPU || p.device == DIPENGINE_DEVICE_CUDA,
                    "The fit has device %d; it takes a CPU (0) or a CUDA device (1).", p.device);
  DIPENGINE_REQUIRE(p.device == DIPENGINE_DEVICE_CPU || p.device_index >= 0, "There is no CUDA device %d; count from 0.",
                    p.device_index);
  DIPENGINE_REQUIRE(p.slots >= 1, "The fit has %d slots; give at least 1.", p.slots);
  DIPENGINE_REQUIRE(p.device == DIPENGINE_DEVICE_CPU || p.slots <= kMostCudaFits,
                    "A fit on a CUDA device has at most %d slots, not %d; give it fewer.", kMostCudaFits, p.slots);
  DIPENGINE_REQUIRE(p.height >= 1 && p.width >= 1 && p.height <= (1 << 24) && p.width <= (1 << 24),
                    "The fit's image is %lld x %lld; a side is 1 to 2^24.", static_cast<long long>(p.height),
                    static_cast<long long>(p.width));
  const int64_t canvas = canvas_side(p.generator, p.height) * canvas_side(p.generator, p.width);
  const int64_t channels = most_channels(p.generator);
  const double together = p.device == DIPENGINE_DEVICE_CUDA ? p.slots : 1;  // side by side
  if (channels > kMostChannels || together * static_cast<double>(canvas) * static_cast<double>(channels) > kMostElements) {
    return fail(DIPENGINE_OUT_OF_RESOURCES,
                "The fit needs more memory than any machine has; use a smaller image or fewer channels.");
  }
  DIPENGINE_TRY(check_operator(p));
  DIPENGINE_REQUIRE(p.data_term == DIPENGINE_DATA_SQUARED || p.data_term == DIPENGINE_DATA_SENSOR,
                    "The fit has data term %d; it takes squared (0) or sensor (1).", p.data_term);
  DIPENGINE_REQUIRE(p.data_term == DIPENGINE_DATA_SQUARED || (p.electrons_scale > 0 && std::isfinite(p.electrons_scale) &&
                                                              std::isfinite(p.electrons_shift) && p.read_variance >= 0 &&
                                                              std::isfinite(p.read_variance)),
                    "The fit's sensor has scale %g, shift %g and read variance %g; the scale is positive, the variance not "
                    "negative.",
                    p.electrons_scale, p.electrons_shift, p.read_variance);
  DIPENGINE_REQUIRE(p.sigma >= 0 && std::isfinite(p.sigma), "The fit's sigma is %g; give 0 (unknown) or a positive number.",
                    p.sigma);
  DIPENGINE_REQUIRE(p.code >= DIPENGINE_CODE_NOISE && p.code <= DIPENGINE_CODE_IMAGE,
                    "The fit has code %d; it takes noise (0), meshgrid (1) or image (2).", p.code);
  DIPENGINE_REQUIRE(p.code != DIPENGINE_CODE_MESHGRID || p.generator.input_depth == 2, "A meshgrid has depth 2, not %d.",
                    p.generator.input_depth);
  DIPENGINE_REQUIRE(within(p.code_scale, 0, 1e6) && within(p.perturbation, 0, 1e6) && within(p.learning_rate, 0, 1e6),
                    "The fit has code scale %g, perturbation %g and learning rate %g; none may be negative or huge.", p.code_scale,
                    p.perturbation, p.learning_rate);
  DIPENGINE_REQUIRE(p.average_decay >= 0 && p.average_decay < 1 && p.es_alpha > 0 && p.es_alpha <= 1,
                    "The fit has average decay %g and ES-EMV weight %g; they lie in [0, 1) and (0, 1].", p.average_decay, p.es_alpha);
  DIPENGINE_REQUIRE(within(p.rollback_db, 0, 1e3), "The fit's roll-back threshold is %g dB; give 0 to 1000.", p.rollback_db);
  DIPENGINE_REQUIRE(p.stop == DIPENGINE_STOP_FIXED || p.stop == DIPENGINE_STOP_AUTO,
                    "The fit's stop is %d; it takes fixed (0) or auto (1).", p.stop);
  DIPENGINE_REQUIRE(within(p.hold_out, 0, 0.5), "The fit holds out %g of its known pixels; give a share of 0 to 0.5.", p.hold_out);
  DIPENGINE_REQUIRE(p.hold_out == 0 || (p.sigma == 0 && p.data_term == DIPENGINE_DATA_SQUARED),
                    "The fit knows its noise and holds out %g of its known pixels; one of both says when to stop.", p.hold_out);
  DIPENGINE_REQUIRE(p.iterations >= 1 && p.iterations < (int64_t{1} << 32), "The fit has %lld iterations; give 1 to 2^32 - 1.",
                    static_cast<long long>(p.iterations));
  return DIPENGINE_OK;
}

dipengine_fit_params default_params() {
  Params params{};
  params.struct_size = sizeof(params);
  dipengine_generator& g = params.generator;
  g.levels = 5;
  g.input_depth = 32;
  g.output_channels = 3;
  for (int i = 0; i < DIPENGINE_MAX_LEVELS; ++i) {
    g.channels_down[i] = g.channels_up[i] = 128;
    g.channels_skip[i] = 4;
    g.kernel_down[i] = 3;
    g.upsample[i] = DIPENGINE_UPSAMPLE_NEAREST;
  }
  g.one_by_one_up = 1;
  g.negative_slope = 0.2;
  params.dtype = dipengine_cpu_bfloat16() ? DIPENGINE_BFLOAT16 : DIPENGINE_FLOAT32;
  params.slots = 1;
  params.code_scale = 0.1;
  params.perturbation = 1.0 / 30;
  params.learning_rate = 0.01;
  params.average_decay = 0.99;
  params.average_warm_up = 1;
  params.deliver_average = 1;
  params.es_alpha = 3 * (1 - params.average_decay);
  params.rollback_db = 5;
  params.stop = DIPENGINE_STOP_AUTO;
  params.iterations = 1800;
  return params;
}

}  // namespace dipengine
