#include "fit/architecture.h"

#include <algorithm>
#include <cmath>

#include "ops/conv/conv.h"
#include "platform/error.h"

namespace dipengine {
namespace {

using Specs = std::vector<ParameterSpec>;

constexpr int32_t kMostChannels = 1 << 20;

void add_conv(Specs& specs, const std::string& prefix, int64_t out, int64_t in, int64_t kernel, bool dead_bias) {
  // PyTorch's default for Conv2d, Kaiming uniform with a = sqrt(5), comes down to 1 / sqrt(fan_in) for both tensors.
  const double bound = 1 / std::sqrt(static_cast<double>(in * kernel * kernel));
  specs.push_back({prefix + ".conv.weight", out, in, kernel, ParameterSpec::Initial::uniform, bound, false});
  specs.push_back({prefix + ".conv.bias", out, 1, 1, ParameterSpec::Initial::uniform, bound, dead_bias});
}

void add_norm(Specs& specs, const std::string& prefix, int64_t channels, bool dead_beta) {
  specs.push_back({prefix + ".norm.gamma", channels, 1, 1, ParameterSpec::Initial::ones, 0, false});
  specs.push_back({prefix + ".norm.beta", channels, 1, 1, ParameterSpec::Initial::zeros, 0, dead_beta});
}

void add_unit(Specs& specs, const std::string& prefix, int64_t out, int64_t in, int64_t kernel) {
  add_conv(specs, prefix, out, in, kernel, true);
  add_norm(specs, prefix, out, false);
}

}  // namespace

dipengine_status check_generator(const dipengine_generator& g) {
  DIPENGINE_REQUIRE(g.levels >= 1 && g.levels <= DIPENGINE_MAX_LEVELS, "The generator has %d levels; give it 1 to %d.", g.levels,
                    DIPENGINE_MAX_LEVELS);
  DIPENGINE_REQUIRE(g.input_depth >= 1 && g.output_channels >= 1 && g.input_depth <= kMostChannels && g.output_channels <= kMostChannels,
                    "The generator has %d channels of z and %d of the image; each is 1 to 2^20.", g.input_depth, g.output_channels);
  DIPENGINE_REQUIRE(g.downsample == DIPENGINE_DOWNSAMPLE_STRIDE || g.downsample == DIPENGINE_DOWNSAMPLE_AVERAGE,
                    "The generator has downsampling %d; it takes stride (0) or average (1).", g.downsample);
  DIPENGINE_REQUIRE(g.padding == DIPENGINE_PADDING_REFLECTION || g.padding == DIPENGINE_PADDING_ZERO,
                    "The generator has padding %d; it takes reflection (0) or zero (1).", g.padding);
  DIPENGINE_REQUIRE(g.negative_slope >= 0 && g.negative_slope < 1, "The generator has slope %g; it is at least 0 and below 1.",
                    g.negative_slope);
  for (int i = 0; i < g.levels; ++i) {
    const int32_t down = g.channels_down[i], up = g.channels_up[i], skip = g.channels_skip[i];
    DIPENGINE_REQUIRE(down >= 1 && up >= 1 && skip >= 0 && std::max({down, up, skip}) <= kMostChannels,
                      "Level %d of the generator has %d, %d and %d channels down, up and across; each is 1 to 2^20, or 0 across.", i,
                      down, up, skip);
    const int32_t widest = g.kernel_down[i] + (g.downsample == DIPENGINE_DOWNSAMPLE_AVERAGE ? 1 : 0);
    DIPENGINE_REQUIRE(g.kernel_down[i] >= 1 && g.kernel_down[i] % 2 == 1 && widest <= DIPENGINE_CONV_MAX_KERNEL,
                      "Level %d of the generator has kernel %d; it is 1, 3, 5 or 7 (at most 5 with averages).", i, g.kernel_down[i]);
    DIPENGINE_REQUIRE(g.upsample[i] == DIPENGINE_UPSAMPLE_NEAREST || g.upsample[i] == DIPENGINE_UPSAMPLE_BILINEAR,
                      "Level %d of the generator has upsampling %d; it takes nearest (1) or bilinear (2).", i, g.upsample[i]);
  }
  return DIPENGINE_OK;
}

int64_t level_input(const dipengine_generator& g, int level) { return level == 0 ? g.input_depth : g.channels_down[level - 1]; }

int64_t inner_channels(const dipengine_generator& g, int level) {
  return level + 1 < g.levels ? g.channels_up[level + 1] : g.channels_down[level];
}

int64_t most_channels(const dipengine_generator& g) {
  int64_t most = std::max(g.input_depth, g.output_channels);
  for (int i = 0; i < g.levels; ++i) {
    most = std::max({most, int64_t{g.channels_down[i]}, int64_t{g.channels_up[i]}, g.channels_skip[i] + inner_channels(g, i)});
  }
  return most;
}

std::vector<ParameterSpec> parameter_specs(const dipengine_generator& g) {
  Specs specs;
  for (int i = 0; i < g.levels; ++i) {
    const std::string prefix = "level" + std::to_string(i);
    const int64_t enter = level_input(g, i), down = g.channels_down[i], skip = g.channels_skip[i], up = g.channels_up[i];
    const int64_t merged = skip + inner_channels(g, i);
    if (skip > 0) add_unit(specs, prefix + ".skip", skip, enter, 1);
    add_unit(specs, prefix + ".down1", down, enter, g.kernel_down[i]);
    add_unit(specs, prefix + ".down2", down, down, g.kernel_down[i]);
    // A constant goes through a convolution as a constant where no padding is zero, and the norm behind takes it away.
    add_norm(specs, prefix + ".merge", merged, g.padding != DIPENGINE_PADDING_ZERO);
    add_unit(specs, prefix + ".up", up, merged, 3);
    if (g.one_by_one_up) add_unit(specs, prefix + ".point", up, up, 1);
  }
  add_conv(specs, "head", g.output_channels, g.channels_up[0], 1, false);
  return specs;
}

int64_t canvas_side(const dipengine_generator& g, int64_t side) {
  // The deepest tensor keeps one pixel more than a kernel there pads, and never fewer than two.
  const int32_t widest = *std::max_element(g.kernel_down, g.kernel_down + g.levels);
  const int64_t step = int64_t{1} << g.levels, least = std::max<int64_t>(2, 1 + (widest - 1) / 2) * step;
  return std::max(least, (side + step - 1) / step * step);
}

}  // namespace dipengine
