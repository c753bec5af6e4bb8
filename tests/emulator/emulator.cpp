#include "emulator.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <map>
#include <memory>

#include "fiber.h"
#include "math/bf16.h"
#include "memory_checks.h"
#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"
#include "platform/cuda/tensor_core.h"

namespace dipengine::emulator {
namespace {

constexpr size_t kRedzone = 4096;
constexpr size_t kMemoryAlign = 256;  // as cudaMalloc gives it
constexpr int kLanes = 32;

// ---- what tests set and see -----------------------------------------------------------------------------------------

Settings the_settings;
std::vector<std::string> the_faults;
std::vector<Site> the_sites;
std::vector<void*> the_streams;
void* recorded_stream = nullptr;
Sequence* recorded = nullptr;
Sequence the_last_recorded;
std::map<void*, std::vector<size_t>> recorded_behind;  // by stream: what its next launch has to come behind
const char* kernel_name = "";
std::vector<Launch> the_launches;
Launch counted;  // of the blocks that ran

void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
void fault(const char* format, ...) {
  if (the_faults.size() >= 40) return;
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  the_faults.push_back(std::string(kernel_name) + ": " + text);
}

const char* name_of(const char* file) {
  const char* slash = std::strrchr(file, '/');
  return slash == nullptr ? file : slash + 1;
}

// Notes where a barrier or wait is; true where it is to do nothing.
bool deleted(const char* file, int line) {
  const char* name = name_of(file);
  for (const Site& site : the_sites) {
    if (site.line == line && site.file == name) return the_settings.deleted == site;
  }
  the_sites.push_back({name, line});
  return the_settings.deleted == the_sites.back();
}

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

// ---- a block --------------------------------------------------------------------------------------------------------

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

Stacks& stacks() {
  static Stacks all;
  return all;
}

Random rng;
Block block;
Context host;
int current = -1;  // thread that runs; -1: the host's code
bool aborted;
cuda::Grid grid;
int64_t block_id[3];
uint32_t launch_number = 0;
const std::function<void()>* body;
std::vector<unsigned char> shared_storage;
unsigned char* shared = nullptr;
Cells shared_cells;

Thread& me() { return block.threads[static_cast<size_t>(current)]; }
Warp& my_warp() { return block.warps[static_cast<size_t>(current / kLanes)]; }

// Gives up the block: no thread of it runs on.
[[noreturn]] void abandon() {
  aborted = true;
  const int thread = current;
  current = -1;
  switch_fiber(block.threads[static_cast<size_t>(thread)].context, host);
  std::abort();
}

void report_stuck() {
  for (const Thread& t : block.threads) {
    if (t.done) continue;
    fault("thread %d waits at %s:%d for threads that never come (%d of %zu have ended)", t.now.thread, name_of(t.waits_file),
          t.waits_line, block.done, block.threads.size());
    return;
  }
}

// Chooses a thread that can run: of the same warp, mostly.
int choose(int warp) {
  const uint32_t count = static_cast<uint32_t>(block.warps.size());
  if (warp < 0 || block.warps[static_cast<size_t>(warp)].ready == 0 || rng.below(12) == 0) {
    const uint32_t first = rng.below(count);
    warp = -1;
    for (uint32_t i = 0; i < count && warp < 0; ++i) {
      if (block.warps[(first + i) % count].ready != 0) warp = static_cast<int>((first + i) % count);
    }
    if (warp < 0) return -1;
  }
  const uint32_t ready = block.warps[static_cast<size_t>(warp)].ready, start = rng.below(kLanes);
  const uint32_t rotated = ready >> start | (start == 0 ? 0 : ready << (kLanes - start));
  return warp * kLanes + static_cast<int>((start + static_cast<uint32_t>(__builtin_ctz(rotated))) % kLanes);
}

// The running thread cannot go on, or has ended.
void run_others() {
  const int from = current;
  const int next = choose(from / kLanes);
  if (next < 0) {
    if (block.done != static_cast<int>(block.threads.size())) {
      report_stuck();
      abandon();
    }
    current = -1;
    switch_fiber(block.threads[static_cast<size_t>(from)].context, host);
    return;
  }
  if (next == from) return;
  current = next;
  switch_fiber(block.threads[static_cast<size_t>(from)].context, block.threads[static_cast<size_t>(next)].context);
}

void set_ready(int thread, bool ready) {
  uint32_t& mask = block.warps[static_cast<size_t>(thread / kLanes)].ready;
  const uint32_t bit = 1u << (thread % kLanes);
  mask = ready ? mask | bit : mask & ~bit;
}

void thread_main() {
  (*body)();
  Thread& t = me();
  if (!t.copies.empty()) fault("thread %d ends with an asynchronous copy under way", current);
  t.done = true;
  ++block.done;
  set_ready(current, false);
  run_others();
  std::abort();
}

void barrier(const char* file, int line) {
  if (deleted(file, line)) return;
  if (block.at_barrier > 0 && (block.barrier_line != line || block.barrier_file != file)) {
    fault("thread %d comes to the barrier at %s:%d while others wait at %s:%d", current, name_of(file), line,
          name_of(block.barrier_file), block.barrier_line);
    abandon();
  }
  block.barrier_file = file;
  block.barrier_line = line;
  Thread& t = me();
  t.waits_file = file;
  t.waits_line = line;
  if (++block.at_barrier < static_cast<int>(block.threads.size())) {
    t.at_barrier = true;
    set_ready(current, false);
    run_others();
    return;
  }
  block.at_barrier = 0;
  for (Thread& other : block.threads) {
    ++other.now.barriers;
    if (!other.at_barrier) continue;
    other.at_barrier = false;
    set_ready(other.now.thread, true);
  }
}

std::map<const uint32_t*, Known> tickets;  // of a launch: what is known to whoever takes one
void take_ticket(uint32_t* ticket, int count, bool tells);

// Every thread of the block is told what the first to get here finds.
bool last_block_to_come(uint32_t* ticket, int count, const char* file, int line) {
  if (the_settings.sampled) return false;  // the others may not have run
  if (deleted(file, line)) {
    if (block.ticket_taken == 0) take_ticket(ticket, count, false);
    block.ticket_taken = UINT32_MAX;
    return block.ticket_last;
  }
  barrier(file, line);
  if (block.ticket_taken != me().now.barriers) take_ticket(ticket, count, true);
  block.ticket_taken = me().now.barriers;
  return block.ticket_last;
}

void perform(Operation operation, const std::array<void*, kLanes>& arguments, int warp);

// An operation of a whole warp; done by the last lane that comes, for all.
void together(Operation operation, void* arguments, const char* file, int line) {
  Warp& w = my_warp();
  if (w.arrived > 0 && (w.operation != operation || w.line != line || w.file != file)) {
    fault("lane %d of warp %d comes to %s:%d while others of the warp wait at %s:%d", current % kLanes, current / kLanes,
          name_of(file), line, name_of(w.file), w.line);
    abandon();
  }
  w.operation = operation;
  w.file = file;
  w.line = line;
  w.arguments[static_cast<size_t>(current % kLanes)] = arguments;
  Thread& t = me();
  t.waits_file = file;
  t.waits_line = line;
  if (++w.arrived < kLanes) {
    set_ready(current, false);
    run_others();
    return;
  }
  w.arrived = 0;
  perform(operation, w.arguments, current / kLanes);
  w.ready = 0xffffffffu;
  if (rng.below(4) == 0) run_others();
}

// ---- checks of memory -----------------------------------------------------------------------------------------------

struct Region {
  uintptr_t begin;
  size_t bytes;
  Cells cells;
};
std::vector<std::unique_ptr<Region>> regions;
Region* last_region = nullptr;

Region* region_of(uintptr_t address) {
  if (last_region != nullptr && address - (last_region->begin - kRedzone) < last_region->bytes + 2 * kRedzone) return last_region;
  for (const auto& region : regions) {
    if (address - (region->begin - kRedzone) < region->bytes + 2 * kRedzone) return last_region = region.get();
  }
  return nullptr;
}

std::map<const char*, int> complaints;  // of a launch, by kind

void complain(const char* wrong, const char* where, size_t offset, const Moment& now) {
  if (wrong != nullptr && ++complaints[wrong] <= 3) {
    fault("thread %d of block (%lld, %lld, %lld) %s (%s memory, byte %zu)", now.thread, static_cast<long long>(block_id[0]),
          static_cast<long long>(block_id[1]), static_cast<long long>(block_id[2]), wrong, where, offset);
  }
}

void check_shared(const unsigned char* address, size_t bytes, bool write, const Moment& now, bool pending = false) {
  const size_t offset = static_cast<size_t>(address - shared);
  if (address < shared || offset + bytes > grid.shared) {
    return complain(write ? "writes outside of its shared memory" : "reads outside of its shared memory", "shared", offset, now);
  }
  complain(write ? shared_cells.write(offset, bytes, now, launch_number, pending)
                 : shared_cells.read(offset, bytes, now, launch_number, true),
           "shared", offset, now);
}

void check_access(const void* pointer, size_t bytes, bool write, const Moment& now) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (stacks().holds(address)) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(shared_storage.data());
  if (address - start < shared_storage.size()) return check_shared(static_cast<const unsigned char*>(pointer), bytes, write, now);
  Region* region = region_of(address);
  if (region == nullptr) {  // params and constants are read from the host's memory
    if (write) fault("thread %d writes outside of every buffer", now.thread);
    return;
  }
  (write ? counted.written : counted.read) += static_cast<int64_t>(bytes);
  if (the_settings.sampled) return;
  const size_t offset = address - region->begin;
  if (address < region->begin || offset + bytes > region->bytes) {
    return complain(write ? "writes outside of a buffer" : "reads outside of a buffer", "global", offset, now);
  }
  complain(write ? region->cells.write(offset, bytes, now, launch_number, false)
                 : region->cells.read(offset, bytes, now, launch_number, false),
           "global", offset, now);
}

void take_ticket(uint32_t* ticket, int count, bool tells) {
  Region* region = region_of(reinterpret_cast<uintptr_t>(ticket));
  if (region == nullptr || reinterpret_cast<uintptr_t>(ticket) - region->begin + sizeof(*ticket) > region->bytes) {
    fault("thread %d takes a ticket outside of every buffer", current);
    return;
  }
  const size_t offset = reinterpret_cast<uintptr_t>(ticket) - region->begin;
  complain(region->cells.take(offset, launch_number), "global", offset, me().now);
  if (*ticket >= static_cast<uint32_t>(count)) fault("a ticket of %d blocks stands at %u", count, *ticket);
  block.ticket_last = *ticket + 1 >= static_cast<uint32_t>(count);
  *ticket = block.ticket_last ? 0 : *ticket + 1;
  if (!tells) return;
  Known& told = tickets[ticket];
  told.resize(known.size());
  const auto learn = [](Known& to, const Known& from) {
    for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
  };
  learn(told, known);
  told[static_cast<size_t>(me().now.block)] = me().now.barriers;
  if (block.ticket_last) learn(known, told);
}

void access(const void* pointer, size_t bytes, bool write) {
  if (current >= 0) check_access(pointer, bytes, write, me().now);
}

bool misaligned(const void* pointer, uintptr_t bytes = 16) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes == 0) return false;
  fault("thread %d gives an address of a %zu-byte access that is no multiple of %zu", current, bytes, bytes);
  return true;
}

