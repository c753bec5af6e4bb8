// Runs the scenarios ("test_adam.cpp/adam_of_one_fit") and tests ("fit_...", "golden_...") whose names begin with one of the
// arguments, on the GPU; without arguments all. A line for each; exit status 1 when one fails, 2 where there is no device.
//
//   dipengine_silicon_tests [--list] [--here] [BEGINNING ...]
//
// They run in a process of their own, and behind one that takes it along (a kernel's fault leaves a process without its device)
// or that does not end within DIPENGINE_SILICON_SECONDS (60), another goes on with the next. --here: in this process, for a checker.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <utility>

#include "device.h"
#include "dipengine/dipengine.h"
#include "platform/cuda/device.h"
#include "scenarios.h"

namespace {

struct Named {
  std::string name;
  std::function<bool()> passes;
};

constexpr int kNoDevice = 2, kDeviceFailed = 3;  // exit statuses
constexpr int kMostLost = 12;                    // processes, behind which no other is tried

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
    const std::string name = file.substr(file.rfind('/') + 1) + "/" + scenario.name;
    all.push_back({name, scenario.right});
    if (name.find("/conv") == std::string::npos) continue;
    all.push_back({name + "_in_tiles_of_large_images", [right = scenario.right] {
                     const int before = std::exchange(dipengine::cuda::few_blocks(), 0);
                     const bool passed = right();
                     dipengine::cuda::few_blocks() = before;
                     return passed;
                   }});
  }
  for (const check::Test& test : check::tests()) {
    // What the emulator itself can do is no matter of a device's.
    bool of_the_emulator = false;
    for (const char* kind : {"emulator_", "mutation_", "scenarios_"}) of_the_emulator = of_the_emulator || begins(test.name, kind);
    if (!of_the_emulator) all.push_back({test.name, [&test] { return passes(test); }});
  }
  return all;
}

void say_verdict(const Named& named, bool passed) { std::printf("%s %s\n", passed ? "passed" : "FAILED", named.name.c_str()); }

// Scenarios read what a launch has written as soon as it returns; fits wait for what they read.
bool reads_at_once(const Named& named) { return !begins(named.name, "fit_"); }

bool has_device() {
  int32_t devices = 0;
  if (dipengine_cuda_device_count(&devices) == DIPENGINE_OK) return true;
  std::printf("%s\n", dipengine_last_error());
  return false;
}

int run_here(const std::vector<Named>& chosen) {
  for (const Named& named : chosen) {
    if (reads_at_once(named)) setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  }
  if (!has_device()) return kNoDevice;
  int failed = 0;
  for (const Named& named : chosen) {
    const bool passed = named.passes();
    say_verdict(named, passed);
    failed += passed ? 0 : 1;
  }
  std::printf("%zu tests, %d failed\n", chosen.size(), failed);
  return failed == 0 && !chosen.empty() ? 0 : 1;
}

// ---- in processes of their own --------------------------------------------------------------------------------------

// A process that runs tests [first, last); of each it tells 's' before and 'p' or 'f' behind it.
struct Child {
  pid_t process;
  int told;
};

[[noreturn]] void be_child(const std::vector<Named>& chosen, size_t first, size_t last, bool blocking, int tell) {
  if (blocking) setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  const auto say = [tell](char what) {
    if (write(tell, &what, 1) != 1) _exit(1);  // nobody waits for it any more
  };
  int status = has_device() ? 0 : kNoDevice;
  for (size_t i = first; i < last && status == 0; ++i) {
    say('s');
    const bool right = chosen[i].passes(), works = dipengine::silicon::device_works();
    say_verdict(chosen[i], right && works);
    say(right && works ? 'p' : 'f');
    status = works ? 0 : kDeviceFailed;
  }
  std::fflush(stdout);
  _exit(status);
}

