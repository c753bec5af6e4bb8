// The convolutions against plain loops in float64 on random layers, in guarded memory; their bits; their refusals.
#include <algorithm>
#include <memory>

#include "guarded.h"
#include "ops/conv/conv.h"

namespace {

using check::Guarded;
using check::Sum;

int64_t pick(check::Numbers& numbers, std::initializer_list<int64_t> values) {
  const double share = (numbers.next() + 1) / 2;
  return values.begin()[static_cast<size_t>(share * static_cast<double>(values.size()))];
}

struct Input {
  int64_t height, width, channels;
  int upsample;
  bool inner, outer, data, accumulate, sums;
  double slope;
  int64_t factor() const { return upsample == DIPENGINE_UPSAMPLE_NONE ? 1 : 2; }
};

struct Layer {
  std::vector<Input> inputs;
  int64_t height, width, channels;  // of raw
  int kernel, stride, pad, padding;
  bool bias, moments, coefficients, d_weight, wide;
};

Layer draw_layer(uint64_t seed) {
  check::Numbers numbers(seed);
  const auto coin = [&] { return numbers.next() > 0; };
  Layer layer{};
  const int upsample = static_cast<int>(pick(numbers, {0, 0, 1, 2}));
  layer.kernel = upsample != 0 ? 3 : static_cast<int>(pick(numbers, {1, 3, 3, 4, 5, 6, 7}));
  layer.stride = upsample != 0 ? 1 : static_cast<int>(pick(numbers, {1, 2}));
  layer.pad = upsample != 0 ? 1 : static_cast<int>(pick(numbers, {0, layer.kernel / 2, layer.kernel - 1}));
  layer.padding = static_cast<int>(pick(numbers, {0, 1}));
  const int64_t least = upsample != 0 ? 1 : std::max(layer.pad + 1, layer.kernel);
  int64_t height = least + pick(numbers, {0, 0, 1, 2, 5}), width = least + pick(numbers, {0, 0, 1, 2, 3, 8});
  if (seed % 8 == 0) width = 128 + pick(numbers, {0, 1, 5});
  if (seed % 8 == 4) height = 64 + pick(numbers, {0, 1, 5});
  int64_t sources = 1 + pick(numbers, {0, 1});
  const bool even = seed % 4 == 2;  // one source, 3x3, even sides, many channels: may be done two by two outputs at a time
  if (even) {
    layer.kernel = 3, layer.stride = layer.pad = 1, sources = 1;
    height = 2 * pick(numbers, {1, 2, 3}), width = 16 + 2 * pick(numbers, {0, 1, 3});
  }
  const int64_t which = pick(numbers, {0, sources - 1});
  for (int64_t i = 0; i < sources; ++i) {
    const int64_t factor = upsample != 0 && i != which && !even ? 2 : 1;
    const int64_t channels = even ? pick(numbers, {32, 33, 40}) : pick(numbers, {1, 2, 3, 4, 5, 15, 16, 17, 33});
    layer.inputs.push_back({factor * height, factor * width, channels, i == which && !even ? upsample : 0, coin(),
                            coin(), coin() || coin(), coin(), coin(), static_cast<double>(pick(numbers, {1, 2, 8})) / 8});
  }
  const Input& first = layer.inputs[0];
  layer.height = (first.factor() * first.height + 2 * layer.pad - layer.kernel) / layer.stride + 1;
  layer.width = (first.factor() * first.width + 2 * layer.pad - layer.kernel) / layer.stride + 1;
  layer.channels = even ? pick(numbers, {32, 33}) : pick(numbers, {1, 2, 3, 4, 5, 15, 16, 17, 32, 33});
  layer.bias = coin();
  layer.moments = coin();
  layer.coefficients = coin();
  layer.d_weight = coin() || coin();
  layer.wide = coin();
  return layer;
}

// Layers large enough for outputs to be taken tile by tile at stride 2, or four by four (where products are in a finer type than
// images, or in float64): two or three registers of channels, and sides that need more than one block of columns.
Layer draw_large_layer(uint64_t seed) {
  check::Numbers numbers(seed + 1000);
  const auto coin = [&] { return numbers.next() > 0; };
  const bool strided = seed % 2 == 0;
  Layer layer{};
  layer.kernel = 3, layer.pad = 1, layer.stride = strided ? 2 : 1;
  layer.padding = static_cast<int>(seed / 2 % 2);
  layer.height = 32 + pick(numbers, {0, strided ? 2 : 4, 4});
  layer.width = seed == 4 ? 132 : seed == 5 ? 260 : 32 + pick(numbers, {0, strided ? 2 : 4, 4});
  layer.channels = pick(numbers, {32, 33});
  layer.inputs.push_back({layer.stride * layer.height, layer.stride * layer.width, pick(numbers, {32, 33, 40}), 0, coin(), coin(),
                          coin() || coin() || seed < 2 || seed >= 4, coin(), coin(), static_cast<double>(pick(numbers, {1, 2, 8})) / 8});
  layer.bias = coin();
  layer.moments = coin();
  layer.coefficients = coin();
  layer.d_weight = coin() || coin() || seed < 2 || seed >= 4;
  layer.wide = coin();
  return layer;
}

// Memory of an image [height][width][channels] between gaps, which must stay as they are.
template <typename T>
struct Image {
  int64_t height, width, channels, pixel, row;
  Guarded<T> memory;
  Image(int64_t h, int64_t w, int64_t c)
      : height(h), width(w), channels(c), pixel(c + 3), row(w * pixel + 5), memory((h - 1) * row + (w - 1) * pixel + c) {}
  T& at(int64_t y, int64_t x, int64_t c) { return memory[y * row + x * pixel + c]; }
  dipengine_pixels pixels() { return {memory.data(), row, pixel}; }
  bool intact() {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t i = 0; i < row && y * row + i < static_cast<int64_t>(memory.bytes() / sizeof(T)); ++i) {
        const bool inside = i / pixel < width && i % pixel < channels;
        const auto* bytes = reinterpret_cast<const unsigned char*>(&memory[y * row + i]);
        if (!inside && std::any_of(bytes, bytes + sizeof(T), [](unsigned char b) { return b != 0xff; })) return false;
      }
    }
    return memory.intact();
  }
};

