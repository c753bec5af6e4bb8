#include "platform/cuda/stream.h"

#include <cstdlib>
#include <cstring>
#include <memory>

#include "platform/cuda/launch.h"

namespace dipengine::cuda {
namespace {

// A recorded sequence: a graph, or, where DIPENGINE_CUDA_GRAPHS is 0, the launches themselves, so that an error names its kernel.
struct Recorded {
  cudaGraphExec_t graph = nullptr;
  std::function<dipengine_status()> launches;
};

// What is on unless the environment says 0.
bool uses(const char* variable) {
  const char* const said = std::getenv(variable);
  return said == nullptr || std::strcmp(said, "0") != 0;
}

// The code of all kernels that are launched comes to the device.
dipengine_status load(const std::function<dipengine_status()>& launches) {
  loading = true;
  const dipengine_status status = launches();
  loading = false;
  return status;
}

dipengine_status capture(cudaStream_t stream, const std::function<dipengine_status()>& launches, cudaGraphExec_t* made) {
  const char* const doing = "Recording an iteration";
  DIPENGINE_TRY(check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), doing));
  dipengine_status status = launches();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream, &graph);  // also behind a failed launch: the stream is captured else
  if (status == DIPENGINE_OK) status = check(ended, doing);
  if (status == DIPENGINE_OK) status = check(cudaGraphInstantiateWithFlags(made, graph, 0), doing);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();
  return status;
}

// A driver that does not take a graph of launches that overlap gets one of launches that do not.
dipengine_status capture_overlapping(cudaStream_t stream, const std::function<dipengine_status()>& launches, cudaGraphExec_t* made) {
  struct Overlapping {
    Overlapping() { overlap = {uses("DIPENGINE_CUDA_OVERLAP"), false, {}}; }
    ~Overlapping() { overlap = {}; }
  };
  {
    const Overlapping overlapping;
    const dipengine_status status = capture(stream, launches, made);
    if (status == DIPENGINE_OK || !overlap.used) return status;
  }
  return capture(stream, launches, made);
}

}  // namespace

dipengine_status allocate(size_t bytes, void** memory) {
  const cudaError_t error = cudaMalloc(memory, bytes);
  if (error != cudaErrorMemoryAllocation) return check(error, "Taking a device's memory");
  (void)cudaGetLastError();
  return fail(DIPENGINE_OUT_OF_RESOURCES,
              "The device does not have %zu bytes free; use a smaller image, fewer channels or fewer slots.", bytes);
}

void release(void* memory) { (void)cudaFree(memory); }

dipengine_status open_stream(void** stream) {
  cudaStream_t made = nullptr;
  DIPENGINE_TRY(check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "Making a stream"));
  *stream = made;
  return DIPENGINE_OK;
}

void close_stream(void* stream) { (void)cudaStreamDestroy(static_cast<cudaStream_t>(stream)); }

dipengine_status wait(void* stream) {
  return check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "Waiting for a device");
}

dipengine_status download(void* to, const void* from, size_t bytes, void* stream) {
  DIPENGINE_TRY(check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)),
                      "Copying from a device"));
  return wait(stream);
}

dipengine_status copy_rows(FloatRows<float> to, FloatRows<const float> from, int64_t count, int64_t length, void* stream) {
  const auto bytes = [](int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); };
  return check(cudaMemcpy2DAsync(to.first, bytes(to.stride), from.first, bytes(from.stride), bytes(length), static_cast<size_t>(count),
                                 cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream)),
               "Copying on a device");
}

dipengine_status record(void* stream, const std::function<dipengine_status()>& launches, void** sequence) {
  auto recorded = std::make_unique<Recorded>();
  DIPENGINE_TRY(load(launches));
  if (uses("DIPENGINE_CUDA_GRAPHS")) {
    DIPENGINE_TRY(capture_overlapping(static_cast<cudaStream_t>(stream), launches, &recorded->graph));
  } else {
    recorded->launches = launches;
  }
  *sequence = recorded.release();
  return DIPENGINE_OK;
}

dipengine_status replay(void* sequence, void* stream) {
  const Recorded& recorded = *static_cast<Recorded*>(sequence);
  if (recorded.graph == nullptr) return recorded.launches();
  return check(cudaGraphLaunch(recorded.graph, static_cast<cudaStream_t>(stream)), "An iteration");
}

void forget(void* sequence) {
  const std::unique_ptr<Recorded> recorded(static_cast<Recorded*>(sequence));
  if (recorded != nullptr && recorded->graph != nullptr) (void)cudaGraphExecDestroy(recorded->graph);
}

}  // namespace dipengine::cuda
