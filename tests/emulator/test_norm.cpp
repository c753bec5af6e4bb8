// BatchNorm's passes on the emulated device, over bfloat16 and float32 images, against plain loops over the upsampled values in
// float64.
#include <memory>

#include "emulated_kernels.h"
#include "guarded.h"
#include "ops/norm/norm_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

bool close(const char* what, int64_t channel, double got, double expected, double size) {
  if (std::fabs(got - expected) <= size) return true;
  return emulator::wrong("%s of channel %lld is %.9g where %.9g is expected", what, static_cast<long long>(channel), got,
                         expected);
}

template <typename Stored>
bool norm_case_with(bool tickets, int height, int width, int channels, int upsample, int64_t fits, double offset) {
  check::Numbers numbers(static_cast<uint64_t>(height * 1000 + width));
  const int64_t pixel = channels + 3, row = width * pixel + 2, fit = height * row, stride = 150, apart = 170;
  const auto image = [&](double scale, double shift) {
    std::vector<Stored> values;
    for (double v : numbers.vector<double>(fit * fits, scale)) values.push_back(check::stored<Stored>(v + shift));
    return values;
  };
  const std::vector<Stored> x = image(2, offset), g = image(1, 0.3);
  std::vector<float> scale = numbers.vector<float>(stride * fits), shift = numbers.vector<float>(stride * fits),
                     gamma = numbers.vector<float>(apart * fits), beta = numbers.vector<float>(apart * fits),
                     a = numbers.vector<float>(stride * fits), b = numbers.vector<float>(stride * fits),
                     c = numbers.vector<float>(stride * fits), centre = numbers.vector<float>(stride * fits);
  const std::vector<uint8_t> active = {1, 0, 1};
  Array<Stored> device_x(x), device_g(g), in_place(g);
  Array<uint8_t> device_active(active);
  Array<float> d_scale(scale), d_shift(shift), d_gamma(gamma), d_beta(beta), d_a(a), d_b(b), d_c(c), d_centre(centre);
  Array<float> mean(stride * fits), variance(stride * fits), fold(stride * fits), fold_shift(stride * fits), sum(stride * fits),
      product(stride * fits);

  dipengine_conv_cuda_source s{};
  s.height = height;
  s.width = width;
  s.channels = channels;
  s.upsample = upsample;
  s.x = {device_x.data(), row, pixel};
  s.x_fit_stride = fit;
  s.inner = {d_scale.data(), d_shift.data()};
  s.slope = 0.2f;
  s.d_x = {in_place.data(), row, pixel};
  s.d_x_fit_stride = fit;
  s.centre = d_centre.data();
  s.sum = sum.data();
  s.product = product.data();
  dipengine_norm_cuda_params p{};
  p.struct_size = sizeof(p);
  p.source_size = sizeof(s);
  p.fits = fits;
  p.active = device_active.data();
  p.numbers_fit_stride = stride;
  p.parameters_fit_stride = apart;
  p.source = &s;
  p.dtype = sizeof(Stored) == 4 ? DIPENGINE_FLOAT32 : DIPENGINE_BFLOAT16;
  p.mean = mean.data();
  p.variance = variance.data();
  p.gamma = d_gamma.data();
  p.beta = d_beta.data();
  p.eps = 1e-5;
  p.scale = fold.data();
  p.shift = fold_shift.data();
  p.g = s.d_x;
  p.g_fit_stride = fit;
  p.a = d_a.data();
  p.b = d_b.data();
  p.c = d_c.data();
  if (dipengine_norm_cuda_workspace(&p, &p.workspace_bytes) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  Array<uint8_t> workspace(static_cast<int64_t>(p.workspace_bytes));
  p.workspace = workspace.data();
  int64_t tickets_count = 0;
  if (dipengine_norm_cuda_tickets(&p, &tickets_count) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  const std::vector<uint32_t> zeros(static_cast<size_t>(tickets_count), 0);
  Array<uint32_t> device_tickets(zeros);
  if (tickets) p.tickets = device_tickets.data();
  const int64_t factor = upsample == DIPENGINE_UPSAMPLE_NONE ? 1 : 2;
  const double count = static_cast<double>(factor * height * factor * width);
  const bool centred = upsample != DIPENGINE_UPSAMPLE_NEAREST;
  // The same by the launch that makes the sums, and by one of its own.
  std::vector<std::unique_ptr<Array<float>>> outs;
  const auto out = [&](int64_t size) {
    outs.push_back(std::make_unique<Array<float>>(size * fits));
    return outs.back()->data();
  };
  dipengine_norm_cuda_gradient folds[2];
  for (dipengine_norm_cuda_gradient& fold_gradient : folds) {
    fold_gradient = {sizeof(fold_gradient), nullptr,     fits,        device_active.data(), stride,
                     apart,                 channels,    count,       mean.data(),          variance.data(),
                     d_gamma.data(),        1e-5,        sum.data(),  product.data(),       centred,
                     out(stride),           out(stride), out(stride), out(apart),           out(apart)};
  }
  s.fold = &folds[1];
  if (dipengine_norm_cuda_statistics(&p) != DIPENGINE_OK || dipengine_norm_cuda_backward(&p) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  if (device_tickets.copy() != zeros || !device_tickets.intact()) return emulator::wrong("tickets are left");
  if (!workspace.intact() || !in_place.intact() || !mean.intact() || !sum.intact()) return emulator::wrong("written outside");

  if (dipengine_norm_cuda_fold_gradient(&folds[0]) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  Array<float>&out_a = *outs[0], &out_b = *outs[1], &out_c = *outs[2], &out_gamma = *outs[3], &out_beta = *outs[4];
  for (size_t i = 0; i < 5; ++i) {
    if (!emulator::same_bits("what is folded at once", outs[5 + i]->copy(), outs[i]->copy())) return false;
  }

  for (int64_t f = 0; f < fits; ++f) {
    if (active[static_cast<size_t>(f)] == 0) {
      if (!std::isnan(mean[f * stride]) ||
          std::memcmp(in_place.data() + f * fit, g.data() + f * fit, static_cast<size_t>(fit) * sizeof(Stored)) != 0) {
        return emulator::wrong("a resting fit was written to");
      }
      continue;
    }
    for (int64_t k = 0; k < channels; ++k) {
      const size_t number = static_cast<size_t>(f * stride + k), parameter = static_cast<size_t>(f * apart + k);
      const auto x_of = [&](int64_t i) {
        return check::widen(x[static_cast<size_t>(f * fit + i / width * row + i % width * pixel + k)]);
      };
      const auto inner = [&](int64_t i) {
        return x_of(i) * static_cast<double>(scale[number]) + static_cast<double>(shift[number]);
      };
      std::vector<double> t;
      for (int64_t i = 0; i < height * width; ++i) t.push_back(inner(i) > 0 ? inner(i) : 0.2f * inner(i));
      // v, and for each t what of v (and of ones) comes back to it.
      std::vector<double> v, back(t.size()), ones(t.size());
      for (int64_t y = 0; y < factor * height; ++y) {
        for (int64_t column = 0; column < factor * width; ++column) {
          const check::Two rows = check::upsampled_sample(y, height, upsample),
                           columns = check::upsampled_sample(column, width, upsample);
          double value = 0;
          for (int pass = 0; pass < 2; ++pass) {
            for (int e = 0; e < 4; ++e) {
              const double share = rows.weight[e / 2] * columns.weight[e % 2];
              const size_t at = static_cast<size_t>(rows.index[e / 2] * width + columns.index[e % 2]);
              if (pass == 0) {
                value += share * t[at];
              } else {
                back[at] += share * value;
                ones[at] += share;
              }
            }
          }
          v.push_back(value);
        }
      }
      double average = 0, spread = 0, size = 0;
      for (double value : v) average += value / count, size += std::fabs(value) / count;
      for (double value : v) spread += (value - average) * (value - average) / count;
      const double root = std::sqrt(spread + 1e-5), folded = static_cast<double>(gamma[parameter]) / root;
      if (!close("mean", k, static_cast<double>(mean[f * stride + k]), average, 1e-6 * size) ||
          !close("variance", k, static_cast<double>(variance[f * stride + k]), spread,
                 1e-5 * spread + 1e-6 * size * size * 1e-3 + 1e-12) ||
          !close("scale", k, static_cast<double>(fold[f * stride + k]), folded, 2e-5 * std::fabs(folded) + 1e-9) ||
          !close("shift", k, static_cast<double>(fold_shift[f * stride + k]),
                 static_cast<double>(beta[parameter]) - average * folded, 1e-6 + 2e-5 * std::fabs(average * folded))) {
        return false;
      }
      double total = 0, with_x = 0, reach = 0;
      for (int64_t i = 0; i < height * width; ++i) {
        const size_t at = static_cast<size_t>(i), place = static_cast<size_t>(f * fit + i / width * row + i % width * pixel + k);
        const double terms[3] = {static_cast<double>(a[number]) * check::widen(g[place]),
                                 static_cast<double>(b[number]) * back[at], static_cast<double>(c[number]) * ones[at]};
        const double slope = inner(i) > 0 ? 1 : 0.2f, expected = slope * (terms[0] + terms[1] + terms[2]);
        const double got = check::widen(in_place[static_cast<int64_t>(place)]);
        // Within half a unit in bfloat16's last place, or float32's rounding of terms; where x is next to the kink, of either
        // slope.
        const double allowed =
            (sizeof(Stored) == 4 ? 0 : std::fabs(expected) / 250) +
            1e-5 * (std::fabs(terms[0]) + std::fabs(terms[1]) + std::fabs(terms[2]));
        if (std::fabs(inner(i)) > 1e-5 && !close("d_x", k, got, expected, allowed)) return false;
        total += got;
        with_x += got * (x_of(i) - static_cast<double>(centre[number]));
        reach += std::fabs(got) * (std::fabs(x_of(i)) + 1);
      }
      if (!close("sum", k, static_cast<double>(sum[f * stride + k]), total, 1e-6 * reach) ||
          !close("product", k, static_cast<double>(product[f * stride + k]), with_x, 1e-6 * reach)) {
        return false;
      }
      // The fold, from the numbers as stored.
      const double m = static_cast<double>(mean[f * stride + k]), sums = static_cast<double>(sum[f * stride + k]);
      const double deviation = std::sqrt(static_cast<double>(variance[f * stride + k]) + 1e-5);
      const double products = static_cast<double>(product[f * stride + k]) - (centred ? 0 : m * sums);
      const double first = static_cast<double>(gamma[parameter]) / deviation,
                   second = -first * products / (deviation * deviation * count);
      if (!close("A", k, static_cast<double>(out_a[f * stride + k]), first, 1e-6 * std::fabs(first)) ||
          !close("B", k, static_cast<double>(out_b[f * stride + k]), second, 1e-6 * std::fabs(second)) ||
          !close("C", k, static_cast<double>(out_c[f * stride + k]), -first * sums / count - second * m,
                 1e-6 * (std::fabs(first * sums / count) + std::fabs(second * m))) ||
          !close("d_gamma", k, static_cast<double>(out_gamma[f * apart + k]), products / deviation,
                 1e-6 * std::fabs(products / deviation)) ||
          !close("d_beta", k, static_cast<double>(out_beta[f * apart + k]), sums, 1e-6 * std::fabs(sums))) {
        return false;
      }
    }
  }
  return true;
}

template <typename Stored>
bool norm_case(int height, int width, int channels, int upsample, int64_t fits, double offset) {
  return norm_case_with<Stored>(false, height, width, channels, upsample, fits, offset) &&
         norm_case_with<Stored>(true, height, width, channels, upsample, fits, offset);
}

// Of parts that blocks leave and merge, of all their counts of pixels: the moments, and sums, beside those of plain sums.
bool merge_case(int64_t fits, int64_t blocks, int32_t parts, int32_t channels) {
  check::Numbers numbers(static_cast<uint64_t>(blocks));
  const int64_t count = blocks * parts, stride = channels + 3;
  std::vector<float> values = numbers.vector<float>(2 * fits * count * channels);
  for (size_t i = 1; i < values.size(); i += 2) values[i] = std::fabs(values[i]);  // as sums of squares are
  const int32_t height = static_cast<int32_t>(count * 5 - 2);  // the last part is of three pixels
  emulated::Merging merging{};
  merging.tree = make_part_tree(blocks, parts, (channels + 7) / 8);
  Array<uint8_t> workspace(static_cast<int64_t>(merge_bytes(merging.tree, fits, channels)));
  const std::vector<uint32_t> zeros(static_cast<size_t>(tickets_of(merging.tree, fits)), 0);
  Array<uint32_t> tickets(zeros);
  Array<float> from(values), first(stride * fits), second(stride * fits);
  merging.tree = place_part_tree(merging.tree, fits, channels, workspace.data(), tickets.data());
  merging.from = from.data();
  merging.moments = {{height, 1, 1, 1, 5, 0}, count, channels, reinterpret_cast<PartMoments*>(workspace.data()), nullptr, stride, 0,
                     first.data(), second.data(), nullptr, nullptr, 0, nullptr, nullptr};
  merging.sums = {count, channels, reinterpret_cast<PartSums*>(workspace.data()), nullptr, stride, first.data(), second.data(), 0, {}};
  for (const bool moments : {true, false}) {
    if (emulated::merge(merging, moments, fits) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
    if (tickets.copy() != zeros || !workspace.intact()) return emulator::wrong("tickets are left, or something is written outside");
    for (int64_t f = 0; f < fits; ++f) {
      for (int64_t c = 0; c < channels; ++c) {
        double a = 0, b = 0;
        const auto of = [&](int64_t i, int64_t which) {
          return static_cast<double>(values[static_cast<size_t>(2 * ((f * count + i) * channels + c) + which)]);
        };
        const auto pixels = [&](int64_t i) { return i + 1 < count ? 5.0 : 3.0; };
        for (int64_t i = 0; i < count; ++i) a += of(i, 0) * (moments ? pixels(i) / height : 1);
        for (int64_t i = 0; i < count; ++i) {
          b += moments ? (of(i, 1) + pixels(i) * (of(i, 0) - a) * (of(i, 0) - a)) / height : of(i, 1);
        }
        if (!close("mean or sum", c, static_cast<double>(first[f * stride + c]), a, 1e-6 * (std::fabs(a) + 1)) ||
            !close("variance or product", c, static_cast<double>(second[f * stride + c]), b, 1e-6 * (std::fabs(b) + 1))) {
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

SCENARIO(parts_of_few_blocks) { return merge_case(1, 1, 3, 8) && merge_case(2, 7, 2, 11); }
SCENARIO(parts_of_groups_of_blocks) { return merge_case(1, 50, 6, 5) && merge_case(2, 33, 1, 9); }

SCENARIO(norm_of_small_images) {
  return norm_case<uint16_t>(1, 1, 3, DIPENGINE_UPSAMPLE_BILINEAR, 1, 0) &&
         norm_case<uint16_t>(2, 1, 33, DIPENGINE_UPSAMPLE_NEAREST, 1, 0) &&
         norm_case<uint16_t>(3, 5, 4, DIPENGINE_UPSAMPLE_NONE, 1, 0);
}
SCENARIO(norm_of_several_parts) {
  return norm_case<uint16_t>(19, 31, 35, DIPENGINE_UPSAMPLE_BILINEAR, 1, 0) &&
         norm_case<uint16_t>(1, 8449, 2, DIPENGINE_UPSAMPLE_NONE, 1, 0) && norm_case<uint16_t>(40, 41, 5, DIPENGINE_UPSAMPLE_NEAREST, 1, 0);
}
SCENARIO(norm_with_a_large_mean) {
  return norm_case<uint16_t>(17, 33, 8, DIPENGINE_UPSAMPLE_BILINEAR, 1, 100) &&
         norm_case<uint16_t>(17, 33, 8, DIPENGINE_UPSAMPLE_NONE, 1, 100);
}
SCENARIO(norm_of_three_fits) {
  return norm_case<uint16_t>(17, 19, 6, DIPENGINE_UPSAMPLE_BILINEAR, 3, 0) &&
         norm_case<uint16_t>(17, 19, 6, DIPENGINE_UPSAMPLE_NEAREST, 3, 0);
}
SCENARIO(norm_of_float32_images) {
  return norm_case<float>(19, 15, 35, DIPENGINE_UPSAMPLE_BILINEAR, 1, 0) &&
         norm_case<float>(17, 33, 5, DIPENGINE_UPSAMPLE_NEAREST, 1, 100) &&
         norm_case<float>(2, 1, 3, DIPENGINE_UPSAMPLE_NONE, 1, 0);
}
SCENARIO(norm_of_three_fits_in_float32) { return norm_case<float>(17, 19, 6, DIPENGINE_UPSAMPLE_BILINEAR, 3, 0); }
