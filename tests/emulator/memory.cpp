// Global and shared memory: what every access is checked against, and the functions of platform/cuda/copy.h.
#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <memory>

#include "platform/cuda/copy.h"
#include "running.h"

namespace dipengine::emulator {
namespace {

constexpr size_t kMemoryAlign = 256;  // as cudaMalloc gives it

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

std::map<const char*, int> complaints;     // of a launch, by kind
std::map<const uint32_t*, Known> tickets;  // of a launch: what is known to whoever takes one

void complain(const char* wrong, const char* where, size_t offset, const Moment& now) {
  if (wrong != nullptr && ++complaints[wrong] <= 3) {
    fault("thread %d of block (%lld, %lld, %lld) %s (%s memory, byte %zu)", now.thread, static_cast<long long>(block_id[0]),
          static_cast<long long>(block_id[1]), static_cast<long long>(block_id[2]), wrong, where, offset);
  }
}

// Whether it is part of a program or library, as a kernel's constants are; its params lie on a thread's stack.
bool constant(uintptr_t address) {
  static std::map<uintptr_t, bool> pages;
  const auto [page, is_new] = pages.try_emplace(address >> 12, false);
  Dl_info about;
  if (is_new) page->second = dladdr(reinterpret_cast<const void*>(address), &about) != 0;
  return page->second;
}

void check_access(const void* pointer, size_t bytes, bool write, const Moment& now) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (stacks().holds(address)) return;
  const uintptr_t start = reinterpret_cast<uintptr_t>(shared_storage.data());
  if (address - start < shared_storage.size()) return check_shared(static_cast<const unsigned char*>(pointer), bytes, write, now);
  Region* region = region_of(address);
  if (region == nullptr) {
    if (address - reinterpret_cast<uintptr_t>(body) < sizeof(*body)) return;  // the call of the kernel
    if (!write && constant(address)) return;
    complain(write ? "writes outside of every buffer" : "reads outside of every buffer", "the host's", address, now);
    abandon();  // before it does: this program lives there
  }
  (write ? counted.written : counted.read) += static_cast<int64_t>(bytes);
  if (!me().behind_launches) complain("does not wait for the launches before", "global", address - region->begin, now);
  if (the_settings.sampled) return;
  const size_t offset = address - region->begin;
  if (address < region->begin || offset + bytes > region->bytes) {
    return complain(write ? "writes outside of a buffer" : "reads outside of a buffer", "global", offset, now);
  }
  complain(write ? region->cells.write(offset, bytes, now, launch_number, false)
                 : region->cells.read(offset, bytes, now, launch_number, false),
           "global", offset, now);
}

}  // namespace

void begin_checks(int64_t blocks) {
  complaints.clear();
  known.assign(static_cast<size_t>(blocks), 0);
  tickets.clear();
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

void check_shared(const unsigned char* address, size_t bytes, bool write, const Moment& now, bool pending) {
  const size_t offset = static_cast<size_t>(address - shared);
  if (address < shared || offset + bytes > grid.shared) {
    return complain(write ? "writes outside of its shared memory" : "reads outside of its shared memory", "shared", offset, now);
  }
  complain(write ? shared_cells.write(offset, bytes, now, launch_number, pending)
                 : shared_cells.read(offset, bytes, now, launch_number, true),
           "shared", offset, now);
}

void access(const void* pointer, size_t bytes, bool write) {
  if (current >= 0) check_access(pointer, bytes, write, me().now);
}

bool misaligned(const void* pointer, uintptr_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes == 0) return false;
  fault("thread %d gives an address of a %zu-byte access that is no multiple of %zu", current, bytes, bytes);
  return true;
}

// Of an aligned value, of which structs of 16 bytes are aligned as their members.
void aligned_access(const void* pointer, size_t bytes, bool write) {
  if (current >= 0 && !misaligned(pointer, bytes < 8 ? bytes : 8)) access(pointer, bytes, write);
}

bool in_shared(const void* pointer, size_t bytes) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(shared);
  return offset <= grid.shared && bytes <= grid.shared - offset;
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

bool holds(const void* pointer) {
  const Region* region = region_of(reinterpret_cast<uintptr_t>(pointer));
  return region != nullptr && reinterpret_cast<uintptr_t>(pointer) - region->begin < region->bytes;
}

bool Memory::intact() const {
  const unsigned char* all = storage_.get();
  const unsigned char* end = all + bytes_ + 2 * kRedzone + kMemoryAlign;
  return std::all_of(all, static_cast<const unsigned char*>(data_), [](unsigned char b) { return b == 0xff; }) &&
         std::all_of(static_cast<const unsigned char*>(data_) + bytes_, end, [](unsigned char b) { return b == 0xff; });
}


}  // namespace dipengine::emulator

namespace dipengine::cuda {

using namespace emulator;

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
Bytes16 load16_global(const void* from) { return load16(from); }
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
void copy_async16(void* to, const void* from, bool there) {
  alignas(16) static const unsigned char zeros[16] = {};
  copy_async16(to, there ? from : zeros);
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

}  // namespace dipengine::cuda

// ---- what the compiler calls before every access of a kernel's code -------------------------------------------------

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
#define DIPENGINE_HOOKS(bytes)                                                                             \
  void __tsan_read##bytes(void* address) { dipengine::emulator::aligned_access(address, bytes, false); }   \
  void __tsan_write##bytes(void* address) { dipengine::emulator::aligned_access(address, bytes, true); }   \
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

// And where a calculation with signed numbers (-fsanitize=signed-integer-overflow) has left its range.
struct Place {  // how what the compiler tells of it begins
  const char* file;
  uint32_t line, column;
};
#define DIPENGINE_OVERFLOW(name, ...)                                                                            \
  void __ubsan_handle_##name##_overflow(Place* place, ##__VA_ARGS__) {                                           \
    dipengine::emulator::fault("thread %d: a number of %s:%u is out of its type's range", dipengine::emulator::current, \
                               dipengine::emulator::name_of(place->file), place->line);                          \
  }
DIPENGINE_OVERFLOW(add, void*, void*)
DIPENGINE_OVERFLOW(sub, void*, void*)
DIPENGINE_OVERFLOW(mul, void*, void*)
DIPENGINE_OVERFLOW(negate, void*)
DIPENGINE_OVERFLOW(divrem, void*, void*)

}  // extern "C"
