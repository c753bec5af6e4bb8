// A test framework of 60 lines: TEST(name) { CHECK(...); }, and what several tests share.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "dipengine/dipengine.h"

namespace check {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

inline void report(const char* file, int line, const char* what) {
  ++failures();
  std::printf("  %s:%d: %s   (last error: %s)\n", file, line, what, dipengine_last_error());
}

// Calls body(threads' pool, name) on every instruction set that this CPU has and on 1, 2, 3 and 7 threads.
inline void on_every_set_and_pool(const std::function<void(dipengine_pool*, const std::string&)>& body) {
  for (const char* isa : {"portable", "avx2", "avx512", "avx512bf16", "avx512fp16"}) {
    dipengine_set_cpu_isa(isa);
    if (std::string(dipengine_cpu_isa()) != isa) continue;  // this CPU has it not
    for (int threads : {1, 2, 3, 7}) {
      dipengine_pool* pool = nullptr;
      dipengine_pool_create(threads, &pool);
      body(pool, std::string(isa) + ", " + std::to_string(threads) + " threads");
      dipengine_pool_destroy(pool);
    }
  }
  dipengine_set_cpu_isa(nullptr);
}

// A small deterministic generator of test data in [-1, 1), independent of the library's own.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  double next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<double>(state_ >> 11) * 0x1p-52 - 1.0;
  }
  template <typename T>
  std::vector<T> vector(int64_t count, double scale = 1) {
    std::vector<T> values(static_cast<size_t>(count));
    for (T& value : values) value = static_cast<T>(scale * next());
    return values;
  }

 private:
  uint64_t state_;
};

}  // namespace check

#define TEST(name)                                                  \
  static void name();                                               \
  static const check::Registration registration_##name(#name, name); \
  static void name()
#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) check::report(__FILE__, __LINE__, #condition);       \
  } while (false)
#define CHECK_NEAR(a, b, tolerance) CHECK(std::fabs(static_cast<double>(a) - static_cast<double>(b)) <= (tolerance))