std::vector<double> grid(check::Numbers& numbers, int64_t count, double step, double offset) {
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(std::round(numbers.next() * 8) * step + offset);
  return values;
}

// The numbers of a layer. x on a grid of 1/8, scales of 1/4, shifts of odd 64ths: inner(x) is exact in float32 and never
// near the kink, where a rounding error would become a large one.
template <typename Real, typename Stored>
struct Problem {
  Layer layer;
  std::vector<std::vector<double>> x, old, inner_scale, inner_shift, outer_scale, outer_shift, centre;
  std::vector<double> weight, bias, gradient, raw, a, b, c;

  Problem(Layer of, uint64_t seed) : layer(std::move(of)) {
    check::Numbers numbers(seed + 99);
    int64_t inputs = 0;
    for (const Input& i : layer.inputs) {
      const int64_t count = i.height * i.width * i.channels;
      x.push_back(grid(numbers, count, 0.125, 0));
      old.push_back(grid(numbers, count, 0.25, 0));
      inner_scale.push_back(grid(numbers, i.channels, 0.25, 0));
      inner_shift.push_back(grid(numbers, i.channels, 1.0 / 32, 1.0 / 64));
      outer_scale.push_back(grid(numbers, i.channels, 0.25, 0.125));
      outer_shift.push_back(numbers.vector<double>(i.channels));
      centre.push_back(numbers.vector<double>(i.channels));
      inputs += i.channels;
    }
    weight = rounded<Real>(numbers, layer.kernel * layer.kernel * inputs * layer.channels);
    bias = rounded<Real>(numbers, layer.channels);
    const int64_t count = layer.height * layer.width * layer.channels;
    gradient = rounded<Stored>(numbers, count);
    raw = rounded<Stored>(numbers, count);
    a = numbers.vector<double>(layer.channels);
    b = numbers.vector<double>(layer.channels);
    c = numbers.vector<double>(layer.channels);
  }

