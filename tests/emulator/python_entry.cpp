// The emulated device's memory and faults, for ctypes.
#include "emulator.h"
#include "platform/error.h"

using namespace dipengine::emulator;

extern "C" {

DIPENGINE_API void* emulator_memory(size_t bytes) { return new Memory(bytes); }
DIPENGINE_API void* emulator_data(void* memory) { return static_cast<Memory*>(memory)->data(); }
DIPENGINE_API int emulator_intact(void* memory) { return static_cast<Memory*>(memory)->intact() ? 1 : 0; }
DIPENGINE_API void emulator_free(void* memory) { delete static_cast<Memory*>(memory); }

// The first fault since the last call; "" where there is none.
DIPENGINE_API const char* emulator_fault() {
  static std::string text;
  text = faults().empty() ? "" : faults().front();
  clear_faults();
  return text.c_str();
}

// See Settings.
DIPENGINE_API void emulator_few_blocks(int few) { settings().few_blocks = few; }

// From now on launches are sampled, on a device whose blocks have `shared_limit` bytes.
DIPENGINE_API void emulator_sample(size_t shared_limit) {
  settings().sampled = true;
  settings().shared_limit = shared_limit;
}

// Launches since the last call, a line each: kernel's address, blocks by x, y, z, threads, shared bytes, products, bytes read,
// bytes written.
DIPENGINE_API const char* emulator_launches() {
  static std::string text;
  text.clear();
  for (const Launch& l : launches()) {
    text += std::to_string(reinterpret_cast<uintptr_t>(l.kernel));
    for (int64_t n : {l.x, l.y, l.z, int64_t{l.threads}, static_cast<int64_t>(l.shared), l.products, l.read, l.written})
      text += " " + std::to_string(n);
    text += "\n";
  }
  launches().clear();
  return text.c_str();
}

}  // extern "C"
