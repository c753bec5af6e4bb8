#include "fit/params.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "fit/architecture.h"
#include "ops/conv/conv.h"
#include "platform/error.h"

namespace dipengine {
namespace {

using Params = dipengine_fit_params;

constexpr int32_t kFarthest = 1 << 30;
constexpr double kMostElements = 0x1p40;  // of one tensor: beyond all memory, and its bytes still fit their types

bool whole(double value, double low, double high) { return value >= low && value <= high; }  // false for NaN

bool finite(const double* values, int64_t count) {
  return std::all_of(values, values + count, [](double value) { return std::isfinite(value); });
}

dipengine_status check_operator(const Params& p) {
  DIPENGINE_REQUIRE(p.operator_kind >= DIPENGINE_OPERATOR_IDENTITY && p.operator_kind <= DIPENGINE_OPERATOR_BLUR,
                    "The fit has operator %d; it takes identity (0), downsampling (1) or blur (2).", p.operator_kind);
  if (p.operator_kind == DIPENGINE_OPERATOR_IDENTITY) return DIPENGINE_OK;
  int64_t height, width;
  if (p.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    DIPENGINE_REQUIRE(p.factor >= 1 && p.taps_count >= 1 && p.taps != nullptr,
                      "The fit's downsampling has factor %d and %d taps; give at least 1 of both.", p.factor, p.taps_count);
    DIPENGINE_REQUIRE(finite(p.taps, p.taps_count), "The fit's downsampling has a tap that is not finite; give numbers.");
    DIPENGINE_REQUIRE(p.before >= -kFarthest && p.before <= kFarthest,
                      "The fit's downsampling begins %d samples before the image, which no filter does.", p.before);
    height = (p.height + p.factor - 1) / p.factor;
    width = (p.width + p.factor - 1) / p.factor;
  } else {
    DIPENGINE_REQUIRE(p.kernel != nullptr && p.kernel_height >= 1 && p.kernel_width >= 1 && p.kernel_height <= p.height &&
                          p.kernel_width <= p.width,
                      "The fit's blur has a kernel of %d x %d for an image of %lld x %lld; give one that lies in it.",
                      p.kernel_height, p.kernel_width, static_cast<long long>(p.height), static_cast<long long>(p.width));
    DIPENGINE_REQUIRE(finite(p.kernel, int64_t{p.kernel_height} * p.kernel_width),
                      "The fit's blur has a kernel with a weight that is not finite; give numbers.");
    height = p.height - p.kernel_height + 1;
    width = p.width - p.kernel_width + 1;
  }
  DIPENGINE_REQUIRE(p.data_height == height && p.data_width == width,
                    "The fit's data is %lld x %lld where its operator gives %lld x %lld.", static_cast<long long>(p.data_height),
                    static_cast<long long>(p.data_width), static_cast<long long>(height), static_cast<long long>(width));
  return DIPENGINE_OK;
}

}  // namespace

dipengine_status check_params(const Params* params) {
  DIPENGINE_TRY(check_struct(params, "dipengine_fit"));
  const Params& p = *params;
  DIPENGINE_TRY(check_generator(p.generator));
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_FLOAT32 || p.dtype == DIPENGINE_BFLOAT16,
                    "A fit keeps its activations in float32 or bfloat16, not dtype %d.", p.dtype);
  DIPENGINE_REQUIRE(p.slots >= 1, "The fit has %d slots; give at least 1.", p.slots);
  DIPENGINE_REQUIRE(p.height >= 1 && p.width >= 1 && p.height <= (1 << 24) && p.width <= (1 << 24),
                    "The fit's image is %lld x %lld; a side is 1 to 2^24.", static_cast<long long>(p.height),
                    static_cast<long long>(p.width));
  const double canvas = static_cast<double>(canvas_side(p.generator, p.height)) * static_cast<double>(canvas_side(p.generator, p.width));
  if (canvas * static_cast<double>(most_channels(p.generator)) > kMostElements) {
    return fail(DIPENGINE_OUT_OF_RESOURCES, "The fit needs more memory than any machine has; use a smaller image or fewer channels.");
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
  DIPENGINE_REQUIRE(p.sigma >= 0 && std::isfinite(p.sigma), "The fit's sigma is %g; give 0 (unknown) or a positive number.", p.sigma);
  DIPENGINE_REQUIRE(p.code >= DIPENGINE_CODE_NOISE && p.code <= DIPENGINE_CODE_IMAGE,
                    "The fit has code %d; it takes noise (0), meshgrid (1) or image (2).", p.code);
  DIPENGINE_REQUIRE(p.code != DIPENGINE_CODE_MESHGRID || p.generator.input_depth == 2, "A meshgrid has depth 2, not %d.",
                    p.generator.input_depth);
  DIPENGINE_REQUIRE(whole(p.code_scale, 0, 1e6) && whole(p.perturbation, 0, 1e6) && whole(p.learning_rate, 0, 1e6),
                    "The fit has code scale %g, perturbation %g and learning rate %g; none may be negative or huge.", p.code_scale,
                    p.perturbation, p.learning_rate);
  DIPENGINE_REQUIRE(p.average_decay >= 0 && p.average_decay < 1 && p.es_alpha > 0 && p.es_alpha <= 1,
                    "The fit has average decay %g and ES-EMV weight %g; they lie in [0, 1) and (0, 1].", p.average_decay, p.es_alpha);
  DIPENGINE_REQUIRE(whole(p.rollback_db, 0, 1e3), "The fit's roll-back threshold is %g dB; give a positive number.", p.rollback_db);
  DIPENGINE_REQUIRE(p.stop == DIPENGINE_STOP_FIXED || p.stop == DIPENGINE_STOP_AUTO, "The fit's stop is %d; it takes fixed (0) or auto (1).",
                    p.stop);
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
  params.es_alpha = 0.1;
  params.rollback_db = 5;
  params.stop = DIPENGINE_STOP_AUTO;
  params.iterations = 1800;
  return params;
}

}  // namespace dipengine
