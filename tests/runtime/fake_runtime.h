// What a test sees and sets of the fake runtime.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"

namespace fake {

struct State {
  int devices = 1, capability = 9, reads_host_pages = 0;
  size_t memory = size_t{1} << 30, optin = 227 * 1024;
  std::vector<const void*> ran;        // kernels, in their order, launched or replayed
  std::vector<std::string> forbidden;  // calls that a stream which is being captured does not take, and loading of code there
  size_t allocated = 0, graphs = 0, streams = 0, events = 0;  // that are alive
  int reading = 0;                                            // copies of the host's memory that may not have been read yet
  int code = 90, overlapped = 0;  // that kernels were compiled for; launches that ran and might begin before the one before them ended
  bool takes_overlap = true, launches_overlap = true;           // in a graph that is made; at a launch
  cudaError_t fails_next = cudaSuccess;                       // by the next kernel that runs; told at the next wait, and ever after
};
State& state();
void reset();

}  // namespace fake
