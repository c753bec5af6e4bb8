// The Philox ops: element layout, equality of bits, perturbation of a cohort, refusals.
#include <cstring>

#include "check.h"
#include "math/bf16.h"
#include "math/normal.h"
#include "ops/philox/philox.h"
#include "ops/philox/philox_math.h"

static dipengine_philox_params params_for(int64_t count, void* out, dipengine_pool* pool = nullptr) {
  dipengine_philox_params p{};
  p.struct_size = sizeof(p);
  p.pool = pool;
  p.seed = 0x9e3779b97f4a7c15u;
  p.stream = 2;
  p.step = 41;
  p.count = count;
  p.out = out;
  return p;
}

static uint32_t word(int64_t index) {
  const dipengine::PhiloxBlock b = dipengine::philox_block({0x9e3779b97f4a7c15u, 2, 41}, static_cast<uint64_t>(index / 4));
  const uint32_t words[4] = {b.w0, b.w1, b.w2, b.w3};
  return words[index % 4];
}

TEST(philox_key_and_counter_are_laid_out_as_documented) {
  const dipengine::PhiloxBlock a = dipengine::philox_block({0x299f31d0a4093822u, 0x03707344, 0x13198a2e}, 0x85a308d3243f6a88u);
  CHECK(a.w0 == 0xd16cfe09u && a.w1 == 0x94fdccebu && a.w2 == 0x5001e420u && a.w3 == 0x24126ea1u);
}

TEST(philox_elements_are_those_of_the_definition) {
  for (int64_t count : {int64_t{0}, int64_t{1}, int64_t{3}, int64_t{257}, int64_t{40001}}) {
    std::vector<float> u(static_cast<size_t>(count) + 1, -1), n(u);
    std::vector<uint8_t> b(static_cast<size_t>(count) + 1, 123);
    const auto pu = params_for(count, u.data()), pn = params_for(count, n.data()), pb = params_for(count, b.data());
    CHECK(dipengine_philox_uniform(&pu) == DIPENGINE_OK);
    CHECK(dipengine_philox_normal(&pn) == DIPENGINE_OK);
    CHECK(dipengine_philox_bytes(&pb) == DIPENGINE_OK);
    bool good = true;
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      const dipengine::NormalPair pair = dipengine::normal_pair(word(i / 2 * 2), word(i / 2 * 2 + 1));
      good = good && u[at] == static_cast<float>(word(i) >> 8) * 0x1p-24f && n[at] == (i % 2 ? pair.odd : pair.even) &&
             b[at] == ((word(i / 4) >> (8 * (i % 4))) & 255u);
    }
    CHECK(good);
    CHECK(u.back() == -1 && n.back() == -1 && b.back() == 123);  // nothing behind the end was touched
  }
}

TEST(philox_bits_do_not_depend_on_instruction_set_or_threads) {
  constexpr int64_t kCount = 70003;
  std::vector<float> reference;
  check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
    std::vector<float> out(3 * kCount);
    std::vector<uint8_t> bytes(kCount);
    const auto u = params_for(kCount, out.data(), pool), n = params_for(kCount, out.data() + kCount, pool);
    const auto b = params_for(kCount, bytes.data(), pool);
    CHECK(dipengine_philox_uniform(&u) == DIPENGINE_OK && dipengine_philox_normal(&n) == DIPENGINE_OK);
    CHECK(dipengine_philox_bytes(&b) == DIPENGINE_OK);
    for (int64_t i = 0; i < kCount; ++i) out[static_cast<size_t>(2 * kCount + i)] = bytes[static_cast<size_t>(i)];
    if (reference.empty()) reference = out;
    CHECK(std::memcmp(reference.data(), out.data(), out.size() * sizeof(float)) == 0);
  });
}

struct Cohort {
  static constexpr int64_t kFits = 3, kCount = 20011, kStride = 20100;
  std::vector<uint64_t> seeds{7, 1ull << 63, 12};
  std::vector<uint32_t> steps{0, 5, 0xffffffffu};
  std::vector<float> z = check::Numbers(3).vector<float>(kFits * kStride);
  std::vector<uint8_t> active{1, 0, 1};

