// Adam against a plain loop written from the paper, on cohorts, in both gradient types.
#include <cstring>

#include "check.h"
#include "math/bf16.h"
#include "ops/adam/adam.h"

namespace {

constexpr int64_t kFits = 3, kStride = 40000;
const std::vector<int64_t> kCounts{33333, 1, 0, 17};

// Parameters, gradients and moments of three fits in one buffer each, segments one after another.
template <typename Real, typename Gradient>
struct State {
  std::vector<Real> p, m, v;
  std::vector<Gradient> g;
  std::vector<uint16_t> shadow;
  std::vector<int64_t> steps{0, 9, 1000};
  std::vector<double> learning_rate{0.01, 0.001, 0.1};
  std::vector<uint8_t> active{1, 0, 1};
  std::vector<dipengine_adam_segment> segments;

  explicit State(dipengine_dtype dtype, dipengine_dtype grad_dtype) : dtype_(dtype), grad_dtype_(grad_dtype) {
    check::Numbers numbers(11);
    p = numbers.vector<Real>(kFits * kStride);
    m = numbers.vector<Real>(kFits * kStride, 0.01);
    v = numbers.vector<Real>(kFits * kStride, 0.001);
    for (Real& value : v) value = value < 0 ? -value : value;
    shadow.assign(p.size(), 0);
    for (const double value : numbers.vector<double>(kFits * kStride)) g.push_back(gradient(value));
  }

  static Gradient gradient(double value) {
    if constexpr (sizeof(Gradient) == 2) return dipengine::bf16_from_float(static_cast<float>(value));
    else return static_cast<Gradient>(value);
  }
  static double widen(Gradient value) {
    if constexpr (sizeof(Gradient) == 2) return dipengine::float_from_bf16(value);
    else return value;
  }

  dipengine_adam_params params(dipengine_pool* pool) {
    segments.clear();
    int64_t at = 0;
    for (int64_t count : kCounts) {
      void* copy = sizeof(Real) == 4 ? shadow.data() + at : nullptr;
      segments.push_back({p.data() + at, g.data() + at, m.data() + at, v.data() + at, copy, count, kStride});
      at += count;
    }
    dipengine_adam_params a{};
    a.struct_size = sizeof(a);
    a.segment_size = sizeof(dipengine_adam_segment);
    a.pool = pool;
    a.dtype = dtype_;
    a.grad_dtype = grad_dtype_;
    a.fits = kFits;
    a.segments_count = static_cast<int64_t>(segments.size());
    a.segments = segments.data();
    a.steps = steps.data();
    a.learning_rate = learning_rate.data();
    a.active = active.data();
    a.beta1 = 0.9;
    a.beta2 = 0.999;
    a.eps = 1e-8;
    return a;
  }

  dipengine_dtype dtype_, grad_dtype_;
};

// Algorithm 1 of the paper, in float64; returns the largest error relative to the parameter's own change or size.
template <typename S>
double worst_error(const S& before, const S& after) {
  double worst = 0;
  for (size_t fit = 0; fit < kFits; ++fit) {
    for (size_t i = 0; i < 33351; ++i) {
      const size_t at = fit * kStride + i;
      if (!before.active[fit]) {
        if (after.p[at] != before.p[at] || after.m[at] != before.m[at]) return 1;
        continue;
      }
      const double g = S::widen(before.g[at]), t = static_cast<double>(before.steps[fit] + 1);
      const double m = 0.9 * before.m[at] + 0.1 * g, v = 0.999 * before.v[at] + 0.001 * g * g;
      const double step = before.learning_rate[fit] * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
      const double p = before.p[at] - step;
      worst = std::max(worst, std::fabs(after.p[at] - p) / (std::fabs(p) + std::fabs(step)));
      worst = std::max(worst, std::fabs(after.v[at] - v) / v);
      worst = std::max(worst, std::fabs(after.m[at] - m) / (std::fabs(0.9 * before.m[at]) + std::fabs(0.1 * g)));
    }
  }
  return worst;
}

template <typename Real, typename Gradient>
void matches_the_paper(dipengine_dtype dtype, dipengine_dtype grad_dtype, double tolerance) {
  State<Real, Gradient> state(dtype, grad_dtype);
  const auto before = state;
  const auto params = state.params(nullptr);
  CHECK(dipengine_adam(&params) == DIPENGINE_OK);
  CHECK(worst_error(before, state) < tolerance);
  CHECK(state.steps[0] == 1 && state.steps[1] == 9 && state.steps[2] == 1001);
  CHECK(state.p[33351] == before.p[33351]);  // behind the last segment
}

}  // namespace

