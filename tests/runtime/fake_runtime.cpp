// The rules of CUDA's runtime that csrc/platform/cuda/ could break, at their strictest.
//
//   - while a stream is captured: no memory taken or given back, no wait, no copy of pageable memory, no kernel's code loaded (which its
//     first launch does); such a call breaks the capture. A stream that waits for one of it is captured too, and has to be waited for
//     again; one of it that waits for a stream outside breaks it;
//   - a launch may have 48 KB of shared memory, or what was set last for its kernel; that holds for the kernels of a graph when it is
//     made and at every replay, too;
//   - a launch that may overlap with the one before it: on a captured stream whose last entry is a launch, of a kernel that waits for others
//     itself, which code of compute capability 9.0 and later does;
//   - memory of the host that is copied from may be read until a wait, where a device reads the host's pages itself;
//   - behind a kernel's fault every call fails.
#include "fake_runtime.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

struct FakeStream {
  FakeGraph* captures = nullptr;
  bool broken = false;
  bool loose = false;  // captured by way of an event, with launches that no other stream waits for yet
  bool behind_launch = false;  // of the capture
};
struct FakeEvent {
  FakeStream* of = nullptr;
  FakeGraph* captures = nullptr;
};
struct Node {
  const void* kernel;
  size_t shared;
  bool overlaps;
};
struct FakeGraph {
  std::vector<Node> nodes;
};

dim3 threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads() {}
void __syncwarp() {}

namespace {

fake::State the_state;
std::map<const void*, size_t> shared_limits;
std::set<const void*> loaded;
std::map<void*, size_t> memories;
FakeStream* captured = nullptr;
std::set<FakeStream*> streams;
FakeStream legacy;
cudaError_t last = cudaSuccess, lost = cudaSuccess;
int device = 0;

cudaError_t told(cudaError_t error) {
  if (lost != cudaSuccess) error = lost;
  if (error != cudaSuccess) last = error;
  return error;
}

// False where a capture is under way, which it breaks.
bool allowed(const char* what) {
  if (captured == nullptr) return true;
  captured->broken = true;
  the_state.forbidden.push_back(what);
  return false;
}

FakeStream& of(cudaStream_t stream) { return stream == nullptr ? legacy : *stream; }

size_t limit_of(const void* kernel) {
  const auto found = shared_limits.find(kernel);
  return found == shared_limits.end() ? 48 * 1024 : found->second;
}

void load(const void* kernel) {
  if (loaded.insert(kernel).second) (void)allowed("a kernel's code is loaded");
}

void run(const Node& node) {
  the_state.ran.push_back(node.kernel);
  if (node.overlaps) ++the_state.overlapped;
  if (the_state.fails_next != cudaSuccess) lost = the_state.fails_next;
}

bool within_limits(const FakeGraph& graph) {
  for (const Node& node : graph.nodes) {
    if (node.shared > limit_of(node.kernel)) return false;
  }
  return true;
}

}  // namespace

