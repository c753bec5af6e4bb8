// The GPU that the tests run on.
#pragma once

namespace dipengine::silicon {

// Waits until all work is done. False, and a line that says why, where the process has lost its device.
bool device_works();

}  // namespace dipengine::silicon
