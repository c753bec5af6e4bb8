// Runs every test, or those whose name contains the argument; exit status 1 when one fails. TESTS_SHARD=I/N in the environment runs
// every N-th of them, from the I-th on: N processes share the work.
#include <cstdlib>
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
  const char* part = argc > 1 ? argv[1] : "";
  int shard = 0, shards = 1;
  const char* share = std::getenv("TESTS_SHARD");
  if (share != nullptr && (std::sscanf(share, "%d/%d", &shard, &shards) != 2 || shards < 1 || shard < 0 || shard >= shards)) {
    std::printf("TESTS_SHARD is %s; give I/N with I from 0 to N - 1\n", share);
    return 1;
  }
  int run = 0, failed = 0, matching = 0;
  for (const check::Test& test : check::tests()) {
    if (std::strstr(test.name, part) == nullptr || matching++ % shards != shard) continue;
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
