// Recorded launches: what the emulator notices of their branches; what an iteration of the paper's network is made of at 256 x 256,
// launches by kind, and how many have to follow each other.
#include <algorithm>
#include <map>

#include "emulator.h"
#include "fit/fit.h"
#include "fit/iteration_cuda.h"
#include "fit_problems.h"
#include "platform/cuda/device.h"
#include "platform/cuda/stream.h"
#include "platform/error.h"

using namespace dipengine;

namespace {

// Of the longest row of launches, each of which has to come behind the one before.
size_t longest_chain(const emulator::Sequence& launches) {
  std::vector<size_t> length(launches.size(), 1);
  for (size_t i = 0; i < launches.size(); ++i) {
    for (size_t before : launches[i].after) length[i] = std::max(length[i], length[before] + 1);
  }
  return *std::max_element(length.begin(), length.end());
}

// Zeros into an image on one stream, and then into it or another on a second one. The first fault, or what recording them says.
std::string branches(bool behind, bool joined, bool same_image) {
  void *stream = nullptr, *other = nullptr, *sequence = nullptr;
  CHECK(cuda::open_stream(&stream) == DIPENGINE_OK && cuda::open_stream(&other) == DIPENGINE_OK);
  emulator::Array<float> first(12), second(12);
  emulator::Array<int64_t> sizes(std::vector<int64_t>{1, 2});
  emulator::Array<uint8_t> active(std::vector<uint8_t>{1});
  const auto launches = [&]() -> dipengine_status {
    if (!behind) DIPENGINE_TRY(cuda::wait_for(other, stream));
    DIPENGINE_TRY(launch_margin({first.data(), 12, 3, 4, sizes.data(), active.data()}, 1, stream));
    if (behind) DIPENGINE_TRY(cuda::wait_for(other, stream));
    DIPENGINE_TRY(launch_margin({(same_image ? first : second).data(), 12, 3, 4, sizes.data(), active.data()}, 1, other));
    return joined ? cuda::wait_for(stream, other) : DIPENGINE_OK;
  };
  if (cuda::record(stream, launches, &sequence) != DIPENGINE_OK) return dipengine_last_error();
  (void)cuda::replay(sequence, stream);
  cuda::forget(sequence);
  const std::string found = emulator::faults().empty() ? "" : emulator::faults().front();
  emulator::clear_faults();
  return found;
}

}  // namespace

TEST(emulator_notices_what_recorded_branches_leave_out) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    emulator::settings().seed = seed;
    for (const bool behind : {false, true}) {
      CHECK(branches(behind, true, false).empty());
      CHECK(branches(behind, false, false).find("nothing waits for") != std::string::npos);
    }
    CHECK(branches(true, true, true).empty());
    CHECK(branches(false, true, true).find("need not come before") != std::string::npos);
  }
  emulator::settings() = emulator::Settings{};
}

TEST(plans_an_iteration_of_the_papers_network_is_so_many_launches) {
  emulator::settings().sampled = true;  // whose memory is not watched; nothing runs
  dipengine_fit_params params;
  dipengine_fit_default_params(&params);
  params.height = params.width = 256;
  params.dtype = DIPENGINE_BFLOAT16;
  params.device = DIPENGINE_DEVICE_CUDA;
  std::unique_ptr<Fit> fit;
  CHECK(Fit::make(params, true, &fit) == DIPENGINE_OK);
  std::map<std::string, int> kinds;
  for (const emulator::Recorded& launch : emulator::last_recorded()) ++kinds[launch.name];
  for (const auto& [name, count] : kinds) std::printf("    %3d %s\n", count, name.c_str());
  const size_t launches = emulator::last_recorded().size(), chain = longest_chain(emulator::last_recorded());
  std::printf("  %zu launches, %zu of them one behind the other; %.3f GB", launches, chain, static_cast<double>(fit->arena_bytes()) / 1e9);
  params.slots = 16;
  std::unique_ptr<Fit> cohort;
  CHECK(Fit::make(params, false, &cohort) == DIPENGINE_OK);
  std::printf(", of 16 slots %.3f GB each\n", static_cast<double>(cohort->arena_bytes()) / 16e9);
  CHECK(launches == 145 && chain == 66);
  fit.reset();
  emulator::settings() = emulator::Settings{};
}
