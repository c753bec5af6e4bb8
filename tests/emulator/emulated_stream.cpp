// The emulated device's memory and streams, of which there is one at a time for each that is open; all work is done when it is given,
// or, recorded, when it is replayed.
#include "platform/cuda/stream.h"

#include <cstring>
#include <map>
#include <memory>

#include "emulator.h"
#include "platform/error.h"

namespace dipengine::cuda {
namespace {

std::map<void*, std::unique_ptr<emulator::Memory>>& memories() {
  static std::map<void*, std::unique_ptr<emulator::Memory>> all;
  return all;
}

uintptr_t streams = 0;

// What a stream that is being captured does not take.
dipengine_status refuse_while_recording(const char* what) {
  DIPENGINE_REQUIRE(!emulator::recording(), "%s while launches are recorded.", what);
  return DIPENGINE_OK;
}

}  // namespace

}  // namespace dipengine::cuda

size_t dipengine::emulator::allocated() {
  size_t bytes = 0;
  for (const auto& [address, memory] : cuda::memories()) bytes += memory->bytes();
  return bytes;
}

namespace dipengine::cuda {

dipengine_status allocate(size_t bytes, void** memory) {
  DIPENGINE_TRY(refuse_while_recording("Memory is taken"));
  if (bytes > emulator::settings().memory - emulator::allocated()) {
    return fail(DIPENGINE_OUT_OF_RESOURCES, "The device does not have %zu bytes free.", bytes);
  }
  auto made = std::make_unique<emulator::Memory>(bytes);
  *memory = made->data();
  memories()[*memory] = std::move(made);
  return DIPENGINE_OK;
}

void release(void* memory) { memories().erase(memory); }

dipengine_status open_stream(void** stream) {
  *stream = reinterpret_cast<void*>(++streams);
  return DIPENGINE_OK;
}

void close_stream(void*) {}

// Whatever was written outside of its memory by now is known, but for sampled launches, whose memory nobody checks.
dipengine_status wait(void*) {
  DIPENGINE_TRY(refuse_while_recording("A stream is waited for"));
  if (emulator::settings().sampled) return DIPENGINE_OK;
  for (const auto& [address, memory] : memories()) {
    if (!memory->intact()) return fail(DIPENGINE_INVALID_ARGUMENT, "The memory at %p was written outside of.", address);
  }
  return DIPENGINE_OK;
}

dipengine_status download(void* to, const void* from, size_t bytes, void* stream) {
  std::memcpy(to, from, bytes);
  return wait(stream);
}

dipengine_status copy_rows(FloatRows<float> to, FloatRows<const float> from, int64_t count, int64_t length, void* stream) {
  for (int64_t row = 0; row < count; ++row) {
    std::memcpy(to.first + row * to.stride, from.first + row * from.stride, static_cast<size_t>(length) * sizeof(float));
  }
  return wait(stream);
}

dipengine_status record(void* stream, const std::function<dipengine_status()>& launches, void** sequence) {
  dipengine_status status = DIPENGINE_OK;
  auto made = std::make_unique<emulator::Sequence>();
  for (int time = 0; time < 2 && status == DIPENGINE_OK; ++time) {  // the first to load kernels, of which there is nothing here
    made->clear();
    emulator::begin_recording(stream, made.get());
    status = launches();
    const dipengine_status ended = emulator::end_recording();
    if (status == DIPENGINE_OK) status = ended;
  }
  if (status == DIPENGINE_OK) *sequence = made.release();
  return status;
}

dipengine_status replay(void* sequence, void*) {
  return emulator::run_in_some_order(*static_cast<emulator::Sequence*>(sequence));
}

void forget(void* sequence) { delete static_cast<emulator::Sequence*>(sequence); }

}  // namespace dipengine::cuda
