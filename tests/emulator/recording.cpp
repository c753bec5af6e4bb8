// Sequences of launches: kept as a graph keeps them, run in any order that it allows.
#include <algorithm>
#include <map>

#include "running.h"

namespace dipengine::emulator {
namespace {

void* recorded_stream = nullptr;
Sequence* recorded = nullptr;
Sequence the_last_recorded;
std::map<void*, std::vector<size_t>> recorded_behind;  // by stream: what its next launch has to come behind

}  // namespace

bool recording() { return recorded != nullptr; }

dipengine_status keep(const char* name, void* stream, const std::function<dipengine_status()>& run, bool* kept) {
  if (recorded == nullptr) return DIPENGINE_OK;
  const auto behind = recorded_behind.find(stream);
  DIPENGINE_REQUIRE(behind != recorded_behind.end(), "%s is launched on another stream than those that are recorded.", name);
  recorded->push_back({name, run, behind->second});
  behind->second = {recorded->size() - 1};
  *kept = true;
  return DIPENGINE_OK;
}

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

dipengine_status put_behind(void* stream, void* before) {
  if (recorded == nullptr) return DIPENGINE_OK;
  const auto from = recorded_behind.find(before);
  const bool inside = from != recorded_behind.end();
  DIPENGINE_REQUIRE(inside || recorded_behind.count(stream) == 0, "What is recorded waits for a stream outside of it.");
  if (!inside) return DIPENGINE_OK;
  const std::vector<size_t> launches = from->second;
  std::vector<size_t>& own = recorded_behind[stream];
  own.insert(own.end(), launches.begin(), launches.end());
  return DIPENGINE_OK;
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

}  // namespace dipengine::emulator
