// Counts what the whole program allocates, in any thread, so that a test can say of a stretch of code that it takes no memory.
#pragma once

#include <cstdint>

namespace check {

// Calls of malloc, of its kin and of operator new so far.
int64_t allocations();

}  // namespace check
