// The convolutions on the emulated device, forward and both gradients, against plain loops in float64: ragged and tiny layers
// of every tile, in bfloat16 and float32; one fit and three. Single values: this finds a wrong index. test_emulator.py judges
// the precision. Float32 images have values whose activations and d_raw float32 holds exactly, so that where a product's
// operands are sums of nothing, the loops over operands rounded to tf32 must agree to float32's precision.
#include <algorithm>
#include <cstring>
#include <memory>

#include "conv_layers.h"
#include "guarded.h"
#include "ops/conv/conv_pack_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using namespace dipengine::emulator::layers;
using emulator::Array;

namespace {

int64_t place(int64_t i, int64_t n, int padding) {
  if (padding == DIPENGINE_PADDING_ZERO) return i < 0 || i >= n ? -1 : i;
  while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
  return i;
}

std::vector<float> affine(check::Numbers& numbers, int64_t count, double offset) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(std::round(numbers.next() * 8) / 8 + offset));
  return values;
}

// The weights of both passes, packed by one launch from a table as a plan packs those of all its layers: the same bytes.
bool packs_by_table(dipengine_conv_cuda_params p, dipengine_conv_cuda_params q, const std::vector<uint8_t>& forward,
                    const std::vector<uint8_t>& backward) {
  Array<uint8_t> packed(static_cast<int64_t>(forward.size())), packed_again(static_cast<int64_t>(backward.size()));
  p.packed = packed.data();
  q.packed = packed_again.data();
  std::vector<PackJob> jobs;
  if (add_forward_pack(p, "a table", &jobs) != DIPENGINE_OK || add_data_packs(q, "a table", &jobs) != DIPENGINE_OK)
    return emulator::wrong("%s", dipengine_last_error());
  const int64_t blocks = share_blocks(&jobs);
  Array<PackJob> table(jobs);
  if (launch_packs({table.data(), static_cast<int32_t>(jobs.size()), blocks, p.active}, p.dtype, p.fits, p.stream) != DIPENGINE_OK)
    return emulator::wrong("%s", dipengine_last_error());
  if (!packed.intact() || !packed_again.intact()) return emulator::wrong("written outside");
  return (packed.copy() == forward && packed_again.copy() == backward) || emulator::wrong("packed from a table, weights have other bytes");
}

template <typename Stored>
struct SourceData {
  Input input;
  int64_t pixel, row, fit;
  std::vector<Stored> x;
  std::vector<float> inner_scale, inner_shift, outer_scale, outer_shift;

  double activation(int64_t f, int64_t y, int64_t column, int64_t c, int64_t numbers) const {
    double value = check::widen(x[static_cast<size_t>(f * fit + y * row + column * pixel + c)]);
    const size_t k = static_cast<size_t>(f * numbers + c);
    if (input.inner) value = value * static_cast<double>(inner_scale[k]) + static_cast<double>(inner_shift[k]);
    if (value <= 0) value *= 0.25;
    return input.outer ? value * static_cast<double>(outer_scale[k]) + static_cast<double>(outer_shift[k]) : value;
  }
};

// The nearest number of 11 significant bits, ties away from zero.
double nearest_tf32(double value) {
  int exponent = 0;
  const double part = std::frexp(value, &exponent);
  return std::ldexp(std::round(std::ldexp(part, 11)), exponent - 11);
}

// Numbers in [-1, 1) of the grid 1 / steps.
std::vector<float> on_grid(check::Numbers& numbers, int64_t count, double steps) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(std::round(numbers.next() * steps) / steps));
  return values;
}

