// The perturbed code on a CUDA device: z + std * normal, each element by its counter alone; formulas of csrc/math.
//
// A thread makes 16 elements: one block of 16 bytes of z (or one Philox block of them), four blocks of words, 16 normals.
// Writes 2 (or 4) bytes an element and reads at most as many; some 45 integer and 30 float operations an element, so it is
// bound by arithmetic where the output is bfloat16.
#include "ops/philox/philox_cuda.h"

#include "math/bf16.h"
#include "math/normal.h"
#include "ops/philox/philox_check.h"
#include "ops/philox/philox_math.h"
#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kThreads = 128;
constexpr int kEach = 16;

DIPENGINE_KERNEL(kThreads, 4) perturb_kernel(DIPENGINE_PARAMS(dipengine_perturb_cuda_params) p) {
  const int fit = cuda::block_y();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const int64_t first = (static_cast<int64_t>(cuda::block_x()) * kThreads + cuda::thread_index()) * kEach;
  if (first >= p.count) return;
  const int n = p.count - first < kEach ? static_cast<int>(p.count - first) : kEach;
  const PhiloxSequence noise = {p.seeds[fit], p.noise_stream, p.steps[fit]};
  PhiloxBlock made{};
  if (p.z == nullptr) made = philox_block({p.code_seeds[fit], p.code_stream, 0}, static_cast<uint64_t>(first / 16));
  const int64_t from = fit * p.z_fit_stride + first, to = fit * p.out_fit_stride + first;
  DIPENGINE_UNROLL
  for (int quarter = 0; quarter < kEach / 4; ++quarter) {
    const PhiloxBlock words = philox_block(noise, static_cast<uint64_t>(first / 4 + quarter));
    const NormalPair low = normal_pair(words.w0, words.w1), high = normal_pair(words.w2, words.w3);
    const float normals[4] = {low.even, low.odd, high.even, high.odd};
    const uint32_t code = quarter == 0 ? made.w0 : quarter == 1 ? made.w1 : quarter == 2 ? made.w2 : made.w3;
    DIPENGINE_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int i = 4 * quarter + e;
      if (i >= n) continue;
      float z;
      if (p.z_dtype == DIPENGINE_FLOAT32) {
        z = static_cast<const float*>(p.z)[from + i];
      } else {
        const uint32_t byte = p.z == nullptr ? code >> (8 * e) & 0xffu : static_cast<const uint8_t*>(p.z)[from + i];
        z = static_cast<float>(byte) * p.z_scale;
      }
      const float perturbed = z + p.std * normals[e];
      if (p.out_dtype == DIPENGINE_FLOAT32) {
        static_cast<float*>(p.out)[to + i] = perturbed;
      } else {
        static_cast<uint16_t*>(p.out)[to + i] = bf16_from_float(perturbed);
      }
    }
  }
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_perturb_cuda(const dipengine_perturb_cuda_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check_perturb(params, "dipengine_perturb_cuda"));
  if (params->count == 0) return DIPENGINE_OK;
  const int64_t blocks = (params->count + kThreads * kEach - 1) / (kThreads * kEach);
  return cuda::launch(perturb_kernel, "perturb", {blocks, params->fits, 1, kThreads, 0}, *params, params->stream);
}

}  // extern "C"
