// Launches and their errors; the only place from which a kernel is started.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

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

// While a sequence is captured with overlap: the streams whose last entry is a launch. The next launch on such a stream may begin before
// that one has ended, and waits for it itself (thread.h, wait_for_launches): between two of them a device is idle otherwise. Behind other
// streams' work (wait_for) a launch begins when all is done, as ever.
struct Overlap {
  bool on = false, used = false;
  std::vector<void*> launched;

  bool follows(void* stream) const { return on && std::find(launched.begin(), launched.end(), stream) != launched.end(); }
  void behind_launch(void* stream) {
    if (on && !follows(stream)) launched.push_back(stream);
  }
  void behind_others(void* stream) { launched.erase(std::remove(launched.begin(), launched.end(), stream), launched.end()); }
};
inline thread_local Overlap overlap;

// Kernels wait for launches in the code of compute capability 9.0 and later alone; what a driver made of older code does not.
constexpr int kLeastOverlapping = 90;

static inline dipengine_status may_overlap(const void* function, const char* name, bool* may) {
  cudaFuncAttributes attributes{};
  DIPENGINE_TRY(check(cudaFuncGetAttributes(&attributes, function), name));
  *may = attributes.ptxVersion >= kLeastOverlapping;
  return DIPENGINE_OK;
}

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
  bool overlaps = overlap.follows(stream);
  if (overlaps) DIPENGINE_TRY(may_overlap(function, name, &overlaps));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = grid.shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = overlaps ? 1 : 0;
  void* arguments[] = {const_cast<Params*>(&params)};
  overlap.used = overlap.used || overlaps;  // also where it is refused
  DIPENGINE_TRY(check(cudaLaunchKernelExC(&config, function, arguments), name));
  overlap.behind_launch(stream);
  return DIPENGINE_OK;
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
