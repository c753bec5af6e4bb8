// How many values of an array are finite, 0 and 1: a few blocks go over it once, 4 bytes a value. It happens once a fit.
#include "fit/census_cuda.h"

#include "math/bf16.h"
#include "platform/cuda/block_sums.h"
#include "platform/cuda/launch.h"

namespace dipengine {

DIPENGINE_DEVICE void add_sums(Census& sums, const Census& more) {
  sums.finite += more.finite;
  sums.zeros += more.zeros;
  sums.ones += more.ones;
}

DIPENGINE_DEVICE Census warp_sums(const Census& own) {
  return {cuda::warp_sum(own.finite), cuda::warp_sum(own.zeros), cuda::warp_sum(own.ones)};
}

namespace {

constexpr int kThreads = 256;

struct Launch {
  const float* values;
  int64_t count;
  Census* found;
};

DIPENGINE_KERNEL(kThreads, 4) census_kernel(DIPENGINE_PARAMS(Launch) l) {
  Census own{};
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const int64_t step = static_cast<int64_t>(kThreads) * kCensusBlocks;
  for (int64_t i = static_cast<int64_t>(cuda::block_x()) * kThreads + cuda::thread_index(); i < l.count; i += step) {
    const float value = l.values[i];
    own.finite += (float_bits(value) & 0x7f800000u) != 0x7f800000u ? 1 : 0;
    own.zeros += value == 0.0f ? 1 : 0;
    own.ones += value == 1.0f ? 1 : 0;
  }
  const Census all = cuda::block_sums<kThreads>(own);
  if (cuda::thread_index() == 0) l.found[cuda::block_x()] = all;
}

}  // namespace

dipengine_status launch_census(const float* values, int64_t count, Census* found, void* stream) {
  return cuda::launch(census_kernel, "census", {kCensusBlocks, 1, 1, kThreads, cuda::block_sums_bytes<Census>(kThreads)},
                      Launch{values, count, found}, stream);
}

}  // namespace dipengine