bool in_shared(const void* pointer, size_t bytes) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(shared);
  return offset <= grid.shared && bytes <= grid.shared - offset;
}

// ---- operations of a warp -------------------------------------------------------------------------------------------

struct Shuffle {
  double value;
  int mask;
  double* result;
};

struct Mma {
  float* c;
  uint32_t a[4], b[2];
};

struct Load {
  const unsigned char* row;
  uint32_t* out;
  bool transposed;
};

float half_of(uint32_t word, int which) { return float_from_bf16(static_cast<uint16_t>(word >> (16 * which))); }

// Towards zero, as tensor cores do.
double truncated(double sum) {
  uint64_t bits;
  std::memcpy(&bits, &sum, sizeof(bits));
  bits &= ~((uint64_t{1} << 29) - 1);
  std::memcpy(&sum, &bits, sizeof(sum));
  return sum;
}

template <int depth>
void multiply(const std::array<void*, kLanes>& arguments) {
  ++counted.products;
  constexpr bool halves = depth == 16;
  double a[16][depth], b[depth][8], c[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Mma& m = *static_cast<const Mma*>(arguments[static_cast<size_t>(lane)]);
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i % 2), second = i / 2;
      if constexpr (halves) {
        for (int e = 0; e < 2; ++e) a[row][2 * member + e + 8 * second] = half_of(m.a[i], e);
      } else {
        a[row][member + 4 * second] = float_from_bits(m.a[i] & 0xffffe000u);
      }
      c[group + 8 * (i / 2)][2 * member + i % 2] = m.c[i];
    }
    for (int i = 0; i < 2; ++i) {
      if constexpr (halves) {
        for (int e = 0; e < 2; ++e) b[2 * member + e + 8 * i][group] = half_of(m.b[i], e);
      } else {
        b[member + 4 * i][group] = float_from_bits(m.b[i] & 0xffffe000u);
      }
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int first = 0; first < depth; first += 8) {
      for (int k = first; k < first + 8; ++k) {
        for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
      }
      for (int column = 0; column < 8; ++column) c[row][column] = truncated(c[row][column]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* out = static_cast<const Mma*>(arguments[static_cast<size_t>(lane)])->c;
    for (int i = 0; i < 4; ++i) out[i] = static_cast<float>(c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2]);
  }
}

