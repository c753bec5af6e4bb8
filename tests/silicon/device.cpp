// What the emulator's tests see of their device (tests/emulator/emulator.h), on a GPU: memory that both the host and the device
// reach, and nothing to find faults but the results, the redzones and whatever checker the program runs under.
//
// The memory is the host's, pinned: the device reads and writes it at the same addresses, as tests that look into an array
// between two launches need it. Whole fits have memory of the device itself.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "device.h"
#include "emulator.h"
#include "platform/cuda/tensor_core.h"
#include "rounding.h"

namespace dipengine::emulator {
namespace {

constexpr size_t kRedzone = 4096;  // a multiple of the alignment that cudaMalloc gives

void must(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  // Behind such an error nothing works in this process any more.
  std::printf("ABORTED %s: %s\n", doing, cudaGetErrorString(error));
  std::exit(3);
}

// DIPENGINE_SILICON_EXACT: no redzones, so that a checker of accesses sees the first byte outside.
size_t redzone() {
  static const bool exact = std::getenv("DIPENGINE_SILICON_EXACT") != nullptr;
  return exact ? 0 : kRedzone;
}

unsigned char* pinned(size_t bytes) {
  void* memory = nullptr;
  must(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "Taking memory for a test");
  std::memset(memory, 0xff, bytes);
  return static_cast<unsigned char*>(memory);
}

void give_back(void* memory) { must(cudaFreeHost(memory), "Giving a test's memory back"); }

Settings the_settings;

}  // namespace

Settings& settings() { return the_settings; }
const std::vector<std::string>& faults() {
  static const std::vector<std::string> none;
  return none;
}
void clear_faults() {}
std::vector<Site> sites() { return {}; }
void clear_sites() {}
const std::map<const void*, size_t>& launched() {
  static const std::map<const void*, size_t> none;
  return none;
}
std::vector<void*> launched_on() { return {}; }

Memory::Memory(size_t bytes) : bytes_(bytes), storage_(pinned(std::max<size_t>(bytes + 2 * redzone(), 1)), give_back) {
  data_ = storage_.get() + redzone();
}
Memory::~Memory() = default;

bool Memory::intact() const {
  for (size_t i = 0; i < redzone(); ++i) {
    if (data_[bytes_ + i] != 0xff || storage_.get()[i] != 0xff) return false;
  }
  return true;
}

}  // namespace dipengine::emulator

namespace dipengine {

bool silicon::device_works() {
  const cudaError_t error = cudaDeviceSynchronize();
  if (error != cudaSuccess) std::printf("    the device is lost: %s\n", cudaGetErrorString(error));
  return error == cudaSuccess;
}

}  // namespace dipengine

namespace dipengine::cuda {

uint32_t tf32_from_float(float x) {
  emulator::Array<float> from(std::vector<float>{x});
  emulator::Array<uint32_t> to(1);
  return silicon::round_to_tf32(from.data(), to.data()) == DIPENGINE_OK ? to[0] : 0xffffffffu;
}

}  // namespace dipengine::cuda
