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

}  // extern "C"
