// csrc/platform/cuda/ itself, over a fake of CUDA's runtime: what it calls, and what it makes of errors. The kernels do nothing.
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "fake_runtime.h"
#include "platform/cuda/device.h"
#include "platform/cuda/launch.h"
#include "platform/cuda/stream.h"

using namespace dipengine;

namespace {

struct Params {
  int number;
};
void one_kernel(Params) {}
void other_kernel(Params) {}

dipengine_status launch(void (*kernel)(Params), size_t shared, void* stream) {
  return cuda::launch(kernel, "a kernel", {1, 1, 1, 32, shared}, Params{1}, stream);
}

bool says(const char* words) { return std::strstr(dipengine_last_error(), words) != nullptr; }

// A stream, and a sequence of it, given back at the end.
struct Recording {
  void *stream = nullptr, *sequence = nullptr;
  dipengine_status status;
  explicit Recording(const std::function<dipengine_status(void*)>& launches) {
    CHECK(cuda::open_stream(&stream) == DIPENGINE_OK);
    status = cuda::record(stream, [this, launches] { return launches(stream); }, &sequence);
  }
  ~Recording() {
    cuda::forget(sequence);
    cuda::close_stream(stream);
  }
};

bool nothing_left() { return fake::state().graphs == 0 && fake::state().streams == 0 && fake::state().allocated == 0; }

}  // namespace

TEST(runtime_a_sequence_is_captured_once_and_replayed) {
  fake::reset();
  {
    const Recording recording([](void* stream) {
      DIPENGINE_TRY(launch(one_kernel, 0, stream));
      return launch(other_kernel, 0, stream);
    });
    CHECK(recording.status == DIPENGINE_OK && fake::state().ran.empty());
    if (recording.sequence == nullptr) return;
    CHECK(fake::state().forbidden.empty());  // the kernels' code had been loaded before
    for (int i = 0; i < 2; ++i) CHECK(cuda::replay(recording.sequence, recording.stream) == DIPENGINE_OK);
    CHECK(fake::state().ran.size() == 4 && cuda::wait(recording.stream) == DIPENGINE_OK);
    CHECK(fake::state().ran[1] == reinterpret_cast<const void*>(other_kernel) && fake::state().ran[2] == fake::state().ran[0]);
  }
  CHECK(nothing_left());
}

// What a kernel may have of shared memory is the kernel's, not a launch's.
TEST(runtime_a_launch_of_little_shared_memory_takes_none_from_those_captured_before) {
  fake::reset();
  const Recording recording([](void* stream) {
    DIPENGINE_TRY(launch(one_kernel, 200 * 1024, stream));
    DIPENGINE_TRY(launch(one_kernel, 60 * 1024, stream));
    return launch(other_kernel, 1024, stream);
  });
  CHECK(recording.status == DIPENGINE_OK);
  if (recording.sequence == nullptr) return;
  CHECK(launch(one_kernel, 50 * 1024, nullptr) == DIPENGINE_OK);
  CHECK(cuda::replay(recording.sequence, recording.stream) == DIPENGINE_OK && fake::state().ran.size() == 4);
  CHECK(launch(one_kernel, 228 * 1024, nullptr) == DIPENGINE_INVALID_ARGUMENT && says("where the device has 232448"));
}

TEST(runtime_what_no_capture_takes_fails_and_leaves_nothing) {
  fake::reset();
  for (int kind = 0; kind < 3; ++kind) {
    const Recording recording([kind](void* stream) {
      DIPENGINE_TRY(launch(one_kernel, 0, stream));
      if (cuda::loading) return DIPENGINE_OK;
      void* memory = nullptr;
      const int number = 1;
      return kind == 0 ? cuda::wait(stream) : kind == 1 ? cuda::allocate(8, &memory) : cuda::upload(&memory, &number, 4, stream);
    });
    CHECK(recording.status != DIPENGINE_OK && recording.sequence == nullptr);
    if (kind == 2) CHECK(says("cannot be captured"));
    CHECK(launch(one_kernel, 0, recording.stream) == DIPENGINE_OK);  // the stream is captured no more
  }
  CHECK(fake::state().forbidden.size() == 2 && fake::state().ran.size() == 3 && nothing_left());
}

// A second stream in a capture: put behind the first, and the first behind it again.
TEST(runtime_branches_of_a_capture_begin_and_end_in_it) {
  fake::reset();
  void* beside = nullptr;
  CHECK(cuda::open_stream(&beside) == DIPENGINE_OK);
  for (int kind = 0; kind < 3; ++kind) {
    const Recording recording([kind, beside](void* stream) {
      DIPENGINE_TRY(launch(one_kernel, 0, stream));
      if (kind != 1) DIPENGINE_TRY(cuda::wait_for(beside, stream));  // else it is no part of the capture
      if (kind != 1) DIPENGINE_TRY(launch(other_kernel, 0, beside));
      return kind == 2 ? DIPENGINE_OK : cuda::wait_for(stream, beside);
    });
    CHECK((recording.status == DIPENGINE_OK) == (kind == 0));
    if (recording.sequence == nullptr) continue;
    CHECK(cuda::replay(recording.sequence, recording.stream) == DIPENGINE_OK && fake::state().ran.size() == 2);
  }
  cuda::close_stream(beside);
  CHECK(nothing_left() && fake::state().events == 0);
}

