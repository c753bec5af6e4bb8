// The norm passes against plain loops in float64 on random sizes, in guarded memory; large means; their bits; refusals.
#include <algorithm>

#include "guarded.h"
#include "ops/norm/norm.h"

namespace {

using check::Guarded;
using check::Sum;

struct Size {
  int64_t height, width, channels;
};
const Size kSizes[] = {{1, 1, 3}, {1, 2, 1}, {2, 2, 4}, {5, 1, 17}, {3, 4, 16}, {7, 9, 33}, {2, 131, 5}, {67, 3, 20}};

template <typename Real, typename Stored>
struct Norm {
  dipengine_dtype dtype;
  Size size;
  int upsample;
  double mean_of_x;
  std::vector<double> inner_scale, inner_shift, centre, a, b, c, x, g;

  Norm(dipengine_dtype type, Size of, int mode, double offset = 0) : dtype(type), size(of), upsample(mode), mean_of_x(offset) {
    check::Numbers numbers(static_cast<uint64_t>(of.height * 7 + of.width + mode));
    const int64_t count = of.height * of.width * of.channels;
    for (int64_t i = 0; i < of.channels; ++i) {  // inner(x) is exact in float32 and keeps away from the kink
      inner_scale.push_back(std::round(numbers.next() * 3) / 4 + 1);
      inner_shift.push_back(1.0 / 64 - std::round(numbers.next() * 8) / 32);
    }
    for (auto* v : {&centre, &a, &b, &c}) *v = numbers.vector<double>(of.channels);
    for (int64_t i = 0; i < count; ++i) x.push_back(offset + std::round(numbers.next() * 16) / 8);
    for (int64_t i = 0; i < count; ++i) g.push_back(check::widen(check::stored<Stored>(numbers.next())));
  }

  size_t at(int64_t y, int64_t q, int64_t c_) const { return static_cast<size_t>((y * size.width + q) * size.channels + c_); }
  double inner(size_t i) const {
    const size_t k = i % inner_scale.size();
    return mean_of_x != 0 ? x[i] : x[i] * inner_scale[k] + inner_shift[k];
  }
  double slope() const { return mean_of_x != 0 ? 1 : 0.25; }
  double t(size_t i) const { return inner(i) > 0 ? inner(i) : slope() * inner(i); }
  int64_t factor() const { return upsample == 0 ? 1 : 2; }

  // body(y, x of an upsampled pixel, its four samples, their shares)
  template <typename Body>
  void each_upsampled(int64_t channel, const Body& body) const {
    for (int64_t y = 0; y < factor() * size.height; ++y)
      for (int64_t q = 0; q < factor() * size.width; ++q) {
        const check::Two rows = check::upsampled_sample(y, size.height, upsample);
        const check::Two columns = check::upsampled_sample(q, size.width, upsample);
        size_t index[4];
        double share[4];
        for (int k = 0; k < 4; ++k) {
          index[k] = at(rows.index[k / 2], columns.index[k % 2], channel);
          share[k] = rows.weight[k / 2] * columns.weight[k % 2];
        }
        body(index, share);
      }
  }

  std::string run(dipengine_pool* pool, double tolerance) const {
    const int64_t n = size.channels;
    Guarded<Stored> xs(static_cast<int64_t>(x.size())), gs(xs.bytes() / sizeof(Stored)), ys(gs.bytes() / sizeof(Stored)),
        d_x(ys.bytes() / sizeof(Stored));
    for (size_t i = 0; i < x.size(); ++i) {
      xs[static_cast<int64_t>(i)] = check::stored<Stored>(x[i]);
      gs[static_cast<int64_t>(i)] = check::stored<Stored>(g[i]);
    }
    Guarded<double> mean(n), variance(n), sum(n), product(n);
    dipengine_conv_source source{};
    source.height = size.height;
    source.width = size.width;
    source.channels = n;
    source.upsample = upsample;
    source.slope = slope();
    if (mean_of_x == 0) source.inner = {inner_scale.data(), inner_shift.data()};
    const auto pixels = [&](Guarded<Stored>& image) { return dipengine_pixels{image.data(), size.width * n, n}; };
    source.x = pixels(xs);
    source.d_x = pixels(d_x);
    source.centre = centre.data();
    source.sum = sum.data();
    source.product = product.data();
    dipengine_norm_params p{};
    p.struct_size = sizeof(p);
    p.source_size = sizeof(source);
    p.pool = pool;
    p.source = &source;
    p.dtype = dtype;
    p.mean = mean.data();
    p.variance = variance.data();
    p.y = pixels(ys);
    p.g = pixels(gs);
    p.a = a.data();
    p.b = b.data();
    p.c = c.data();
    size_t bytes = 0;
    CHECK(dipengine_norm_workspace(&p, &bytes) == DIPENGINE_OK);
    for (auto op : {dipengine_norm_statistics, dipengine_norm_apply, dipengine_norm_backward}) {
      Guarded<char> workspace(static_cast<int64_t>(bytes));
      p.workspace = workspace.data();
      p.workspace_bytes = bytes;
      CHECK(op(&p) == DIPENGINE_OK);
      CHECK(workspace.intact());
    }
    for (const auto* image : {&xs, &gs, &ys, &d_x}) CHECK(image->intact());
    for (const auto* numbers : {&mean, &variance, &sum, &product}) CHECK(numbers->intact());
    compare(mean, variance, ys, d_x, sum, product, tolerance);
    std::string all;
    for (auto* numbers : {&mean, &variance, &sum, &product}) all.append(reinterpret_cast<const char*>(numbers->data()), numbers->bytes());
    for (auto* image : {&ys, &d_x}) all.append(reinterpret_cast<const char*>(image->data()), image->bytes());
    return all;
  }

