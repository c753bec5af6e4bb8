// Runs every test, or those whose name contains the argument; exit status 1 when one fails. Several processes with the same folder as
// TESTS_CLAIMS in their environment share the work: a test is run by whoever makes its folder there.
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "check.h"

int main(int argc, char** argv) {
  const char* part = argc > 1 ? argv[1] : "";
  const char* claims = std::getenv("TESTS_CLAIMS");
  int run = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    if (std::strstr(test.name, part) == nullptr) continue;
    if (claims != nullptr && !std::filesystem::create_directory(std::filesystem::path(claims) / test.name)) continue;
    const int before = check::failures();
    test.body();
    ++run;
    if (check::failures() != before) {
      ++failed;
      std::printf("FAILED %s\n", test.name);
    }
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed == 0 && (run > 0 || claims != nullptr) ? 0 : 1;
}
