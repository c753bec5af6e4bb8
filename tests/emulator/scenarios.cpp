#include "scenarios.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdlib>

namespace dipengine::emulator {

namespace {
bool quiet = false;
}

std::vector<Scenario>& scenarios() {
  static std::vector<Scenario> all;
  return all;
}

bool wrong(const char* format, ...) {
  if (quiet) return false;
  std::printf("    ");
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  return false;
}

namespace {

// EMULATOR_SCENARIO in the environment: only scenarios whose name holds it. EMULATOR_SHARD=i/n: of all, every n-th from i.
bool chosen(const Scenario& scenario) {
  const char *part = std::getenv("EMULATOR_SCENARIO"), *shard = std::getenv("EMULATOR_SHARD");
  if (part != nullptr && std::strstr(scenario.name, part) == nullptr) return false;
  int64_t own = 0, count = 1;
  if (shard == nullptr || std::sscanf(shard, "%" SCNd64 "/%" SCNd64, &own, &count) != 2) return true;
  return (&scenario - scenarios().data()) % count == own;
}

bool clean(const Scenario& scenario) {
  clear_faults();
  return scenario.right() && faults().empty();
}

}  // namespace

// Bytes of shared memory of a block on sm_86, sm_80 and sm_90: tiles are chosen by them.
constexpr size_t kLimits[] = {99 * 1024, 163 * 1024, 227 * 1024};

TEST(scenarios_are_right_in_every_order_of_execution) {
  for (const Scenario& scenario : scenarios()) {
    if (!chosen(scenario)) continue;
    // In the tiles of small images, and in those of large ones.
    for (uint64_t seed : {1, 2, 3, 4, 5, 6}) {
      if (seed > 3 && std::strstr(scenario.name, "conv") == nullptr) continue;
      settings().seed = seed;
      settings().few_blocks = seed > 3 ? 0 : Settings{}.few_blocks;
      settings().shared_limit = kLimits[(seed - 1) % 3];
      if (clean(scenario)) continue;
      std::printf("  scenario %s, seed %llu\n", scenario.name, static_cast<unsigned long long>(seed));
      for (const std::string& fault : faults()) std::printf("    %s\n", fault.c_str());
      check::report(__FILE__, __LINE__, scenario.name);
      break;
    }
  }
  // By their distance from a function that a list of symbols has, too.
  for (const auto& [kernel, shared] : launched()) {
    const intptr_t distance = reinterpret_cast<intptr_t>(kernel) - reinterpret_cast<intptr_t>(&dipengine_last_error);
    std::printf("launched %" PRIdPTR " %zu\n", distance, shared);
  }
  settings() = Settings{};
}

TEST(mutation_every_deleted_barrier_and_wait_is_noticed) {
  quiet = true;
  int deletions = 0;
  std::vector<Site> every;
  for (const Scenario& scenario : scenarios()) {
    if (!chosen(scenario)) continue;
    clear_sites();
    settings() = Settings{};
    clean(scenario);
    std::vector<std::pair<Site, int>> met;  // and the setting in which it was
    for (const Site& site : sites()) met.push_back({site, settings().few_blocks});
    if (std::strstr(scenario.name, "conv") != nullptr) {  // in the tiles of large images, too
      clear_sites();
      settings().few_blocks = 0;
      clean(scenario);
      for (const Site& site : sites()) met.push_back({site, 0});
    }
    for (const auto& [site, few] : met) {
      settings() = Settings{};
      settings().few_blocks = few;
      settings().deleted = site;
      bool noticed = false;
      for (uint64_t seed = 1; seed <= 3 && !noticed; ++seed) {
        settings().seed = seed;
        noticed = !clean(scenario);
      }
      ++deletions;
      if (std::find(every.begin(), every.end(), site) == every.end()) every.push_back(site);
      if (noticed) continue;
      std::printf("  scenario %s does not notice that %s:%d is deleted\n", scenario.name, site.file.c_str(), site.line);
      check::report(__FILE__, __LINE__, "deletion noticed");
    }
  }
  std::printf("%d deletions of %zu barriers and waits\n", deletions, every.size());
  for (const Site& site : every) std::printf("deleted %s:%d\n", site.file.c_str(), site.line);
  settings() = Settings{};
  clear_faults();
  quiet = false;
}

}  // namespace dipengine::emulator