void load(const std::array<void*, kLanes>& arguments, int warp) {
  uint16_t rows[kLanes][8] = {};
  for (int lane = 0; lane < kLanes; ++lane) {
    const Load& l = *static_cast<const Load*>(arguments[static_cast<size_t>(lane)]);
    if (misaligned(l.row)) continue;
    // The whole warp reads: two lanes stand for it.
    for (int reader : {lane, (lane + 1) % kLanes}) {
      check_shared(l.row, 16, false, block.threads[static_cast<size_t>(warp * kLanes + reader)].now);
    }
    if (in_shared(l.row, 16)) std::memcpy(rows[lane], l.row, 16);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    const Load& l = *static_cast<const Load*>(arguments[static_cast<size_t>(lane)]);
    const int group = lane / 4, member = lane % 4;
    for (int m = 0; m < 4; ++m) {
      const uint32_t low = l.transposed ? rows[8 * m + 2 * member][group] : rows[8 * m + group][2 * member];
      const uint32_t high = l.transposed ? rows[8 * m + 2 * member + 1][group] : rows[8 * m + group][2 * member + 1];
      l.out[m] = low | high << 16;
    }
  }
}

void perform(Operation operation, const std::array<void*, kLanes>& arguments, int warp) {
  switch (operation) {
    case Operation::sync_warp:
      for (int lane = 0; lane < kLanes; ++lane) ++block.threads[static_cast<size_t>(warp * kLanes + lane)].now.warp_syncs;
      return;
    case Operation::shuffle:
      for (int lane = 0; lane < kLanes; ++lane) {
        const Shuffle& s = *static_cast<const Shuffle*>(arguments[static_cast<size_t>(lane)]);
        *s.result = static_cast<const Shuffle*>(arguments[static_cast<size_t>((lane ^ s.mask) % kLanes)])->value;
      }
      return;
    case Operation::mma_bf16:
      return multiply<16>(arguments);
    case Operation::mma_tf32:
      return multiply<8>(arguments);
    case Operation::load_matrices:
      return load(arguments, warp);
    case Operation::none:
      return;
  }
}

