// sigmoid_backward against finite differences of the sigmoid, inside a canvas; its bits, its refusals.
#include "guarded.h"
#include "ops/activation/activation.h"

namespace {

struct Problem {
  static constexpr int64_t kHeight = 37, kWidth = 29, kChannels = 3, kPixel = 5, kRow = 40 * kPixel;
  std::vector<float> x, d_x;
  check::Guarded<float> d_raw{kHeight * kRow};

  Problem() {
    check::Numbers numbers(3);
    x = numbers.vector<float>(kHeight * kRow, 0.5);
    for (float& value : x) value += 0.5f;
    d_x = numbers.vector<float>(kHeight * kWidth * kChannels);
  }

  dipengine_sigmoid_backward_params params(dipengine_pool* pool = nullptr) {
    dipengine_sigmoid_backward_params p{};
    p.struct_size = sizeof(p);
    p.pool = pool;
    p.height = kHeight;
    p.width = kWidth;
    p.channels = kChannels;
    p.dtype = DIPENGINE_FLOAT32;
    p.x = {x.data(), kRow, kPixel};
    p.d_x = {d_x.data(), kWidth * kChannels, kChannels};
    p.d_raw = {d_raw.data(), kRow, kPixel};
    return p;
  }
};

}  // namespace

TEST(sigmoid_backward_is_the_sigmoids_derivative_inside_its_window_alone) {
  std::vector<float> reference;
  check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
    Problem problem;
    const auto params = problem.params(pool);
    CHECK(dipengine_sigmoid_backward(&params) == DIPENGINE_OK);
    std::vector<float> results;
    bool good = problem.d_raw.intact();
    for (int64_t row = 0; row < Problem::kHeight; ++row) {
      for (int64_t i = 0; i < Problem::kRow; ++i) {
        const int64_t at = row * Problem::kRow + i, pixel = i / Problem::kPixel, channel = i % Problem::kPixel;
        const float got = problem.d_raw[at];
        if (pixel >= Problem::kWidth || channel >= Problem::kChannels) {
          good = good && std::isnan(got);  // not touched
          continue;
        }
        results.push_back(got);
        const double x = problem.x[static_cast<size_t>(at)], raw = std::log(x / (1 - x)), h = 1e-4;
        const double slope = (1 / (1 + std::exp(-raw - h)) - 1 / (1 + std::exp(-raw + h))) / (2 * h);
        const double d_x = problem.d_x[static_cast<size_t>((row * Problem::kWidth + pixel) * Problem::kChannels + channel)];
        good = good && std::fabs(got - d_x * slope) < 1e-7;
      }
    }
    CHECK(good);
    if (reference.empty()) reference = results;
    CHECK(reference == results);
  });
}

TEST(sigmoid_backward_works_in_place_and_in_float64) {
  std::vector<double> x{0.25}, d_x{2};
  dipengine_sigmoid_backward_params p{};
  p.struct_size = sizeof(p);
  p.height = p.width = p.channels = 1;
  p.dtype = DIPENGINE_FLOAT64;
  p.x = {x.data(), 1, 1};
  p.d_x = p.d_raw = {d_x.data(), 1, 1};
  CHECK(dipengine_sigmoid_backward(&p) == DIPENGINE_OK);
  CHECK(d_x[0] == 2 * 0.25 * 0.75);
}

TEST(sigmoid_backward_refuses_what_it_cannot_do) {
  Problem problem;
  const auto refused = [&](auto change) {
    auto p = problem.params();
    change(p);
    return dipengine_sigmoid_backward(&p) == DIPENGINE_INVALID_ARGUMENT && std::strlen(dipengine_last_error()) > 20;
  };
  CHECK(refused([](auto& p) { p.height = 0; }));
  CHECK(refused([](auto& p) { p.dtype = DIPENGINE_BFLOAT16; }));
  CHECK(refused([](auto& p) { p.x.data = nullptr; }));
  CHECK(refused([](auto& p) { p.d_x.pixel_stride = 2; }));
  CHECK(refused([](auto& p) { p.d_raw.row_stride = 0; }));
  auto p = problem.params();
  p.struct_size = 8;
  CHECK(dipengine_sigmoid_backward(&p) == DIPENGINE_STRUCT_SIZE);
}