  template <typename T>
  static std::vector<double> rounded(check::Numbers& numbers, int64_t count) {
    std::vector<double> values = numbers.vector<double>(count);
    for (double& value : values) value = check::widen(check::stored<T>(value));
    return values;
  }

  // (activation, behind outer) of source s at [y][x][c].
  double activation(size_t s, int64_t at, int64_t c, bool behind_outer) const {
    const Input& i = layer.inputs[s];
    double value = x[s][static_cast<size_t>(at)];
    const size_t k = static_cast<size_t>(c);
    if (i.inner) value = value * inner_scale[s][k] + inner_shift[s][k];
    if (value <= 0) value *= i.slope;
    return behind_outer && i.outer ? value * outer_scale[s][k] + outer_shift[s][k] : value;
  }
};

struct Expected {
  std::vector<Sum> raw, d_weight, d_bias;
  std::vector<std::vector<Sum>> g, sum, product;
};

// Reflected or zero position: -1 outside.
int64_t place(int64_t i, int64_t n, int padding) {
  if (padding == DIPENGINE_PADDING_ZERO) return i < 0 || i >= n ? -1 : i;
  while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
  return i;
}

template <typename P>
Expected plain_loops(const P& p) {
  const Layer& l = p.layer;
  Expected e;
  const size_t outputs = static_cast<size_t>(l.height * l.width * l.channels), channels = static_cast<size_t>(l.channels);
  e.raw.resize(outputs);
  e.d_weight.resize(p.weight.size());
  e.d_bias.resize(channels);
  std::vector<Sum> d_raw(outputs);
  for (size_t o = 0; o < outputs; ++o) {
    const size_t c = o % channels;
    if (l.bias) e.raw[o].add(p.bias[c]);
    if (l.coefficients) {
      d_raw[o].add(p.a[c] * p.gradient[o]);
      d_raw[o].add(p.b[c] * p.raw[o]);
      d_raw[o].add(p.c[c]);
    } else {
      d_raw[o].add(p.gradient[o]);
    }
    e.d_bias[c].add(d_raw[o], 1);
  }
  const int64_t inputs = static_cast<int64_t>(p.weight.size()) / (l.kernel * l.kernel * l.channels);
  int64_t first = 0;
  for (size_t s = 0; s < l.inputs.size(); ++s) {
    const Input& i = l.inputs[s];
    std::vector<Sum> du(p.x[s].size());
    for (int64_t r = 0; r < l.height; ++r)
      for (int64_t q = 0; q < l.width; ++q)
        for (int64_t t = 0; t < l.kernel * l.kernel; ++t) {
          const int64_t y = place(r * l.stride + t / l.kernel - l.pad, i.factor() * i.height, l.padding);
          const int64_t x = place(q * l.stride + t % l.kernel - l.pad, i.factor() * i.width, l.padding);
          if (y < 0 || x < 0) continue;
          const check::Two rows = check::upsampled_sample(y, i.height, i.upsample);
          const check::Two columns = check::upsampled_sample(x, i.width, i.upsample);
          for (int64_t c = 0; c < i.channels; ++c) {
            double u = 0;
            int64_t at[4];
            double share[4];
            for (int k = 0; k < 4; ++k) {
              at[k] = (rows.index[k / 2] * i.width + columns.index[k % 2]) * i.channels + c;
              share[k] = rows.weight[k / 2] * columns.weight[k % 2];
              u += share[k] == 0 ? 0 : share[k] * p.activation(s, at[k], c, true);
            }
            const size_t w = static_cast<size_t>((t * inputs + first + c) * l.channels);
            for (size_t o = 0; o < channels; ++o) {
              const size_t out = static_cast<size_t>(r * l.width + q) * channels + o;
              // Operands are rounded before they are added up, so each counts in full.
              e.raw[out].add(u * p.weight[w + o], (std::fabs(u) + 1) * std::fabs(p.weight[w + o]));
              e.d_weight[w + o].add(u * d_raw[out].value, (std::fabs(u) + 1) * d_raw[out].size);
              for (int k = 0; k < 4; ++k) {
                if (share[k] != 0) du[static_cast<size_t>(at[k])].add(d_raw[out], share[k] * p.weight[w + o]);
              }
            }
          }
        }
    first += i.channels;
    std::vector<Sum> sum(static_cast<size_t>(i.channels)), product(sum.size());
    for (size_t at = 0; at < du.size(); ++at) {
      const size_t c = at % sum.size();
      const double t = p.activation(s, static_cast<int64_t>(at), static_cast<int64_t>(c), false);
      const bool flat = !i.outer && t <= 0;
      Sum g;
      g.add(du[at], flat ? i.slope : 1);
      if (i.accumulate) g.add(p.old[s][at]);
      du[at] = g;
      sum[c].add(g, 1);
      const double other = i.outer ? t : p.x[s][at] - p.centre[s][c];
      product[c].add(g.value * other, g.size * (std::fabs(other) + 1));
    }
    e.g.push_back(du);
    e.sum.push_back(sum);
    e.product.push_back(product);
  }
  return e;
}