// ---- a launch -------------------------------------------------------------------------------------------------------

void run_block(int64_t index) {
  block_id[0] = index % grid.x;
  block_id[1] = index / grid.x % grid.y;
  block_id[2] = index / grid.x / grid.y;
  block.threads.resize(static_cast<size_t>(grid.threads));
  block.warps.assign(static_cast<size_t>(grid.threads / kLanes), Warp{});
  block.at_barrier = block.done = 0;
  block.ticket_taken = 0;
  known.assign(known.size(), 0);
  for (int i = 0; i < grid.threads; ++i) {
    Thread& t = block.threads[static_cast<size_t>(i)];
    t.now = {static_cast<int32_t>(index), i, 0, 0};
    t.at_barrier = t.done = false;
    t.open_group = 0;
    t.copies.clear();
    make_fiber(t.context, stacks().of(i), Stacks::kEach, thread_main);
    set_ready(i, true);
  }
  std::memset(shared, 0xff, grid.shared);
  shared_cells.resize(grid.shared);
  current = choose(-1);
  switch_fiber(host, block.threads[static_cast<size_t>(current)].context);
  current = -1;
}

}  // namespace

Settings& settings() { return the_settings; }
std::vector<Launch>& launches() { return the_launches; }
const std::vector<std::string>& faults() { return the_faults; }
void clear_faults() { the_faults.clear(); }
void clear_sites() { the_sites.clear(); }

