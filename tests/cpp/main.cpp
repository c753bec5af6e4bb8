// Runs every test, or those whose name contains the argument; exit status 1 when one fails.
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
  const char* part = argc > 1 ? argv[1] : "";
  int run = 0, failed = 0;
  for (const check::Test& test : check::tests()) {
    if (std::strstr(test.name, part) == nullptr) continue;
    const int before = check::failures();
    test.body();
    ++run;
    if (check::failures() != before) {
      ++failed;
      std::printf("FAILED %s\n", test.name);
    }
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed == 0 && run > 0 ? 0 : 1;
}
