// Errors of the core: a status and one sentence, kept per thread.
#pragma once

#include "dipengine/dipengine.h"

namespace dipengine {

// Keep a printf-style sentence for dipengine_last_error() and return `status`.
dipengine_status fail(dipengine_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Check that params exist and were built against this ABI; `op` names them in the message.
template <typename Params>
dipengine_status check_struct(const Params* params, const char* op) {
  if (params == nullptr) return fail(DIPENGINE_INVALID_ARGUMENT, "%s was given no params; pass a pointer to them.", op);
  if (params->struct_size != sizeof(Params)) {
    return fail(DIPENGINE_STRUCT_SIZE,
                "%s was given params with struct_size %zu where this library (ABI %d) has %zu; set it to sizeof(params) "
                "and build the host against this library's headers.",
                op, params->struct_size, DIPENGINE_ABI_VERSION, sizeof(Params));
  }
  return DIPENGINE_OK;
}

}  // namespace dipengine

// Return from the enclosing function when `expression` is not DIPENGINE_OK.
#define DIPENGINE_TRY(expression)                                  \
  do {                                                             \
    const dipengine_status try_status = (expression);              \
    if (try_status != DIPENGINE_OK) return try_status;             \
  } while (false)

// Return DIPENGINE_INVALID_ARGUMENT with a sentence when `condition` does not hold.
#define DIPENGINE_REQUIRE(condition, ...)                                                      \
  do {                                                                                         \
    if (!(condition)) return ::dipengine::fail(DIPENGINE_INVALID_ARGUMENT, __VA_ARGS__);        \
  } while (false)
