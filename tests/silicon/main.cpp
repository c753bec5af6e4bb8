// Runs the scenarios ("test_adam.cpp/adam_of_one_fit") and tests ("fit_...", "golden_...") whose names begin with one of the
// arguments, on the GPU; without arguments all. A line for each; exit status 1 when one fails, 3 where the device gives up.
//
//   dipengine_silicon_tests [--list] [BEGINNING ...]
#include <cstdlib>

#include "dipengine/dipengine.h"
#include "scenarios.h"

namespace {

struct Named {
  std::string name;
  std::function<bool()> passes;
};

bool begins(const std::string& name, const char* with) { return name.rfind(with, 0) == 0; }

bool passes(const check::Test& test) {
  const int before = check::failures();
  test.body();
  return check::failures() == before;
}

std::vector<Named> everything() {
  std::vector<Named> all;
  for (const auto& scenario : dipengine::emulator::scenarios()) {
    const std::string file = scenario.file;
    all.push_back({file.substr(file.rfind('/') + 1) + "/" + scenario.name, scenario.right});
  }
  for (const check::Test& test : check::tests()) {
    // What the emulator itself can do is no matter of a device's.
    bool of_the_emulator = false;
    for (const char* kind : {"emulator_", "mutation_", "scenarios_"}) of_the_emulator = of_the_emulator || begins(test.name, kind);
    if (!of_the_emulator) all.push_back({test.name, [&test] { return passes(test); }});
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  const bool list = argc > 1 && std::string(argv[1]) == "--list";
  const std::vector<const char*> wanted(argv + (list ? 2 : 1), argv + argc);
  std::vector<Named> chosen;
  bool only_fits = true;
  for (const Named& named : everything()) {
    bool is = wanted.empty();
    for (const char* beginning : wanted) is = is || begins(named.name, beginning);
    if (!is) continue;
    chosen.push_back(named);
    only_fits = only_fits && begins(named.name, "fit_");
  }
  if (list) {
    for (const Named& named : chosen) std::printf("%s\n", named.name.c_str());
    return 0;
  }
  // Scenarios read what a launch has written as soon as it returns; fits wait for what they read.
  if (!only_fits) setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  int32_t devices = 0;
  if (dipengine_cuda_device_count(&devices) != DIPENGINE_OK) {
    std::printf("%s\n", dipengine_last_error());
    return 2;
  }
  int failed = 0;
  for (const Named& named : chosen) {
    const bool passed = named.passes();
    failed += passed ? 0 : 1;
    std::printf("%s %s\n", passed ? "passed" : "FAILED", named.name.c_str());
    std::fflush(stdout);
  }
  std::printf("%zu tests, %d failed\n", chosen.size(), failed);
  return failed == 0 && !chosen.empty() ? 0 : 1;
}
