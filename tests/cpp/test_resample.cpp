// Downsampling against a plain loop over both axes, its transpose by <A x, y> = <x, A^T y> element by element; its bits.
#include "guarded.h"
#include "ops/resample/resample.h"

namespace {

struct Shape {
  int64_t height, width, channels, factor, before, taps, gap;  // gap: unused elements behind each pixel
};

const std::vector<Shape> kShapes{{37, 29, 3, 4, 6, 16, 0}, {37, 29, 3, 4, 6, 16, 2}, {1, 1, 1, 8, 12, 32, 0},
                                 {1, 70, 4, 2, 3, 9, 1},   {9, 5, 2, 3, 0, 3, 0},    {40, 33, 1, 16, -4, 8, 0},
                                 {64, 400, 3, 4, 6, 16, 0}, {7, 8, 3, 1, 4, 9, 0}};

template <typename Real>
struct Problem {
  Shape s;
  int64_t height, width;  // of the output
  std::vector<double> taps;
  std::vector<Real> image, d_out;
  check::Guarded<Real> out, d_image;
  check::Guarded<char> workspace{1 << 20};

  explicit Problem(const Shape& shape)
      : s(shape),
        height((s.height + s.factor - 1) / s.factor),
        width((s.width + s.factor - 1) / s.factor),
        out(height * width * (s.channels + s.gap)),
        d_image(s.height * s.width * (s.channels + s.gap)) {
    check::Numbers numbers(3);
    taps = numbers.vector<double>(s.taps);
    for (double& tap : taps) tap = static_cast<Real>(tap);
    image = numbers.vector<Real>(s.height * s.width * (s.channels + s.gap));
    d_out = numbers.vector<Real>(height * width * (s.channels + s.gap));
  }

  dipengine_downsample_params params(dipengine_pool* pool = nullptr) {
    const int64_t pixel = s.channels + s.gap;
    dipengine_downsample_params p{};
    p.struct_size = sizeof(p);
    p.pool = pool;
    p.height = s.height;
    p.width = s.width;
    p.channels = s.channels;
    p.factor = s.factor;
    p.before = s.before;
    p.taps_count = s.taps;
    p.taps = taps.data();
    p.dtype = sizeof(Real) == 4 ? DIPENGINE_FLOAT32 : DIPENGINE_FLOAT64;
    p.image = {image.data(), s.width * pixel, pixel};
    p.out = {out.data(), width * pixel, pixel};
    p.d_out = {d_out.data(), width * pixel, pixel};
    p.d_image = {d_image.data(), s.width * pixel, pixel};
    p.workspace = workspace.data();
    CHECK(dipengine_downsample_workspace(&p, &p.workspace_bytes) == DIPENGINE_OK && p.workspace_bytes <= workspace.bytes());
    return p;
  }
};

int64_t clamp(int64_t x, int64_t size) { return x < 0 ? 0 : x < size ? x : size - 1; }

template <typename Real>
void matches_plain_loops(double tolerance) {
  for (const Shape& s : kShapes) {
    Problem<Real> problem(s);
    const auto params = problem.params();
    CHECK(dipengine_downsample(&params) == DIPENGINE_OK && dipengine_downsample_backward(&params) == DIPENGINE_OK);
    const int64_t pixel = s.channels + s.gap;
    std::vector<check::Sum> gradient(problem.image.size());
    bool good = problem.out.intact() && problem.d_image.intact() && problem.workspace.intact();
    for (int64_t i = 0; i < problem.height; ++i) {
      for (int64_t j = 0; j < problem.width; ++j) {
        for (int64_t c = 0; c < pixel; ++c) {
          const int64_t at = (i * problem.width + j) * pixel + c;
          if (c >= s.channels) {
            good = good && std::isnan(problem.out[at]);
            continue;
          }
          check::Sum sum;
          for (int64_t t = 0; t < s.taps; ++t) {
            for (int64_t u = 0; u < s.taps; ++u) {
              const int64_t y = clamp(s.factor * i - s.before + t, s.height), x = clamp(s.factor * j - s.before + u, s.width);
              const size_t from = static_cast<size_t>((y * s.width + x) * pixel + c);
              const double weight = problem.taps[static_cast<size_t>(t)] * problem.taps[static_cast<size_t>(u)];
              sum.add(weight * problem.image[from]);
              gradient[from].add(weight * problem.d_out[static_cast<size_t>(at)]);
            }
          }
          good = good && check::near(problem.out[at], sum, tolerance);
        }
      }
    }
    for (size_t at = 0; at < gradient.size(); ++at) {
      const Real got = problem.d_image[static_cast<int64_t>(at)];
      const bool gap = static_cast<int64_t>(at) % pixel >= s.channels;
      good = good && (gap ? std::isnan(got) : check::near(got, gradient[at], tolerance));
    }
    CHECK(good);
  }
}

}  // namespace

TEST(downsample_and_its_transpose_match_plain_loops) {
  matches_plain_loops<float>(1e-6);
  matches_plain_loops<double>(2e-15);
}

TEST(downsample_bits_do_not_depend_on_instruction_set_or_threads) {
  for (const Shape& s : kShapes) {
    std::string reference;
    check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
      Problem<float> problem(s);
      const auto params = problem.params(pool);
      CHECK(dipengine_downsample(&params) == DIPENGINE_OK && dipengine_downsample_backward(&params) == DIPENGINE_OK);
      CHECK(problem.workspace.intact());
      std::string bits(reinterpret_cast<char*>(problem.out.data()), problem.out.bytes());
      bits.append(reinterpret_cast<char*>(problem.d_image.data()), problem.d_image.bytes());
      if (reference.empty()) reference = bits;
      CHECK(reference == bits);
    });
  }
}

TEST(downsample_refuses_what_it_cannot_do) {
  Problem<float> problem(kShapes[0]);
  const auto refused = [&](auto change, auto op) {
    auto p = problem.params();
    change(p);
    return op(&p) == DIPENGINE_INVALID_ARGUMENT && std::strlen(dipengine_last_error()) > 20;
  };
  for (auto op : {dipengine_downsample, dipengine_downsample_backward}) {
    CHECK(refused([](auto& p) { p.width = 0; }, op));
    CHECK(refused([](auto& p) { p.factor = 0; }, op));
    CHECK(refused([](auto& p) { p.taps_count = 0; }, op));
    CHECK(refused([](auto& p) { p.taps = nullptr; }, op));
    CHECK(refused([](auto& p) { p.before = int64_t{1} << 40; }, op));
    CHECK(refused([](auto& p) { p.dtype = DIPENGINE_BFLOAT16; }, op));
    CHECK(refused([](auto& p) { p.workspace = nullptr; }, op));
    CHECK(refused([](auto& p) { p.workspace_bytes -= 1; }, op));
    CHECK(refused([](auto& p) { p.image.data = p.d_out.data = nullptr; }, op));
    CHECK(refused([](auto& p) { p.out.row_stride = p.d_image.row_stride = 1; }, op));
    auto p = problem.params();
    p.struct_size = 8;
    CHECK(op(&p) == DIPENGINE_STRUCT_SIZE);
  }
}
