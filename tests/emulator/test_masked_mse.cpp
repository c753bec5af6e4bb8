// The masked squared error on the emulated device against the CPU's op: elements bit by bit, sums to float64's rounding.
#include "guarded.h"
#include "ops/masked_mse/masked_mse_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

struct Case {
  int64_t fits, rows, inner, repeat;
  bool bfloat16, mask, target;
  std::vector<int64_t> sizes = {};  // of each fit, where they have their own
  bool tickets = false;             // its own blocks add up what they leave
};

bool close(const char* what, double got, double expected) {
  if (std::fabs(got - expected) <= 1e-13 * std::fabs(expected)) return true;
  return emulator::wrong("%s is %.17g where %.17g is expected", what, got, expected);
}

bool masked_mse_way(const Case& c) {
  const int64_t row = c.inner + 4, fit = row * c.rows, all = fit * c.fits;
  check::Numbers numbers(static_cast<uint64_t>(all));
  std::vector<float> raw = numbers.vector<float>(all, 5);
  std::vector<uint16_t> halves;
  for (float& value : raw) halves.push_back(bf16_from_float(value));
  const std::vector<float> target = numbers.vector<float>(all);
  std::vector<float> mask = numbers.vector<float>(all), average = numbers.vector<float>(all), mean = numbers.vector<float>(all);
  for (float& m : mask) m = m > 0 ? m : 0;
  const std::vector<uint8_t> active = {1, 0, 1};
  std::vector<int64_t> frames = {4, 9, 0};
  const std::vector<double> normaliser = {100, 7, 33.5};
  std::vector<double> variance = {0.25, 0.5, 0.75};

  Array<float> device_raw(raw), device_target(target), device_mask(mask), device_average(average), device_mean(mean), d_raw(all),
      out(all);
  Array<uint16_t> device_halves(halves), d_halves(all);
  Array<uint8_t> device_active(active);
  Array<int64_t> device_frames(frames);
  Array<double> device_normaliser(normaliser), loss(3), device_variance(variance);
  const auto image = [&](void* data) { return dipengine_image{data, fit, 0, row}; };
  dipengine_masked_mse_cuda_params p{};
  p.struct_size = sizeof(p);
  p.fits = c.fits;
  p.rows = c.rows;
  p.inner = c.inner;
  p.active = device_active.data();
  p.dtype = c.bfloat16 ? DIPENGINE_BFLOAT16 : DIPENGINE_FLOAT32;
  p.activation = c.target ? DIPENGINE_ACTIVATION_SIGMOID : DIPENGINE_ACTIVATION_NONE;
  p.raw = image(c.bfloat16 ? static_cast<void*>(device_halves.data()) : device_raw.data());
  p.mask_repeat = c.repeat;
  if (c.target) {
    p.target = image(device_target.data());
    p.d_raw = image(c.bfloat16 ? static_cast<void*>(d_halves.data()) : d_raw.data());
    if (c.mask) p.mask = image(device_mask.data());
  }
  p.out = image(out.data());
  p.average = image(device_average.data());
  p.es_mean = image(device_mean.data());
  p.normaliser = device_normaliser.data();
  p.grad_scale = 3;
  p.average_decay = 0.9;
  p.warm_up = 1;
  p.es_alpha = 0.1;
  p.frames = device_frames.data();
  p.loss = loss.data();
  p.es_variance = device_variance.data();
  Array<int64_t> device_sizes(c.sizes);
  if (!c.sizes.empty()) p.sizes = device_sizes.data();
  Array<uint32_t> tickets(std::vector<uint32_t>(3, 0));
  if (c.tickets) p.tickets = tickets.data();
  size_t bytes = 0;
  if (dipengine_masked_mse_cuda_workspace(&p, &bytes) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  Array<double> workspace(static_cast<int64_t>(bytes / sizeof(double)));
  p.workspace = workspace.data();
  p.workspace_bytes = bytes;
  if (dipengine_masked_mse_cuda(&p) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());

  // The CPU's op takes one fit at a time here: its decay is the same for all fits of a call.
  std::vector<float> e_d(static_cast<size_t>(all), float_from_bits(0xffffffffu)), e_out = e_d;
  std::vector<uint16_t> e_halves(static_cast<size_t>(all), 0xffff);
  for (int64_t f = 0; f < c.fits; ++f) {
    const size_t k = static_cast<size_t>(f);
    if (active[k] == 0) continue;
    dipengine_masked_mse_params q{};
    q.struct_size = sizeof(q);
    q.fits = q.outer = 1;
    q.rows = c.sizes.empty() ? c.rows : c.sizes[2 * k];
    q.inner = c.sizes.empty() ? c.inner : c.sizes[2 * k + 1];
    q.dtype = p.dtype;
    q.activation = p.activation;
    const auto own = [&](auto& values) { return dipengine_image{values.data() + f * fit, 0, 0, row}; };
    q.raw = c.bfloat16 ? own(halves) : own(raw);
    q.mask_repeat = c.repeat;
    if (c.target) {
      q.target = {const_cast<float*>(target.data()) + f * fit, 0, 0, row};
      q.d_raw = c.bfloat16 ? own(e_halves) : own(e_d);
      if (c.mask) q.mask = own(mask);
    }
    q.out = own(e_out);
    q.average = own(average);
    q.es_mean = own(mean);
    q.normaliser = &normaliser[k];
    q.grad_scale = 3;
    q.average_decay = std::fmin(0.9, static_cast<double>(frames[k] + 1) / static_cast<double>(frames[k] + 10));
    q.es_alpha = 0.1;
    const uint8_t first = frames[k] == 0;
    q.first_frame = &first;
    double expected_loss = 0, d2 = 0;
    q.loss = &expected_loss;
    q.d2 = &d2;
    size_t needed = 0;
    dipengine_masked_mse_workspace(&q, &needed);
    std::vector<double> space(needed / sizeof(double));
    q.workspace = space.data();
    q.workspace_bytes = needed;
    if (dipengine_masked_mse(&q) != DIPENGINE_OK) return emulator::wrong("the CPU's masked_mse: %s", dipengine_last_error());
    if (c.target && !close("loss", loss[f], expected_loss)) return false;
    if (!close("variance", device_variance[f], first ? 0 : 0.9 * (variance[k] + 0.1 * d2))) return false;
    ++frames[k];
  }
  return emulator::same_bits("tickets", tickets.copy(), std::vector<uint32_t>(3, 0)) &&
         emulator::same_bits("frames", device_frames.copy(), frames) && emulator::same_bits("out", out.copy(), e_out) &&
         emulator::same_bits("average", device_average.copy(), average) &&
         emulator::same_bits("mean", device_mean.copy(), mean) && emulator::same_bits("d_raw", d_raw.copy(), e_d) &&
         emulator::same_bits("d_raw", d_halves.copy(), e_halves) &&
         ((out.intact() && d_raw.intact() && workspace.intact() && tickets.intact()) || emulator::wrong("written outside"));
}

bool masked_mse_case(Case c) {
  for (const bool tickets : {false, true}) {
    c.tickets = tickets;
    if (!masked_mse_way(c)) return false;
  }
  return true;
}

}  // namespace

SCENARIO(masked_mse_of_small_images) {
  return masked_mse_case({1, 1, 1, 1, false, false, true}) && masked_mse_case({1, 7, 33, 3, true, true, true});
}
SCENARIO(masked_mse_of_long_rows) {
  return masked_mse_case({1, 3, 4100, 4, false, true, true}) && masked_mse_case({3, 2, 2049, 1, false, true, true});
}
SCENARIO(masked_mse_of_fits_with_sizes_of_their_own) {
  return masked_mse_case({3, 40, 150, 3, false, true, true, {39, 150, 40, 150, 7, 21}}) &&
         masked_mse_case({3, 3, 4101, 3, true, false, true, {3, 1023, 1, 3, 2, 4101}});
}
SCENARIO(masked_mse_of_three_fits) {
  return masked_mse_case({3, 40, 150, 3, true, true, true}) && masked_mse_case({3, 40, 150, 3, false, false, false});
}
