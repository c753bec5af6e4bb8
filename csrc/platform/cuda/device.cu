#include "platform/cuda/device.h"

#include <cstdio>

#include "platform/cuda/launch.h"

namespace dipengine::cuda {

dipengine_status enter_device(int device, int* before) {
  DIPENGINE_TRY(check(cudaGetDevice(before), "An op or a fit on CUDA"));
  return *before == device ? DIPENGINE_OK : check(cudaSetDevice(device), "An op or a fit on CUDA");
}

void leave_device(int before) { (void)cudaSetDevice(before); }

dipengine_status device_of(const void* pointer, int* device) {
  cudaPointerAttributes attributes{};
  DIPENGINE_TRY(check(cudaPointerGetAttributes(&attributes, pointer), "Looking at a CUDA array"));
  DIPENGINE_REQUIRE(attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged,
                    "An array says that it is CUDA memory, but its pointer is not; give an array on a device.");
  *device = attributes.device;
  return DIPENGINE_OK;
}

dipengine_status memory_of(const void* pointer, int* device) {
  cudaPointerAttributes attributes{};
  DIPENGINE_TRY(check(cudaPointerGetAttributes(&attributes, pointer), "Looking at an array"));
  *device = attributes.type == cudaMemoryTypeDevice ? attributes.device : kHost;
  return DIPENGINE_OK;
}

int& few_blocks() {
  static int few = 64;
  return few;
}

dipengine_status wait_for(void* stream, void* before) {
  const char* const doing = "Putting a stream behind another";
  cudaEvent_t event;
  DIPENGINE_TRY(check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), doing));
  dipengine_status status = check(cudaEventRecord(event, static_cast<cudaStream_t>(before)), doing);
  if (status == DIPENGINE_OK) status = check(cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), event, 0), doing);
  (void)cudaEventDestroy(event);  // once it has happened
  overlap.behind_others(stream);
  return status;
}

dipengine_status upload(void* to, const void* from, size_t bytes, void* stream) {
  cudaStreamCaptureStatus captures = cudaStreamCaptureStatusNone;
  DIPENGINE_TRY(check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &captures), "Copying numbers to a device"));
  DIPENGINE_REQUIRE(captures == cudaStreamCaptureStatusNone,
                    "An op that is given numbers of the host cannot be captured in a CUDA graph, whose replays would read them when they "
                    "are gone; call it outside of the capture.");
  const char* const doing = "Copying numbers to a device";
  DIPENGINE_TRY(check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)), doing));
  // Pageable memory has been staged by now, but by a device that reads the host's pages itself, which may not have come to it yet.
  int device = 0, reads = 0;
  DIPENGINE_TRY(check(cudaGetDevice(&device), doing));
  DIPENGINE_TRY(check(cudaDeviceGetAttribute(&reads, cudaDevAttrPageableMemoryAccessUsesHostPageTables, device), doing));
  return reads == 0 ? DIPENGINE_OK : check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), doing);
}

}  // namespace dipengine::cuda

extern "C" {

dipengine_status dipengine_cuda_device_count(int32_t* count) {
  using namespace dipengine;
  using cuda::kLeastCapability;
  DIPENGINE_REQUIRE(count != nullptr, "dipengine_cuda_device_count was given no place for its answer.");
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  *count = 0;
  int most = 0;
  for (int device = 0; device < devices; ++device) {
    int major = 0;
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    most = major > most ? major : most;
  }
  if (error == cudaSuccess && devices > 0) {
    if (most < kLeastCapability) {
      return fail(DIPENGINE_UNSUPPORTED, "The CUDA kernels need a device of compute capability %d.0 or more, and here it is %d.",
                  kLeastCapability, most);
    }
    *count = devices;
    return DIPENGINE_OK;
  }
  (void)cudaGetLastError();
  if (error != cudaErrorInsufficientDriver) {
    return fail(DIPENGINE_UNSUPPORTED, "No CUDA device can be used here: %s.",
                cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error));
  }
  // The runtime says the same of an old driver and of none.
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);
  if (driver == 0) return fail(DIPENGINE_UNSUPPORTED, "No CUDA device can be used here: there is no NVIDIA driver; install one.");
  return fail(DIPENGINE_UNSUPPORTED,
              "No CUDA device can be used here: the NVIDIA driver is for CUDA %d.%d, and this library for %d.%d; update the driver.",
              driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
}

dipengine_status dipengine_cuda_device_memory(int32_t device, size_t* free_bytes, size_t* total_bytes) {
  using namespace dipengine;
  DIPENGINE_REQUIRE(free_bytes != nullptr && total_bytes != nullptr, "dipengine_cuda_device_memory was given no place for its answer.");
  int before = 0;
  DIPENGINE_TRY(cuda::enter_device(device, &before));
  const dipengine_status status = cuda::check(cudaMemGetInfo(free_bytes, total_bytes), "Asking for a device's memory");
  cuda::leave_device(before);
  return status;
}

dipengine_status dipengine_cuda_device_name(int32_t device, char* name, size_t bytes) {
  using namespace dipengine;
  DIPENGINE_REQUIRE(name != nullptr && bytes > 0, "dipengine_cuda_device_name was given no place for its answer.");
  cudaDeviceProp properties{};
  DIPENGINE_TRY(cuda::check(cudaGetDeviceProperties(&properties, device), "Asking for a device's name"));
  std::snprintf(name, bytes, "%s", properties.name);
  return DIPENGINE_OK;
}

}  // extern "C"
