// Deviance against the integral that defines it, its gradient against the score; the logarithm's accuracy; bits; refusals.
#include "guarded.h"
#include "math/logarithm.h"
#include "ops/deviance/deviance.h"

namespace {

constexpr double kFloor = 0.1;

template <typename Real>
struct Problem {
  int64_t height, width, channels, pixel;
  std::vector<Real> image, target, mask;
  check::Guarded<Real> d_image;
  check::Guarded<double> workspace{64};
  double scale = 40, shift = -4, read_variance, loss = -1, discrepancy = -1, normaliser = 0;

  Problem(int64_t h, int64_t w, int64_t c, int64_t gap, double r2)
      : height(h), width(w), channels(c), pixel(c + gap), d_image(h * w * pixel), read_variance(r2) {
    check::Numbers numbers(7);
    image = numbers.vector<Real>(h * w * pixel, 0.5);
    target = numbers.vector<Real>(h * w * pixel, 0.5);
    for (auto* v : {&image, &target}) for (Real& x : *v) x += Real(0.5);
    for (double value : numbers.vector<double>(h * w)) mask.push_back(value > -0.4 ? Real(1) : Real(0));
    for (Real m : mask) normaliser += static_cast<double>(m) * static_cast<double>(c);
    if (normaliser == 0) normaliser = 1;
  }

  dipengine_deviance_params params(dipengine_pool* pool = nullptr) {
    dipengine_deviance_params p{};
    p.struct_size = sizeof(p);
    p.pool = pool;
    p.height = height;
    p.width = width;
    p.channels = channels;
    p.dtype = sizeof(Real) == 4 ? DIPENGINE_FLOAT32 : DIPENGINE_FLOAT64;
    p.image = {image.data(), width * pixel, pixel};
    p.target = {target.data(), width * pixel, pixel};
    p.mask = {mask.data(), width, 1};
    p.d_image = {d_image.data(), width * pixel, pixel};
    p.scale = scale;
    p.shift = shift;
    p.read_variance = read_variance;
    p.floor = kFloor;
    p.normaliser = normaliser;
    p.grad_scale = 3;
    p.loss = &loss;
    p.discrepancy = &discrepancy;
    p.workspace = workspace.data();
    CHECK(dipengine_deviance_workspace(&p, &p.workspace_bytes) == DIPENGINE_OK && p.workspace_bytes <= workspace.bytes());
    return p;
  }
};

// 2 integral_k^e (t - k) / v(t) dt in closed form, in extended precision.
double integral(double k, double e, double r2) {
  const auto antiderivative = [&](long double t) {  // of (t - k) / v(t), zero at the floor
    const long double f = kFloor, r = r2;
    if (t < f) return ((t - k) * (t - k) - (f - k) * (f - k)) / (2 * (f + r));
    return (t - f) - (k + r) * std::log((t + r) / (f + r));
  };
  return static_cast<double>(2 * (antiderivative(e) - antiderivative(k)));
}

template <typename Real>
void matches_the_integral(double tolerance, double gradient_tolerance) {
  for (int64_t gap : {0, 2}) {
    for (double r2 : {0.0, 2.25}) {
      Problem<Real> problem(61, 83, 3, gap, r2);
      const auto params = problem.params();
      CHECK(dipengine_deviance(&params) == DIPENGINE_OK);
      double loss = 0, squares = 0, bright = 0, shares = 0, shares2 = 0;
      bool good = problem.d_image.intact();
      for (int64_t i = 0; i < problem.height * problem.width * problem.pixel; ++i) {
        if (i % problem.pixel >= problem.channels) {
          good = good && std::isnan(problem.d_image[i]);
          continue;
        }
        const size_t at = static_cast<size_t>(i);
        const double weight = problem.mask[at / static_cast<size_t>(problem.pixel)];
        const double e = problem.image[at] * 40.0 - 4, k = problem.target[at] * 40.0 - 4;
        const double variance = std::fmax(e, kFloor) + r2;
        loss += weight * integral(k, e, r2);
        const double x = (e - k) * (e - k) / variance, share = weight * std::pow(std::fmax(e, kFloor), 3);
        squares += weight * x;
        bright += share * x;
        shares += share;
        shares2 += share * share;
        const double residual = (static_cast<double>(problem.image[at]) - problem.target[at]) * 40;  // e - k would cancel
        const double gradient = 3 * 2 * 40 / problem.normaliser * weight * residual / variance;
        good = good && std::fabs(problem.d_image[i] - gradient) <= gradient_tolerance * std::fabs(gradient);
      }
      CHECK(good);
      CHECK_NEAR(problem.loss * problem.normaliser / loss, 1, tolerance);
      // A larger normaliser makes the mean over all elements smaller, so that the bright ones decide.
      const double all = squares / problem.normaliser, few = bright / shares - 2 * std::sqrt(2 * shares2) / shares;
      CHECK_NEAR(problem.discrepancy / std::fmax(all, few), 1, tolerance);
      auto other = params;
      other.normaliser *= 2 * all / few;
      CHECK(dipengine_deviance(&other) == DIPENGINE_OK);
      CHECK_NEAR(problem.discrepancy / few, 1, tolerance);
    }
  }
}

}  // namespace

