// A 1x1 convolution whose raw one head alone reads: the head leaves sums and no gradient, which the convolution in front of it forms
// while loading, and its data gradient takes the place of its raw; by a launch for each gradient, or one for both. Against plain loops in
// float64; in place and apart, alone and among other fits with the same bits.
#include <algorithm>
#include <cstring>

#include "guarded.h"
#include "ops/conv/conv_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

struct HeadCase {
  int height, width, inputs, channels, heads;
  int fits = 1, gap = 0;  // gap: elements between pixels of all images
  bool tickets = true;    // where one launch has both gradients: it merges their sums itself; else they are of x, not of its difference
};

constexpr float kSlope = 0.25f;
constexpr int64_t kNumbers = 300;  // from one fit's per-channel numbers to the next's

// What a run leaves, of all its fits; images with their gaps.
template <typename Stored>
struct Left {
  std::vector<float> head_sum, head_product, sum, product, d_weight;
  std::vector<Stored> formed, d_x;
  bool ok = true;
};

template <typename Stored>
class HeadProblem {
 public:
  explicit HeadProblem(const HeadCase& of)
      : c_(of),
        pixels_(int64_t{of.height} * of.width),
        apart_{of.inputs + of.gap, of.channels + of.gap},
        parameters_(int64_t{of.inputs} * of.channels + int64_t{of.channels} * of.heads),
        numbers_(static_cast<uint64_t>(of.height * 131 + of.channels)) {
    for (const int64_t apart : apart_) images_.push_back(image(pixels_ * apart));
    for (int which = 0; which < kKinds; ++which) per_channel_.push_back(on_grid(kNumbers * of.fits, which < kShifts ? 0.25 : 0));
    for (int64_t i = 0; i < pixels_ * of.heads * of.fits; ++i) h_.push_back(static_cast<float>(numbers_.next()));  // no bfloat16
    weights_ = numbers_.template vector<float>(parameters_ * of.fits, 0.5);
  }

  // Of fits first, first + 1, ...: with d_x in raw's place or apart from it; both gradients by one launch, or each by its own.
  Left<Stored> run(int64_t first, int64_t fits, bool over_raw, bool at_once) {
    Array<Stored> x(slice(images_[0], first, fits, pixels_ * apart_[0])), raw(slice(images_[1], first, fits, pixels_ * apart_[1]));
    Array<Stored> formed(raw.size()), other(raw.size());
    Array<float> h(slice(h_, first, fits, pixels_ * c_.heads)), weights(slice(weights_, first, fits, parameters_));
    std::vector<std::unique_ptr<Array<float>>> numbers;
    for (const std::vector<float>& of : per_channel_)
      numbers.push_back(std::make_unique<Array<float>>(slice(of, first, fits, kNumbers)));
    Array<float> sums(4 * kNumbers * fits), d_weight(parameters_ * fits);
    const auto number = [&](int which) { return numbers[static_cast<size_t>(which)]->data(); };
    const auto total = [&](int which) { return sums.data() + which * kNumbers * fits; };
    Array<uint8_t> active(std::vector<uint8_t>{1, 0, 1});
    Left<Stored> left;

    // The head: its sums alone, and the same with a place for what they are of.
    dipengine_conv_cuda_source source = source_of(raw.data(), 1, number(kRawScale), number(kRawShift), number(kRawMean));
    dipengine_conv_cuda_params p = params_of(fits, c_.heads, &source);
    p.active = fits == 1 ? nullptr : active.data();
    p.raw_dtype = p.gradient_dtype = DIPENGINE_FLOAT32;
    p.weight = weights.data() + int64_t{c_.inputs} * c_.channels;
    p.gradient = {h.data(), int64_t{c_.width} * c_.heads, c_.heads};
    p.gradient_fit_stride = pixels_ * c_.heads;
    for (const bool stores : {true, false}) {
      source.d_x = {stores ? formed.data() : nullptr, apart_[1] * c_.width, apart_[1]};
      source.d_x_fit_stride = pixels_ * apart_[1];
      source.sum = total(stores ? 2 : 0);
      source.product = total(stores ? 3 : 1);
      left.ok = left.ok && run_gradient(&p, false);
    }
    for (int i = 0; i < 2; ++i) {
      left.ok = left.ok && std::memcmp(total(i), total(i + 2), static_cast<size_t>(kNumbers * fits) * sizeof(float)) == 0;
      if (!left.ok) emulator::wrong("sums differ where nothing is stored");
    }
    left.head_sum.assign(total(0), total(1));
    left.head_product.assign(total(1), total(2));
    left.formed = formed.copy();

    // The convolution in front of it.
    source = source_of(x.data(), 0, number(kScale), number(kShift), number(kMean));
    source.sum = total(2);
    source.product = total(3);
    source.d_x = {over_raw ? raw.data() : other.data(), apart_[1] * c_.width, apart_[1]};
    source.d_x_fit_stride = pixels_ * apart_[1];
    source.over_raw = over_raw;
    if (!c_.tickets) source.centre = nullptr;
    dipengine_conv_cuda_params q = params_of(fits, c_.channels, &source);
    q.active = p.active;
    q.raw_dtype = q.dtype;
    q.gradient_dtype = DIPENGINE_FLOAT32;
    q.weight = weights.data();
    q.raw = {raw.data(), apart_[1] * c_.width, apart_[1]};
    q.raw_fit_stride = pixels_ * apart_[1];
    q.gradient = p.gradient;
    q.gradient_fit_stride = p.gradient_fit_stride;
    q.gradient_scale = number(kA);
    q.raw_scale = number(kB);
    q.gradient_shift = number(kC);
    q.head = {p.weight, c_.heads, kSlope, {number(kRawScale), number(kRawShift)}};
    q.d_weight = d_weight.data();
    left.ok = left.ok && (at_once ? run_both(&q, c_.tickets) : run_gradient(&q, true) && run_gradient(&q, false)) && formed.intact() && raw.intact() && other.intact() &&
              sums.intact() && d_weight.intact();
    left.sum.assign(total(2), total(3));
    left.product.assign(total(3), total(4));
    left.d_weight = d_weight.copy();
    left.d_x = over_raw ? raw.copy() : other.copy();
    return left;
  }

