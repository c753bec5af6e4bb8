// One emulated device with any number of streams, for the bindings: what is asked of it is kept for a test to read.
#include <cstdio>
#include <cstring>
#include <string>

#include "emulator.h"
#include "fit/graph.h"
#include "platform/cuda/device.h"
#include "platform/error.h"

namespace {

std::string happened;  // "device 0;stream 5 behind 7;"

std::string number(void* stream) { return std::to_string(reinterpret_cast<uintptr_t>(stream)); }

}  // namespace

namespace dipengine::cuda {

dipengine_status enter_device(int device, int* before) {
  *before = 1;  // so that a call has to return to it
  happened += "device " + std::to_string(device) + ";";
  return DIPENGINE_OK;
}

void leave_device(int before) { happened += "device " + std::to_string(before) + ";"; }

dipengine_status device_of(const void*, int* device) {
  *device = 0;
  return DIPENGINE_OK;
}

dipengine_status memory_of(const void* pointer, int* device) {
  *device = dipengine::emulator::holds(pointer) ? 0 : kHost;
  return DIPENGINE_OK;
}

dipengine_status wait_for(void* stream, void* before) {
  happened += "stream " + number(stream) + " behind " + number(before) + ";";
  return emulator::put_behind(stream, before);
}

dipengine_status upload(void* to, const void* from, size_t bytes, void* stream) {
  DIPENGINE_REQUIRE(!dipengine::emulator::recording(), "Numbers of the host are copied while launches are recorded.");
  happened += "numbers on " + number(stream) + ";";
  std::memcpy(to, from, bytes);
  return DIPENGINE_OK;
}

}  // namespace dipengine::cuda

extern "C" {

dipengine_status dipengine_cuda_device_count(int32_t* count) {
  *count = 1;
  return DIPENGINE_OK;
}

dipengine_status dipengine_cuda_device_memory(int32_t, size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = 3 << 20;
  *total_bytes = 4 << 20;
  return DIPENGINE_OK;
}

dipengine_status dipengine_cuda_device_name(int32_t, char* name, size_t bytes) {
  std::snprintf(name, bytes, "emulated");
  return DIPENGINE_OK;
}

// Canvas pixels up to which fits store every gradient from now on; what it was.
DIPENGINE_API int64_t emulator_stored_pixels(int64_t most) {
  const int64_t before = dipengine::most_stored_pixels;
  dipengine::most_stored_pixels = most;
  return before;
}

// What has been asked for since the last call.
DIPENGINE_API const char* emulator_happened() {
  static std::string text;
  text.swap(happened);
  happened.clear();
  return text.c_str();
}

// The streams of the launches since the last call: "7;7;".
DIPENGINE_API const char* emulator_launched_on() {
  static std::string text;
  text.clear();
  for (void* stream : dipengine::emulator::launched_on()) text += number(stream) + ";";
  return text.c_str();
}

}  // extern "C"