const Sequence& last_recorded() { return the_last_recorded; }

void begin_recording(void* stream, Sequence* sequence) {
  recorded_stream = stream;
  recorded = sequence;
  recorded_behind = {{stream, {}}};
}

dipengine_status end_recording() {
  Sequence& all = *recorded;
  recorded = nullptr;
  the_last_recorded = all;
  std::vector<bool> joined(all.size(), false);
  for (size_t last : recorded_behind[recorded_stream]) joined[last] = true;
  for (size_t i = all.size(); i-- > 0;) {
    if (!joined[i]) {
      return fail(DIPENGINE_INVALID_ARGUMENT, "%s is on a stream that nothing waits for at the end of what is recorded.",
                  all[i].name.c_str());
    }
    for (size_t before : all[i].after) joined[before] = true;
  }
  return DIPENGINE_OK;
}

void put_behind(void* stream, void* before) {
  const auto from = recorded_behind.find(before);
  if (recorded == nullptr || from == recorded_behind.end()) return;
  const std::vector<size_t> launches = from->second;
  std::vector<size_t>& own = recorded_behind[stream];
  own.insert(own.end(), launches.begin(), launches.end());
}

dipengine_status run_in_some_order(const Sequence& sequence) {
  const size_t count = sequence.size();
  std::vector<std::vector<bool>> behind(count, std::vector<bool>(count, false));  // [launch, one that it comes behind]
  for (size_t i = 0; i < count; ++i) {
    for (size_t before : sequence[i].after) {
      behind[i][before] = true;
      for (size_t j = 0; j < before; ++j) behind[i][j] = behind[i][j] || behind[before][j];
    }
  }
  Random order;
  order.seed(the_settings.seed + 77 + launch_number);
  std::vector<bool> done(count, false);
  std::vector<size_t> ran;
  first_of_run = launch_number + 1;
  dipengine_status status = DIPENGINE_OK;
  while (ran.size() < count && status == DIPENGINE_OK) {
    std::vector<size_t> ready;
    for (size_t i = 0; i < count; ++i) {
      const auto& after = sequence[i].after;
      if (!done[i] && std::all_of(after.begin(), after.end(), [&](size_t b) { return done[b]; })) ready.push_back(i);
    }
    const size_t next = ready[order.below(static_cast<uint32_t>(ready.size()))];
    unordered.clear();
    for (size_t before : ran) unordered.push_back(!behind[next][before]);
    status = sequence[next].run();
    done[next] = true;
    ran.push_back(next);
  }
  first_of_run = UINT32_MAX;
  return status;
}

std::vector<void*> launched_on() {
  std::vector<void*> streams;
  streams.swap(the_streams);
  return streams;
}

std::vector<Site> sites() {
  std::vector<Site> sorted = the_sites;
  std::sort(sorted.begin(), sorted.end(),
            [](const Site& a, const Site& b) { return a.file != b.file ? a.file < b.file : a.line < b.line; });
  return sorted;
}

Memory::Memory(size_t bytes)
    : bytes_(bytes), storage_(static_cast<unsigned char*>(std::calloc(bytes + 2 * kRedzone + kMemoryAlign, 1)), std::free) {
  if (storage_ == nullptr) std::abort();
  if (!the_settings.sampled) std::memset(storage_.get(), 0xff, bytes + 2 * kRedzone + kMemoryAlign);
  const uintptr_t start = reinterpret_cast<uintptr_t>(storage_.get()) + kRedzone;
  data_ = storage_.get() + kRedzone + (kMemoryAlign - start % kMemoryAlign) % kMemoryAlign;
  regions.push_back(std::make_unique<Region>());
  regions.back()->begin = reinterpret_cast<uintptr_t>(data_);
  regions.back()->bytes = bytes;
  if (!the_settings.sampled) regions.back()->cells.resize(bytes);
}

Memory::~Memory() {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data_);
  last_region = nullptr;
  regions.erase(std::find_if(regions.begin(), regions.end(), [&](const auto& region) { return region->begin == begin; }));
}