  dipengine_perturb_params params(void* out, dipengine_pool* pool) const {
    dipengine_perturb_params p{};
    p.struct_size = sizeof(p);
    p.pool = pool;
    p.fits = kFits;
    p.count = kCount;
    p.seeds = seeds.data();
    p.steps = steps.data();
    p.stream = 1;
    p.z_dtype = DIPENGINE_FLOAT32;
    p.z = z.data();
    p.z_fit_stride = kStride;
    p.std = 0.03f;
    p.out_dtype = DIPENGINE_FLOAT32;
    p.out = out;
    p.out_fit_stride = kStride;
    return p;
  }
};

TEST(perturb_adds_each_fits_own_normals_and_skips_inactive_fits) {
  const Cohort c;
  std::vector<float> out(c.z.size(), 9), normals(Cohort::kCount);
  auto p = c.params(out.data(), nullptr);
  p.active = c.active.data();
  CHECK(dipengine_perturb(&p) == DIPENGINE_OK);
  for (size_t fit = 0; fit < 3; ++fit) {
    dipengine_philox_params n = params_for(Cohort::kCount, normals.data());
    n.seed = c.seeds[fit];
    n.stream = 1;
    n.step = c.steps[fit];
    CHECK(dipengine_philox_normal(&n) == DIPENGINE_OK);
    bool good = true;
    for (size_t i = 0; i < Cohort::kCount; ++i) {
      const size_t at = fit * Cohort::kStride + i;
      const volatile float scaled = 0.03f * normals[i];  // volatile: rounded before the sum, whatever the compiler's flags
      good = good && out[at] == (c.active[fit] ? c.z[at] + scaled : 9.0f);
    }
    CHECK(good);
  }
}

TEST(perturb_bits_do_not_depend_on_instruction_set_or_threads) {
  const Cohort c;
  std::vector<float> reference;
  check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
    std::vector<float> out(c.z.size(), 0);
    const auto p = c.params(out.data(), pool);
    CHECK(dipengine_perturb(&p) == DIPENGINE_OK);
    if (reference.empty()) reference = out;
    CHECK(std::memcmp(reference.data(), out.data(), out.size() * sizeof(float)) == 0);
  });
}

TEST(perturb_takes_bytes_and_writes_bfloat16) {
  Cohort c;
  std::vector<uint8_t> codes(Cohort::kCount);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i * 37);
  std::vector<float> wide(c.z.size());
  std::vector<uint16_t> narrow(c.z.size());
  auto p = c.params(wide.data(), nullptr);
  p.z_dtype = DIPENGINE_UINT8;
  p.z = codes.data();
  p.z_fit_stride = 0;  // one code for all fits
  p.z_scale = 0.1f / 255;
  CHECK(dipengine_perturb(&p) == DIPENGINE_OK);
  p.out_dtype = DIPENGINE_BFLOAT16;
  p.out = narrow.data();
  CHECK(dipengine_perturb(&p) == DIPENGINE_OK);
  bool good = true;
  for (size_t i = 0; i < Cohort::kCount; ++i) good = good && narrow[i] == dipengine::bf16_from_float(wide[i]);
  CHECK(good);
  p.std = 0;
  p.out_dtype = DIPENGINE_FLOAT32;
  p.out = wide.data();
  CHECK(dipengine_perturb(&p) == DIPENGINE_OK);
  CHECK(wide[5] == static_cast<float>(codes[5]) * (0.1f / 255));
}

TEST(philox_ops_refuse_what_they_cannot_do) {
  std::vector<float> out(Cohort::kFits * Cohort::kStride);
  auto fill = params_for(-1, out.data());
  CHECK(dipengine_philox_uniform(&fill) == DIPENGINE_INVALID_ARGUMENT);
  fill = params_for(5, nullptr);
  CHECK(dipengine_philox_normal(&fill) == DIPENGINE_INVALID_ARGUMENT);
  const Cohort c;
  const auto refused = [&](auto change) {
    auto p = c.params(out.data(), nullptr);
    change(p);
    return dipengine_perturb(&p) == DIPENGINE_INVALID_ARGUMENT;
  };
  CHECK(refused([](auto& p) { p.std = -1; }));
  CHECK(refused([](auto& p) { p.std = NAN; }));
  CHECK(refused([](auto& p) { p.fits = 0; }));
  CHECK(refused([](auto& p) { p.z = nullptr; }));
  CHECK(refused([](auto& p) { p.z_dtype = DIPENGINE_FLOAT64; }));
  CHECK(refused([](auto& p) { p.out_dtype = DIPENGINE_UINT8; }));
  CHECK(refused([](auto& p) { p.out_fit_stride = 5; }));
}