  void compare(Guarded<double>& mean, Guarded<double>& variance, Guarded<Stored>& y, Guarded<Stored>& d_x, Guarded<double>& sum,
               Guarded<double>& product, double tolerance) const {
    const double rounding = dtype == DIPENGINE_FLOAT64 ? 1e-13 : 4e-6;  // of numbers: they are not rounded to bfloat16
    std::vector<Sum> d_t(x.size());
    for (int64_t c_ = 0; c_ < size.channels; ++c_) {
      const size_t k = static_cast<size_t>(c_);
      double total = 0, square = 0, count = 0, spread = 0;
      each_upsampled(c_, [&](const size_t* index, const double* share) {
        Sum v;
        for (int s = 0; s < 4; ++s) v.add(share[s] * t(index[s]));
        total += v.value;
        count += 1;
        for (int s = 0; s < 4; ++s) {
          d_t[index[s]].add(share[s] * b[k] * v.value, std::fabs(share[s] * b[k]) * v.size);
          d_t[index[s]].add(share[s] * c[k]);
        }
      });
      each_upsampled(c_, [&](const size_t* index, const double* share) {
        double v = -total / count, largest = 0;
        for (int s = 0; s < 4; ++s) v += share[s] * t(index[s]), largest = std::max(largest, std::fabs(t(index[s]) - total / count));
        square += v * v;
        spread = std::max(spread, largest);
      });
      // Relative to the deviations, not to the mean. Bilinear: the mean is rounded before it is taken away.
      const double shifted = upsample == 2 && dtype != DIPENGINE_FLOAT64 ? std::fabs(total / count) * 0x1p-23 : 0;
      CHECK_NEAR(mean[c_], total / count, rounding * (spread + 1e-9 * std::fabs(total / count)));
      CHECK_NEAR(variance[c_], square / count, 2 * rounding * spread * spread + 2 * shifted * shifted + 1e-30);
    }
    std::vector<Sum> sums(static_cast<size_t>(size.channels)), products(sums.size());
    int far = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const size_t k = i % sums.size();
      Sum d = d_t[i], value;
      d.add(a[k] * g[i]);
      if (inner(i) <= 0) d.value *= slope(), d.size *= slope();
      value.add(t(i));
      far += !check::near(check::widen(d_x[static_cast<int64_t>(i)]), d, tolerance);
      far += !check::near(check::widen(y[static_cast<int64_t>(i)]), value, tolerance);
      sums[k].add(d, 1);
      products[k].add(d.value * (x[i] - centre[k]), d.size * (std::fabs(x[i]) + 1));
    }
    for (size_t k = 0; k < sums.size(); ++k) {
      far += !check::near(sum[static_cast<int64_t>(k)], sums[k], rounding);
      far += !check::near(product[static_cast<int64_t>(k)], products[k], rounding);
    }
    CHECK(far == 0);
  }
};

template <typename Real, typename Stored>
void matches_plain_loops(dipengine_dtype dtype, double tolerance, double mean = 0) {
  for (const Size& size : kSizes) {
    for (int upsample : {0, 1, 2}) {
      const Norm<Real, Stored> norm(dtype, size, upsample, mean);
      std::string isa, bits;
      check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
        const std::string bytes = norm.run(pool, tolerance);
        if (isa != dipengine_cpu_isa()) {
          isa = dipengine_cpu_isa();
          bits = bytes;
        }
        CHECK(bytes == bits);
      });
    }
  }
}

}  // namespace

TEST(norm_matches_plain_loops_in_every_precision) {
  matches_plain_loops<double, double>(DIPENGINE_FLOAT64, 1e-14);
  matches_plain_loops<float, float>(DIPENGINE_FLOAT32, 1e-6);
  matches_plain_loops<float, uint16_t>(DIPENGINE_BFLOAT16, 0.004);
}

TEST(norm_statistics_do_not_cancel_where_the_mean_is_large) {
  matches_plain_loops<float, float>(DIPENGINE_FLOAT32, 1e-6, 10000);
  matches_plain_loops<float, float>(DIPENGINE_FLOAT32, 1e-6, -10000);
}

