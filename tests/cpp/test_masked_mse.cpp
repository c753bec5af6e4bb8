// masked_mse against plain loops in float64, its gradient against finite differences, its bits, its refusals.
#include <cstring>

#include "check.h"
#include "math/bf16.h"
#include "ops/masked_mse/masked_mse.h"

namespace {

// A cohort in NHWC on a canvas larger than the window, under a per-pixel mask, with everything switched on.
template <typename Real, typename Stored>
struct Problem {
  static constexpr int64_t kFits = 2, kHeight = 61, kWidth = 83, kChannels = 3, kCanvasH = 64, kCanvasW = 96;
  static constexpr int64_t kCanvas = kCanvasH * kCanvasW * kChannels, kWindow = kHeight * kWidth * kChannels;
  dipengine_dtype dtype;
  std::vector<Stored> raw, d_raw;
  std::vector<Real> target, mask, out, average, es_mean;
  std::vector<double> normaliser{double(kWindow), 10.0}, loss, d2;
  std::vector<uint8_t> first{0, 0};
  std::vector<double> workspace;
  double grad_scale = 1;

  explicit Problem(dipengine_dtype type) : dtype(type), loss(kFits, -7), d2(kFits, -7) {
    check::Numbers numbers(5);
    for (double value : numbers.vector<double>(kFits * kCanvas, 6)) raw.push_back(stored(value));
    d_raw.assign(raw.size(), stored(5));
    target = numbers.vector<Real>(kFits * kWindow);
    for (double value : numbers.vector<double>(kHeight * kWidth)) mask.push_back(value > 0 ? Real(1) : Real(0));
    out.assign(target.size(), 5);
    average = numbers.vector<Real>(kFits * kWindow);
    es_mean = numbers.vector<Real>(kFits * kWindow);
  }

  static Stored stored(double value) {
    if constexpr (sizeof(Stored) == 2) return dipengine::bf16_from_float(static_cast<float>(value));
    else return static_cast<Stored>(value);
  }
  static double widen(Stored value) {
    if constexpr (sizeof(Stored) == 2) return dipengine::float_from_bf16(value);
    else return value;
  }

  dipengine_masked_mse_params params(dipengine_pool* pool = nullptr) {
    const auto on_canvas = [](void* data) { return dipengine_image{data, kCanvas, kCanvas, kCanvasW * kChannels}; };
    const auto in_window = [](void* data) { return dipengine_image{data, kWindow, kWindow, kWidth * kChannels}; };
    dipengine_masked_mse_params p{};
    p.struct_size = sizeof(p);
    p.pool = pool;
    p.fits = kFits;
    p.outer = 1;
    p.rows = kHeight;
    p.inner = kWidth * kChannels;
    p.dtype = dtype;
    p.activation = DIPENGINE_ACTIVATION_SIGMOID;
    p.raw = on_canvas(raw.data());
    p.target = in_window(target.data());
    p.mask = {mask.data(), 0, 0, kWidth};  // one mask for all fits
    p.mask_repeat = kChannels;
    p.d_raw = on_canvas(d_raw.data());
    p.out = in_window(out.data());
    p.average = in_window(average.data());
    p.es_mean = in_window(es_mean.data());
    p.normaliser = normaliser.data();
    p.grad_scale = grad_scale;
    p.average_decay = 0.99;
    p.es_alpha = 0.1;
    p.first_frame = first.data();
    p.loss = loss.data();
    p.d2 = d2.data();
    size_t bytes = 0;
    CHECK(dipengine_masked_mse_workspace(&p, &bytes) == DIPENGINE_OK);
    workspace.assign(bytes / sizeof(double) + 1, NAN);
    p.workspace = workspace.data();
    p.workspace_bytes = bytes;
    return p;
  }