  bool matches(const Left<Stored>& left, int64_t f) const {
    constexpr bool single = sizeof(Stored) == 4;
    constexpr double kTolerance = single ? 1.5e-3 : 0.012;  // roundings of d_raw that fall the other way
    std::vector<check::Sum> d_w(static_cast<size_t>(c_.inputs * c_.channels)), of_g(static_cast<size_t>(c_.channels)),
        of_g_raw(of_g), of_d(static_cast<size_t>(c_.inputs)), of_d_x(of_d);
    std::vector<double> d_raw(static_cast<size_t>(c_.channels));
    for (int64_t at = 0; at < pixels_; ++at) {
      for (int64_t o = 0; o < c_.channels; ++o) {
        const double raw = value(1, f, at, o), inner = raw * number(kRawScale, f, o) + number(kRawShift, f, o);
        check::Sum sum;
        for (int64_t k = 0; k < c_.heads; ++k) {
          sum.add(operand(weight(f, int64_t{c_.inputs} * c_.channels + o * c_.heads + k)) *
                  operand(static_cast<double>(h_[static_cast<size_t>((f * pixels_ + at) * c_.heads + k)])));
        }
        const double g = check::widen(check::stored<Stored>(sum.value * (inner > 0 ? 1 : static_cast<double>(kSlope))));
        const double stored = check::widen(left.formed[static_cast<size_t>((f * pixels_ + at) * apart_[1] + o)]);
        if (std::fabs(stored - g) > 0.012 * sum.size) return emulator::wrong("g of channel %lld is %g where %g is expected",
                                                                            static_cast<long long>(o), stored, g);
        of_g[static_cast<size_t>(o)].add(stored);
        of_g_raw[static_cast<size_t>(o)].add(stored * (raw - number(kRawMean, f, o)));
        d_raw[static_cast<size_t>(o)] = operand(number(kA, f, o) * g + number(kB, f, o) * raw + number(kC, f, o));
      }
      for (int64_t i = 0; i < c_.inputs; ++i) {
        const double x = value(0, f, at, i), inner = x * number(kScale, f, i) + number(kShift, f, i);
        const double slope = inner > 0 ? 1 : static_cast<double>(kSlope);
        check::Sum du;
        for (int64_t o = 0; o < c_.channels; ++o) {
          const double d = d_raw[static_cast<size_t>(o)], w = operand(weight(f, i * c_.channels + o));
          du.add(d * w, (std::fabs(d) + 0.1) * std::fabs(w));
          d_w[static_cast<size_t>(i * c_.channels + o)].add(operand(inner * slope) * d, std::fabs(inner) * (std::fabs(d) + 0.1));
        }
        check::Sum expected;
        expected.add(du, slope);
        const double got = check::widen(left.d_x[static_cast<size_t>((f * pixels_ + at) * apart_[1] + i)]);
        if (!check::near(got, expected, kTolerance)) {
          return emulator::wrong("d_x[%lld][%lld][%lld] is %g where %g is expected", static_cast<long long>(f),
                                 static_cast<long long>(at), static_cast<long long>(i), got, expected.value);
        }
        of_d[static_cast<size_t>(i)].add(got);
        of_d_x[static_cast<size_t>(i)].add(got * (x - (c_.tickets ? number(kMean, f, i) : 0)));
      }
    }
    const auto near = [&](const char* what, const std::vector<float>& got, int64_t first, const std::vector<check::Sum>& expected,
                          double tolerance) {
      for (size_t i = 0; i < expected.size(); ++i) {
        const double value = static_cast<double>(got[static_cast<size_t>(first) + i]);
        if (!check::near(value, expected[i], tolerance))
          return emulator::wrong("%s[%lld][%zu] is %g where %g is expected", what, static_cast<long long>(f), i, value,
                                 expected[i].value);
      }
      return true;
    };
    return near("sum of g", left.head_sum, f * kNumbers, of_g, 1e-5) && near("product of g", left.head_product, f * kNumbers, of_g_raw, 1e-5) &&
           near("sum", left.sum, f * kNumbers, of_d, 1e-5) && near("product", left.product, f * kNumbers, of_d_x, 1e-5) &&
           near("d_weight", left.d_weight, f * parameters_, d_w, kTolerance);
  }

