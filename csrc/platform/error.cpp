#include "platform/error.h"

#include <cstdarg>
#include <cstdio>

namespace {

thread_local char last_error[512] = "";

}  // namespace

namespace dipengine {

dipengine_status fail(dipengine_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace dipengine

extern "C" {

const char* dipengine_last_error(void) { return last_error; }

const char* dipengine_status_string(dipengine_status status) {
  switch (status) {
    case DIPENGINE_OK: return "ok";
    case DIPENGINE_INVALID_ARGUMENT: return "invalid argument";
    case DIPENGINE_STRUCT_SIZE: return "params struct of another ABI version";
    case DIPENGINE_UNSUPPORTED: return "unsupported";
    case DIPENGINE_OUT_OF_RESOURCES: return "out of resources";
    case DIPENGINE_DEVICE_FAILED: return "device failed";
  }
  return "unknown status";
}

}  // extern "C"