  // fn(fit, canvas index, window index, mask index) for every element of the window.
  template <typename F>
  static void each(F fn) {
    for (int64_t f = 0; f < kFits; ++f)
      for (int64_t y = 0; y < kHeight; ++y)
        for (int64_t x = 0; x < kWidth * kChannels; ++x)
          fn(static_cast<size_t>(f), static_cast<size_t>(f * kCanvas + y * kCanvasW * kChannels + x),
             static_cast<size_t>(f * kWindow + y * kWidth * kChannels + x), static_cast<size_t>(y * kWidth + x / kChannels));
  }
};

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

// Compare everything that the op wrote with loops in float64.
template <typename P>
void matches_plain_loops(dipengine_dtype dtype, double tolerance, double gradient_tolerance) {
  P problem(dtype);
  problem.grad_scale = 3;
  const P before = problem;
  const auto params = problem.params();
  CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
  double loss[2] = {}, d2[2] = {}, worst = 0, worst_gradient = 0;
  P::each([&](size_t f, size_t c, size_t w, size_t k) {
    const double x = logistic(P::widen(before.raw[c])), r = x - before.target[w], a = x - before.es_mean[w];
    loss[f] += before.mask[k] * r * r / before.normaliser[f];
    d2[f] += a * a / P::kWindow;
    const double gradient = 3 * 2 * before.mask[k] * r * x * (1 - x) / before.normaliser[f];
    worst = std::max(worst, std::fabs(problem.out[w] - x));
    worst = std::max(worst, std::fabs(problem.average[w] - (0.99 * before.average[w] + 0.01 * x)));
    worst = std::max(worst, std::fabs(problem.es_mean[w] - (0.9 * before.es_mean[w] + 0.1 * x)));
    worst_gradient = std::max(worst_gradient, std::fabs(P::widen(problem.d_raw[c]) - gradient) * before.normaliser[f]);
  });
  CHECK(worst < tolerance);
  CHECK(worst_gradient < gradient_tolerance);
  for (int f = 0; f < 2; ++f) {
    CHECK_NEAR(problem.loss[f] / loss[f], 1, tolerance);
    CHECK_NEAR(problem.d2[f] / d2[f], 1, tolerance);
  }
  CHECK(P::widen(problem.d_raw[P::kWidth * P::kChannels]) == 5);  // right of the window: not touched
}

}  // namespace

TEST(masked_mse_matches_plain_loops_in_every_precision) {
  matches_plain_loops<Problem<double, double>>(DIPENGINE_FLOAT64, 1e-14, 1e-13);
  matches_plain_loops<Problem<float, float>>(DIPENGINE_FLOAT32, 4e-7, 4e-6);
  matches_plain_loops<Problem<float, uint16_t>>(DIPENGINE_BFLOAT16, 4e-7, 0.012);
}

TEST(masked_mse_gradient_agrees_with_finite_differences) {
  using P = Problem<double, double>;
  for (int32_t activation : {DIPENGINE_ACTIVATION_NONE, DIPENGINE_ACTIVATION_SIGMOID}) {
    P problem(DIPENGINE_FLOAT64);
    auto params = problem.params();
    params.activation = activation;
    params.average.data = params.es_mean.data = nullptr;
    CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
    const std::vector<double> gradient = problem.d_raw;
    double worst = 0;
    for (size_t i = 0; i < 60; ++i) {
      const size_t at = i * 37;  // within the first rows of the first fit
      const double kept = problem.raw[at], h = 1e-5;
      problem.raw[at] = kept + h;
      CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
      const double above = problem.loss[0];
      problem.raw[at] = kept - h;
      CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
      problem.raw[at] = kept;
      const bool inside = at % (P::kCanvasW * P::kChannels) < P::kWidth * P::kChannels;
      const double expected = inside ? gradient[at] : 0;
      worst = std::max(worst, std::fabs((above - problem.loss[0]) / (2 * h) - expected) * P::kWindow);
    }
    CHECK(worst < 1e-5);
  }
}

TEST(masked_mse_first_frame_starts_the_averages) {
  using P = Problem<float, float>;
  P problem(DIPENGINE_FLOAT32);
  problem.first = {1, 0};
  const P before = problem;
  const auto params = problem.params();
  CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
  CHECK(problem.d2[0] == 0 && problem.d2[1] > 0);
  CHECK(problem.average[7] == problem.out[7] && problem.es_mean[7] == problem.out[7]);
  CHECK(problem.average[P::kWindow + 7] != problem.out[P::kWindow + 7]);
}

TEST(masked_mse_leaves_inactive_fits_alone) {
  using P = Problem<float, float>;
  P problem(DIPENGINE_FLOAT32);
  const P before = problem;
  auto params = problem.params();
  const uint8_t active[2] = {0, 1};
  params.active = active;
  CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
  CHECK(problem.loss[0] == -7 && problem.d2[0] == -7 && problem.loss[1] > 0);
  CHECK(std::memcmp(problem.average.data(), before.average.data(), P::kWindow * sizeof(float)) == 0);
  CHECK(problem.out[3] == 5 && problem.out[P::kWindow + 3] != 5);
}

