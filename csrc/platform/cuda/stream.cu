#include "platform/cuda/stream.h"

#include "platform/cuda/launch.h"

namespace dipengine::cuda {

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
  const char* const doing = "Recording an iteration";
  cudaStream_t on = static_cast<cudaStream_t>(stream);
  DIPENGINE_TRY(check(cudaStreamBeginCapture(on, cudaStreamCaptureModeThreadLocal), doing));
  const dipengine_status launched = launches();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(on, &graph);  // also behind a failed launch: the stream is captured else
  dipengine_status status = launched;
  if (status == DIPENGINE_OK) status = check(ended, doing);
  cudaGraphExec_t made = nullptr;
  if (status == DIPENGINE_OK) status = check(cudaGraphInstantiateWithFlags(&made, graph, 0), doing);
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();
  if (status == DIPENGINE_OK) *sequence = made;
  return status;
}

dipengine_status replay(void* sequence, void* stream) {
  return check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(sequence), static_cast<cudaStream_t>(stream)), "An iteration");
}

void forget(void* sequence) {
  if (sequence != nullptr) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(sequence));
}

}  // namespace dipengine::cuda
