// Adam's update on a CUDA device; the formulas of adam_math.h.
//
// A block takes 2048 parameters of one tensor of one fit, a thread 4 neighbours at a time, so that a warp's accesses are
// 512 contiguous bytes. Bound by memory: 28 bytes a float32 parameter. The scalars of the fit's step, which need float64
// powers, are made by one thread.
#include "ops/adam/adam_cuda.h"

#include "math/bf16.h"
#include "ops/adam/adam_math.h"
#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 2048;

struct AdamLaunch {
  dipengine_adam_segment segments[DIPENGINE_ADAM_CUDA_MAX_SEGMENTS];
  int64_t first_tile[DIPENGINE_ADAM_CUDA_MAX_SEGMENTS + 1];
  int32_t segments_count, bfloat16;
  const int64_t* steps;
  const double* learning_rate;
  const uint8_t* active;
  double beta1, beta2, eps;
};

struct alignas(16) Four {
  float value[4];
};

DIPENGINE_DEVICE Four load_four(const float* from) {
  Four out;
  const cuda::Bytes16 bytes = cuda::load16(from);
  DIPENGINE_UNROLL
  for (int i = 0; i < 4; ++i) out.value[i] = float_from_bits(bytes.word[i]);
  return out;
}

DIPENGINE_DEVICE void store_four(float* to, const Four& from) {
  cuda::Bytes16 bytes;
  DIPENGINE_UNROLL
  for (int i = 0; i < 4; ++i) bytes.word[i] = float_bits(from.value[i]);
  cuda::store16(to, bytes);
}

DIPENGINE_DEVICE float gradient_at(const void* grad, bool bfloat16, int64_t i) {
  return bfloat16 ? float_from_bf16(static_cast<const uint16_t*>(grad)[i]) : static_cast<const float*>(grad)[i];
}

DIPENGINE_KERNEL(kThreads, 4) adam_kernel(DIPENGINE_PARAMS(AdamLaunch) p) {
  const int fit = cuda::block_y();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (p.active != nullptr && p.active[fit] == 0) return;
  AdamScalars<float>* shared = reinterpret_cast<AdamScalars<float>*>(cuda::shared_memory());
  if (cuda::thread_index() == 0) *shared = adam_scalars<float>(p.steps[fit], p.learning_rate[fit], p.beta1, p.beta2, p.eps);
  cuda::sync_threads();
  const AdamScalars<float> scalars = *shared;

  int index = 0;
  while (cuda::block_x() >= p.first_tile[index + 1]) ++index;
  const dipengine_adam_segment& s = p.segments[index];
  const int64_t begin = (cuda::block_x() - p.first_tile[index]) * kTile, end = begin + kTile < s.count ? begin + kTile : s.count;
  const int64_t base = fit * s.fit_stride;
  float *const param = static_cast<float*>(s.param) + base, *const m = static_cast<float*>(s.m) + base,
               *const v = static_cast<float*>(s.v) + base;
  uint16_t* const shadow = s.shadow == nullptr ? nullptr : static_cast<uint16_t*>(s.shadow) + base;
  const bool aligned =
      ((reinterpret_cast<uintptr_t>(param) | reinterpret_cast<uintptr_t>(m) | reinterpret_cast<uintptr_t>(v)) & 15) == 0;
  for (int64_t i = begin + 4 * cuda::thread_index(); i < end; i += 4 * kThreads) {
    if (aligned && i + 4 <= end) {
      Four p4 = load_four(param + i), m4 = load_four(m + i), v4 = load_four(v + i);
      DIPENGINE_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float g = gradient_at(s.grad, p.bfloat16 != 0, base + i + e);
        p4.value[e] = adam_update(scalars, p4.value[e], g, m4.value[e], v4.value[e]);
      }
      store_four(m + i, m4);
      store_four(v + i, v4);
      store_four(param + i, p4);
      if (shadow != nullptr) {
        DIPENGINE_UNROLL
        for (int e = 0; e < 4; ++e) shadow[i + e] = bf16_from_float(p4.value[e]);
      }
      continue;
    }
    for (int64_t e = i; e < end && e < i + 4; ++e) {
      param[e] = adam_update(scalars, param[e], gradient_at(s.grad, p.bfloat16 != 0, base + e), m[e], v[e]);
      if (shadow != nullptr) shadow[e] = bf16_from_float(param[e]);
    }
  }
}