TEST(masked_mse_bits_do_not_depend_on_instruction_set_threads_or_cohort) {
  using P = Problem<float, uint16_t>;
  const auto bits = [](const P& p, size_t fit) {
    std::string all;
    const auto add = [&](const void* data, size_t bytes) { all.append(static_cast<const char*>(data), bytes); };
    add(&p.loss[fit], 8);
    add(&p.d2[fit], 8);
    add(&p.d_raw[fit * P::kCanvas], P::kCanvas * 2);
    for (const auto* v : {&p.out, &p.average, &p.es_mean}) add(v->data() + fit * P::kWindow, P::kWindow * 4);
    return all;
  };
  std::string reference[2];
  check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
    P problem(DIPENGINE_BFLOAT16);
    const auto params = problem.params(pool);
    CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
    for (size_t fit : {size_t{0}, size_t{1}}) {
      if (reference[fit].empty()) reference[fit] = bits(problem, fit);
      CHECK(reference[fit] == bits(problem, fit));
    }
  });
  P alone(DIPENGINE_BFLOAT16);
  auto params = alone.params();
  params.fits = 1;
  CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
  CHECK(reference[0] == bits(alone, 0));
}

TEST(masked_mse_handles_one_pixel_long_rows_and_planes) {
  struct Dims {
    int64_t outer, rows, inner;
  };
  for (const Dims d : {Dims{1, 1, 1}, Dims{3, 1, 1}, Dims{1, 1, 50001}, Dims{3, 5, 241}, Dims{1, 8161, 1}}) {
    const int64_t count = d.outer * d.rows * d.inner;
    std::vector<double> raw = check::Numbers(9).vector<double>(count), target(raw.size(), 0.25), gradient(raw.size());
    double normaliser = 1, loss = 0, expected = 0;
    for (double x : raw) expected += (x - 0.25) * (x - 0.25);
    dipengine_masked_mse_params p{};
    p.struct_size = sizeof(p);
    p.fits = 1;
    p.outer = d.outer;
    p.rows = d.rows;
    p.inner = d.inner;
    p.dtype = DIPENGINE_FLOAT64;
    p.raw = {raw.data(), count, d.rows * d.inner, d.inner};
    p.target = {target.data(), count, d.rows * d.inner, d.inner};
    p.d_raw = {gradient.data(), count, d.rows * d.inner, d.inner};
    p.normaliser = &normaliser;
    p.grad_scale = 1;
    p.loss = &loss;
    size_t bytes = 0;
    CHECK(dipengine_masked_mse_workspace(&p, &bytes) == DIPENGINE_OK);
    std::vector<double> workspace(bytes / 8);
    p.workspace = workspace.data();
    p.workspace_bytes = bytes;
    CHECK(dipengine_masked_mse(&p) == DIPENGINE_OK);
    CHECK_NEAR(loss / expected, 1, 1e-13);
    CHECK(gradient.back() == 2 * (raw.back() - 0.25));
  }
}

TEST(masked_mse_lets_nan_through) {
  Problem<float, float> problem(DIPENGINE_FLOAT32);
  problem.raw[0] = NAN;
  problem.mask.assign(problem.mask.size(), 1);
  const auto params = problem.params();
  CHECK(dipengine_masked_mse(&params) == DIPENGINE_OK);
  CHECK(std::isnan(problem.loss[0]) && std::isfinite(problem.loss[1]));
}

TEST(masked_mse_refuses_what_it_cannot_do) {
  Problem<float, float> problem(DIPENGINE_FLOAT32);
  const auto refused = [&](auto change) {
    auto p = problem.params();
    change(p);
    return dipengine_masked_mse(&p) == DIPENGINE_INVALID_ARGUMENT && std::strlen(dipengine_last_error()) > 20;
  };
  CHECK(refused([](auto& p) { p.rows = 0; }));
  CHECK(refused([](auto& p) { p.raw.data = nullptr; }));
  CHECK(refused([](auto& p) { p.dtype = DIPENGINE_UINT8; }));
  CHECK(refused([](auto& p) { p.activation = 2; }));
  CHECK(refused([](auto& p) { p.target.data = nullptr; }));
  CHECK(refused([](auto& p) { p.mask_repeat = 2; }));
  CHECK(refused([](auto& p) { p.loss = nullptr; }));
  CHECK(refused([](auto& p) { p.d2 = nullptr; }));
  CHECK(refused([](auto& p) { p.average_decay = 1; }));
  CHECK(refused([](auto& p) { p.es_alpha = 0; }));
  CHECK(refused([](auto& p) { p.workspace = nullptr; }));
  CHECK(refused([](auto& p) { p.workspace_bytes -= 1; }));
  CHECK(refused([](auto& p) { p.d_raw.row_stride = 0; }));
  CHECK(refused([](auto& p) { p.out.fit_stride = 0; }));
  problem.normaliser[1] = 0;
  CHECK(refused([](auto&) {}));
}