TEST(norm_gradient_has_no_component_along_its_input_or_a_constant) {
  // d_v of a BatchNorm is orthogonal to 1 and to v - mean (up to eps).
  check::Numbers numbers(3);
  const std::vector<double> v = numbers.vector<double>(500), g = numbers.vector<double>(500);
  double mean = 0, variance = 0, sum = 0, product = 0;
  for (double value : v) mean += value / 500;
  for (double value : v) variance += (value - mean) * (value - mean) / 500;
  for (size_t i = 0; i < 500; ++i) sum += g[i], product += g[i] * v[i];
  double a = 0, b = 0, c = 0, d_gamma = 0, d_beta = 0;
  const double gamma = 1.7;
  dipengine_norm_gradient gradient{};
  gradient.struct_size = sizeof(gradient);
  gradient.channels = 1;
  gradient.count = 500;
  gradient.mean = &mean;
  gradient.variance = &variance;
  gradient.gamma = &gamma;
  gradient.sum = &sum;
  gradient.product = &product;
  gradient.a = &a;
  gradient.b = &b;
  gradient.c = &c;
  gradient.d_gamma = &d_gamma;
  gradient.d_beta = &d_beta;
  CHECK(dipengine_norm_fold_gradient(&gradient) == DIPENGINE_OK);
  double along_one = 0, along_v = 0, size = 0;
  for (size_t i = 0; i < 500; ++i) {
    const double d = a * g[i] + b * v[i] + c;
    along_one += d;
    along_v += d * (v[i] - mean);
    size += std::fabs(d);
  }
  CHECK(size > 1);
  CHECK_NEAR(along_one, 0, 1e-12 * size);
  CHECK_NEAR(along_v, 0, 1e-12 * size);
  CHECK(d_beta == sum);
  gradient.count = 0;
  CHECK(dipengine_norm_fold_gradient(&gradient) == DIPENGINE_INVALID_ARGUMENT);
}

TEST(norm_refuses_what_it_cannot_do) {
  std::vector<float> x(4 * 5 * 3), y(x.size());
  std::vector<double> numbers(3);
  dipengine_conv_source source{};
  Guarded<char> workspace(1 << 16);
  using Change = void (*)(dipengine_norm_params&, double*);
  const auto refused = [&](dipengine_status (*op)(const dipengine_norm_params*), Change change,
                           dipengine_status status = DIPENGINE_INVALID_ARGUMENT) {
    source = {};
    source.height = 4;
    source.width = 5;
    source.channels = 3;
    source.slope = 1;
    source.x = {x.data(), 15, 3};
    source.d_x = {y.data(), 15, 3};
    dipengine_norm_params p{};
    p.struct_size = sizeof(p);
    p.source_size = sizeof(source);
    p.source = &source;
    p.dtype = DIPENGINE_FLOAT32;
    p.mean = p.variance = numbers.data();
    p.y = p.g = {y.data(), 15, 3};
    p.workspace = workspace.data();
    p.workspace_bytes = workspace.bytes();
    CHECK(op(&p) == DIPENGINE_OK);
    change(p, numbers.data());
    return op(&p) == status && std::strlen(dipengine_last_error()) > 20;
  };
  for (auto op : {dipengine_norm_statistics, dipengine_norm_apply, dipengine_norm_backward}) {
    CHECK(refused(op, [](auto& p, double*) { p.struct_size = 0; }, DIPENGINE_STRUCT_SIZE));
    CHECK(refused(op, [](auto& p, double*) { p.source_size = 0; }, DIPENGINE_STRUCT_SIZE));
    CHECK(refused(op, [](auto& p, double*) { p.source = nullptr; }));
    CHECK(refused(op, [](auto& p, double*) { p.dtype = DIPENGINE_UINT8; }));
    CHECK(refused(op, [](auto& p, double*) { p.source->channels = 0; }));
    CHECK(refused(op, [](auto& p, double*) { p.source->upsample = 3; }));
    CHECK(refused(op, [](auto& p, double*) { p.source->x.row_stride = 14; }));
    CHECK(refused(op, [](auto& p, double* n) { p.source->inner.shift = n; }));
    CHECK(refused(op, [](auto& p, double*) { p.workspace = static_cast<char*>(p.workspace) + 4; }));
    CHECK(refused(op, [](auto& p, double*) { p.workspace_bytes = 8; }));
  }
  CHECK(refused(dipengine_norm_statistics, [](auto& p, double*) { p.variance = nullptr; }));
  CHECK(refused(dipengine_norm_apply, [](auto& p, double*) { p.y.data = nullptr; }));
  CHECK(refused(dipengine_norm_backward, [](auto& p, double*) { p.g.pixel_stride = 2; }));
  CHECK(refused(dipengine_norm_backward, [](auto& p, double*) { p.source->d_x.data = nullptr; }));
  CHECK(refused(dipengine_norm_backward, [](auto& p, double* n) { p.b = n; }));
  CHECK(refused(dipengine_norm_backward, [](auto& p, double* n) { p.source->product = n; }));
}
