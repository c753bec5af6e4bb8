#include "rounding.h"

#include "platform/cuda/launch.h"
#include "platform/cuda/tensor_core.h"

namespace dipengine::silicon {
namespace {

struct RoundingParams {
  const float* from;
  uint32_t* to;
};

DIPENGINE_KERNEL(32, 1) rounding_kernel(DIPENGINE_PARAMS(RoundingParams) p) {
  cuda::wait_for_launches();
  if (cuda::thread_index() == 0) *p.to = cuda::tf32_from_float(*p.from);
}

}  // namespace

dipengine_status round_to_tf32(const float* from, uint32_t* to) {
  return cuda::launch(rounding_kernel, "rounding", {1, 1, 1, 32, 0}, RoundingParams{from, to}, nullptr);
}

}  // namespace dipengine::silicon
