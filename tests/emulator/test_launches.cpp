// What an iteration of the paper's network is made of, at 256 x 256: launches by kind, and how many have to follow each other.
#include <algorithm>
#include <map>

#include "emulator.h"
#include "fit/fit.h"
#include "fit_problems.h"

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

}  // namespace

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
  std::printf("  %zu launches, %zu of them one behind the other\n", launches, chain);
  CHECK(launches == 145 && chain == 67);
  fit.reset();
  emulator::settings() = emulator::Settings{};
}
