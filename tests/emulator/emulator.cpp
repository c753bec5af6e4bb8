// Launches, and what tests set and see.
#include "emulator.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>

#include "platform/cuda/device.h"
#include "running.h"

namespace dipengine::emulator {
namespace {

std::vector<std::string> the_faults;
std::vector<Site> the_sites;
std::vector<void*> the_streams;
std::vector<Launch> the_launches;
std::map<const void*, size_t> the_launched;

}  // namespace

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

bool deleted(const char* file, int line) {
  const char* name = name_of(file);
  for (const Site& site : the_sites) {
    if (site.line == line && site.file == name) return the_settings.deleted == site;
  }
  the_sites.push_back({name, line});
  return the_settings.deleted == the_sites.back();
}

Settings& settings() { return the_settings; }
std::vector<Launch>& launches() { return the_launches; }
const std::map<const void*, size_t>& launched() { return the_launched; }
const std::vector<std::string>& faults() { return the_faults; }
void clear_faults() { the_faults.clear(); }
void clear_sites() { the_sites.clear(); }

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

}  // namespace dipengine::emulator

namespace dipengine::cuda {

using namespace emulator;

dipengine_status shared_memory_limit(size_t* bytes) {
  *bytes = the_settings.shared_limit;
  return DIPENGINE_OK;
}

int& few_blocks() { return the_settings.few_blocks; }

dipengine_status emulate(const char* name, const void* kernel, const Grid& given, const std::function<void()>& thread,
                         void* stream) {
  bool kept = false;
  DIPENGINE_TRY(keep(name, stream, [=] { return emulate(name, kernel, given, thread, stream); }, &kept));
  if (kept) return DIPENGINE_OK;
  kernel_name = name;
  size_t& most = the_launched[kernel];
  most = std::max(most, given.shared);
  the_streams.push_back(stream);
  DIPENGINE_REQUIRE(given.threads % kLanes == 0 && given.threads >= kLanes && given.threads <= 1024, "%s: %d threads a block.",
                    name, given.threads);
  DIPENGINE_REQUIRE(given.shared <= the_settings.shared_limit, "%s wants %zu bytes of shared memory; there are %zu.", name,
                    given.shared, the_settings.shared_limit);
  DIPENGINE_REQUIRE(given.x >= 1 && given.x <= 0x7fffffff && given.y >= 1 && given.y <= 65535 && given.z >= 1 && given.z <= 65535,
                    "%s: a grid of %lld x %lld x %lld blocks.", name, static_cast<long long>(given.x),
                    static_cast<long long>(given.y), static_cast<long long>(given.z));
  const size_t before = the_faults.size();
  begin_checks(given.x * given.y * given.z);
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
