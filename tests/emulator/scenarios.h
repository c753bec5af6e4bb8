// A scenario runs kernels on small data and says whether the result is right. Each is a test in itself, in several orders
// of execution; and then, once for every barrier and wait that it meets, with that one deleted: it must be noticed.
#pragma once

#include "check.h"
#include "emulator.h"

namespace dipengine::emulator {

struct Scenario {
  const char* name;
  bool (*right)();
  const char* file;
};

std::vector<Scenario>& scenarios();

struct ScenarioRegistration {
  ScenarioRegistration(const char* name, bool (*right)(), const char* file) { scenarios().push_back({name, right, file}); }
};

// False, and in a test without deletions a line that says why.
bool wrong(const char* format, ...) __attribute__((format(printf, 1, 2)));

template <typename T>
bool same_bits(const char* what, const std::vector<T>& got, const std::vector<T>& expected) {
  if (got.size() == expected.size() && std::memcmp(got.data(), expected.data(), got.size() * sizeof(T)) == 0) return true;
  for (size_t i = 0; i < got.size() && i < expected.size(); ++i) {
    if (std::memcmp(&got[i], &expected[i], sizeof(T)) != 0) {
      return wrong("%s[%zu] is %.9g where %.9g is expected", what, i, static_cast<double>(got[i]),
                   static_cast<double>(expected[i]));
    }
  }
  return wrong("%s has %zu elements where %zu are expected", what, got.size(), expected.size());
}

}  // namespace dipengine::emulator

#define SCENARIO(name)                                                                                          \
  static bool scenario_##name();                                                                                \
  static const dipengine::emulator::ScenarioRegistration registration_##name(#name, scenario_##name, __FILE__); \
  static bool scenario_##name()
