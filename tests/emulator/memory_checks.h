// Who touched which two bytes of shared or global memory last, and whether a barrier lies between them and the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace dipengine::emulator {

// A moment in a thread's life. Barriers of the block order all its threads, those of a warp its lanes.
struct Moment {
  int32_t block, thread;
  uint32_t barriers, warp_syncs;
};

// Of other blocks, by their index: how many of its barriers a block had passed when the one that runs learnt, by a ticket
// (cuda::last_block), that it had.
using Known = std::vector<uint32_t>;
inline Known known;

// Whether all that happened at `before` comes before what happens at `now`.
inline bool ordered(const Moment& before, const Moment& now) {
  if (before.block != now.block) return before.barriers < known[static_cast<size_t>(before.block)];
  if (before.thread == now.thread || before.barriers < now.barriers) return true;
  return before.thread / 32 == now.thread / 32 && before.warp_syncs < now.warp_syncs;
}

// While a recorded sequence is run, of its launches from number `first_of_run` on: which of those that ran need not have, before the
// one that runs now does.
inline uint32_t first_of_run = UINT32_MAX;
inline std::vector<bool> unordered;

struct Cell {
  uint32_t launch = 0;  // that the rest is about
  bool written = false;
  bool pending = false;  // an asynchronous copy into it is under way
  enum Readers : uint8_t { none, one, one_warp, one_block, several_blocks } readers = none;
  Moment writer{}, reader{};  // of several blocks' readers: the first and the last block, and the most barriers that one had passed
};

class Cells {
 public:
  void resize(size_t bytes) { cells_.assign((bytes + 1) / 2, Cell{}); }
  size_t size() const { return cells_.size(); }

  // nullptr, or what is wrong with it.
  const char* read(size_t offset, size_t bytes, const Moment& now, uint32_t launch, bool needs_writer) {
    const char* wrong = nullptr;
    for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) {
      if (cells_[i].written && chance(cells_[i], launch)) wrong = "reads what a launch writes that need not come before";
      Cell& c = fresh(i, launch);
      if (c.pending)
        wrong = "reads what an asynchronous copy may not have brought yet";
      else if (c.written && !ordered(c.writer, now))
        wrong = "reads what another thread writes, with no barrier between";
      else if (needs_writer && !c.written)
        wrong = "reads what nobody wrote";
      note_reader(c, now);
    }
    return wrong;
  }

  const char* write(size_t offset, size_t bytes, const Moment& now, uint32_t launch, bool pending) {
    const char* wrong = nullptr;
    for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) {
      if (chance(cells_[i], launch)) wrong = "writes where a launch was that need not come before";
      Cell& c = fresh(i, launch);
      if (c.pending)
        wrong = "writes where an asynchronous copy is under way";
      else if (c.written && !ordered(c.writer, now))
        wrong = "writes what another thread writes, with no barrier between";
      else if (!readers_ordered(c, now))
        wrong = "writes what another thread reads, with no barrier between";
      c.written = true;
      c.pending = pending;
      c.writer = now;
      c.readers = Cell::none;
    }
    return wrong;
  }

  // A ticket, which blocks of a launch take one after the other.
  const char* take(size_t offset, uint32_t launch) {
    const char* wrong = nullptr;
    for (size_t i = offset / 2; i <= offset / 2 + 1; ++i) {
      if (chance(cells_[i], launch)) wrong = "takes a ticket where a launch was that need not come before";
      fresh(i, launch);
    }
    return wrong;
  }

  // An asynchronous copy that `now` began and waited for.
  void land(size_t offset, size_t bytes, const Moment& now) {
    for (size_t i = offset / 2; i <= (offset + bytes - 1) / 2; ++i) {
      cells_[i].pending = false;
      cells_[i].writer = now;
    }
  }

 private:
  // Whether the launch that touched it last did so before this one by chance.
  static bool chance(const Cell& c, uint32_t launch) {
    return c.launch != launch && c.launch >= first_of_run && unordered[c.launch - first_of_run];
  }

  Cell& fresh(size_t i, uint32_t launch) {
    Cell& c = cells_[i];
    if (c.launch != launch) {
      c = Cell{};
      c.launch = launch;
    }
    return c;
  }

  static void note_reader(Cell& c, const Moment& now) {
    if (c.readers == Cell::none || (c.readers == Cell::one && ordered(c.reader, now)) || readers_ordered(c, now)) {
      c.readers = Cell::one;
    } else if (c.readers == Cell::several_blocks || c.reader.block != now.block) {
      const int32_t last = c.readers == Cell::several_blocks ? c.reader.thread : c.reader.block;
      c.reader = {std::min(c.reader.block, now.block), std::max(last, now.block), std::max(c.reader.barriers, now.barriers), 0};
      c.readers = Cell::several_blocks;
      return;
    } else if (c.readers == Cell::one_block || c.reader.thread / 32 != now.thread / 32) {
      c.readers = Cell::one_block;
    } else {
      c.readers = Cell::one_warp;
    }
    c.reader = now;
  }

  static bool readers_ordered(const Cell& c, const Moment& now) {
    switch (c.readers) {
      case Cell::none:
        return true;
      case Cell::one:
        return ordered(c.reader, now);
      case Cell::one_warp:
        return c.reader.block == now.block && (c.reader.barriers < now.barriers ||
                                               (c.reader.thread / 32 == now.thread / 32 && c.reader.warp_syncs < now.warp_syncs));
      case Cell::one_block:
        return c.reader.block == now.block && c.reader.barriers < now.barriers;
      case Cell::several_blocks:  // and all that lie between
        for (int32_t block = c.reader.block; block <= c.reader.thread; ++block) {
          if (c.reader.barriers >= (block == now.block ? now.barriers : known[static_cast<size_t>(block)])) return false;
        }
        return true;
    }
    return false;
  }

  std::vector<Cell> cells_;
};

}  // namespace dipengine::emulator