fake::State& fake::state() { return the_state; }
void fake::reset() {
  the_state = {};
  shared_limits.clear();
  loaded.clear();
  captured = nullptr;
  last = lost = cudaSuccess;
  device = 0;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = lost != cudaSuccess ? lost : last;
  last = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMisalignedAddress ? "misaligned address" : error == cudaErrorStreamCaptureInvalidated ? "broken capture" : "error";
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = the_state.devices;
  return told(the_state.devices == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaGetDevice(int* current) {
  *current = device;
  return told(cudaSuccess);
}
cudaError_t cudaSetDevice(int wanted) {
  if (wanted >= the_state.devices) return told(cudaErrorInvalidDevice);
  device = wanted;
  return told(cudaSuccess);
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = the_state.capability; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(the_state.optin); break;
    case cudaDevAttrPageableMemoryAccessUsesHostPageTables: *value = the_state.reads_host_pages; break;
  }
  return told(cudaSuccess);
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  *attributes = {cudaMemoryTypeDevice, device};
  return told(cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= the_state.devices) return told(cudaErrorInvalidDevice);
  std::strcpy(properties->name, "Fake GPU");
  return told(cudaSuccess);
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = the_state.memory - the_state.allocated;
  *total_bytes = the_state.memory;
  return told(cudaSuccess);
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  load(kernel);
  if (value < 0 || static_cast<size_t>(value) > the_state.optin) return told(cudaErrorInvalidValue);
  shared_limits[kernel] = static_cast<size_t>(value);
  return told(cudaSuccess);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  load(kernel);
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(limit_of(kernel));
  attributes->ptxVersion = the_state.code;
  return told(cudaSuccess);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void**) {
  FakeStream& stream = of(config->stream);
  const Node node = {kernel, config->dynamicSmemBytes, config->numAttrs > 0};
  load(kernel);
  if (node.shared > limit_of(kernel)) return told(cudaErrorInvalidValue);
  if (node.overlaps && (!stream.behind_launch || the_state.code < 90)) the_state.forbidden.push_back("a launch overlaps");
  if (lost != cudaSuccess) return told(lost);
  if (node.overlaps && !the_state.launches_overlap) {
    captured->broken = true;
    return told(cudaErrorNotSupported);
  }
  if (stream.captures != nullptr) {
    stream.captures->nodes.push_back(node);
    stream.loose = config->stream != captured;
    stream.behind_launch = true;
  } else {
    run(node);
  }
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return told(allowed("a device is waited for") ? cudaSuccess : cudaErrorStreamCaptureUnsupported); }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  *memory = lost == cudaSuccess ? std::malloc(bytes) : nullptr;
  return told(cudaSuccess);
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return told(cudaSuccess);
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (!allowed("memory is taken")) return told(cudaErrorStreamCaptureUnsupported);
  if (bytes > the_state.memory - the_state.allocated) return told(cudaErrorMemoryAllocation);
  *memory = std::malloc(1);
  memories[*memory] = bytes;
  the_state.allocated += bytes;
  return told(cudaSuccess);
}
cudaError_t cudaFree(void* memory) {
  if (!allowed("memory is given back")) return told(cudaErrorStreamCaptureUnsupported);
  const auto found = memories.find(memory);
  if (found == memories.end()) return told(cudaErrorInvalidValue);
  the_state.allocated -= found->second;
  memories.erase(found);
  std::free(memory);
  return told(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind kind, cudaStream_t stream) {
  if (of(stream).captures != nullptr && !allowed("pageable memory is copied")) return told(cudaErrorStreamCaptureUnsupported);
  if (kind == cudaMemcpyHostToDevice && the_state.reads_host_pages != 0) ++the_state.reading;
  return told(cudaSuccess);
}
cudaError_t cudaMemcpy2DAsync(void*, size_t, const void*, size_t, size_t, size_t, cudaMemcpyKind, cudaStream_t) {
  return told(cudaSuccess);  // on one device: a capture takes it
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new FakeStream;
  streams.insert(*stream);
  ++the_state.streams;
  return told(cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  streams.erase(stream);
  delete stream;
  --the_state.streams;
  return told(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  the_state.reading = 0;
  return told(allowed("a stream is waited for") ? cudaSuccess : cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  FakeStream& waits = of(stream);
  if (waits.captures != nullptr && event->captures == nullptr) {
    captured->broken = true;
    return told(cudaErrorStreamCaptureIsolation);
  }
  if (event->captures == nullptr) return told(cudaSuccess);
  waits.captures = event->captures;
  waits.behind_launch = false;
  waits.loose = waits.loose || (event->of->loose && stream != captured);
  event->of->loose = false;
  return told(cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = of(stream).captures != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return told(cudaSuccess);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || captured != nullptr) return told(cudaErrorStreamCaptureUnsupported);
  captured = stream;
  stream->captures = new FakeGraph;
  stream->broken = stream->behind_launch = false;
  ++the_state.graphs;
  return told(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->captures;
  bool loose = false;
  for (FakeStream* other : streams) {
    loose = loose || other->loose;
    other->captures = nullptr;
    other->loose = other->behind_launch = false;
  }
  captured = nullptr;
  if (!stream->broken && !loose) return told(cudaSuccess);
  (void)cudaGraphDestroy(*graph);
  *graph = nullptr;
  return told(stream->broken ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnjoined);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new FakeEvent;
  ++the_state.events;
  return told(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {&of(stream), of(stream).captures};
  return told(cudaSuccess);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  --the_state.events;
  return told(cudaSuccess);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  if (!within_limits(*graph)) return told(cudaErrorInvalidValue);
  for (const Node& node : graph->nodes) {
    if (node.overlaps && !the_state.takes_overlap) return told(cudaErrorNotSupported);
  }
  *made = new FakeGraph(*graph);
  ++the_state.graphs;
  return told(cudaSuccess);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  --the_state.graphs;
  return told(cudaSuccess);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t) {
  if (!within_limits(*graph)) return told(cudaErrorInvalidValue);
  if (lost == cudaSuccess) {
    for (const Node& node : graph->nodes) run(node);
  }
  return cudaSuccess;  // what becomes of it is told later
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }
