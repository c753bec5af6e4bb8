// Versions, statuses, struct sizes, instruction sets and the thread pool.
#include <atomic>
#include <cstring>
#include <thread>

#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "ops/adam/adam.h"
#include "ops/masked_mse/masked_mse.h"
#include "ops/philox/philox.h"
#include "platform/thread_pool.h"

TEST(abi_version_is_that_of_the_header) {
  CHECK(dipengine_abi_version() == DIPENGINE_ABI_VERSION);
  CHECK(std::strlen(dipengine_version_string()) >= 5);
  CHECK(std::string(dipengine_status_string(DIPENGINE_OK)) == "ok");
  CHECK(dipengine_status_string(static_cast<dipengine_status>(7)) != nullptr);
}

TEST(build_info_names_the_compiler_and_the_portable_set) {
  dipengine_build_info info{};
  CHECK(dipengine_get_build_info(&info) == DIPENGINE_STRUCT_SIZE);
  info.struct_size = sizeof(info);
  CHECK(dipengine_get_build_info(&info) == DIPENGINE_OK);
  CHECK(std::strlen(info.compiler) > 0);
  CHECK(std::string(info.instruction_sets).find("portable") == 0);
}

template <typename Params>
static void refuses_other_struct_sizes(dipengine_status (*op)(const Params*)) {
  CHECK(op(nullptr) == DIPENGINE_INVALID_ARGUMENT);
  for (size_t size : {size_t{0}, sizeof(Params) - 8, sizeof(Params) + 8}) {
    Params params{};
    params.struct_size = size;
    CHECK(op(&params) == DIPENGINE_STRUCT_SIZE);
    CHECK(std::string(dipengine_last_error()).find("struct_size") != std::string::npos);
  }
}

TEST(every_op_refuses_params_of_another_size) {
  refuses_other_struct_sizes(dipengine_philox_uniform);
  refuses_other_struct_sizes(dipengine_philox_normal);
  refuses_other_struct_sizes(dipengine_philox_bytes);
  refuses_other_struct_sizes(dipengine_perturb);
  refuses_other_struct_sizes(dipengine_masked_mse);
  refuses_other_struct_sizes(dipengine_adam);
}

TEST(instruction_set_can_be_capped_and_unknown_words_are_refused) {
  CHECK(dipengine_set_cpu_isa("portable") == DIPENGINE_OK);
  CHECK(std::string(dipengine_cpu_isa()) == "portable");
  CHECK(dipengine_set_cpu_isa("sse9") == DIPENGINE_INVALID_ARGUMENT);
  CHECK(std::string(dipengine_cpu_isa()) == "portable");
  CHECK(dipengine_set_cpu_isa(nullptr) == DIPENGINE_OK);
}

TEST(last_error_belongs_to_its_thread) {
  dipengine_set_cpu_isa("nonsense");
  const std::string mine = dipengine_last_error();
  std::string other = "unset";
  std::thread([&] { other = dipengine_last_error(); }).join();
  CHECK(mine.find("nonsense") != std::string::npos);
  CHECK(other.empty());
}

TEST(pool_refuses_impossible_sizes) {
  dipengine_pool* pool = nullptr;
  CHECK(dipengine_pool_create(0, &pool) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_pool_create(1025, &pool) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_pool_create(2, nullptr) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(pool == nullptr);
  CHECK(dipengine_pool_size(nullptr) == 1);
  dipengine_pool_destroy(nullptr);
}

static bool runs_each_task_once(dipengine_pool* pool, int64_t count) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
  dipengine::run_tasks(pool, count, [&](int64_t i) { seen[static_cast<size_t>(i)].fetch_add(1); });
  for (const auto& times : seen) {
    if (times.load() != 1) return false;
  }
  return true;
}

TEST(pool_runs_each_task_once_in_thousands_of_jobs) {
  for (int threads : {1, 2, 5}) {
    dipengine_pool* pool = nullptr;
    CHECK(dipengine_pool_create(threads, &pool) == DIPENGINE_OK);
    CHECK(dipengine_pool_size(pool) == threads);
    bool all = true;
    for (int job = 0; job < 2000; ++job) all = runs_each_task_once(pool, job % 17) && all;
    CHECK(all);
    dipengine_pool_destroy(pool);
  }
}

TEST(pool_wakes_workers_that_went_to_sleep) {
  dipengine_pool* pool = nullptr;
  dipengine_pool_create(2, &pool);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    std::atomic<int> arrived{0};
    // Both tasks wait for each other, so this ends only if two threads take part.
    dipengine::run_tasks(pool, 2, [&](int64_t) {
      arrived.fetch_add(1);
      while (arrived.load() < 2) std::this_thread::yield();
    });
    CHECK(arrived.load() == 2);
  }
  dipengine_pool_destroy(pool);
}

TEST(pool_serves_several_callers_and_nested_calls) {
  dipengine_pool* pool = nullptr;
  dipengine_pool_create(3, &pool);
  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 3; ++c) {
    callers.emplace_back([&] {
      for (int job = 0; job < 200; ++job) good += runs_each_task_once(pool, 9);
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(good.load() == 600);
  std::atomic<int> inner{0};
  dipengine::run_tasks(pool, 4, [&](int64_t) { dipengine::run_tasks(pool, 4, [&](int64_t) { inner.fetch_add(1); }); });
  CHECK(inner.load() == 16);
  dipengine_pool_destroy(pool);
}

#if !defined(__SANITIZE_THREAD__)  // the thread sanitizer does not follow a multi-threaded program through fork
TEST(pool_still_works_in_a_forked_child) {
  dipengine_pool* pool = nullptr;
  dipengine_pool_create(3, &pool);
  runs_each_task_once(pool, 8);
  const pid_t child = fork();
  if (child == 0) {
    const bool good = runs_each_task_once(pool, 8);
    dipengine_pool_destroy(pool);
    _exit(good ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  dipengine_pool_destroy(pool);
}
#endif