TEST(logarithm_excess_keeps_its_digits) {
  double worst = 0, worst_logarithm = 0;
  for (int exponent = -40; exponent <= 40; ++exponent) {
    for (double mantissa : check::Numbers(exponent + 99).vector<double>(200)) {
      double u = mantissa * std::ldexp(1, exponent);
      if (u <= -1) u = -u;
      const long double logarithm = std::log1p(static_cast<long double>(u));
      // By the series where u - ln(1 + u) cancels even in extended precision.
      const long double x = u, excess = std::fabs(u) < 1e-4
          ? x * x * (0.5L - x * (1.0L / 3 - x * (0.25L - x * (0.2L - x / 6)))) : x - logarithm;
      const auto got = dipengine::logarithm_excess(u, 1 + u);
      worst = std::fmax(worst, std::fabs(static_cast<double>((got.excess - excess) / excess)));
      worst_logarithm = std::fmax(worst_logarithm, std::fabs(static_cast<double>((got.logarithm - logarithm) / logarithm)));
    }
  }
  CHECK(worst < 1e-14);
  CHECK(worst_logarithm < 1e-14);
  CHECK(dipengine::logarithm_excess(0, 1).excess == 0 && dipengine::logarithm_excess(0, 1).logarithm == 0);
  CHECK(std::isnan(dipengine::logarithm_excess(NAN, NAN).excess));
}

TEST(deviance_is_the_integral_and_its_gradient_the_score) {
  matches_the_integral<double>(1e-12, 1e-12);
  matches_the_integral<float>(1e-12, 1e-7);  // computed in float64, so only d_image is rounded
}

TEST(deviance_bits_do_not_depend_on_instruction_set_or_threads) {
  for (int64_t channels : {1, 3, 7}) {
    std::string reference;
    check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
      Problem<float> problem(channels == 1 ? 3 : 61, channels == 1 ? 9001 : 101, channels, channels == 7 ? 1 : 0, 0.5);
      const auto params = problem.params(pool);
      CHECK(dipengine_deviance(&params) == DIPENGINE_OK);
      std::string bits(reinterpret_cast<char*>(problem.d_image.data()), problem.d_image.bytes());
      bits.append(reinterpret_cast<char*>(&problem.loss), 8).append(reinterpret_cast<char*>(&problem.discrepancy), 8);
      if (reference.empty()) reference = bits;
      CHECK(reference == bits);
    });
  }
}

TEST(deviance_is_zero_where_the_image_is_the_target_and_lets_nan_through) {
  Problem<float> problem(1, 1, 1, 0, 0);
  problem.mask = {1};
  problem.image = problem.target;
  const auto params = problem.params();
  CHECK(dipengine_deviance(&params) == DIPENGINE_OK && problem.loss == 0 && problem.d_image[0] == 0);
  problem.image[0] = NAN;
  CHECK(dipengine_deviance(&params) == DIPENGINE_OK && std::isnan(problem.loss) && std::isnan(problem.d_image[0]));
  problem.image[0] = problem.target[0];
  problem.target[0] = NAN;
  CHECK(dipengine_deviance(&params) == DIPENGINE_OK && std::isnan(problem.loss) && std::isnan(problem.discrepancy));
}

TEST(deviance_refuses_what_it_cannot_do) {
  Problem<float> problem(5, 4, 3, 0, 1);
  const auto refused = [&](auto change) {
    auto p = problem.params();
    change(p);
    return dipengine_deviance(&p) == DIPENGINE_INVALID_ARGUMENT && std::strlen(dipengine_last_error()) > 20;
  };
  CHECK(refused([](auto& p) { p.height = 0; }));
  CHECK(refused([](auto& p) { p.dtype = DIPENGINE_BFLOAT16; }));
  CHECK(refused([](auto& p) { p.image.data = nullptr; }));
  CHECK(refused([](auto& p) { p.target.data = nullptr; }));
  CHECK(refused([](auto& p) { p.mask.row_stride = 1; }));
  CHECK(refused([](auto& p) { p.d_image.pixel_stride = 1; }));
  CHECK(refused([](auto& p) { p.scale = NAN; }));
  CHECK(refused([](auto& p) { p.read_variance = -1; }));
  CHECK(refused([](auto& p) { p.floor = 0; }));
  CHECK(refused([](auto& p) { p.normaliser = 0; }));
  CHECK(refused([](auto& p) { p.loss = nullptr; }));
  CHECK(refused([](auto& p) { p.workspace_bytes -= 1; }));
  auto p = problem.params();
  p.struct_size = 8;
  CHECK(dipengine_deviance(&p) == DIPENGINE_STRUCT_SIZE);
}