Child start(const std::vector<Named>& chosen, size_t first, size_t last, bool blocking) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(stdout);
  const pid_t process = fork();  // before anything of CUDA has been called here
  if (process < 0) std::abort();
  if (process == 0) {
    close(ends[0]);
    be_child(chosen, first, last, blocking, ends[1]);
  }
  close(ends[1]);
  return {process, ends[0]};
}

// What became of a stretch of tests.
struct Stretch {
  size_t next;      // the first that has not begun
  int failed;       // of those that ended
  bool lost;        // the one before `next` took its process along
  bool no_device;
};

Stretch follow(const Child& child, size_t first, int seconds) {
  Stretch s{first, 0, false, false};
  bool late = false;
  pollfd waited{child.told, POLLIN, 0};
  char what;
  for (;;) {
    if (poll(&waited, 1, 1000 * seconds) == 0) {
      late = true;
      kill(child.process, SIGKILL);
      break;
    }
    if (read(child.told, &what, 1) != 1) break;
    if (what == 's') ++s.next;
    s.lost = what == 's';
    s.failed += what == 'f' ? 1 : 0;
  }
  close(child.told);
  int status = 0;
  waitpid(child.process, &status, 0);
  s.no_device = WIFEXITED(status) && WEXITSTATUS(status) == kNoDevice && s.next == first;
  if (s.lost && late) {
    std::printf("    did not end within %d s\n", seconds);
  } else if (s.lost && WIFSIGNALED(status)) {
    std::printf("    ended its process by signal %d (%s)\n", WTERMSIG(status), strsignal(WTERMSIG(status)));
  } else if (s.lost) {
    std::printf("    ended its process with status %d\n", WEXITSTATUS(status));
  }
  return s;
}

// A fit replays a graph, whose errors name no kernel: launch by launch they do.
void name_the_kernel(const Named& named, int seconds) {
  if (reads_at_once(named)) return;
  setenv("DIPENGINE_CUDA_GRAPHS", "0", 1);
  const Named again{"    launch by launch: " + named.name, named.passes};
  (void)follow(start({again}, 0, 1, true), 0, seconds);
  unsetenv("DIPENGINE_CUDA_GRAPHS");
}

int run_in_processes(const std::vector<Named>& chosen) {
  const char* const given = std::getenv("DIPENGINE_SILICON_SECONDS");
  const int seconds = given == nullptr ? 60 : std::atoi(given);
  bool blocking = false;
  for (const Named& named : chosen) blocking = blocking || reads_at_once(named);
  int failed = 0, lost = 0;
  size_t next = 0;
  while (next < chosen.size() && lost < kMostLost) {
    const Stretch s = follow(start(chosen, next, chosen.size(), blocking), next, seconds);
    if (s.no_device) return kNoDevice;
    if (s.next == next) {
      std::printf("No test could be begun.\n");
      return kDeviceFailed;
    }
    next = s.next;
    failed += s.failed;
    if (!s.lost) continue;
    ++failed;
    ++lost;
    name_the_kernel(chosen[next - 1], seconds);
    std::printf("FAILED %s\n", chosen[next - 1].name.c_str());
  }
  if (next < chosen.size()) std::printf("%zu tests were not tried\n", chosen.size() - next);
  std::printf("%zu tests, %d failed\n", next, failed);
  return failed == 0 && !chosen.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what is said before a crash is said
  bool list = false, here = false;
  std::vector<const char*> wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    list = list || word == "--list";
    here = here || word == "--here";
    if (word != "--list" && word != "--here") wanted.push_back(argv[i]);
  }
  std::vector<Named> chosen;
  for (const Named& named : everything()) {
    bool is = wanted.empty();
    for (const char* beginning : wanted) is = is || begins(named.name, beginning);
    if (is) chosen.push_back(named);
  }
  if (list) {
    for (const Named& named : chosen) std::printf("%s\n", named.name.c_str());
    return 0;
  }
  return here ? run_here(chosen) : run_in_processes(chosen);
}
