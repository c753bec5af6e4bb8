// A library without CUDA kernels: the functions that the bindings call are there all the same, and say what is missing.
#include "fit/device.h"
#include "ops/adam/adam_cuda.h"
#include "ops/blur/blur_cuda.h"
#include "ops/conv/conv_cuda.h"
#include "ops/deviance/deviance_cuda.h"
#include "ops/masked_mse/masked_mse_cuda.h"
#include "ops/norm/norm_cuda.h"
#include "ops/philox/philox_cuda.h"
#include "ops/resample/resample_cuda.h"
#include "platform/cuda/device.h"
#include "platform/cuda/stream.h"
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
dipengine_status wait(void*) { return absent(); }

}  // namespace dipengine::cuda

extern "C" {

dipengine_status dipengine_cuda_device_count(int32_t* count) {
  if (count != nullptr) *count = 0;
  return absent();
}

dipengine_status dipengine_cuda_device_memory(int32_t, size_t*, size_t*) { return absent(); }
dipengine_status dipengine_cuda_device_name(int32_t, char*, size_t) { return absent(); }

#define DIPENGINE_ABSENT(name, params) \
  dipengine_status name(const params*) { return absent(); }
#define DIPENGINE_ABSENT_SIZE(name, params) \
  dipengine_status name(const params*, size_t*) { return absent(); }

DIPENGINE_ABSENT(dipengine_adam_cuda, dipengine_adam_cuda_params)
DIPENGINE_ABSENT(dipengine_blur_cuda, dipengine_blur_cuda_params)
DIPENGINE_ABSENT(dipengine_blur_cuda_backward, dipengine_blur_cuda_params)
DIPENGINE_ABSENT(dipengine_conv_cuda_pack, dipengine_conv_cuda_params)
DIPENGINE_ABSENT(dipengine_conv_cuda_forward, dipengine_conv_cuda_params)
DIPENGINE_ABSENT(dipengine_conv_cuda_weight_gradient, dipengine_conv_cuda_params)
DIPENGINE_ABSENT(dipengine_conv_cuda_data_pack, dipengine_conv_cuda_params)
DIPENGINE_ABSENT(dipengine_conv_cuda_data_gradient, dipengine_conv_cuda_params)
DIPENGINE_ABSENT_SIZE(dipengine_conv_cuda_packed_bytes, dipengine_conv_cuda_params)
DIPENGINE_ABSENT_SIZE(dipengine_conv_cuda_workspace, dipengine_conv_cuda_params)
DIPENGINE_ABSENT_SIZE(dipengine_conv_cuda_weight_gradient_workspace, dipengine_conv_cuda_params)
dipengine_status dipengine_conv_cuda_tickets(const dipengine_conv_cuda_params*, int64_t*) { return absent(); }
dipengine_status dipengine_norm_cuda_tickets(const dipengine_norm_cuda_params*, int64_t*) { return absent(); }
dipengine_status dipengine_conv_cuda_data_gradient_sizes(const dipengine_conv_cuda_params*, size_t*, size_t*) { return absent(); }
DIPENGINE_ABSENT(dipengine_deviance_cuda, dipengine_deviance_cuda_params)
DIPENGINE_ABSENT_SIZE(dipengine_deviance_cuda_workspace, dipengine_deviance_cuda_params)
DIPENGINE_ABSENT(dipengine_downsample_cuda, dipengine_downsample_cuda_params)
DIPENGINE_ABSENT(dipengine_downsample_cuda_backward, dipengine_downsample_cuda_params)
DIPENGINE_ABSENT_SIZE(dipengine_downsample_cuda_workspace, dipengine_downsample_cuda_params)
DIPENGINE_ABSENT(dipengine_masked_mse_cuda, dipengine_masked_mse_cuda_params)
DIPENGINE_ABSENT_SIZE(dipengine_masked_mse_cuda_workspace, dipengine_masked_mse_cuda_params)
DIPENGINE_ABSENT(dipengine_norm_cuda_statistics, dipengine_norm_cuda_params)
DIPENGINE_ABSENT(dipengine_norm_cuda_backward, dipengine_norm_cuda_params)
DIPENGINE_ABSENT(dipengine_norm_cuda_fold_gradient, dipengine_norm_cuda_gradient)
DIPENGINE_ABSENT_SIZE(dipengine_norm_cuda_workspace, dipengine_norm_cuda_params)
DIPENGINE_ABSENT(dipengine_perturb_cuda, dipengine_perturb_cuda_params)

}  // extern "C"