bool Memory::intact() const {
  const unsigned char* all = storage_.get();
  const unsigned char* end = all + bytes_ + 2 * kRedzone + kMemoryAlign;
  return std::all_of(all, static_cast<const unsigned char*>(data_), [](unsigned char b) { return b == 0xff; }) &&
         std::all_of(static_cast<const unsigned char*>(data_) + bytes_, end, [](unsigned char b) { return b == 0xff; });
}

}  // namespace dipengine::emulator

// ---- what kernels call ----------------------------------------------------------------------------------------------

namespace dipengine::cuda {

using namespace emulator;

int thread_index() { return current; }
int block_threads() { return grid.threads; }
int block_x() { return static_cast<int>(block_id[0]); }
int block_y() { return static_cast<int>(block_id[1]); }
int block_z() { return static_cast<int>(block_id[2]); }
int grid_x() { return static_cast<int>(grid.x); }
unsigned char* shared_memory() { return shared; }

void sync_threads(const char* file, int line) { barrier(file, line); }
void sync_warp(const char* file, int line) {
  if (!deleted(file, line)) together(Operation::sync_warp, nullptr, file, line);
}

bool last_block(uint32_t* ticket, int count, const char* file, int line) { return last_block_to_come(ticket, count, file, line); }

double shuffle_xor(double value, int mask, const char* file, int line) {
  double result = 0;
  Shuffle arguments{value, mask, &result};
  together(Operation::shuffle, &arguments, file, line);
  return result;
}
float shuffle_xor(float value, int mask, const char* file, int line) {
  return static_cast<float>(shuffle_xor(static_cast<double>(value), mask, file, line));
}

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma arguments{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  together(Operation::mma_bf16, &arguments, "mma_bf16", 0);
}
uint32_t tf32_from_float(float x) {
  const uint32_t bits = float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;  // the NaN that conversions give
  return (bits & 0x7fffffffu) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}
void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Mma arguments{c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  together(Operation::mma_tf32, &arguments, "mma_tf32", 0);
}
void load_matrices(uint32_t (&out)[4], const void* row) {
  Load arguments{static_cast<const unsigned char*>(row), out, false};
  together(Operation::load_matrices, &arguments, "load_matrices", 0);
}
void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  Load arguments{static_cast<const unsigned char*>(row), out, true};
  together(Operation::load_matrices, &arguments, "load_matrices_transposed", 0);
}

Bytes8 load8(const void* from) {
  Bytes8 value{};
  if (misaligned(from, 8)) return value;
  access(from, 8, false);
  std::memcpy(&value, from, 8);
  return value;
}
Bytes16 load16(const void* from) {
  Bytes16 value{};
  if (misaligned(from)) return value;
  access(from, 16, false);
  std::memcpy(&value, from, 16);
  return value;
}
// That nobody else writes, the check of accesses finds.
Bytes16 load16_constant(const void* from) { return load16(from); }
void store16(void* to, Bytes16 value) {
  if (misaligned(to)) return;
  access(to, 16, true);
  std::memcpy(to, &value, 16);
}

void copy_async16(void* to, const void* from) {
  if (misaligned(to) || misaligned(from)) return;
  if (!in_shared(to, 16)) return fault("thread %d begins a copy to outside of its shared memory", current);
  access(from, 16, false);
  Thread& t = me();
  check_shared(static_cast<unsigned char*>(to), 16, true, t.now, true);
  AsyncCopy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), rng.below(2) == 0, t.open_group};
  if (copy.landed) std::memcpy(to, from, 16);
  t.copies.push_back(copy);
}
void copy_commit() { ++me().open_group; }
void copy_wait_groups(int groups, const char* file, int line) {
  if (deleted(file, line)) return;
  Thread& t = me();
  const auto waited = [&](const AsyncCopy& copy) { return copy.group + static_cast<uint64_t>(groups) < t.open_group; };
  for (const AsyncCopy& copy : t.copies) {
    if (!waited(copy)) continue;
    if (!copy.landed) std::memcpy(copy.to, copy.from, 16);
    shared_cells.land(static_cast<size_t>(copy.to - shared), 16, t.now);
  }
  t.copies.erase(std::remove_if(t.copies.begin(), t.copies.end(), waited), t.copies.end());
}

dipengine_status shared_memory_limit(size_t* bytes) {
  *bytes = the_settings.shared_limit;
  return DIPENGINE_OK;
}

