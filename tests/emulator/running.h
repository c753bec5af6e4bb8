// What the parts of the emulator share: the launch under way, its block, threads and memory.
//
//   scheduling.cpp        threads of a block, their order, barriers        warp_operations.cpp  shuffles, products, ldmatrix
//   memory.cpp            every access checked; loads, stores, copies      recording.cpp        sequences of launches
//   emulator.cpp          launches, and what tests see
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "emulator.h"
#include "fiber.h"
#include "memory_checks.h"
#include "platform/cuda/launch.h"

namespace dipengine::emulator {

constexpr size_t kRedzone = 4096;
constexpr int kLanes = 32;

class Random {
 public:
  void seed(uint64_t value) { state_ = value * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u; }
  uint32_t below(uint32_t n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>((state_ >> 32) * n >> 32);
  }

 private:
  uint64_t state_ = 1;
};

enum class Operation { none, sync_warp, shuffle, mma_bf16, mma_tf32, load_matrices };

struct AsyncCopy {
  unsigned char* to;
  const unsigned char* from;
  bool landed;
  uint64_t group;
};

struct Thread {
  Context context{};
  Moment now{};
  bool at_barrier = false, done = false;
  bool behind_launches = false;  // cuda::wait_for_launches
  const char* waits_file = "";
  int waits_line = 0;
  uint64_t open_group = 0;  // the number of groups committed
  std::vector<AsyncCopy> copies;
};

struct Warp {
  uint32_t ready = 0;  // lanes that can run
  Operation operation = Operation::none;
  const char* file = nullptr;
  int line = 0, arrived = 0;
  std::array<void*, kLanes> arguments{};
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int at_barrier = 0, done = 0;
  uint32_t ticket_taken = 0;  // barriers behind which it was, and whether it was the last one
  bool ticket_last = false;
  const char* barrier_file = nullptr;
  int barrier_line = 0;
};

// ---- the launch under way -------------------------------------------------------------------------------------------

inline Settings the_settings;
inline const char* kernel_name = "";
inline cuda::Grid grid;
inline const std::function<void()>* body;
inline uint32_t launch_number = 0;
inline Launch counted;  // of the blocks that ran
inline Random rng;
inline bool aborted;

inline Block block;
inline int64_t block_id[3];
inline int current = -1;  // thread that runs; -1: the host's code
inline Thread& me() { return block.threads[static_cast<size_t>(current)]; }

inline std::vector<unsigned char> shared_storage;
inline unsigned char* shared = nullptr;
inline Cells shared_cells;

inline Stacks& stacks() {
  static Stacks all;
  return all;
}

// ---- what the parts ask of each other -------------------------------------------------------------------------------

// emulator.cpp
void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
const char* name_of(const char* file);
// Notes where a barrier or wait is; true where it is to do nothing.
bool deleted(const char* file, int line);

// recording.cpp
// Whether a launch is kept for later because its stream is recorded; fails where another one is.
dipengine_status keep(const char* name, void* stream, const std::function<dipengine_status()>& run, bool* kept);

// scheduling.cpp
void run_block(int64_t index);
[[noreturn]] void abandon();  // gives up the block and the launch: no thread of it runs on
// An operation of a whole warp; done by the last lane that comes, for all.
void together(Operation operation, void* arguments, const char* file, int line);

// warp_operations.cpp
void perform(Operation operation, const std::array<void*, kLanes>& arguments, int warp);

// memory.cpp
void begin_checks(int64_t blocks);  // of a launch
// The first thread of the block that runs takes a ticket; what it tells and learns is what passes from block to block.
void take_ticket(uint32_t* ticket, int count, bool tells);
void access(const void* pointer, size_t bytes, bool write);  // of the thread that runs
void check_shared(const unsigned char* address, size_t bytes, bool write, const Moment& now, bool pending = false);
bool in_shared(const void* pointer, size_t bytes);
bool misaligned(const void* pointer, uintptr_t bytes = 16);  // a fault, then

}  // namespace dipengine::emulator
