// An emulator of the part of CUDA that csrc/platform/cuda/ declares, for kernels compiled with g++: what a test sees of it.
//
// One fiber per thread of a block, blocks one after the other in random order. Warps run in an adversarial order drawn
// from the seed: mostly as far ahead as barriers let them. Shared memory starts as NaN, between redzones. Kernels are
// compiled with -fsanitize=thread, whose calls before every access (`__tsan_read4` and so on) are defined here: so each
// access to shared or global memory is checked, and found are, whatever the order of that run,
//
//   - accesses outside of every buffer, the host's memory among them, and misaligned ones;
//   - calculations with signed numbers that leave the range of their type;
//   - reads of shared memory that nobody has written;
//   - two accesses to the same place, one of them a write, that no barrier orders: between threads of a block, between
//     blocks of a launch, and between a thread and an asynchronous copy that was not waited for;
//   - barriers and warp-wide operations that some threads of the block or warp do not come to, or come to elsewhere;
//   - asynchronous copies left under way by a thread that ends;
//   - accesses to global memory before the thread has waited for the launches before (cuda::wait_for_launches), which may still run.
//
// cp.async lands at once or only when it is waited for, at random. Tensor cores are emulated by the documented register
// layout; sums are exact over 8 products and truncated to float32 (M. Fasi et al., "Numerical behavior of NVIDIA tensor
// cores", 2021, found truncation and blocks of 4 to 16 by architecture).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "dipengine/dipengine.h"

namespace dipengine::emulator {

struct Site {  // of a barrier or wait
  std::string file;
  int line;
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};

// Bytes of a block's shared memory: of sm_86, or as many KB as EMULATOR_SHARED_KB in the environment says.
inline size_t shared_memory_of_a_block() {
  const char* const given = std::getenv("EMULATOR_SHARED_KB");
  return 1024 * (given == nullptr ? 99 : static_cast<size_t>(std::atoi(given)));
}

struct Settings {
  uint64_t seed = 1;                // of the order of everything
  size_t shared_limit = shared_memory_of_a_block();
  size_t memory = SIZE_MAX;         // bytes that the device has
  int few_blocks = 64;              // of which fewer are shared out further; 0: tiles of large images, whatever the image's size
  Site deleted{"", 0};              // a barrier or wait that does nothing
  // Of a launch of more than 64 blocks only those at 16 places of x run, in memory that nobody checks: to count (launches()).
  bool sampled = false;
};
Settings& settings();

// One sentence each, three of a kind in a launch; a launch with a fault also returns a failure.
const std::vector<std::string>& faults();
void clear_faults();

// Launches kept to be run later: those on `stream` from begin_recording(stream, &sequence) on, and those on streams that were put
// behind it or behind another of them (cuda::wait_for), each with the launches that it has to come behind.
struct Recorded {
  std::string name;
  std::function<dipengine_status()> run;
  std::vector<size_t> after;
};
using Sequence = std::vector<Recorded>;
void begin_recording(void* stream, Sequence* sequence);
// A failure where a launch is on a stream that `stream` was not put behind again.
dipengine_status end_recording();
// A failure where a stream of the recording is put behind one outside of it.
dipengine_status put_behind(void* stream, void* before);
// All of it in an order drawn from the seed, of those that what each launch has to come behind leaves. Also found, whatever the order:
// two launches with neither behind the other that touch the same place, one of them to write.
dipengine_status run_in_some_order(const Sequence& sequence);
bool recording();
// What the last recording kept.
const Sequence& last_recorded();

// The streams of the launches since the last call.
std::vector<void*> launched_on();

// Kernels launched since the process began, each with the most shared memory that a block of it was given.
const std::map<const void*, size_t>& launched();

// Where barriers and waits were met since the last clear_sites, in order of file and line.
std::vector<Site> sites();
void clear_sites();

// A launch as it was made while `sampled`, and what all its blocks do, from those that ran.
struct Launch {
  const void* kernel;
  int64_t x, y, z;  // blocks
  int threads;
  size_t shared;
  int64_t products;       // of the tensor cores, m16n8k16 or m16n8k8
  int64_t read, written;  // bytes of global memory that threads ask for
};
std::vector<Launch>& launches();

// Global memory, known to the checks: `count` values between redzones, at first all bytes 0xff (NaN).
class Memory {
 public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  unsigned char* data() { return data_; }
  size_t bytes() const { return bytes_; }
  bool intact() const;  // of the redzones

 private:
  unsigned char* data_;
  size_t bytes_;
  std::unique_ptr<unsigned char, void (*)(void*)> storage_;
};

// Whether an address is in one of them.
bool holds(const void* pointer);

// Bytes that platform/cuda/stream.h has given and not taken back.
size_t allocated();

template <typename T>
class Array {
 public:
  explicit Array(int64_t count) : memory_(static_cast<size_t>(count) * sizeof(T)), count_(count) {}
  Array(const std::vector<T>& values) : Array(static_cast<int64_t>(values.size())) {
    if (!values.empty()) std::memcpy(memory_.data(), values.data(), values.size() * sizeof(T));
  }
  T* data() { return reinterpret_cast<T*>(memory_.data()); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return count_; }
  bool intact() const { return memory_.intact(); }
  std::vector<T> copy() { return std::vector<T>(data(), data() + count_); }

 private:
  Memory memory_;
  int64_t count_;
};

}  // namespace dipengine::emulator