dipengine_status emulate(const char* name, const void* kernel, const Grid& given, const std::function<void()>& thread,
                         void* stream) {
  const auto kept = recorded == nullptr ? recorded_behind.end() : recorded_behind.find(stream);
  if (kept != recorded_behind.end()) {
    recorded->push_back({name, [=] { return emulate(name, kernel, given, thread, stream); }, kept->second});
    kept->second = {recorded->size() - 1};
    return DIPENGINE_OK;
  }
  kernel_name = name;
  the_streams.push_back(stream);
  DIPENGINE_REQUIRE(given.threads % kLanes == 0 && given.threads >= kLanes && given.threads <= 1024, "%s: %d threads a block.",
                    name, given.threads);
  DIPENGINE_REQUIRE(given.shared <= the_settings.shared_limit, "%s wants %zu bytes of shared memory; there are %zu.", name,
                    given.shared, the_settings.shared_limit);
  DIPENGINE_REQUIRE(given.x >= 1 && given.x <= 0x7fffffff && given.y >= 1 && given.y <= 65535 && given.z >= 1 && given.z <= 65535,
                    "%s: a grid of %lld x %lld x %lld blocks.", name, static_cast<long long>(given.x),
                    static_cast<long long>(given.y), static_cast<long long>(given.z));
  const size_t before = the_faults.size();
  complaints.clear();
  grid = given;
  body = &thread;
  ++launch_number;
  rng.seed(the_settings.seed + launch_number);
  shared_storage.assign(grid.shared + 2 * kRedzone + 16, 0xff);
  const uintptr_t start = reinterpret_cast<uintptr_t>(shared_storage.data()) + kRedzone;
  shared = shared_storage.data() + kRedzone + (16 - start % 16) % 16;
  aborted = false;
  const int64_t blocks = grid.x * grid.y * grid.z;
  std::vector<bool> runs(static_cast<size_t>(grid.x), !the_settings.sampled || blocks <= 64);
  // By the golden ratio: spread over the image, and over the columns of its tiles.
  for (int i = 0; i < 16; ++i) {
    const double place = std::fmod((i + 0.5) * 0.6180339887498949, 1.0);
    runs[static_cast<size_t>(place * static_cast<double>(grid.x))] = true;
  }
  std::vector<int64_t> order;
  for (int64_t i = 0; i < blocks; ++i) {
    if (runs[static_cast<size_t>(i % grid.x)]) order.push_back(i);
  }
  const int64_t sampled = static_cast<int64_t>(order.size());
  counted = Launch{};
  known.assign(static_cast<size_t>(blocks), 0);
  tickets.clear();
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(static_cast<uint32_t>(i))]);
  for (int64_t index : order) {
    run_block(index);
    if (aborted) break;
  }
  shared_storage.clear();
  if (the_settings.sampled) {
    const auto whole = [&](int64_t count) { return count * blocks / sampled; };
    the_launches.push_back({kernel, grid.x, grid.y, grid.z, grid.threads, grid.shared, whole(counted.products), whole(counted.read),
                            whole(counted.written)});
  }
  return the_faults.size() == before ? DIPENGINE_OK : fail(DIPENGINE_INVALID_ARGUMENT, "%s", the_faults.back().c_str());
}

}  // namespace dipengine::cuda

// ---- what the compiler calls before every access of a kernel's code -------------------------------------------------

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define DIPENGINE_HOOKS(bytes)                                                                             \
  void __tsan_read##bytes(void* address) { dipengine::emulator::access(address, bytes, false); }           \
  void __tsan_write##bytes(void* address) { dipengine::emulator::access(address, bytes, true); }           \
  void __tsan_volatile_read##bytes(void* address) { dipengine::emulator::access(address, bytes, false); }  \
  void __tsan_volatile_write##bytes(void* address) { dipengine::emulator::access(address, bytes, true); }  \
  void __tsan_unaligned_read##bytes(void* address) { dipengine::emulator::access(address, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* address) { dipengine::emulator::access(address, bytes, true); }
DIPENGINE_HOOKS(1)
DIPENGINE_HOOKS(2)
DIPENGINE_HOOKS(4)
DIPENGINE_HOOKS(8)
DIPENGINE_HOOKS(16)
void __tsan_read_range(void* address, unsigned long bytes) { dipengine::emulator::access(address, bytes, false); }
void __tsan_write_range(void* address, unsigned long bytes) { dipengine::emulator::access(address, bytes, true); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"