  // Fit f of `among` and the only one of `alone`.
  bool same(const Left<Stored>& alone, const Left<Stored>& among, int64_t f) const {
    const auto equal = [&](const auto& a, const auto& b) {
      const size_t bytes = a.size() * sizeof(a[0]);
      return std::memcmp(a.data(), b.data() + static_cast<size_t>(f) * a.size(), bytes) == 0;
    };
    return (equal(alone.head_sum, among.head_sum) && equal(alone.head_product, among.head_product) && equal(alone.sum, among.sum) &&
            equal(alone.product, among.product) && equal(alone.d_weight, among.d_weight) && equal(alone.d_x, among.d_x)) ||
           emulator::wrong("fit %lld has other bits alone", static_cast<long long>(f));
  }

  // A fit that rests keeps its raw.
  bool rests(const Left<Stored>& left, int64_t f) const {
    const int64_t size = pixels_ * apart_[1];
    return std::memcmp(left.d_x.data() + f * size, images_[1].data() + f * size, static_cast<size_t>(size) * sizeof(Stored)) == 0 ||
           emulator::wrong("a resting fit was written to");
  }

 private:
  enum Kind { kScale, kRawScale, kA, kShifts, kShift = kShifts, kMean, kRawShift, kRawMean, kB, kC, kKinds };

  static double operand(double value) {
    if (sizeof(Stored) == 2) return check::widen(check::stored<Stored>(value));
    int exponent = 0;
    const double part = std::frexp(value, &exponent);
    return std::ldexp(std::round(std::ldexp(part, 11)), exponent - 11);
  }
  template <typename T>
  static std::vector<T> slice(const std::vector<T>& all, int64_t first, int64_t fits, int64_t each) {
    return std::vector<T>(all.begin() + first * each, all.begin() + (first + fits) * each);
  }
  std::vector<float> on_grid(int64_t count, double offset) {
    std::vector<float> values;
    for (int64_t i = 0; i < count; ++i) values.push_back(static_cast<float>(std::round(numbers_.next() * 64) / 64 + offset));
    return values;
  }
  std::vector<Stored> image(int64_t count) {
    std::vector<Stored> values;
    for (int64_t i = 0; i < count * c_.fits; ++i) values.push_back(check::stored<Stored>(std::round(numbers_.next() * 32) / 16));
    return values;
  }
  double value(int which, int64_t f, int64_t at, int64_t channel) const {
    const int64_t apart = apart_[which];
    return check::widen(images_[static_cast<size_t>(which)][static_cast<size_t>((f * pixels_ + at) * apart + channel)]);
  }
  double number(int which, int64_t f, int64_t channel) const {
    return static_cast<double>(per_channel_[static_cast<size_t>(which)][static_cast<size_t>(f * kNumbers + channel)]);
  }
  double weight(int64_t f, int64_t at) const { return static_cast<double>(weights_[static_cast<size_t>(f * parameters_ + at)]); }