namespace {

// One launch, two that come straight behind it, and one of another stream's that one more waits for.
dipengine_status branched(void* stream, void* beside) {
  for (int i = 0; i < 3; ++i) DIPENGINE_TRY(launch(one_kernel, 0, stream));
  DIPENGINE_TRY(cuda::wait_for(beside, stream));
  for (int i = 0; i < 2; ++i) DIPENGINE_TRY(launch(other_kernel, 0, beside));
  DIPENGINE_TRY(cuda::wait_for(stream, beside));
  return launch(one_kernel, 0, stream);
}

// How many of its launches may begin before the one before them has ended.
int overlapping_launches() {
  void* beside = nullptr;
  CHECK(cuda::open_stream(&beside) == DIPENGINE_OK);
  {
    const Recording recording([beside](void* stream) { return branched(stream, beside); });
    CHECK(recording.status == DIPENGINE_OK && fake::state().forbidden.empty() && !cuda::overlap.on);
    if (recording.sequence != nullptr) CHECK(cuda::replay(recording.sequence, recording.stream) == DIPENGINE_OK);
  }
  cuda::close_stream(beside);
  CHECK(fake::state().ran.size() == 6 && nothing_left());
  return fake::state().overlapped;
}

}  // namespace

TEST(runtime_a_launch_straight_behind_another_may_begin_before_its_end) {
  fake::reset();
  CHECK(overlapping_launches() == 3);
  CHECK(launch(one_kernel, 0, nullptr) == DIPENGINE_OK && launch(one_kernel, 0, nullptr) == DIPENGINE_OK);
  CHECK(fake::state().overlapped == 3);  // outside of a recording none does
}

TEST(runtime_code_that_does_not_wait_for_launches_is_not_started_early) {
  fake::reset();
  fake::state().code = 80;
  CHECK(overlapping_launches() == 0);
}

TEST(runtime_where_a_driver_takes_no_overlap_there_is_none) {
  for (const bool at_a_launch : {false, true}) {
    fake::reset();
    (at_a_launch ? fake::state().launches_overlap : fake::state().takes_overlap) = false;
    CHECK(overlapping_launches() == 0);
  }
}

TEST(runtime_overlap_can_be_switched_off) {
  fake::reset();
  setenv("DIPENGINE_CUDA_OVERLAP", "0", 1);
  CHECK(overlapping_launches() == 0);
  unsetenv("DIPENGINE_CUDA_OVERLAP");
}

TEST(runtime_without_graphs_the_launches_themselves_are_replayed) {
  fake::reset();
  setenv("DIPENGINE_CUDA_GRAPHS", "0", 1);
  const Recording recording([](void* stream) { return launch(one_kernel, 200 * 1024, stream); });
  unsetenv("DIPENGINE_CUDA_GRAPHS");
  CHECK(recording.status == DIPENGINE_OK && fake::state().ran.empty() && fake::state().graphs == 0);
  if (recording.sequence == nullptr) return;
  CHECK(cuda::replay(recording.sequence, recording.stream) == DIPENGINE_OK && fake::state().ran.size() == 1);
}

TEST(runtime_a_kernels_fault_is_told_as_the_devices_end) {
  fake::reset();
  const Recording recording([](void* stream) { return launch(one_kernel, 0, stream); });
  fake::state().fails_next = cudaErrorMisalignedAddress;
  CHECK(cuda::replay(recording.sequence, recording.stream) == DIPENGINE_OK);
  CHECK(cuda::wait(recording.stream) == DIPENGINE_DEVICE_FAILED && says("misaligned address; nothing can be done on this device"));
  CHECK(launch(one_kernel, 0, nullptr) == DIPENGINE_DEVICE_FAILED);  // and stays
  fake::reset();
  CHECK(launch(one_kernel, 0, nullptr) == DIPENGINE_OK);
}

TEST(runtime_memory_that_is_not_there_is_no_fault_of_the_device) {
  fake::reset();
  void* memory = nullptr;
  CHECK(cuda::allocate(size_t{2} << 30, &memory) == DIPENGINE_OUT_OF_RESOURCES && says("does not have 2147483648 bytes free"));
  CHECK(cuda::allocate(1 << 20, &memory) == DIPENGINE_OK && fake::state().allocated == 1 << 20);
  cuda::release(memory);
  CHECK(nothing_left());
}

TEST(runtime_numbers_of_the_host_may_be_gone_when_they_have_been_uploaded) {
  fake::reset();
  for (const int reads : {0, 1}) {
    fake::state().reads_host_pages = reads;
    int there = 0;
    const int number = 1;
    CHECK(cuda::upload(&there, &number, sizeof(number), nullptr) == DIPENGINE_OK && fake::state().reading == 0);
  }
}

TEST(runtime_devices_are_counted_and_entered) {
  fake::reset();
  int32_t count = 0;
  CHECK(dipengine_cuda_device_count(&count) == DIPENGINE_OK && count == 1);
  fake::state().capability = 7;
  CHECK(dipengine_cuda_device_count(&count) == DIPENGINE_UNSUPPORTED && says("capability 8.0"));
  fake::state() = {};
  fake::state().devices = 0;
  CHECK(dipengine_cuda_device_count(&count) == DIPENGINE_UNSUPPORTED && count == 0);
  fake::reset();
  fake::state().devices = 2;
  int before = -1, now = -1;
  CHECK(cuda::enter_device(1, &before) == DIPENGINE_OK && before == 0 && cudaGetDevice(&now) == cudaSuccess && now == 1);
  cuda::leave_device(before);
  CHECK(cudaGetDevice(&now) == cudaSuccess && now == 0 && cuda::enter_device(2, &before) == DIPENGINE_INVALID_ARGUMENT);
  char name[5];
  CHECK(dipengine_cuda_device_name(1, name, sizeof name) == DIPENGINE_OK && std::strcmp(name, "Fake") == 0);
  CHECK(dipengine_cuda_device_name(2, name, sizeof name) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_cuda_device_name(0, name, 0) == DIPENGINE_INVALID_ARGUMENT && says("no place"));
}