dipengine_status check(const dipengine_adam_cuda_params* params) {
  DIPENGINE_TRY(check_struct(params, "dipengine_adam_cuda"));
  const dipengine_adam_cuda_params& p = *params;
  DIPENGINE_REQUIRE(
      p.segment_size == sizeof(dipengine_adam_segment),
      "dipengine_adam_cuda was given segment_size %zu where this library has %zu; build the host against its headers.",
      p.segment_size, sizeof(dipengine_adam_segment));
  DIPENGINE_REQUIRE(p.grad_dtype == DIPENGINE_FLOAT32 || p.grad_dtype == DIPENGINE_BFLOAT16,
                    "Adam takes gradients in float32 or bfloat16 on a device, not dtype %d; convert them.", p.grad_dtype);
  DIPENGINE_REQUIRE(p.fits >= 1 && p.steps != nullptr && p.learning_rate != nullptr,
                    "Adam needs at least one fit, and steps and learning_rate of each in device memory.");
  DIPENGINE_REQUIRE(p.segments_count >= 0 && p.segments_count <= DIPENGINE_ADAM_CUDA_MAX_SEGMENTS &&
                        (p.segments_count == 0 || p.segments != nullptr),
                    "Adam was given %lld segments; give up to %d of them in a call.", static_cast<long long>(p.segments_count),
                    DIPENGINE_ADAM_CUDA_MAX_SEGMENTS);
  DIPENGINE_REQUIRE(p.beta1 >= 0 && p.beta1 < 1 && p.beta2 >= 0 && p.beta2 < 1 && p.eps >= 0,
                    "Adam was given betas %g, %g and eps %g; betas lie in [0, 1), eps is not negative.", p.beta1, p.beta2, p.eps);
  for (int64_t i = 0; i < p.segments_count; ++i) {
    const dipengine_adam_segment& s = p.segments[i];
    DIPENGINE_REQUIRE(
        s.count >= 0 && (p.fits == 1 || s.fit_stride >= s.count),
        "Adam was given overlapping fits or a negative count in segment %lld; space fits at least count elements apart.",
        static_cast<long long>(i));
    DIPENGINE_REQUIRE(s.count == 0 || (s.param != nullptr && s.grad != nullptr && s.m != nullptr && s.v != nullptr),
                      "Adam needs param, grad, m and v in segment %lld; one of them is NULL.", static_cast<long long>(i));
  }
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_adam_cuda(const dipengine_adam_cuda_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  AdamLaunch launch{};
  launch.steps = params->steps;
  launch.learning_rate = params->learning_rate;
  launch.active = params->active;
  launch.beta1 = params->beta1;
  launch.beta2 = params->beta2;
  launch.eps = params->eps;
  launch.bfloat16 = params->grad_dtype == DIPENGINE_BFLOAT16;
  for (int64_t i = 0; i < params->segments_count; ++i) {
    dipengine_adam_segment segment = params->segments[i];
    if (params->fits == 1) segment.fit_stride = 0;
    if (segment.count == 0) continue;
    launch.segments[launch.segments_count] = segment;
    const int64_t first = launch.first_tile[launch.segments_count++];
    launch.first_tile[launch.segments_count] = first + (segment.count + kTile - 1) / kTile;
  }
  const int64_t tiles = launch.first_tile[launch.segments_count];
  if (tiles == 0) return DIPENGINE_OK;
  return cuda::launch(adam_kernel, "adam", {tiles, params->fits, 1, kThreads, sizeof(AdamScalars<float>)}, launch,
                      params->stream);
}

}  // extern "C"