  dipengine_conv_cuda_source source_of(Stored* data, int which, const float* scale, const float* shift, const float* mean) const {
    dipengine_conv_cuda_source s{};
    s.height = c_.height;
    s.width = c_.width;
    s.channels = which == 0 ? c_.inputs : c_.channels;
    s.x = {data, apart_[which] * c_.width, apart_[which]};
    s.x_fit_stride = pixels_ * apart_[which];
    s.inner = {scale, shift};
    s.slope = kSlope;
    s.centre = mean;
    return s;
  }
  dipengine_conv_cuda_params params_of(int64_t fits, int channels, dipengine_conv_cuda_source* source) const {
    dipengine_conv_cuda_params p{};
    p.struct_size = sizeof(p);
    p.source_size = sizeof(*source);
    p.fits = fits;
    p.numbers_fit_stride = kNumbers;
    p.parameters_fit_stride = parameters_;
    p.sources = source;
    p.sources_count = 1;
    p.dtype = sizeof(Stored) == 4 ? DIPENGINE_FLOAT32 : DIPENGINE_BFLOAT16;
    p.kernel = p.stride = 1;
    p.height = c_.height;
    p.width = c_.width;
    p.channels = channels;
    p.raw_fit_stride = pixels_ * channels;
    return p;
  }
  static bool run_gradient(dipengine_conv_cuda_params* p, bool of_weights) {
    p->packed_bytes = 0;
    const dipengine_status sized = of_weights ? dipengine_conv_cuda_weight_gradient_workspace(p, &p->workspace_bytes)
                                              : dipengine_conv_cuda_data_gradient_sizes(p, &p->packed_bytes, &p->workspace_bytes);
    if (sized != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
    Array<uint8_t> packed(static_cast<int64_t>(p->packed_bytes)), workspace(static_cast<int64_t>(p->workspace_bytes));
    p->packed = packed.data();
    p->workspace = workspace.data();
    if (!of_weights && dipengine_conv_cuda_data_pack(p) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
    if ((of_weights ? dipengine_conv_cuda_weight_gradient(p) : dipengine_conv_cuda_data_gradient(p)) != DIPENGINE_OK)
      return emulator::wrong("%s", dipengine_last_error());
    return (packed.intact() && workspace.intact()) || emulator::wrong("written outside");
  }

  // In one launch, or two without tickets, and one more for the weights.
  static bool run_both(dipengine_conv_cuda_params* p, bool merges) {
    int64_t tickets = 0;
    if (dipengine_conv_cuda_joint_gradients_workspace(p, &p->workspace_bytes) != DIPENGINE_OK ||
        dipengine_conv_cuda_tickets(p, &tickets) != DIPENGINE_OK)
      return emulator::wrong("%s", dipengine_last_error());
    if (p->workspace_bytes == 0) return emulator::wrong("no launch has both gradients of this layer");
    Array<uint8_t> workspace(static_cast<int64_t>(p->workspace_bytes));
    Array<uint32_t> counters(std::vector<uint32_t>(static_cast<size_t>(tickets), 0));
    p->workspace = workspace.data();
    p->tickets = merges ? counters.data() : nullptr;
    if (dipengine_conv_cuda_joint_gradients(p) != DIPENGINE_OK || dipengine_conv_cuda_joint_weight_sum(p) != DIPENGINE_OK)
      return emulator::wrong("%s", dipengine_last_error());
    for (const uint32_t count : counters.copy()) {
      if (count != 0) return emulator::wrong("a ticket is left at %u", count);
    }
    return (workspace.intact() && counters.intact()) || emulator::wrong("written outside");
  }

  HeadCase c_;
  int64_t pixels_, apart_[2], parameters_;
  check::Numbers numbers_;
  std::vector<std::vector<Stored>> images_;  // x, raw
  std::vector<std::vector<float>> per_channel_;
  std::vector<float> h_, weights_;
};

template <typename Stored>
bool head_case(const HeadCase& of, bool at_once) {
  HeadProblem<Stored> problem(of);
  const Left<Stored> left = problem.run(0, of.fits, true, at_once);
  if (!left.ok) return emulator::wrong("the run failed");
  for (int64_t f = 0; f < of.fits; ++f) {
    if (f == 1) {
      if (!problem.rests(left, f)) return false;
      continue;
    }
    if (!problem.matches(left, f)) return false;
    const Left<Stored> alone = problem.run(f, 1, true, at_once);
    if (!alone.ok || !problem.same(alone, left, f)) return false;
  }
  const Left<Stored> apart = problem.run(0, 1, false, at_once);
  const auto channels = [&](const Left<Stored>& of_run) {  // without the gaps, which raw fills where it was
    std::vector<Stored> values;
    const int64_t each = of.channels + of.gap;
    for (int64_t at = 0; at < int64_t{of.height} * of.width; ++at)
      values.insert(values.end(), of_run.d_x.begin() + at * each, of_run.d_x.begin() + at * each + of.inputs);
    return values;
  };
  return apart.ok && emulator::same_bits("d_x apart from raw", channels(apart), channels(left));
}

template <typename Stored>
bool all(std::initializer_list<HeadCase> cases, bool at_once = false) {
  int index = 0;
  for (const HeadCase& of : cases) {
    if (!head_case<Stored>(of, at_once)) return emulator::wrong("in case %d of the scenario", index);
    ++index;
  }
  return true;
}

}  // namespace

SCENARIO(conv_head_few_channels) { return all<uint16_t>({{1, 1, 3, 3, 1}, {19, 9, 12, 12, 3, 3}, {5, 11, 16, 16, 4, 1, 8}}); }
SCENARIO(conv_head_all_channels) { return all<uint16_t>({{18, 9, 128, 128, 3}}); }
SCENARIO(conv_head_both_gradients) {
  return all<uint16_t>({{1, 1, 8, 8, 1}, {35, 17, 24, 16, 3, 3, 8}, {21, 9, 64, 64, 4}, {16, 8, 40, 64, 2, 1, 0, false}}, true);
}
SCENARIO(conv_head_both_gradients_of_many_channels) { return all<uint16_t>({{19, 17, 128, 128, 3, 3}, {9, 9, 72, 128, 2, 1, 16}}, true); }
SCENARIO(conv_head_tf32) { return all<float>({{19, 9, 12, 12, 3, 3}, {5, 11, 40, 40, 1}}); }
SCENARIO(conv_head_tf32_in_chunks) { return all<float>({{18, 9, 72, 72, 2}}); }

// More blocks than one group of a tree has, and three tiles of most.
TEST(plans_of_both_gradients_go_over_many_tiles) {
  HeadProblem<uint16_t> problem({16 * 53, 40, 8, 8, 3});
  const Left<uint16_t> left = problem.run(0, 1, true, true);
  CHECK(left.ok && problem.matches(left, 0) && emulator::faults().empty());
}

TEST(plans_refuse_heads_and_gradients_in_place_that_no_kernel_has) {
  static uint16_t memory[8];
  dipengine_conv_cuda_source s{};
  s.height = s.width = 8;
  s.channels = 8;
  s.x = s.d_x = {memory, 64, 8};
  s.over_raw = 1;
  dipengine_conv_cuda_params p{};
  p.struct_size = sizeof(p);
  p.source_size = sizeof(s);
  p.fits = 1;
  p.sources = &s;
  p.sources_count = 1;
  p.dtype = p.raw_dtype = DIPENGINE_BFLOAT16;
  p.kernel = p.stride = 1;
  p.height = p.width = p.channels = 8;
  p.raw = {memory, 64, 8};
  static float weight[8];
  p.head = {weight, 3, 0.2f, {weight, weight}};
  size_t packed = 0, workspace = 0;
  const auto sizes = [&] { return dipengine_conv_cuda_data_gradient_sizes(&p, &packed, &workspace); };
  CHECK(sizes() == DIPENGINE_OK && packed > 0);
  s.accumulate = 1;
  CHECK(sizes() == DIPENGINE_INVALID_ARGUMENT);
  s.accumulate = 0;
  s.d_x.pixel_stride = 9;
  s.d_x.row_stride = 72;
  CHECK(sizes() == DIPENGINE_INVALID_ARGUMENT);
  s.d_x = p.raw;
  s.channels = 136;
  s.x = s.d_x = p.raw = {memory, 8 * 136, 136};
  CHECK(sizes() == DIPENGINE_INVALID_ARGUMENT);
  s.over_raw = 0;
  CHECK(sizes() == DIPENGINE_OK);
  s.d_x.data = nullptr;  // nothing wanted
  CHECK(sizes() == DIPENGINE_OK && packed == 0);
}

TEST(plans_have_both_gradients_of_some_layers_by_one_launch_and_refuse_those_of_others) {
  static float numbers[256];
  static uint16_t images[2][128];
  dipengine_conv_cuda_source s{};
  dipengine_conv_cuda_params p{};
  size_t bytes = 0;
  const auto begin = [&] {
    s = {};
    s.height = s.width = 4;
    s.channels = 8;
    s.x = {images[0], 32, 8};
    s.slope = 1;
    s.sum = s.product = numbers;
    p = {};
    p.struct_size = sizeof(p);
    p.source_size = sizeof(s);
    p.fits = 1;
    p.sources = &s;
    p.sources_count = 1;
    p.dtype = p.raw_dtype = DIPENGINE_BFLOAT16;
    p.kernel = p.stride = 1;
    p.height = p.width = 4;
    p.channels = 8;
    p.weight = numbers;
    p.d_weight = numbers;
    p.raw = s.d_x = {images[1], 32, 8};
    s.over_raw = 1;
    p.gradient = {numbers, 12, 3};
    p.gradient_dtype = DIPENGINE_FLOAT32;
    p.gradient_scale = p.raw_scale = p.gradient_shift = numbers;
    p.head = {numbers, 3, 0.2f, {numbers, numbers}};
  };
  const auto workspace = [&] { return dipengine_conv_cuda_joint_gradients_workspace(&p, &bytes); };
  const auto has_none = [&] { return workspace() == DIPENGINE_OK && bytes == 0; };
  begin();
  CHECK(workspace() == DIPENGINE_OK && bytes > 0);
  CHECK(dipengine_conv_cuda_joint_gradients(&p) == DIPENGINE_INVALID_ARGUMENT);  // no workspace
  CHECK(dipengine_conv_cuda_joint_gradients_workspace(&p, nullptr) == DIPENGINE_INVALID_ARGUMENT);
#ifndef DIPENGINE_SILICON  // a GPU has what it has
  emulator::settings().shared_limit = 48 * 1024;
  CHECK(has_none());
  emulator::settings() = emulator::Settings{};
#endif
  s.over_raw = 0;
  s.accumulate = 1;
  CHECK(has_none() && dipengine_conv_cuda_joint_gradients(&p) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_conv_cuda_joint_weight_sum(&p) == DIPENGINE_INVALID_ARGUMENT);
  begin();
  p.dtype = p.raw_dtype = DIPENGINE_FLOAT32;
  CHECK(has_none());
  begin();
  s.x = {images[0], 36, 9};
  CHECK(has_none());
  begin();
  s.x.row_stride = INT32_MAX / 8 * 8;
  CHECK(has_none());
  begin();
  p.head.weight = nullptr;
  p.gradient_dtype = DIPENGINE_BFLOAT16;
  p.gradient = p.raw;
  s.over_raw = 0;
  CHECK(has_none());
  begin();
  s.over_raw = 0;
  s.channels = 136;
  s.x = s.d_x = {images[0], 4 * 136, 136};
  CHECK(has_none());
  begin();
  s.d_x.pixel_stride = 4;  // pixels that overlap
  CHECK(workspace() == DIPENGINE_INVALID_ARGUMENT);
  begin();
  s.d_x.row_stride = 40;  // over raw, and not where that is
  CHECK(workspace() == DIPENGINE_INVALID_ARGUMENT);
  begin();
  s.sum = nullptr;
  CHECK(workspace() == DIPENGINE_INVALID_ARGUMENT);
}
