// The elementary functions against the C library in float64, and bfloat16 against its definition.
#include <cfloat>

#include "check.h"
#include "math/bf16.h"
#include "math/exponential.h"
#include "math/normal.h"
#include "math/philox.h"

// |got - want| in units of the last place of `want`.
static double ulps(float got, double want) {
  const double unit = std::ldexp(1.0, std::ilogb(want) - 23);
  return std::fabs(static_cast<double>(got) - want) / unit;
}

TEST(philox_gives_the_published_known_answers) {
  // kat_vectors of Random123, philox4x32 with 10 rounds.
  struct Case {
    dipengine::PhiloxBlock counter;
    uint32_t key0, key1;
    dipengine::PhiloxBlock answer;
  };
  constexpr uint32_t F = 0xffffffffu;
  const Case cases[] = {
      {{0, 0, 0, 0}, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{F, F, F, F}, F, F, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0,
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const Case& c : cases) {
    const dipengine::PhiloxBlock got = dipengine::philox(c.counter, c.key0, c.key1);
    CHECK(got.w0 == c.answer.w0 && got.w1 == c.answer.w1 && got.w2 == c.answer.w2 && got.w3 == c.answer.w3);
  }
}

// Equal bits, or both NaN.
static bool same(float got, float want) {
  return dipengine::float_bits(got) == dipengine::float_bits(want) || (std::isnan(got) && std::isnan(want));
}

TEST(fused_multiply_add_rounds_once_with_and_without_the_instruction) {
  const float special[] = {0.0f, 1.0f, 3.0f, 1e-45f, FLT_MIN, FLT_MAX, 0x1.fffffep-126f, 0x1p-24f, 0x1.000002p+0f, INFINITY, NAN};
  for (float a : special)
    for (float b : special)
      for (float c : special)
        for (int signs = 0; signs < 8; ++signs) {
          const float x = signs & 1 ? -a : a, y = signs & 2 ? -b : b, z = signs & 4 ? -c : c;
          CHECK(same(dipengine::fma(x, y, z), std::fma(x, y, z)));
        }
  // Few bits in the mantissas and an addend far away make ties, and sums a hair beside them, where two roundings go wrong.
  uint32_t state = 1;
  const auto draw = [&state](int exponents) {
    state = state * 1664525u + 1013904223u;
    const uint32_t word = state >> 3, kept = 0x7fffffu << (word % 24);
    state = state * 1664525u + 1013904223u;
    const uint32_t exponent = 127 - static_cast<uint32_t>(exponents) + (state >> 8) % (2u * static_cast<uint32_t>(exponents) + 1);
    return dipengine::float_from_bits((state & 0x80000000u) | exponent << 23 | (word & kept & 0x7fffffu));
  };
  int twice_rounded = 0;
  for (int i = 0; i < 2000000; ++i) {
    const float a = draw(i % 2 ? 3 : 60), b = draw(i % 2 ? 3 : 60), c = draw(i % 2 ? 60 : 120);
    const float want = std::fma(a, b, c);
    CHECK(same(dipengine::fma(a, b, c), want));
    twice_rounded += !same(static_cast<float>(double(a) * double(b) + double(c)), want);
  }
  CHECK(twice_rounded > 0);  // the cases that this test is about did occur
}

TEST(exponential_is_within_one_ulp) {
  double worst = 0;
  for (float x = 0; x > -87.0f; x -= 0.0007f) worst = std::max(worst, ulps(dipengine::exp_nonpositive(x), std::exp(double(x))));
  CHECK(worst < 1);
  CHECK(dipengine::exp_nonpositive(0.0f) == 1.0f);
  CHECK(dipengine::exp_nonpositive(-1e30f) > 0 && dipengine::exp_nonpositive(-1e30f) < 2e-38f);
  CHECK(std::isnan(dipengine::exp_nonpositive(NAN)));
}

TEST(sigmoid_is_within_three_ulps_and_its_slope_within_five) {
  double worst = 0, worst_slope = 0;
  for (float x = -80.0f; x < 80.0f; x += 0.0013f) {
    const dipengine::Sigmoid<float> s = dipengine::sigmoid(x);
    const double e = std::exp(-std::fabs(double(x))), q = 1 / (1 + e);
    worst = std::max(worst, ulps(s.value, x > 0 ? q : e * q));
    worst_slope = std::max(worst_slope, ulps(s.slope, e * q * q));
  }
  CHECK(worst < 3);
  CHECK(worst_slope < 5);
  CHECK(dipengine::sigmoid(0.0f).value == 0.5f && dipengine::sigmoid(0.0f).slope == 0.25f);
  CHECK(dipengine::sigmoid(INFINITY).value == 1.0f);
  CHECK(std::isnan(dipengine::sigmoid(NAN).value));
  CHECK_NEAR(dipengine::sigmoid(0.7).value, 1 / (1 + std::exp(-0.7)), 1e-16);
}

TEST(logarithm_is_within_two_ulps) {
  double worst = 0;
  for (uint32_t k = 1; k <= 1u << 24; k += k < 5000 || k > (1u << 24) - 5000 ? 1 : 97) {
    const float u = static_cast<float>(static_cast<int32_t>(k)) * 0x1p-24f;
    if (u < 1) worst = std::max(worst, ulps(dipengine::natural_log(u), std::log(double(u))));
  }
  CHECK(worst < 2);
  CHECK(dipengine::natural_log(1.0f) == 0.0f);
}

TEST(normal_pairs_are_within_a_few_ulps_of_box_muller) {
  const double turn = 2 * std::acos(-1.0);
  double worst = 0;
  uint32_t wa = 12345, wb = 6789;
  for (int i = 0; i < 200000; ++i) {
    wa = wa * 1664525u + 1013904223u;
    wb = wb * 22695477u + 1u;
    const dipengine::NormalPair pair = dipengine::normal_pair(wa, wb);
    const double r = std::sqrt(-2 * std::log(((wa >> 8) + 1) * 0x1p-24)), angle = turn * (wb >> 8) * 0x1p-24;
    // Near a zero of the sine the true value is tiny; its error there is one of pi's digits in this reference.
    worst = std::max(worst, std::fabs(pair.even - r * std::cos(angle)) / (std::fabs(r * std::cos(angle)) + 1e-9));
    worst = std::max(worst, std::fabs(pair.odd - r * std::sin(angle)) / (std::fabs(r * std::sin(angle)) + 1e-9));
  }
  CHECK(worst < 4 * double(FLT_EPSILON));
  CHECK(dipengine::normal_pair(0xffffffffu, 77).even == 0.0f);  // u1 = 1: radius 0
}

TEST(normal_pairs_at_quarter_turns_are_exact) {
  const float r = dipengine::normal_pair(0, 0).even;
  CHECK(dipengine::normal_pair(0, 0).odd == 0.0f);
  CHECK(dipengine::normal_pair(0, 1u << 30).even == 0.0f && dipengine::normal_pair(0, 1u << 30).odd == r);
  CHECK(dipengine::normal_pair(0, 2u << 30).even == -r && dipengine::normal_pair(0, 2u << 30).odd == 0.0f);
  CHECK(dipengine::normal_pair(0, 3u << 30).even == 0.0f && dipengine::normal_pair(0, 3u << 30).odd == -r);
}

TEST(bf16_is_the_nearest_of_all_values_ties_to_even) {
  for (uint32_t upper = 0; upper < 0x10000u; ++upper) {
    const float value = dipengine::float_from_bf16(static_cast<uint16_t>(upper));
    if (std::isnan(value)) {
      CHECK(std::isnan(dipengine::float_from_bf16(dipengine::bf16_from_float(value))));
      continue;
    }
    CHECK(dipengine::bf16_from_float(value) == upper);
    if ((upper & 0x7fffu) >= 0x7f80u) continue;
    // Between `value` and its neighbour away from zero: just below, at and just above the middle.
    const uint32_t bits = upper << 16;
    CHECK(dipengine::bf16_from_float(dipengine::float_from_bits(bits + 0x7fffu)) == upper);
    CHECK(dipengine::bf16_from_float(dipengine::float_from_bits(bits + 0x8000u)) == upper + (upper & 1u));
    CHECK(dipengine::bf16_from_float(dipengine::float_from_bits(bits + 0x8001u)) == upper + 1);
  }
}