// Runs both passes in guarded memory; the bytes of all that was written.
template <typename Real, typename Stored>
std::string run(const Problem<Real, Stored>& p, dipengine_dtype dtype, dipengine_pool* pool, const Expected& e, double tolerance) {
  const Layer& l = p.layer;
  const bool wide = l.wide && dtype == DIPENGINE_BFLOAT16;
  std::vector<std::unique_ptr<Image<Stored>>> x, d_x;
  std::vector<std::unique_ptr<Guarded<double>>> sums;
  std::vector<dipengine_conv_source> sources;
  const auto load = [](auto& image, const std::vector<double>& values) {
    size_t at = 0;
    using T = std::remove_reference_t<decltype(image.at(0, 0, 0))>;
    for (int64_t y = 0; y < image.height; ++y)
      for (int64_t q = 0; q < image.width; ++q)
        for (int64_t c = 0; c < image.channels; ++c) image.at(y, q, c) = check::stored<T>(values[at++]);
  };
  for (size_t s = 0; s < l.inputs.size(); ++s) {
    const Input& i = l.inputs[s];
    x.push_back(std::make_unique<Image<Stored>>(i.height, i.width, i.channels));
    load(*x.back(), p.x[s]);
    dipengine_conv_source source{};
    source.height = i.height;
    source.width = i.width;
    source.channels = i.channels;
    source.upsample = i.upsample;
    source.x = x.back()->pixels();
    source.slope = i.slope;
    if (i.inner) source.inner = {p.inner_scale[s].data(), p.inner_shift[s].data()};
    if (i.outer) source.outer = {p.outer_scale[s].data(), p.outer_shift[s].data()};
    d_x.push_back(std::make_unique<Image<Stored>>(i.height, i.width, i.channels));
    if (i.accumulate) load(*d_x.back(), p.old[s]);
    for (int k = 0; k < 2; ++k) sums.push_back(std::make_unique<Guarded<double>>(i.channels));
    sources.push_back(source);
  }
  std::vector<Real> weight(p.weight.begin(), p.weight.end()), bias(p.bias.begin(), p.bias.end());
  Image<Stored> raw(l.height, l.width, l.channels), gradient(l.height, l.width, l.channels), raw_in(l.height, l.width, l.channels);
  Image<Real> wide_raw(l.height, l.width, l.channels), wide_gradient(l.height, l.width, l.channels);
  load(gradient, p.gradient);
  load(wide_gradient, p.gradient);
  load(raw_in, p.raw);
  Guarded<double> mean(l.channels), variance(l.channels);
  Guarded<Real> d_weight(static_cast<int64_t>(weight.size())), d_bias(l.channels);

  dipengine_conv_params params{};
  params.struct_size = sizeof(params);
  params.source_size = sizeof(dipengine_conv_source);
  params.pool = pool;
  params.sources = sources.data();
  params.sources_count = static_cast<int32_t>(sources.size());
  params.dtype = params.gradient_dtype = dtype;
  params.raw_dtype = wide ? DIPENGINE_FLOAT32 : dtype;
  params.kernel = l.kernel;
  params.stride = l.stride;
  params.pad = l.pad;
  params.padding = l.padding;
  params.height = l.height;
  params.width = l.width;
  params.channels = l.channels;
  params.weight = weight.data();
  params.bias = l.bias ? bias.data() : nullptr;
  params.raw = wide ? wide_raw.pixels() : raw.pixels();
  if (l.moments) {
    params.mean = mean.data();
    params.variance = variance.data();
  }
  const auto call = [&](auto size, auto op) {
    size_t bytes = 0;
    CHECK(size(&params, &bytes) == DIPENGINE_OK);
    Guarded<char> workspace(static_cast<int64_t>(bytes));
    params.workspace = workspace.data();
    params.workspace_bytes = bytes;
    CHECK(op(&params) == DIPENGINE_OK);
    CHECK(workspace.intact());
  };
  call(dipengine_conv_forward_workspace, dipengine_conv_forward);

  params.raw = raw_in.pixels();
  params.raw_dtype = dtype;
  params.gradient = wide ? wide_gradient.pixels() : gradient.pixels();
  params.gradient_dtype = wide ? DIPENGINE_FLOAT32 : dtype;
  if (l.coefficients) {
    params.gradient_scale = p.a.data();
    params.raw_scale = p.b.data();
    params.gradient_shift = p.c.data();
  }
  params.d_weight = l.d_weight ? d_weight.data() : nullptr;
  params.d_bias = l.bias ? d_bias.data() : nullptr;
  for (size_t s = 0; s < sources.size(); ++s) {
    const Input& i = l.inputs[s];
    if (!i.data) continue;
    sources[s].d_x = d_x[s]->pixels();
    sources[s].accumulate = i.accumulate;
    sources[s].centre = p.centre[s].data();
    if (i.sums) {
      sources[s].sum = sums[2 * s]->data();
      sources[s].product = sums[2 * s + 1]->data();
    }
  }
  call(dipengine_conv_backward_workspace, dipengine_conv_backward);

  std::string bytes;
  int far = 0;
  const auto compare = [&](auto value, const Sum& expected) {
    far += !check::near(check::widen(value), expected, tolerance);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  };
  const auto compare_image = [&](auto& image, const std::vector<Sum>& expected) {
    size_t at = 0;
    for (int64_t y = 0; y < image.height; ++y)
      for (int64_t q = 0; q < image.width; ++q)
        for (int64_t c = 0; c < image.channels; ++c) compare(image.at(y, q, c), expected[at++]);
    CHECK(far == 0);
    CHECK(image.intact());
  };
  if (wide) compare_image(wide_raw, e.raw);
  else compare_image(raw, e.raw);
  for (size_t s = 0; s < sources.size(); ++s) {
    const Input& i = l.inputs[s];
    if (!i.data) continue;
    compare_image(*d_x[s], e.g[s]);
    for (int64_t c = 0; i.sums && c < i.channels; ++c) {
      compare((*sums[2 * s])[c], e.sum[s][static_cast<size_t>(c)]);
      compare((*sums[2 * s + 1])[c], e.product[s][static_cast<size_t>(c)]);
    }
    CHECK(far == 0);
    CHECK(x[s]->intact() && sums[2 * s]->intact() && sums[2 * s + 1]->intact());
  }
  for (size_t w = 0; l.d_weight && w < weight.size(); ++w) compare(d_weight[static_cast<int64_t>(w)], e.d_weight[w]);
  for (int64_t c = 0; l.bias && c < l.channels; ++c) compare(d_bias[c], e.d_bias[static_cast<size_t>(c)]);
  CHECK(far == 0);
  CHECK(d_weight.intact() && d_bias.intact() && mean.intact() && variance.intact());
  for (int64_t c = 0; l.moments && c < l.channels; ++c) {  // those of raw as stored
    double sum = 0, square = 0, largest = 0;
    const double n = static_cast<double>(l.height * l.width);
    const auto each = [&](auto body) {
      for (int64_t y = 0; y < l.height; ++y)
        for (int64_t q = 0; q < l.width; ++q) body(wide ? check::widen(wide_raw.at(y, q, c)) : check::widen(raw.at(y, q, c)));
    };
    each([&](double v) { sum += v, largest = std::max(largest, std::fabs(v)); });
    each([&](double v) { square += (v - sum / n) * (v - sum / n); });
    const double rounding = dtype == DIPENGINE_FLOAT64 ? 1e-13 : 1e-5;
    CHECK_NEAR(mean[c], sum / n, rounding * largest);
    CHECK_NEAR(variance[c], square / n, rounding * largest * largest);
    bytes.append(reinterpret_cast<const char*>(&mean[c]), 8).append(reinterpret_cast<const char*>(&variance[c]), 8);
  }
  return bytes;
}

