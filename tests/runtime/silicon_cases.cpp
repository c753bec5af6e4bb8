// Tests that end in every way in which one on a GPU can, for the program that runs those (tests/silicon/main.cpp).
#include <unistd.h>

#include <cstdlib>

#include "fake_runtime.h"
#include "platform/cuda/device.h"
#include "rounding.h"
#include "scenarios.h"

int& dipengine::cuda::few_blocks() {
  static int few = 64;
  return few;
}

namespace {

void lose_the_device() {
  fake::state().fails_next = cudaErrorMisalignedAddress;
  const cudaLaunchConfig_t config{};
  (void)cudaLaunchKernelExC(&config, nullptr, nullptr);
}

}  // namespace

SCENARIO(case_that_passes) { return true; }
SCENARIO(conv_case) {  // once as it is, once in the tiles of large images
  static int calls = 0;
  return dipengine::cuda::few_blocks() == (calls++ == 0 ? 64 : 0);
}
SCENARIO(case_that_is_wrong) { return dipengine::emulator::wrong("x[3] is 1 where 2 is expected"); }
SCENARIO(case_that_aborts) {
  dipengine::emulator::wrong("and says so before");
  std::abort();
}
SCENARIO(case_between) { return true; }
SCENARIO(case_that_loses_the_device) {
  lose_the_device();
  return true;
}
SCENARIO(case_that_hangs) {
  for (;;) pause();
}
SCENARIO(case_behind) {
  dipengine::emulator::Array<float> array(4);
  return array.intact();
}
TEST(fit_case_that_loses_the_device) {
  lose_the_device();
  const char* const graphs = std::getenv("DIPENGINE_CUDA_GRAPHS");
  std::printf("    %s\n", graphs == nullptr ? "an iteration failed" : "a kernel failed");
  dipengine::emulator::Array<float> array(4);  // ABORTED
}
TEST(fit_case_behind) {}

namespace dipengine {

dipengine_status silicon::round_to_tf32(const float*, uint32_t*) { return DIPENGINE_UNSUPPORTED; }

}  // namespace dipengine

extern "C" {

const char* dipengine_last_error(void) { return "no device"; }
dipengine_status dipengine_cuda_device_count(int32_t* count) {
  *count = std::getenv("NO_DEVICE") == nullptr ? 1 : 0;
  return *count == 1 ? DIPENGINE_OK : DIPENGINE_UNSUPPORTED;
}

}  // extern "C"
