// Blur and its transpose against the defining sums in float64, inside guarded memory; its bits, its refusals.
#include "guarded.h"
#include "ops/blur/blur.h"

namespace {

struct Shape {
  int64_t height, width, channels, kernel_height, kernel_width, gap;  // gap: unused elements behind each pixel
};

const std::vector<Shape> kShapes{{19, 23, 3, 5, 7, 0}, {19, 23, 3, 5, 7, 2}, {1, 1, 1, 1, 1, 0}, {1, 1, 3, 9, 4, 0},
                                 {6, 45, 1, 1, 40, 1}, {45, 6, 4, 70, 1, 0}, {33, 40, 3, 13, 13, 0}, {3, 5, 2, 2, 2, 0},
                                 {7, 100, 3, 3, 3, 0}, {10, 33, 1, 40, 67, 0}};

template <typename Real>
struct Problem {
  Shape s;
  int64_t tall, wide;  // the image
  std::vector<double> kernel;
  std::vector<Real> image, d_out;
  check::Guarded<Real> out, d_image;
  check::Guarded<char> workspace;

  explicit Problem(const Shape& shape)
      : s(shape),
        tall(s.height + s.kernel_height - 1),
        wide(s.width + s.kernel_width - 1),
        out(s.height * s.width * (s.channels + s.gap)),
        d_image(tall * wide * (s.channels + s.gap)),
        workspace(static_cast<int64_t>(needed())) {
    check::Numbers numbers(3);
    kernel = numbers.vector<double>(s.kernel_height * s.kernel_width);
    for (double& tap : kernel) tap = static_cast<Real>(tap);
    image = numbers.vector<Real>(tall * wide * (s.channels + s.gap));
    d_out = numbers.vector<Real>(s.height * s.width * (s.channels + s.gap));
  }

  dipengine_blur_params dims() const {
    dipengine_blur_params p{};
    p.struct_size = sizeof(p);
    p.height = s.height;
    p.width = s.width;
    p.channels = s.channels;
    p.kernel_height = s.kernel_height;
    p.kernel_width = s.kernel_width;
    p.dtype = sizeof(Real) == 4 ? DIPENGINE_FLOAT32 : DIPENGINE_FLOAT64;
    return p;
  }

  size_t needed() const {
    const auto p = dims();
    size_t bytes = 0;
    CHECK(dipengine_blur_workspace(&p, &bytes) == DIPENGINE_OK);
    return bytes;
  }

  dipengine_blur_params params(dipengine_pool* pool = nullptr) {
    const int64_t pixel = s.channels + s.gap;
    auto p = dims();
    p.pool = pool;
    p.kernel = kernel.data();
    p.image = {image.data(), wide * pixel, pixel};
    p.out = {out.data(), s.width * pixel, pixel};
    p.d_out = {d_out.data(), s.width * pixel, pixel};
    p.d_image = {d_image.data(), wide * pixel, pixel};
    p.workspace = workspace.data();
    p.workspace_bytes = workspace.bytes();
    return p;
  }
};

template <typename Real>
void matches_plain_loops(double tolerance) {
  for (const char* isa : {"portable", "avx2", "avx512"}) {
    dipengine_set_cpu_isa(isa);
    for (const Shape& s : kShapes) {
      Problem<Real> problem(s);
      const auto params = problem.params();
      CHECK(dipengine_blur(&params) == DIPENGINE_OK && dipengine_blur_backward(&params) == DIPENGINE_OK);
      const int64_t pixel = s.channels + s.gap;
      std::vector<check::Sum> gradient(problem.image.size());
      bool good = problem.out.intact() && problem.d_image.intact() && problem.workspace.intact();
      for (int64_t i = 0; i < s.height; ++i) {
        for (int64_t j = 0; j < s.width; ++j) {
          for (int64_t c = 0; c < pixel; ++c) {
            const int64_t at = (i * s.width + j) * pixel + c;
            if (c >= s.channels) {
              good = good && std::isnan(problem.out[at]);
              continue;
            }
            check::Sum sum;
            for (int64_t a = 0; a < s.kernel_height; ++a) {
              for (int64_t b = 0; b < s.kernel_width; ++b) {
                const int64_t y = i + s.kernel_height - 1 - a, x = j + s.kernel_width - 1 - b;
                const size_t from = static_cast<size_t>((y * problem.wide + x) * pixel + c);
                const double weight = problem.kernel[static_cast<size_t>(a * s.kernel_width + b)];
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
  dipengine_set_cpu_isa(nullptr);
}

}  // namespace

TEST(blur_and_its_transpose_match_the_defining_sums) {
  matches_plain_loops<float>(4e-7);
  matches_plain_loops<double>(1e-15);
}

TEST(blur_bits_do_not_depend_on_threads) {
  for (const Shape& s : {kShapes[0], kShapes[3], kShapes[6]}) {
    std::string reference, set;
    check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string& name) {
      Problem<float> problem(s);
      const auto params = problem.params(pool);
      CHECK(dipengine_blur(&params) == DIPENGINE_OK && dipengine_blur_backward(&params) == DIPENGINE_OK);
      std::string bits(reinterpret_cast<char*>(problem.out.data()), problem.out.bytes());
      bits.append(reinterpret_cast<char*>(problem.d_image.data()), problem.d_image.bytes());
      const std::string isa = name.substr(0, name.find(','));
      if (isa != set) reference = bits;
      set = isa;
      CHECK(reference == bits);
    });
  }
}

TEST(blur_refuses_what_it_cannot_do) {
  Problem<float> problem(kShapes[0]);
  const auto refused = [&](auto change, auto op) {
    auto p = problem.params();
    change(p);
    return op(&p) == DIPENGINE_INVALID_ARGUMENT && std::strlen(dipengine_last_error()) > 20;
  };
  for (auto op : {dipengine_blur, dipengine_blur_backward}) {
    CHECK(refused([](auto& p) { p.width = 0; }, op));
    CHECK(refused([](auto& p) { p.kernel_height = 0; }, op));
    CHECK(refused([](auto& p) { p.kernel = nullptr; }, op));
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