// Every instruction set agrees with the loops; within one, the pool's size changes no bit.
template <typename Real, typename Stored>
void random_layers_match_plain_loops(dipengine_dtype dtype, double tolerance, uint64_t seeds, Layer (*draw)(uint64_t) = draw_layer) {
  for (uint64_t seed = 0; seed < seeds; ++seed) {
    const Problem<Real, Stored> problem(draw(seed), seed);
    const Expected expected = plain_loops(problem);
    std::string isa, bits;
    const int failures = check::failures();
    check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
      const std::string bytes = run(problem, dtype, pool, expected, tolerance);
      if (isa != dipengine_cpu_isa()) {
        isa = dipengine_cpu_isa();
        bits = bytes;
      }
      CHECK(bytes == bits);
    });
    if (check::failures() > failures) std::printf("  layer of seed %d, %s\n", static_cast<int>(seed), isa.c_str());
  }
}

}  // namespace

TEST(conv_matches_plain_loops_in_float64) { random_layers_match_plain_loops<double, double>(DIPENGINE_FLOAT64, 1e-14, 32); }
TEST(conv_matches_plain_loops_in_float32) { random_layers_match_plain_loops<float, float>(DIPENGINE_FLOAT32, 2e-6, 32); }
TEST(conv_matches_plain_loops_in_bfloat16) { random_layers_match_plain_loops<float, uint16_t>(DIPENGINE_BFLOAT16, 0.012, 32); }

