// What an array is found to hold, against a plain loop.
#include <cmath>

#include "fit/census_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

bool census_case(int64_t count) {
  const float kinds[] = {0.0f, 1.0f, -0.0f, 0.5f, std::nextafter(1.0f, 2.0f), 1e-40f, NAN, INFINITY, -INFINITY, -1.0f, 3e38f};
  std::vector<float> values;
  double finite = 0, zeros = 0, ones = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = kinds[static_cast<size_t>(i * 7 % 11)];
    values.push_back(value);
    finite += std::isfinite(value);
    zeros += value == 0.0f;
    ones += value == 1.0f;
  }
  Array<float> there(values);
  Array<Census> found(kCensusBlocks);
  if (launch_census(there.data(), count, found.data(), nullptr) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  Census all{};
  for (int i = 0; i < kCensusBlocks; ++i) {
    all.finite += found[i].finite;
    all.zeros += found[i].zeros;
    all.ones += found[i].ones;
  }
  if (all.finite == finite && all.zeros == zeros && all.ones == ones && found.intact()) return true;
  return emulator::wrong("of %d values %g finite, %g zeros, %g ones", static_cast<int>(count), all.finite, all.zeros, all.ones);
}

}  // namespace

SCENARIO(census_of_arrays) { return census_case(1) && census_case(255) && census_case(9001); }
