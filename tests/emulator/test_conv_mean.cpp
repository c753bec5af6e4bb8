// Kernels with a mean made part of them, and their gradients, on the emulated device: the bits of the loops of the CPU's plan.
#include <algorithm>

#include "ops/conv/conv_mean_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

bool mean_case(int64_t fits, int64_t kernel, int64_t pairs) {
  const int64_t taps = kernel * kernel, wide_taps = (kernel + 1) * (kernel + 1);
  const int64_t stride = taps * pairs + 7, wide_stride = wide_taps * pairs + 9;
  check::Numbers numbers(static_cast<uint64_t>(kernel * pairs));
  const std::vector<float> weight = numbers.vector<float>(fits * stride), gradient = numbers.vector<float>(fits * wide_stride);
  std::vector<float> wide = numbers.vector<float>(fits * wide_stride), d_weight = numbers.vector<float>(fits * stride);
  Array<float> device_weight(weight), device_gradient(gradient), device_wide(wide), device_d(d_weight);
  const std::vector<uint8_t> active = {1, 0, 1};
  Array<uint8_t> device_active(active);
  dipengine_conv_mean_cuda_params p{sizeof(p), nullptr, fits, device_active.data(), kernel, pairs, device_weight.data(),
                                    device_wide.data(), stride, wide_stride};
  if (dipengine_conv_mean_cuda_widen(&p) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  p.weight = device_d.data();
  p.wide = device_gradient.data();
  if (dipengine_conv_mean_cuda_narrow(&p) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  for (int64_t f = 0; f < fits; ++f) {
    if (active[static_cast<size_t>(f)] == 0) continue;
    float *const w = wide.data() + f * wide_stride, *const d = d_weight.data() + f * stride;
    const float *const from = weight.data() + f * stride, *const g = gradient.data() + f * wide_stride;
    std::fill_n(w, wide_taps * pairs, 0.0f);
    for (int corner = 0; corner < 4; ++corner) {
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t to = ((t / kernel + corner / 2) * (kernel + 1) + t % kernel + corner % 2) * pairs;
        for (int64_t i = 0; i < pairs; ++i) w[to + i] += from[t * pairs + i] / 4;
      }
    }
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t i = 0; i < pairs; ++i) {
        const float* c = g + (t / kernel * (kernel + 1) + t % kernel) * pairs + i;
        d[t * pairs + i] = (c[0] + c[pairs] + c[(kernel + 1) * pairs] + c[(kernel + 2) * pairs]) / 4;
      }
    }
  }
  return emulator::same_bits("wide", device_wide.copy(), wide) && emulator::same_bits("d_weight", device_d.copy(), d_weight);
}

}  // namespace

SCENARIO(kernels_with_a_mean) { return mean_case(1, 1, 1) && mean_case(3, 3, 35) && mean_case(3, 5, 12); }