template <typename Stored>
bool conv_case(const Layer& layer) {
  constexpr bool single = sizeof(Stored) == 4;
  // Of a product's operand; and how far results may be off, in sizes of the sum, where operands are single values and sums.
  const auto operand = [](double value) { return single ? nearest_tf32(value) : value; };
  constexpr double kDirect = single ? 2e-5 : 0.012, kTransformed = single ? 1.5e-3 : 0.012;
  check::Numbers numbers(static_cast<uint64_t>(layer.channels * 131 + layer.inputs[0].height));
  const int factor = layer.inputs[0].upsample == DIPENGINE_UPSAMPLE_NONE ? 1 : 2;
  const int64_t height = (factor * layer.inputs[0].height + 2 * layer.pad - layer.kernel) / layer.stride + 1;
  const int64_t width = (factor * layer.inputs[0].width + 2 * layer.pad - layer.kernel) / layer.stride + 1;
  const int64_t stride = 300;  // of per-channel numbers
  bool nearest = false;
  for (const Input& i : layer.inputs) nearest = nearest || i.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  std::vector<SourceData<Stored>> data;
  int64_t inputs = 0;
  for (const Input& i : layer.inputs) {
    const int64_t apart = i.channels + i.gap;
    SourceData<Stored> d{i, apart, i.width * apart, i.height * i.width * apart, {}, {}, {}, {}, {}};
    for (int64_t k = 0; k < d.fit * layer.fits; ++k)
      d.x.push_back(check::stored<Stored>(2 * std::round(numbers.next() * (single ? 1024 : 16)) / (single ? 1024 : 16)));
    d.inner_scale = affine(numbers, stride * layer.fits, 0.5);
    d.inner_shift = affine(numbers, stride * layer.fits, 1.0 / 64);
    d.outer_scale = affine(numbers, stride * layer.fits, 0.25);
    d.outer_shift = affine(numbers, stride * layer.fits, 0);
    data.push_back(d);
    inputs += i.channels;
  }
  const int64_t weights = layer.kernel * layer.kernel * inputs * layer.channels;
  const std::vector<float> weight = numbers.vector<float>(
      std::max(weights, stride) * layer.fits, 1 / std::sqrt(static_cast<double>(inputs) * layer.kernel * layer.kernel));
  const int64_t parameters = std::max(weights, stride);  // from one fit's to the next's
  const std::vector<float> bias = numbers.vector<float>(parameters * layer.fits),
                           gamma = numbers.vector<float>(parameters * layer.fits),
                           beta = numbers.vector<float>(parameters * layer.fits);

  // On the device.
  std::vector<std::unique_ptr<Array<Stored>>> images;
  std::vector<std::unique_ptr<Array<float>>> floats;
  const auto on_device = [&](const std::vector<float>& values) {
    floats.push_back(std::make_unique<Array<float>>(values));
    return floats.back()->data();
  };
  std::vector<dipengine_conv_cuda_source> sources;
  for (const SourceData<Stored>& d : data) {
    images.push_back(std::make_unique<Array<Stored>>(d.x));
    dipengine_conv_cuda_source s{};
    s.height = d.input.height;
    s.width = d.input.width;
    s.channels = d.input.channels;
    s.upsample = d.input.upsample;
    s.x = {images.back()->data(), d.row, d.pixel};
    s.x_fit_stride = d.fit;
    if (d.input.inner) s.inner = {on_device(d.inner_scale), on_device(d.inner_shift)};
    if (d.input.outer) s.outer = {on_device(d.outer_scale), on_device(d.outer_shift)};
    s.slope = 0.25f;
    sources.push_back(s);
  }
  const int64_t pixel = layer.channels + (layer.channels % 8 == 0 ? 8 : 3), row = width * pixel + 8, fit = height * row;
  Array<Stored> images_out(fit * layer.fits);
  Array<float> wide(fit * layer.fits), mean(stride * layer.fits), variance(stride * layer.fits), scale(stride * layer.fits),
      shift(stride * layer.fits);
  const std::vector<uint8_t> active = {1, 0, 1};
  Array<uint8_t> device_active(active);
  dipengine_conv_cuda_params p{};
  p.struct_size = sizeof(p);
  p.source_size = sizeof(sources[0]);
  p.fits = layer.fits;
  p.active = device_active.data();
  p.numbers_fit_stride = stride;
  p.sources = sources.data();
  p.sources_count = static_cast<int32_t>(sources.size());
  p.dtype = single ? DIPENGINE_FLOAT32 : DIPENGINE_BFLOAT16;
  p.raw_dtype = layer.wide ? DIPENGINE_FLOAT32 : p.dtype;
  p.kernel = layer.kernel;
  p.stride = layer.stride;
  p.pad = layer.pad;
  p.padding = layer.padding;
  p.height = static_cast<int32_t>(height);
  p.width = static_cast<int32_t>(width);
  p.channels = layer.channels;
  p.weight = on_device(weight);
  p.parameters_fit_stride = parameters;
  if (layer.bias) p.bias = on_device(bias);
  p.raw = {layer.wide ? static_cast<void*>(wide.data()) : images_out.data(), row, pixel};
  p.raw_fit_stride = fit;
  p.mean = mean.data();
  p.variance = variance.data();
  p.gamma = on_device(gamma);
  p.beta = on_device(beta);
  p.eps = 1e-5;
  p.scale = scale.data();
  p.shift = shift.data();
  if (dipengine_conv_cuda_packed_bytes(&p, &p.packed_bytes) != DIPENGINE_OK ||
      dipengine_conv_cuda_workspace(&p, &p.workspace_bytes) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  Array<uint8_t> packed(static_cast<int64_t>(p.packed_bytes)), workspace(static_cast<int64_t>(p.workspace_bytes));
  p.packed = packed.data();
  p.workspace = workspace.data();
  std::vector<std::unique_ptr<Array<uint32_t>>> tickets;
  const auto with_tickets = [&](dipengine_conv_cuda_params& call) {
    int64_t count = 0;
    if (!layer.tickets) return true;
    if (dipengine_conv_cuda_tickets(&call, &count) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
    tickets.push_back(std::make_unique<Array<uint32_t>>(std::vector<uint32_t>(static_cast<size_t>(count), 0)));
    call.tickets = tickets.back()->data();
    return true;
  };
  if (!with_tickets(p)) return false;
  if (dipengine_conv_cuda_pack(&p) != DIPENGINE_OK || dipengine_conv_cuda_forward(&p) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  if (!packed.intact() || !workspace.intact() || !images_out.intact() || !wide.intact() || !mean.intact() || !scale.intact()) {
    return emulator::wrong("written outside");
  }

  // The weight gradient of another raw, in place of it.
  std::vector<float> gradient = on_grid(numbers, fit * layer.fits, 4096), a = on_grid(numbers, stride * layer.fits, 16),
                     b = on_grid(numbers, stride * layer.fits, 16), c = on_grid(numbers, stride * layer.fits, 64);
  std::vector<Stored> stored_gradient, stored_raw;
  for (float& g : gradient) stored_gradient.push_back(check::stored<Stored>(static_cast<double>(g)));
  for (float r : on_grid(numbers, fit * layer.fits, 4096)) stored_raw.push_back(check::stored<Stored>(static_cast<double>(r)));
  if (!layer.wide) {
    for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = static_cast<float>(check::widen(stored_gradient[i]));
  }
  Array<Stored> device_gradient(stored_gradient), device_raw(stored_raw);
  Array<float> d_weight(parameters * layer.fits), d_bias(parameters * layer.fits);
  dipengine_conv_cuda_params q = p;
  q.raw = {device_raw.data(), row, pixel};
  q.raw_dtype = p.dtype;
  q.gradient = {layer.wide ? static_cast<void*>(on_device(gradient)) : device_gradient.data(), row, pixel};
  q.gradient_fit_stride = fit;
  q.gradient_dtype = p.raw_dtype;
  if (!layer.bias) {
    q.gradient_scale = on_device(a);
    q.raw_scale = on_device(b);
    q.gradient_shift = on_device(c);
  }
  q.d_weight = d_weight.data();
  q.d_bias = d_bias.data();
  if (dipengine_conv_cuda_weight_gradient_workspace(&q, &q.workspace_bytes) != DIPENGINE_OK)
    return emulator::wrong("%s", dipengine_last_error());
  Array<uint8_t> gradient_workspace(static_cast<int64_t>(q.workspace_bytes));
  q.workspace = gradient_workspace.data();
  if (!with_tickets(q)) return false;
  if (dipengine_conv_cuda_weight_gradient(&q) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  if (!gradient_workspace.intact() || !d_weight.intact()) return emulator::wrong("written outside");
  // The data gradient of every source.
  std::vector<std::vector<Stored>> old;
  std::vector<std::vector<float>> centre;
  std::vector<std::unique_ptr<Array<Stored>>> d_x;
  std::vector<std::unique_ptr<Array<float>>> of_d_x;
  for (size_t i = 0; i < data.size(); ++i) {
    old.emplace_back();
    for (double value : numbers.vector<double>(data[i].fit * layer.fits)) old.back().push_back(check::stored<Stored>(value));
    centre.push_back(numbers.vector<float>(stride * layer.fits));
    d_x.push_back(std::make_unique<Array<Stored>>(old.back()));
    for (int k = 0; k < 2; ++k) of_d_x.push_back(std::make_unique<Array<float>>(stride * layer.fits));
    sources[i].d_x = {d_x.back()->data(), data[i].row, data[i].pixel};
    sources[i].d_x_fit_stride = data[i].fit;
    sources[i].accumulate = i == 0;
    if (!data[i].input.outer) sources[i].centre = on_device(centre.back());
    sources[i].sum = of_d_x[2 * i]->data();
    sources[i].product = of_d_x[2 * i + 1]->data();
  }
  size_t data_packed = 0, data_workspace = 0;
  if (dipengine_conv_cuda_data_gradient_sizes(&q, &data_packed, &data_workspace) != DIPENGINE_OK)
    return emulator::wrong("%s", dipengine_last_error());
  Array<uint8_t> packed_again(static_cast<int64_t>(data_packed)), workspace_again(static_cast<int64_t>(data_workspace));
  q.packed = packed_again.data();
  q.packed_bytes = data_packed;
  q.workspace = workspace_again.data();
  if (!with_tickets(q)) return false;
  q.workspace_bytes = data_workspace;
  if (dipengine_conv_cuda_data_pack(&q) != DIPENGINE_OK || dipengine_conv_cuda_data_gradient(&q) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  for (const auto& image : d_x) {
    if (!image->intact() || !packed_again.intact() || !workspace_again.intact()) return emulator::wrong("written outside");
  }
  if (!packs_by_table(p, q, packed.copy(), packed_again.copy())) return false;
  // A fit alone: the same bits as among others.
  for (int64_t f = 0; f < layer.fits && layer.fits > 1; ++f) {
    if (active[static_cast<size_t>(f)] == 0) continue;
    std::vector<dipengine_conv_cuda_source> own = sources;
    std::vector<std::unique_ptr<Array<Stored>>> own_d_x;
    Array<float> own_numbers(stride * 8), own_wide(fit), own_d_weight(parameters), own_d_bias(parameters);
    Array<Stored> own_images(fit);
    Array<uint8_t> own_packed(static_cast<int64_t>(std::max(p.packed_bytes, q.packed_bytes))),
        own_workspace(static_cast<int64_t>(
            std::max({p.workspace_bytes, q.workspace_bytes, static_cast<size_t>(gradient_workspace.size())})));
    const auto moved = [&](const float*& pointer) { pointer = pointer == nullptr ? nullptr : pointer + f * stride; };
    for (size_t i = 0; i < own.size(); ++i) {
      own[i].x.data = images[i]->data() + f * data[i].fit;
      for (const float** pointer :
           {&own[i].inner.scale, &own[i].inner.shift, &own[i].outer.scale, &own[i].outer.shift, &own[i].centre})
        moved(*pointer);
      own_d_x.push_back(std::make_unique<Array<Stored>>(
          std::vector<Stored>(old[i].begin() + f * data[i].fit, old[i].begin() + (f + 1) * data[i].fit)));
      own[i].d_x.data = own_d_x.back()->data();
      own[i].sum = own_numbers.data() + (4 + 2 * static_cast<int64_t>(i)) * stride;
      own[i].product = own[i].sum + stride;
    }
    dipengine_conv_cuda_params one = q;
    one.fits = 1;
    one.active = nullptr;
    one.sources = own.data();
    one.weight += f * parameters;
    for (const float** pointer : {&one.bias, &one.gamma, &one.beta})
      *pointer = *pointer == nullptr ? nullptr : *pointer + f * parameters;
    for (const float** pointer : {&one.gradient_scale, &one.raw_scale, &one.gradient_shift}) moved(*pointer);
    one.packed = own_packed.data();
    one.packed_bytes = static_cast<size_t>(own_packed.size());
    one.workspace = own_workspace.data();
    one.workspace_bytes = static_cast<size_t>(own_workspace.size());
    one.mean = own_numbers.data();
    one.variance = one.mean + stride;
    one.scale = one.variance + stride;
    one.shift = one.scale + stride;
    one.d_weight = own_d_weight.data();
    one.d_bias = own_d_bias.data();
    one.raw = {layer.wide ? static_cast<void*>(own_wide.data()) : own_images.data(), row, pixel};
    one.raw_dtype = p.raw_dtype;
    if (dipengine_conv_cuda_pack(&one) != DIPENGINE_OK || dipengine_conv_cuda_forward(&one) != DIPENGINE_OK) {
      return emulator::wrong("alone: %s", dipengine_last_error());
    }
    one.raw = {device_raw.data() + f * fit, row, pixel};
    one.raw_dtype = p.dtype;
    one.gradient.data = static_cast<char*>(q.gradient.data) + f * fit * (q.gradient_dtype == DIPENGINE_FLOAT32 ? 4 : 2);
    if (dipengine_conv_cuda_weight_gradient(&one) != DIPENGINE_OK || dipengine_conv_cuda_data_pack(&one) != DIPENGINE_OK ||
        dipengine_conv_cuda_data_gradient(&one) != DIPENGINE_OK) {
      return emulator::wrong("alone: %s", dipengine_last_error());
    }
    const auto same = [&](const char* what, const auto* alone, const auto* among, int64_t count) {
      return std::memcmp(alone, among + f * count, static_cast<size_t>(count) * sizeof(*alone)) == 0 ||
             emulator::wrong("%s of fit %lld has other bits alone", what, static_cast<long long>(f));
    };
    if (!same("raw", own_images.data(), images_out.data(), fit) || !same("raw", own_wide.data(), wide.data(), fit) ||
        !same("d_weight", own_d_weight.data(), d_weight.data(), parameters) ||
        !same("d_bias", own_d_bias.data(), d_bias.data(), parameters) || !same("mean", one.mean, mean.data(), stride) ||
        !same("variance", one.variance, variance.data(), stride) || !same("scale", one.scale, scale.data(), stride) ||
        !same("shift", one.shift, shift.data(), stride)) {
      return false;
    }
    for (size_t i = 0; i < own.size(); ++i) {
      if (!same("d_x", own_d_x[i]->data(), d_x[i]->data(), data[i].fit) ||
          !same("sum", own[i].sum, of_d_x[2 * i]->data(), stride) ||
          !same("product", own[i].product, of_d_x[2 * i + 1]->data(), stride)) {
        return false;
      }
    }
  }
  for (const auto& all : tickets) {
    for (int64_t i = 0; i < all->size(); ++i) {
      if ((*all)[i] != 0 || !all->intact()) return emulator::wrong("a ticket is left at %u", (*all)[i]);
    }
  }
  const auto d_raw = [&](int64_t f, int64_t r, int64_t q_, int64_t o) {
    const size_t at = static_cast<size_t>(f * fit + r * row + q_ * pixel + o), k = static_cast<size_t>(f * stride + o);
    const double g = static_cast<double>(gradient[at]);
    if (layer.bias) return g;
    return static_cast<double>(a[k]) * g + static_cast<double>(b[k]) * check::widen(stored_raw[at]) +
           static_cast<double>(c[k]);
  };

  // Plain loops.
  for (int64_t f = 0; f < layer.fits; ++f) {
    const auto stored = [&](int64_t i) {
      return layer.wide ? static_cast<double>(wide[i]) : check::widen(images_out[i]);
    };
    if (active[static_cast<size_t>(f)] == 0) {
      for (int64_t i = f * fit; i < (f + 1) * fit; ++i) {
        if (!std::isnan(stored(i))) return emulator::wrong("a resting fit was written to");
      }
      for (int64_t i = f * parameters; i < (f + 1) * parameters; ++i) {
        if (!std::isnan(d_weight[i])) return emulator::wrong("the weight gradient of a resting fit was written to");
      }
      continue;
    }
    std::vector<check::Sum> raw(static_cast<size_t>(height * width * layer.channels)), d_w(static_cast<size_t>(weights));
    std::vector<double> d_of_raw(raw.size());
    for (int64_t r = 0; r < height; ++r) {
      for (int64_t k = 0; k < width; ++k) {
        for (int64_t o = 0; o < layer.channels; ++o)
          d_of_raw[static_cast<size_t>((r * width + k) * layer.channels + o)] = operand(d_raw(f, r, k, o));
      }
    }
    int64_t first = 0;
    for (size_t index = 0; index < data.size(); ++index) {
      const SourceData<Stored>& d = data[index];
      const Input& i = d.input;
      std::vector<check::Sum> du(d.x.size() / static_cast<size_t>(layer.fits));
      const int64_t factor_here = i.upsample == DIPENGINE_UPSAMPLE_NONE ? 1 : 2;
      for (int64_t t = 0; t < layer.kernel * layer.kernel; ++t) {
        for (int64_t r = 0; r < height; ++r) {
          for (int64_t q = 0; q < width; ++q) {
            const int64_t y = place(r * layer.stride + t / layer.kernel - layer.pad, factor_here * i.height, layer.padding);
            const int64_t x = place(q * layer.stride + t % layer.kernel - layer.pad, factor_here * i.width, layer.padding);
            if (y < 0 || x < 0) continue;
            const check::Two rows = check::upsampled_sample(y, i.height, i.upsample),
                             columns = check::upsampled_sample(x, i.width, i.upsample);
            for (int64_t c = 0; c < i.channels; ++c) {
              double u = 0;
              for (int k = 0; k < 4; ++k) {
                const double share = rows.weight[k / 2] * columns.weight[k % 2];
                if (share != 0) u += share * d.activation(f, rows.index[k / 2], columns.index[k % 2], c, stride);
              }
              const float* w = weight.data() + f * parameters + (t * inputs + first + c) * layer.channels;
              check::Sum* out = raw.data() + (r * width + q) * layer.channels;
              check::Sum* to = d_w.data() + (t * inputs + first + c) * layer.channels;
              const double* from = d_of_raw.data() + (r * width + q) * layer.channels;
              u = operand(u);
              for (int64_t o = 0; o < layer.channels; ++o) {
                const double weight_here = operand(static_cast<double>(w[o]));
                out[o].add(u * weight_here);
                // Near a zero of d_raw, rounding its terms in float32 counts.
                to[o].add(u * from[o], std::fabs(u) * (std::fabs(from[o]) + 1e-3));
                for (int k = 0; k < 4; ++k) {
                  const double share = rows.weight[k / 2] * columns.weight[k % 2] * weight_here;
                  const size_t at = static_cast<size_t>(rows.index[k / 2] * d.row + columns.index[k % 2] * d.pixel + c);
                  if (share != 0) du[at].add(from[o] * share, (std::fabs(from[o]) + 1e-3) * std::fabs(share));
                }
              }
            }
          }
        }
      }
      first += i.channels;
      for (int64_t c = 0; c < i.channels; ++c) {
        double sum = 0, product = 0, size = 0;
        for (int64_t y = 0; y < i.height; ++y) {
          for (int64_t x = 0; x < i.width; ++x) {
            const int64_t at = y * d.row + x * d.pixel + c;
            const double raw_x = check::widen(d.x[static_cast<size_t>(f * d.fit + at)]);
            const size_t k = static_cast<size_t>(f * stride + c);
            const double t =
                i.inner ? raw_x * static_cast<double>(d.inner_scale[k]) + static_cast<double>(d.inner_shift[k]) : raw_x;
            const double slope = t > 0 ? 1 : 0.25;
            check::Sum expected;
            expected.add(du[static_cast<size_t>(at)], i.outer ? 1 : slope);
            if (index == 0) expected.add(check::widen(old[index][static_cast<size_t>(f * d.fit + at)]));
            const double got = check::widen((*d_x[index])[f * d.fit + at]);
            if (!check::near(got, expected, i.upsample == DIPENGINE_UPSAMPLE_NONE ? kDirect : kTransformed)) {
              return emulator::wrong("d_x of source %zu [%lld][%lld][%lld][%lld] is %g where %g is expected", index,
                                     static_cast<long long>(f), static_cast<long long>(y), static_cast<long long>(x),
                                     static_cast<long long>(c), got, expected.value);
            }
            const double other = i.outer ? t * slope : raw_x - static_cast<double>(centre[index][k]);
            sum += got;
            product += got * other;
            size += std::fabs(got) * (std::fabs(other) + 1);
          }
        }
        const double got_sum = static_cast<double>((*of_d_x[2 * index])[f * stride + c]);
        const double got_product = static_cast<double>((*of_d_x[2 * index + 1])[f * stride + c]);
        if (!(std::fabs(got_sum - sum) <= 1e-5 * size) || !(std::fabs(got_product - product) <= 1e-5 * size)) {
          return emulator::wrong("of d_x of source %zu, channel %lld: sum %g, product %g where %g, %g are expected", index,
                                 static_cast<long long>(c), got_sum, got_product, sum, product);
        }
      }
    }
    for (int64_t i = 0; i < weights; ++i) {
      const double got = static_cast<double>(d_weight[f * parameters + i]);
      if (!check::near(got, d_w[static_cast<size_t>(i)], kDirect)) {
        return emulator::wrong("d_weight[%lld][tap %lld][%lld][%lld] is %g where %g is expected", static_cast<long long>(f),
                               static_cast<long long>(i / layer.channels / inputs),
                               static_cast<long long>(i / layer.channels % inputs), static_cast<long long>(i % layer.channels),
                               got, d_w[static_cast<size_t>(i)].value);
      }
    }
    for (int64_t c = 0; c < layer.channels; ++c) {
      check::Sum of_bias;
      for (int64_t i = 0; i < height * width; ++i) of_bias.add(d_raw(f, i / width, i % width, c));
      if (!check::near(static_cast<double>(d_bias[f * parameters + c]), of_bias, 1e-5)) {
        return emulator::wrong("d_bias[%lld] is %g where %g is expected", static_cast<long long>(c),
                               static_cast<double>(d_bias[f * parameters + c]), of_bias.value);
      }
      double sum = 0, squares = 0;
      for (int64_t r = 0; r < height; ++r) {
        for (int64_t q = 0; q < width; ++q) {
          const double got = stored(f * fit + r * row + q * pixel + c);
          check::Sum expected = raw[static_cast<size_t>((r * width + q) * layer.channels + c)];
          if (layer.bias) expected.add(static_cast<double>(bias[static_cast<size_t>(f * parameters + c)]));
          if (!check::near(got, expected, nearest ? kTransformed : kDirect)) {
            return emulator::wrong("raw[%lld][%lld][%lld][%lld] is %g where %g is expected", static_cast<long long>(f),
                                   static_cast<long long>(r), static_cast<long long>(q), static_cast<long long>(c), got,
                                   expected.value);
          }
          sum += got;
        }
        for (int64_t i = layer.channels; i < pixel; ++i) {
          if (!std::isnan(stored(f * fit + r * row + i))) return emulator::wrong("the gap between pixels was written to");
        }
      }
      const double count = static_cast<double>(height * width), average = sum / count;
      for (int64_t r = 0; r < height; ++r) {
        for (int64_t q = 0; q < width; ++q) squares += std::pow(stored(f * fit + r * row + q * pixel + c) - average, 2);
      }
      const int64_t at = f * stride + c;
      const double spread = squares / count;
      const size_t parameter = static_cast<size_t>(f * parameters + c);
      const double fold = static_cast<double>(gamma[parameter]) / std::sqrt(spread + 1e-5);
      const double offset = static_cast<double>(beta[parameter]) - average * fold;
      if (std::fabs(static_cast<double>(mean[at]) - average) > 1e-6 * (1 + std::fabs(average)) ||
          std::fabs(static_cast<double>(variance[at]) - spread) > 1e-5 * spread + 1e-12 ||
          std::fabs(static_cast<double>(scale[at]) - fold) > 1e-5 * std::fabs(fold) ||
          std::fabs(static_cast<double>(shift[at]) - offset) > 1e-5 * (std::fabs(offset) + std::fabs(average * fold)) + 1e-6) {
        return emulator::wrong("channel %lld: mean %g, variance %g, scale %g, shift %g where %g, %g, %g, %g are expected",
                               static_cast<long long>(c), static_cast<double>(mean[at]), static_cast<double>(variance[at]),
                               static_cast<double>(scale[at]), static_cast<double>(shift[at]), average, spread, fold, offset);
      }
    }
  }
  return true;
}

template <typename Stored>
bool all(std::initializer_list<Layer> layers) {
  int index = 0;
  for (Layer layer : layers) {
    layer.tickets = index % 2 == 0;
    if (!conv_case<Stored>(layer)) return emulator::wrong("in layer %d of the scenario", index);
    ++index;
  }
  return true;
}

}  // namespace

SCENARIO(conv_narrow) {
  return all<uint16_t>({{{{1, 1, 3}}, 1, 1, 1, 0},
              {{{19, 11, 5}}, 3},
              {{{17, 9, 40, 0, true, true, 8}}, 16, 1, 1, 0},
              {{{2, 2, 33, 0, false}}, 7, 3, 1, 1, kZero}});
}
SCENARIO(conv_slim) {
  return all<uint16_t>({{{{18, 10, 16}}, 32}, {{{5, 21, 17, 0, true, true}}, 20, 3, 1, 1, kZero, true, true}});
}
SCENARIO(conv_middle) { return all<uint16_t>({{{{16, 8, 32}}, 64}, {{{17, 9, 24}}, 56, 5, 1, 2}}); }
SCENARIO(conv_wide) {
  return all<uint16_t>({{{{130, 66, 16, 0, true, false, 8}}, 72, 1, 1, 0}, {{{128, 68, 8}}, 72, 1, 1, 0, kZero, false, true}});
}
// Wide tiles backward: the narrower ones of the forward pass would do for its outputs. (scenarios.cpp runs all once more in the tiles of
// large images, whatever their size.)
SCENARIO(conv_wide_backward) { return all<uint16_t>({{{{128, 64, 72}}, 8, 1, 1, 0}}); }
SCENARIO(conv_many_channels) {
  return all<uint16_t>({{{{9, 9, 130}}, 64}, {{{6, 12, 264, 0, true, true}}, 16, 1, 1, 0}, {{{5, 9, 4}}, 200}});
}
SCENARIO(conv_strided) {
  return all<uint16_t>({{{{34, 18, 32}}, 16, 3, 2, 1},
              {{{9, 13, 3}}, 20, 3, 2, 1, kZero},
              {{{7, 8, 20}}, 5, 4, 2, 2},
              {{{5, 6, 9}}, 5, 1, 2, 0},
              {{{15, 16, 12}}, 33, 7, 2, 3}});
}
SCENARIO(conv_nearest) {
  return all<uint16_t>(
      {{{{1, 1, 4, kNearest}}, 3}, {{{9, 5, 40, kNearest, true, true}}, 49}, {{{3, 10, 8, kNearest}}, 16, 3, 1, 1, kZero}});
}
SCENARIO(conv_nearest_with_skip) {
  return all<uint16_t>({{{{18, 10, 4, 0, true, true}, {9, 5, 32, kNearest, true, true}}, 24},
              {{{2, 2, 17}, {1, 1, 5, kNearest}}, 8},
              {{{6, 12, 3}, {3, 6, 9, kNearest}}, 4, 3, 1, 1, kZero}});
}
SCENARIO(conv_bilinear) {
  return all<uint16_t>({{{{1, 1, 4, kBilinear}}, 3},
              {{{9, 5, 20, kBilinear, true, true}}, 8},
              {{{18, 10, 4}, {9, 5, 16, kBilinear}}, 24, 3, 1, 1, kZero}});
}
SCENARIO(conv_of_three_fits) {
  Layer layer{{{10, 12, 4, 0, true, true}, {5, 6, 24, kNearest, true, true}}, 20};
  layer.fits = 3;
  layer.bias = true;
  return conv_case<uint16_t>(layer);
}

// Float32 images, products in tf32: every tile, way of loading and form of the three products again.
SCENARIO(conv_tf32_narrow) {
  return all<float>({{{{1, 1, 3}}, 1, 1, 1, 0},
                     {{{19, 11, 5}}, 3},
                     {{{17, 9, 20, 0, true, true, 8}}, 16, 1, 1, 0},
                     {{{2, 2, 17, 0, false}}, 7, 3, 1, 1, kZero}});
}
SCENARIO(conv_tf32_slim) {
  return all<float>({{{{18, 10, 12}}, 32}, {{{5, 21, 26, 0, true, true}}, 28, 3, 1, 1, kZero, false, true}});
}
SCENARIO(conv_tf32_middle) { return all<float>({{{{16, 8, 20}}, 64}, {{{17, 9, 12}}, 40, 5, 1, 2}, {{{10, 9, 60}}, 12}}); }
SCENARIO(conv_tf32_wide) { return all<float>({{{{128, 64, 8, 0, true, false, 4}}, 124, 1, 1, 0}}); }
SCENARIO(conv_tf32_wide_backward) { return all<float>({{{{128, 64, 124}}, 8, 1, 1, 0}}); }
SCENARIO(conv_tf32_many_channels) {
  return all<float>({{{{9, 9, 70}}, 64}, {{{6, 12, 136, 0, true, true}}, 16, 1, 1, 0}, {{{5, 9, 4}}, 100}});
}
SCENARIO(conv_tf32_strided) {
  return all<float>({{{{34, 18, 20}}, 16, 3, 2, 1}, {{{9, 13, 3}}, 20, 3, 2, 1, kZero}, {{{7, 8, 12}}, 5, 4, 2, 2}});
}
SCENARIO(conv_tf32_nearest) {
  return all<float>({{{{1, 1, 4, kNearest}}, 3},
                     {{{18, 10, 4, 0, true, true}, {9, 5, 20, kNearest, true, true}}, 33},
                     {{{6, 12, 3}, {3, 6, 9, kNearest}}, 4, 3, 1, 1, kZero}});
}
SCENARIO(conv_tf32_bilinear) {
  return all<float>({{{{1, 1, 4, kBilinear}}, 3}, {{{18, 10, 4}, {9, 5, 12, kBilinear, true, true}}, 28, 3, 1, 1, kZero}});
}
SCENARIO(conv_tf32_of_three_fits) {
  Layer layer{{{10, 12, 4, 0, true, true}, {5, 6, 12, kNearest, true, true}}, 20};
  layer.fits = 3;
  return conv_case<float>(layer);
}
