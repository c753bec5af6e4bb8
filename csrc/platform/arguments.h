// What the C interface checks of its arguments.
#pragma once

#include <initializer_list>

#include "platform/error.h"

namespace dipengine {

struct Pointer {
  const char* name;
  const void* pointer;
};

// Every pointer that `function` cannot do without.
inline dipengine_status given(const char* function, std::initializer_list<Pointer> pointers) {
  for (const Pointer& p : pointers) {
    DIPENGINE_REQUIRE(p.pointer != nullptr, "%s was given NULL for %s; pass a pointer to it.", function, p.name);
  }
  return DIPENGINE_OK;
}

}  // namespace dipengine