TEST(conv_matches_plain_loops_in_large_layers) {
#if defined(__SANITIZE_THREAD__)
  constexpr uint64_t kLayers = 2;  // one of each form: the loops of six take minutes there
#else
  constexpr uint64_t kLayers = 6;
#endif
  random_layers_match_plain_loops<double, double>(DIPENGINE_FLOAT64, 1e-14, kLayers, draw_large_layer);
  random_layers_match_plain_loops<float, float>(DIPENGINE_FLOAT32, 2e-6, kLayers, draw_large_layer);
  random_layers_match_plain_loops<float, uint16_t>(DIPENGINE_BFLOAT16, 0.012, kLayers, draw_large_layer);
}

TEST(conv_refuses_what_it_cannot_do) {
  std::vector<float> x(6 * 7 * 4), weight(9 * 4 * 5), out(6 * 7 * 5);
  std::vector<double> numbers(5);
  dipengine_conv_source source{};
  dipengine_conv_params p{};
  Guarded<char> workspace(1 << 22);
  using Change = void (*)(dipengine_conv_params&, double*);
  const auto refused = [&](bool backward, Change change, dipengine_status status = DIPENGINE_INVALID_ARGUMENT) {
    source = {};
    source.height = 6;
    source.width = 7;
    source.channels = 4;
    source.slope = 1;
    source.x = source.d_x = {x.data(), 28, 4};
    p = {};
    p.struct_size = sizeof(p);
    p.source_size = sizeof(source);
    p.sources = &source;
    p.sources_count = 1;
    p.dtype = p.raw_dtype = p.gradient_dtype = DIPENGINE_FLOAT32;
    p.kernel = 3;
    p.stride = p.pad = 1;
    p.height = 6;
    p.width = 7;
    p.channels = 5;
    p.weight = weight.data();
    p.raw = p.gradient = {out.data(), 35, 5};
    p.workspace = workspace.data();
    p.workspace_bytes = workspace.bytes();
    const auto op = backward ? dipengine_conv_backward : dipengine_conv_forward;
    CHECK(op(&p) == DIPENGINE_OK);
    change(p, numbers.data());
    return op(&p) == status && std::strlen(dipengine_last_error()) > 20;
  };
  for (bool backward : {false, true}) {
    CHECK(refused(backward, [](auto& q, double*) { q.struct_size -= 8; }, DIPENGINE_STRUCT_SIZE));
    CHECK(refused(backward, [](auto& q, double*) { q.source_size += 8; }, DIPENGINE_STRUCT_SIZE));
    CHECK(refused(backward, [](auto& q, double*) { q.workspace = nullptr; }));
    CHECK(refused(backward, [](auto& q, double*) { q.workspace = static_cast<char*>(q.workspace) + 8; }));
    CHECK(refused(backward, [](auto& q, double*) { q.workspace_bytes = 100; }));
    CHECK(refused(backward, [](auto& q, double*) { q.sources = nullptr; }));
    CHECK(refused(backward, [](auto& q, double*) { q.sources_count = 3; }));
    CHECK(refused(backward, [](auto& q, double*) { q.sources->x.data = nullptr; }));
    CHECK(refused(backward, [](auto& q, double*) { q.sources->x.row_stride = 27; }));
    CHECK(refused(backward, [](auto& q, double*) { q.sources->height = 0; }));
    CHECK(refused(backward, [](auto& q, double*) { q.sources->upsample = 3; }));
    CHECK(refused(backward, [](auto& q, double* n) { q.sources->inner.scale = n; }));
    CHECK(refused(backward, [](auto& q, double* n) { q.sources->outer.shift = n; }));
    CHECK(refused(backward, [](auto& q, double*) { q.dtype = DIPENGINE_UINT8; }));
    CHECK(refused(backward, [](auto& q, double*) { q.raw_dtype = DIPENGINE_BFLOAT16; }));
    CHECK(refused(backward, [](auto& q, double*) { q.kernel = 8; }));
    CHECK(refused(backward, [](auto& q, double*) { q.padding = 2; }));
    CHECK(refused(backward, [](auto& q, double*) { q.weight = nullptr; }));
    CHECK(refused(backward, [](auto& q, double*) { q.height = 5; }));
    CHECK(refused(backward, [](auto& q, double*) { q.sources->upsample = 1, q.stride = 2; }, DIPENGINE_UNSUPPORTED));
  }
  CHECK(refused(false, [](auto& q, double*) { q.raw.pixel_stride = 4; }));
  CHECK(refused(false, [](auto& q, double* n) { q.mean = n; }));
  CHECK(refused(true, [](auto& q, double*) { q.gradient.data = nullptr; }));
  CHECK(refused(true, [](auto& q, double* n) { q.raw_scale = n; }));
  CHECK(refused(true, [](auto& q, double* n) { q.sources->sum = n; }));
  CHECK(refused(true, [](auto& q, double* n) { q.sources->sum = q.sources->product = n, q.sources->d_x.data = nullptr; }));
  CHECK(refused(true, [](auto& q, double*) { q.sources->d_x.pixel_stride = 3; }));
}
