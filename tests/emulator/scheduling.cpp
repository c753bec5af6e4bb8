// The threads of a block, each a fiber: who runs next, and who waits for whom.
#include "platform/cuda/thread.h"
#include "running.h"

namespace dipengine::emulator {
namespace {

Context host;

Warp& my_warp() { return block.warps[static_cast<size_t>(current / kLanes)]; }

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
  if (!t.behind_launches) fault("thread %d ends without having waited for the launches before", current);
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

}  // namespace

void abandon() {
  aborted = true;
  const int thread = current;
  current = -1;
  switch_fiber(block.threads[static_cast<size_t>(thread)].context, host);
  std::abort();
}

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
    t.at_barrier = t.done = t.behind_launches = false;
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

}  // namespace dipengine::emulator

namespace dipengine::cuda {

using namespace emulator;

int thread_index() { return current; }
int block_threads() { return grid.threads; }
int block_x() { return static_cast<int>(block_id[0]); }
int block_y() { return static_cast<int>(block_id[1]); }
int block_z() { return static_cast<int>(block_id[2]); }
int grid_x() { return static_cast<int>(grid.x); }
unsigned char* shared_memory() { return shared; }

void wait_for_launches(const char* file, int line) {
  if (deleted(file, line)) return;
  if (me().behind_launches) fault("thread %d waits for the launches before twice", current);
  me().behind_launches = true;
}
void let_next_begin() {
  if (!me().behind_launches) fault("thread %d lets the next launch begin before it has waited for those before", current);
}

void sync_threads(const char* file, int line) { barrier(file, line); }
void sync_warp(const char* file, int line) {
  if (!deleted(file, line)) together(Operation::sync_warp, nullptr, file, line);
}
bool last_block(uint32_t* ticket, int count, const char* file, int line) { return last_block_to_come(ticket, count, file, line); }

}  // namespace dipengine::cuda
