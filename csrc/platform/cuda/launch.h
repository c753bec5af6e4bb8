// Launches and their errors; the only place from which a kernel is started.
#pragma once

#include <cstddef>

#include "platform/cuda/thread.h"
#include "platform/error.h"

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace dipengine::cuda {

struct Grid {
  int64_t x, y, z;  // blocks; y and z at most 65535
  int threads;      // of a block, a multiple of 32
  size_t shared;    // bytes of a block's shared memory
};

#if defined(__CUDACC__)

// Errors that stay: every later call of the process fails with them.
static inline bool device_failed(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorUnknown: return true;
    default: return false;
  }
}

// DIPENGINE_OK, or a failure with a sentence that names what was being done.
static inline dipengine_status check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return DIPENGINE_OK;
  if (device_failed(error)) {
    return fail(DIPENGINE_DEVICE_FAILED, "%s failed: %s; nothing can be done on this device by this process any more, start it anew.",
                doing, cudaGetErrorString(error));
  }
  (void)cudaGetLastError();  // a launch's error would else be reported again by the next call
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    return fail(DIPENGINE_UNSUPPORTED, "%s needs a CUDA device and its driver: %s.", doing, cudaGetErrorString(error));
  }
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion) {
    return fail(DIPENGINE_UNSUPPORTED,
                "%s has no machine code for this device (%s); build with its architecture in CMAKE_CUDA_ARCHITECTURES.", doing,
                cudaGetErrorString(error));
  }
  return fail(error == cudaErrorMemoryAllocation ? DIPENGINE_OUT_OF_RESOURCES : DIPENGINE_INVALID_ARGUMENT, "%s failed: %s.",
              doing, cudaGetErrorString(error));
}

static inline dipengine_status check_grid(const Grid& grid, const char* name) {
  DIPENGINE_REQUIRE(
      grid.x >= 1 && grid.x <= 0x7fffffff && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535,
      "%s would need a grid of %lld x %lld x %lld blocks, more than a device takes; give it fewer fits or a smaller image.", name,
      static_cast<long long>(grid.x), static_cast<long long>(grid.y), static_cast<long long>(grid.z));
  return DIPENGINE_OK;
}

// Bytes of shared memory that a block may have on the current device.
static inline dipengine_status shared_memory_limit(size_t* bytes) {
  int device = 0, limit = 0;
  DIPENGINE_TRY(check(cudaGetDevice(&device), "choosing tiles"));
  DIPENGINE_TRY(check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "choosing tiles"));
  *bytes = static_cast<size_t>(limit);
  return DIPENGINE_OK;
}

// While true, the thread's launches bring their kernels' code to the device and start nothing: a driver loads code at a kernel's first
// launch, by calls that a stream which is being captured may not take.
inline thread_local bool loading = false;

// Start `kernel` on `stream` (a cudaStream_t); returns before it has run.
template <typename Params>
static dipengine_status launch(void (*kernel)(Params), const char* name, const Grid& grid, const Params& params, void* stream) {
  DIPENGINE_TRY(check_grid(grid, name));
  const void* function = reinterpret_cast<const void*>(kernel);
  if (grid.shared > 48 * 1024) {
    // All that there is, whatever this launch takes: what was set for one launch must not fall short of another's, captured before.
    size_t limit = 0;
    DIPENGINE_TRY(shared_memory_limit(&limit));
    DIPENGINE_REQUIRE(grid.shared <= limit, "%s would need %zu bytes of shared memory where the device has %zu.", name, grid.shared, limit);
    DIPENGINE_TRY(check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limit)), name));
  }
  if (loading) {
    cudaFuncAttributes attributes;
    return check(cudaFuncGetAttributes(&attributes, function), name);
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  return check(cudaLaunchKernel(
                   function, dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z)),
                   dim3(static_cast<unsigned>(grid.threads)), arguments, grid.shared, static_cast<cudaStream_t>(stream)),
               name);
}

#else

}  // namespace dipengine::cuda

#include <functional>

namespace dipengine::cuda {

dipengine_status emulate(const char* name, const void* kernel, const Grid& grid, const std::function<void()>& thread, void* stream);
dipengine_status shared_memory_limit(size_t* bytes);

template <typename Params>
static dipengine_status launch(void (*kernel)(Params), const char* name, const Grid& grid, const Params& params, void* stream) {
  // Its params are copied to the thread here; that is no access of the kernel's.
  const auto thread = [kernel, params]() __attribute__((no_sanitize_thread)) { kernel(params); };
  return emulate(name, reinterpret_cast<const void*>(kernel), grid, thread, stream);
}

#endif

}  // namespace dipengine::cuda
