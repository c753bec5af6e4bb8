// Rounding to tf32 by the device, for the golden values of tests/emulator/test_layouts.cpp.
#pragma once

#include <cstdint>

#include "dipengine/dipengine.h"

namespace dipengine::silicon {

// *to: the bits of *from rounded; both in memory that the device reaches.
dipengine_status round_to_tf32(const float* from, uint32_t* to);

}  // namespace dipengine::silicon
