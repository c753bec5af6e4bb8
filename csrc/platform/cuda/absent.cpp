// A library without CUDA kernels: the functions that the bindings call are there all the same, and say what is missing.
#include "fit/device.h"
#include "ops/adam/adam_cuda.h"
#include "ops/blur/blur_cuda.h"
#include "ops/deviance/deviance_cuda.h"
#include "ops/masked_mse/masked_mse_cuda.h"
#include "ops/philox/philox_cuda.h"
#include "ops/resample/resample_cuda.h"
#include "platform/cuda/device.h"
#include "platform/error.h"

namespace {

dipengine_status absent() {
  return dipengine::fail(DIPENGINE_UNSUPPORTED,
                         "This library was built without CUDA kernels; build it with them (CMAKE_ARGS=-DDIPENGINE_CUDA=ON pip "
                         "install .) or move the tensors to CPU memory.");
}

}  // namespace

namespace dipengine {

dipengine_status make_cuda_device(const dipengine_fit_params&, Graph&, const SlotLayout&, const LoopRules&,
                                  std::unique_ptr<FitDevice>*) {
  return fail(DIPENGINE_UNSUPPORTED,
              "This library was built without CUDA kernels; build it with them (CMAKE_ARGS=-DDIPENGINE_CUDA=ON pip install .) or "
              "run the fit on the CPU.");
}

}  // namespace dipengine

namespace dipengine::cuda {

dipengine_status enter_device(int, int*) { return absent(); }
void leave_device(int) {}
dipengine_status device_of(const void*, int*) { return absent(); }
dipengine_status wait_for(void*, void*) { return absent(); }
dipengine_status upload(void*, const void*, size_t, void*) { return absent(); }

}  // namespace dipengine::cuda

extern "C" {

dipengine_status dipengine_cuda_device_count(int32_t* count) {
  if (count != nullptr) *count = 0;
  return absent();
}

#define DIPENGINE_ABSENT(name) \
  dipengine_status name(const name##_params*) { return absent(); }
#define DIPENGINE_ABSENT_WORKSPACE(name) \
  dipengine_status name##_workspace(const name##_params*, size_t*) { return absent(); }

DIPENGINE_ABSENT(dipengine_adam_cuda)
DIPENGINE_ABSENT(dipengine_blur_cuda)
DIPENGINE_ABSENT(dipengine_deviance_cuda)
DIPENGINE_ABSENT_WORKSPACE(dipengine_deviance_cuda)
DIPENGINE_ABSENT(dipengine_downsample_cuda)
DIPENGINE_ABSENT_WORKSPACE(dipengine_downsample_cuda)
DIPENGINE_ABSENT(dipengine_masked_mse_cuda)
DIPENGINE_ABSENT_WORKSPACE(dipengine_masked_mse_cuda)
DIPENGINE_ABSENT(dipengine_perturb_cuda)
dipengine_status dipengine_blur_cuda_backward(const dipengine_blur_cuda_params*) { return absent(); }
dipengine_status dipengine_downsample_cuda_backward(const dipengine_downsample_cuda_params*) { return absent(); }

}  // extern "C"