TEST(adam_matches_the_paper_in_every_precision) {
  matches_the_paper<double, double>(DIPENGINE_FLOAT64, DIPENGINE_FLOAT64, 1e-14);
  matches_the_paper<float, float>(DIPENGINE_FLOAT32, DIPENGINE_FLOAT32, 1e-6);
  matches_the_paper<float, uint16_t>(DIPENGINE_FLOAT32, DIPENGINE_BFLOAT16, 1e-6);
}

TEST(adam_writes_the_rounded_shadow) {
  State<float, float> state(DIPENGINE_FLOAT32, DIPENGINE_FLOAT32);
  const auto params = state.params(nullptr);
  CHECK(dipengine_adam(&params) == DIPENGINE_OK);
  bool good = true;
  for (size_t i = 0; i < 33351; ++i) good = good && state.shadow[i] == dipengine::bf16_from_float(state.p[i]);
  CHECK(good);
  CHECK(state.shadow[kStride] == 0);  // an inactive fit's
}

TEST(adam_bits_do_not_depend_on_instruction_set_threads_or_cohort) {
  std::vector<float> reference;
  check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
    State<float, float> state(DIPENGINE_FLOAT32, DIPENGINE_FLOAT32);
    const auto params = state.params(pool);
    for (int step = 0; step < 3; ++step) CHECK(dipengine_adam(&params) == DIPENGINE_OK);
    if (reference.empty()) reference = state.p;
    CHECK(std::memcmp(reference.data(), state.p.data(), reference.size() * sizeof(float)) == 0);
  });
  // The third fit by itself.
  State<float, float> state(DIPENGINE_FLOAT32, DIPENGINE_FLOAT32);
  auto params = state.params(nullptr);
  for (auto& s : state.segments) {
    s = {static_cast<float*>(s.param) + 2 * kStride, static_cast<const float*>(s.grad) + 2 * kStride,
         static_cast<float*>(s.m) + 2 * kStride, static_cast<float*>(s.v) + 2 * kStride, nullptr, s.count, 0};
  }
  params.fits = 1;
  params.steps += 2;
  params.learning_rate += 2;
  params.active = nullptr;
  for (int step = 0; step < 3; ++step) CHECK(dipengine_adam(&params) == DIPENGINE_OK);
  CHECK(std::memcmp(&reference[2 * kStride], &state.p[2 * kStride], kStride * sizeof(float)) == 0);
}

TEST(adam_leaves_a_parameter_without_gradient_where_it_is) {
  float p = 0.25f, m = 0, v = 0;
  const float g = 0;
  const dipengine_adam_segment segment{&p, &g, &m, &v, nullptr, 1, 0};
  State<float, float> state(DIPENGINE_FLOAT32, DIPENGINE_FLOAT32);
  auto params = state.params(nullptr);
  params.fits = 1;
  params.segments = &segment;
  params.segments_count = 1;
  for (int step = 0; step < 5; ++step) CHECK(dipengine_adam(&params) == DIPENGINE_OK);
  CHECK(p == 0.25f && m == 0 && v == 0);
}

TEST(adam_refuses_what_it_cannot_do) {
  State<float, float> state(DIPENGINE_FLOAT32, DIPENGINE_FLOAT32);
  const auto refused = [&](auto change, dipengine_status expected = DIPENGINE_INVALID_ARGUMENT) {
    auto p = state.params(nullptr);
    change(p);
    return dipengine_adam(&p) == expected;
  };
  CHECK(refused([](auto& p) { p.segment_size = 8; }, DIPENGINE_STRUCT_SIZE));
  CHECK(refused([](auto& p) { p.beta1 = 1; }));
  CHECK(refused([](auto& p) { p.beta2 = -0.1; }));
  CHECK(refused([](auto& p) { p.steps = nullptr; }));
  CHECK(refused([](auto& p) { p.grad_dtype = DIPENGINE_FLOAT64; }));
  CHECK(refused([](auto& p) { p.fits = 0; }));
  CHECK(refused([&](auto&) { state.segments[0].grad = nullptr; }));
  CHECK(refused([&](auto&) { state.segments[0].fit_stride = 5; }));
  CHECK(refused([&](auto&) { state.segments[0].count = -5; }));
  state.learning_rate[2] = NAN;
  CHECK(refused([](auto&) {}));
}
